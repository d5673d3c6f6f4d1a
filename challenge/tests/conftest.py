"""A real server in its own folder, real curl to talk to it, and the demo data."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import pandas as pd
import pytest

PROJECT = Path(__file__).resolve().parents[2]
DEMO = PROJECT / "challenge" / "demo"
ENCODER = PROJECT / "challenge" / "assets" / "mini-distilbert"
PROBLEM = "application/problem+json"
# The caller's settings must not reach the tests.
for name in [name for name in os.environ if name.startswith(("CHALLENGE_", "WEB_CONCURRENCY"))]:
    del os.environ[name]


class Answer(NamedTuple):
    """What the server answered."""

    status: int
    kind: str
    body: str
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        """Parse the body."""
        return json.loads(self.body)

    def refused(self, status: int) -> str:
        """Check that this is a problem document of that status and return its detail."""
        assert (self.status, self.kind) == (status, PROBLEM), self.body
        assert self.json["status"] == status and self.json["title"]
        return str(self.json["detail"])


class Upload:
    """A request under way, sent by curl."""

    def __init__(self, url: str, *options: str, data: bytes = b"") -> None:
        written = "\n%{http_code}\n%{content_type}\n%{header_json}"
        command = ["curl", "-sS", "--noproxy", "*", "--max-time", "300", "-w", written]
        with TemporaryFile() as body:
            body.write(data)
            body.seek(0)
            self.process = subprocess.Popen(
                [*command, *options, url], stdin=body, stdout=subprocess.PIPE, stderr=subprocess.PIPE
            )

    def running(self) -> bool:
        """Return whether the answer is still to come."""
        return self.process.poll() is None

    def answer(self) -> Answer:
        """Wait for the answer."""
        output, errors = self.process.communicate()
        assert self.process.returncode == 0, errors.decode()
        told, _, headers = output.decode().rpartition("\n{")
        body, status, kind = told.rsplit("\n", 2)
        return Answer(int(status), kind, body, {name: value[-1] for name, value in json.loads("{" + headers).items()})


class Server:
    """A uvicorn in its own process; `folder` is where it runs and keeps its models."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
        # One thread: on a busy machine, several would mostly wait for one another.
        own = {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder)}
        self.env = kept | own | settings
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = str(probe.getsockname()[1])
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it accepts connections."""
        command = [sys.executable, "-m", "uvicorn", "challenge:app", "--port", self.port]
        with open(self.folder / "server.log", "ab") as log:
            self.process = subprocess.Popen(command, cwd=self.folder, env=self.env, stdout=log, stderr=log)
        deadline = time.monotonic() + 120
        with socket.socket() as probe:
            while probe.connect_ex(("127.0.0.1", int(self.port))):
                running = self.process.poll() is None and time.monotonic() < deadline
                assert running, (self.folder / "server.log").read_text()
                time.sleep(0.1)

    def stop(self) -> None:
        """Stop it, by force if it takes too long."""
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def get(self, path: str, *options: str) -> Answer:
        """GET a path, unless the options say otherwise, and wait for the answer."""
        return self.request(path, *options).answer()

    def request(self, path: str, *options: str, data: bytes = b"") -> Upload:
        """Send a request without waiting for the answer."""
        return Upload(f"http://127.0.0.1:{self.port}{path}", *options, data=data)

    def post(self, verb: str, table: bytes | str | Path) -> Upload:
        """POST a CSV to `/ratings/<verb>` without waiting for the answer."""
        data = table.read_bytes() if isinstance(table, Path) else table.encode() if isinstance(table, str) else table
        return self.request(f"/ratings/{verb}", "-F", "file=@-;filename=table.csv", data=data)

    def train(self, table: bytes | str | Path) -> Answer:
        """Train on a CSV."""
        return self.post("train", table).answer()

    def predict(self, table: bytes | str | Path) -> Answer:
        """Predict the rows of a CSV."""
        return self.post("predict", table).answer()


Start = Callable[..., Server]


@pytest.fixture(scope="session")
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Start]:
    """Start servers, each in an empty folder but for copies of the catalogue and the models, if given."""
    with ExitStack() as stack:

        def run(catalogue: Path | None = None, models: Path | None = None, **settings: str) -> Server:
            server = Server(tmp_path_factory.mktemp("server"), **settings)
            if catalogue:
                shutil.copyfile(catalogue, server.folder / "df_movies.csv")
            if models:
                shutil.copytree(models, server.folder / "models")
            stack.callback(server.stop)
            server.start()
            return server

        yield run


@pytest.fixture(scope="session")
def ratings() -> pd.DataFrame:
    """Read the demo's ratings, all cells as text."""
    return pd.read_csv(DEMO / "df_train.csv", dtype=str)


def error(answer: Answer, folder: Path) -> float:
    """Return the mean squared error of an answer to a folder's test rows."""
    assert answer.status == 200, answer.body
    truth = pd.read_csv(folder / "df_test_ratings.csv")["rating"]
    assert list(answer.json) == [str(row) for row in range(len(truth))]
    return float(((truth - list(answer.json.values())) ** 2).mean())
