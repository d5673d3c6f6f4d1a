"""Tests of init.sh and run.sh, each in a folder of its own with a stub service, stub tools or a stub Python."""

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

PROJECT = Path(__file__).resolve().parents[2]
TOOLS = Path(sys.executable).parent
BASH = shutil.which("bash") or "bash"
COMMANDS = "awk bash cat cksum cp cut df dirname grep ls ln mkdir mv readlink rm sed sh sleep tail".split()
SERVICE = '''"""A service that answers without a model."""

import json
import os
from collections.abc import Awaitable, Callable
from typing import Any

MOOD = os.environ.get("MOOD", "")
SETTINGS = {name: value for name, value in os.environ.items() if name.startswith("CHALLENGE_")}
if MOOD == "dies":
    raise SystemExit("no luck today")


async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Any]) -> None:
    """Answer a request."""
    if scope["type"] != "http":
        raise NotImplementedError
    while (await receive()).get("more_body"):
        pass
    trains, status = scope["path"] == "/ratings/train", 200
    answer: dict[str, Any] = SETTINGS if trains else {"0": 3.0, "1": float("nan") if MOOD == "diverges" else 2.0}
    if trains and MOOD == "hangs":
        await receive()
    if trains and MOOD == "vanishes":
        os._exit(3)
    if trains and MOOD == "fails":
        answer, status = {"detail": "line 2, column rating"}, 422
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
'''
TABLES = {
    "df_train.csv": "userId,movieId,rating\n1,1,3\n1,2,4\n",
    "df_test.csv": "userId,movieId\n1,1\n1,2\n",
    "df_movies.csv": "movieId\n1\n2\n",
    "df_test_ratings.csv": "\ufeffrating\r\n4\r\n1\r\n",
}
FINDINGS = {
    "flake8": ("challenge/a.py:1:1: F401 'os' imported but unused\nchallenge/a.py:2:80: E501 line too long", 1),
    "isort": ("--- a.py:before\n+++ a.py:after\n@@ -1 +1 @@\n-import os\n import abc\n+import os", 0),
    "pydocstyle": ("challenge/a.py:1 at module level:\n        D100: Missing docstring in public module", 1),
    "mypy": ("challenge/a.py:6: error: Oh  [misc]\nchallenge/a.py:6: note: see\nFound 1 error in 1 file", 1),
}
PYTHON = """#!/bin/sh
# Stands in for the Python outside and, copied, for the one inside .env.
case "$*" in
*def\\ flaw*) echo "${PYTHON_IS:-3.12.1||$0}" ;;
*version_info*) echo 3.12 ;;
*-m\\ venv*) mkdir -p .env/bin && cp "$0" .env/bin/python ;;
*-m\\ pip*)
    echo "$*" >>pip.calls
    if [ "${PIP_IS:-}" = slow ]; then echo $$ >pip.pid && exec sleep 90; fi
    echo "${PIP_IS:-}"
    test -z "${PIP_IS:-}"
    ;;
esac
"""


def write_program(path: Path, text: str) -> None:
    """Write an executable file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)


def wait_until(condition: Any) -> None:
    """Wait, for at most 30 seconds, until another process has met a condition."""
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def is_open(port: int) -> bool:
    """Return whether something listens on a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Harness:
    """A copy of run.sh beside a stub service, with the real Python and uvicorn and stubs of the other tools."""

    def __init__(self, root: Path) -> None:
        self.root = root
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        for name, text in {"challenge/__init__.py": SERVICE, "setup.cfg": (PROJECT / "setup.cfg").read_text()}.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(text, encoding="utf-8")
        (root / "challenge" / "demo").mkdir()
        for name, text in TABLES.items():
            (root / "challenge" / "demo" / name).write_text(text, encoding="utf-8", newline="")
        shutil.copy(PROJECT / "run.sh", root)
        self.use_real("python", "uvicorn")
        for tool in FINDINGS:
            self.stub(tool, "", 0)
        counts = json.dumps({"summary": {"totalCodeCount": 400}})
        write_program(root / ".env/bin/pygount", f"#!/bin/sh\nfor last; do :; done\necho '{counts}' >\"$last\"\n")
        (root / "gitconfig").write_text("[user]\nname = Ada\nemail = ada@example.com\n", encoding="utf-8")

    def use_real(self, *tools: str) -> None:
        """Use tools of the environment that runs the tests."""
        for tool in tools:
            write_program(self.root / ".env/bin" / tool, f'#!/bin/sh\nexec "{TOOLS / tool}" "$@"\n')

    def stub(self, tool: str, output: str, status: int) -> None:
        """Replace a tool by one with a fixed output and exit status."""
        write_program(self.root / ".env/bin" / tool, f'#!/bin/sh\ncat <<"END"\n{output}\nEND\nexit {status}\n')

    def start(self, **settings: str) -> subprocess.Popen[str]:
        """Start run.sh without the caller's settings."""
        others = "DATA", "ENDPOINT", "CHALLENGE_"
        env = {name: value for name, value in os.environ.items() if not name.startswith(others)}
        env |= {"GIT_CONFIG_GLOBAL": str(self.root / "gitconfig"), "CHALLENGE_ENCODER": "some/encoder"}
        env |= {"PORT": str(self.port), "no_proxy": "127.0.0.1"} | settings
        return subprocess.Popen(
            [str(self.root / "run.sh")],
            cwd=self.root.parent,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
        )

    def run(self, **settings: str) -> tuple[int, str]:
        """Finish a run, check that no server is left, and return the exit status and the output."""
        process = self.start(**settings)
        output, _ = process.communicate(timeout=60)
        assert not is_open(self.port)
        return process.returncode, output

    def result(self) -> dict[str, Any]:
        """Read result.json."""
        result: dict[str, Any] = json.loads((self.root / "result.json").read_text(encoding="utf-8"))
        return result


@pytest.fixture
def harness(tmp_path: Path) -> Harness:
    """Set up run.sh in a path with a space."""
    return Harness(tmp_path / "a root")


class Web(ThreadingHTTPServer):
    """A web server that holds data and speaks the public challenge's protocol."""

    def __init__(self, tables: dict[str, str]) -> None:
        super().__init__(("127.0.0.1", 0), Page)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.pages = {f"/data/{name}": text for name, text in tables.items()}
        self.pages["/api/train_url"] = json.dumps(f"{self.url}/data/df_train.csv")
        self.pages["/api/test_url"] = f"{self.url}/data/df_test.csv\n"
        self.pages["/api/movies_url"] = f"{self.url}/data/df_movies.csv"
        self.pages["/api/eval/"] = '{"text": "Well done, Ada"}'
        self.posted: list[tuple[str, Any]] = []


class Page(BaseHTTPRequestHandler):
    """A request to the web server."""

    server: Web

    def answer(self, text: str | None) -> None:
        """Send a page or, without one, a 404."""
        body = (text or "").encode()
        self.send_response(404 if text is None else 200)
        self.send_header("Content-Length", str(len(body)))
        # What the hub tells of a file.
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", "abc")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        """Send a page."""
        self.answer(self.server.pages.get(self.path))

    do_HEAD = do_GET

    def do_POST(self) -> None:
        """Accept a result, and answer, or hang up."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.posted.append((self.path, json.loads(body)))
        if self.path in self.server.pages:
            self.answer(self.server.pages[self.path])

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent."""


@pytest.fixture
def web() -> Iterator[Web]:
    """Serve the tables except the true ratings."""
    with Web({name: text for name, text in TABLES.items() if name != "df_test_ratings.csv"}) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_whole_run_and_every_formula(harness: Harness) -> None:
    """A run takes ten steps, scores known findings by the formulas, and writes its files where they belong."""
    for tool, (output, status) in FINDINGS.items():
        harness.stub(tool, output, status)
    (harness.root / "df_movies.csv").write_text("mine", encoding="utf-8")
    (harness.root / ".mypy_cache").mkdir()
    (harness.root / ".mypy_cache" / "passed_over.py").touch()
    status, output = harness.run()
    assert status == 0, output
    steps = [line for line in output.splitlines() if line[0] == "["]
    assert [line[:8] for line in steps] == [f"[{step:2}/10] " for step in range(1, 11)]
    assert len({line[8:] for line in steps}) == 10 and "encoder: some/encoder" in output
    result = harness.result()
    errors = {"files": 0, "flake8": 2, "isort": 2, "pydocstyle": 1, "mypy": 1, "lines": 400}
    scores = [1.0, *(math.exp(-8 * count / 400) for count in (2, 2, 1, 1)), math.exp(-400 / 800 + 0.125)]
    assert list(result["code_quality"].items()) == [
        (part, [pytest.approx(score), count]) for (part, count), score in zip(errors.items(), scores, strict=True)
    ]
    assert result["code_quality_score"] == pytest.approx(math.prod(scores) ** (1 / 6))
    assert result["mse"] == 1.0
    assert result["predictive_score"] == pytest.approx(1 - 0.5 / 1.5)
    assert result["total"] == pytest.approx(math.sqrt(math.prod(scores) ** (1 / 6) * (1 - 0.5 / 1.5)))
    assert (result["username"], result["email"], result["encoder"]) == ("Ada", "ada@example.com", "some/encoder")
    assert result["predictions"] == json.loads((harness.root / "submission.json").read_text()) == {"0": 3.0, "1": 2.0}
    assert f"{100 * result['total']:.2f} %" in output
    assert "        MSE 1.0\n" in output
    assert "files 0, flake8 2, isort 2, pydocstyle 1, mypy 1 errors" in output
    assert len(re.findall(r"^        \d+\.\d s$", output, re.MULTILINE)) == 2
    assert (harness.root / "df_movies.csv").read_text() == "mine"


def test_real_tools_agree_with_their_patterns(harness: Harness) -> None:
    """The patterns count the real tools' one or two findings each, whatever the user has set for colours and Python."""
    harness.use_real(*FINDINGS, "pygount")
    # Long enough to show if it were counted.
    not_counted = '"""No lines of these count."""\n\n' + "".join(f"VALUE_{number} = {number}\n" for number in range(99))
    code = '"""A module."""\nimport os\nimport abc\n\n\ndef f(x):\n    return abc, x\n'
    (harness.root / "challenge" / "__init__.py").write_text(SERVICE + "\n\nVALUE = 3\n", encoding="utf-8")
    (harness.root / "challenge" / "code.py").write_text(code, encoding="utf-8")
    (harness.root / "challenge" / "tests").mkdir()
    (harness.root / "challenge" / "tests" / "__init__.py").write_text(not_counted)
    (harness.root / "stray.py").touch()
    status, output = harness.run(FORCE_COLOR="1", MYPY_FORCE_COLOR="1", PYTHONHOME="/nowhere")
    assert status == 0, output
    counts = {part: count for part, (_, count) in harness.result()["code_quality"].items()}
    sloc = counts.pop("lines")
    assert counts == {"files": 1, "flake8": 1, "isort": 2, "pydocstyle": 1, "mypy": 1}
    assert 20 < sloc < 35
    assert harness.result()["code_quality_score"] == harness.result()["total"] == 0


@pytest.mark.parametrize(("tool", "crash"), [("flake8", 1), ("isort", 1), ("mypy", 2), ("pygount", 1)])
def test_crash_of_a_tool_is_no_clean_result(harness: Harness, tool: str, crash: int) -> None:
    """A tool that fails without a finding, or with a higher status than findings give, fails the step."""
    harness.stub(tool, "challenge/a.py:1: error: Invalid syntax  [syntax]", crash)
    status, output = harness.run()
    assert status == 1
    assert "[ 7/10]" in output and "Invalid syntax" in output and tool in output.splitlines()[-1]
    assert not (harness.root / "result.json").exists()


@pytest.mark.parametrize(
    ("mood", "step", "reason"),
    [
        ("dies", 3, "the server ended"),
        ("fails", 4, "/ratings/train answered 422"),
        ("vanishes", 4, "/ratings/train got no answer: curl: "),
        ("diverges", 8, "the predictions cannot be scored"),
    ],
)
def test_failing_service(harness: Harness, mood: str, step: int, reason: str) -> None:
    """A failing service ends the run, which names the step, the reason and what the service said."""
    (harness.root / "result.json").write_text("of an earlier run", encoding="utf-8")
    status, output = harness.run(MOOD=mood)
    assert status == 1
    last, title = output.splitlines()[-1], re.findall(rf"^\[{step:2}/10\] .+$", output, re.MULTILINE)[0]
    assert last.startswith(f"run.sh: failed at {title}: ") and reason in last
    details = {"dies": "no luck today", "fails": "line 2, column rating", "diverges": "row 1 is no number"}
    details["vanishes"] = "The end of .run/server.log"
    assert details[mood] in output
    assert not (harness.root / "result.json").exists()


def test_busy_port(harness: Harness) -> None:
    """If another program already listens on the port, the run ends before it makes a folder."""
    with socket.socket() as other:
        other.bind(("", harness.port))
        other.listen()
        process = harness.start()
        output, _ = process.communicate(timeout=60)
        # The other program still listens.
        socket.create_connection(("127.0.0.1", harness.port), timeout=5).close()
    assert process.returncode == 1
    assert f"port {harness.port} is busy" in output
    assert not (harness.root / ".run").exists()


def test_missing_data(harness: Harness) -> None:
    """The error names the missing or empty file, folder or environment; data in .run is refused."""
    (harness.root / "challenge" / "demo" / "df_train.csv").write_text("", encoding="utf-8")
    status, output = harness.run()
    assert status == 1 and "df_train.csv is empty" in output
    (harness.root / "challenge" / "demo" / "df_movies.csv").unlink()
    status, output = harness.run()
    assert status == 1 and "holds no df_movies.csv" in output
    status, output = harness.run(DATA="nowhere")
    assert status == 1 and "no folder nowhere" in output
    status, output = harness.run(DATA="a root/.run")
    assert status == 1 and "DATA lies in .run" in output
    shutil.rmtree(harness.root / ".env")
    status, output = harness.run()
    assert status == 1 and "run ./init.sh first" in output


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP", "SIGKILL"])
def test_signals_stop_the_server(harness: Harness, name: str) -> None:
    """The server stops with the script, even if the script is killed without a chance to stop it."""
    number = signal.Signals[name]
    # Child processes inherit ignored signals, and bash cannot trap those.
    handler = None if name == "SIGKILL" else signal.signal(number, signal.default_int_handler)
    try:
        process = harness.start(MOOD="hangs")
    finally:
        if handler is not None:
            signal.signal(number, handler)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("[ 4/10]"):
            break
    assert is_open(harness.port)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert (name == "SIGKILL") != ("stopped at [ 4/10]" in output)
    assert process.returncode == (-number if name == "SIGKILL" else 128 + number)
    wait_until(lambda: not is_open(harness.port))


def test_encoder_when_the_hub_is_out_of_reach(harness: Harness) -> None:
    """Without the hub, run.sh falls back on the carried encoder and says so."""
    settings = {"HF_HOME": str(harness.root / "hub"), "HF_ENDPOINT": f"http://127.0.0.1:{harness.port}"}
    status, output = harness.run(CHALLENGE_ENCODER="", **settings)
    assert status == 0, output
    assert harness.result()["encoder"] == "challenge/assets/mini-distilbert (the hub is out of reach)"
    assert f'CHALLENGE_ENCODER: "{harness.root}/challenge/assets/mini-distilbert"' in output


@pytest.mark.parametrize("cached", [True, False])
def test_default_encoder(harness: Harness, web: Web, cached: bool) -> None:
    """The default encoder is used if it is in the hub's cache, or if the hub answers that it has it."""
    hub = harness.root / "hub" / "hub" / "models--distilbert-base-uncased"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text("abc")
    (hub / "snapshots" / "abc").mkdir(parents=True)
    if cached:
        for name in ("config.json", "model.safetensors", "tokenizer.json"):
            (hub / "snapshots" / "abc" / name).touch()
    else:
        web.pages["/distilbert-base-uncased/resolve/main/model.safetensors"] = "weights"
    settings = {"HF_HOME": str(harness.root / "hub"), "HF_ENDPOINT": web.url, "HF_HUB_OFFLINE": "0"}
    status, output = harness.run(CHALLENGE_ENCODER="", **settings)
    assert status == 0, output
    assert harness.result()["encoder"] == "distilbert-base-uncased"
    assert 'CHALLENGE_ENCODER: ""' in output


def test_settings_of_a_server_elsewhere(harness: Harness) -> None:
    """Another server's key, catalogue and models folder are not passed on; an encoder and a plan are, by full path."""
    (harness.root.parent / "plan.yaml").touch()
    (harness.root.parent / "my encoder").mkdir()
    elsewhere = {f"CHALLENGE_{name}": "elsewhere" for name in ("API_KEY", "CATALOGUE", "MODELS")}
    here = {"CHALLENGE_ENCODER": "my encoder", "CHALLENGE_TEACH": "plan.yaml"}
    status, output = harness.run(CHALLENGE_SEED="7", **here, **elsewhere)
    assert status == 0, output
    given = [line.split(maxsplit=1) for line in output.splitlines() if line.startswith("        CHALLENGE_")]
    assert sorted(given) == [
        ["CHALLENGE_ENCODER:", json.dumps(str(harness.root.parent / "my encoder"))],
        ["CHALLENGE_SEED:", '"7"'],
        ["CHALLENGE_TEACH:", json.dumps(str(harness.root.parent / "plan.yaml"))],
    ]


def test_data_from_the_web(harness: Harness, web: Web) -> None:
    """Data can come from a URL: without the true ratings there is no total, without another file or a host no run."""
    (harness.root / "gitconfig").write_text("", encoding="utf-8")
    status, output = harness.run(DATA=f"{web.url}/data/")
    assert status == 0, output
    result = harness.result()
    assert (result["mse"], result["predictive_score"], result["total"]) == (None, None, None)
    assert "Total" not in output and "MSE unknown, as there is no df_test_ratings.csv" in output
    assert f"Getting the data from {web.url}/data/\n" in output
    assert result["username"] == ""
    web.pages["/data/df_test_ratings.csv"] = TABLES["df_test_ratings.csv"]
    status, output = harness.run(DATA=f"{web.url}/data")
    assert status == 0 and harness.result()["mse"] == 1.0
    del web.pages["/data/df_test.csv"]
    status, output = harness.run(DATA=f"{web.url}/data")
    assert status == 1 and "df_test.csv answered 404" in output
    status, output = harness.run(DATA=f"http://127.0.0.1:{harness.port}")
    assert status == 1 and f"could not get http://127.0.0.1:{harness.port}/df_train.csv: curl: " in output


def test_protocol_of_the_public_challenge(harness: Harness, web: Web) -> None:
    """A run asks for the data's URLs, posts the result and prints the answer's text, without which it fails."""
    status, output = harness.run(ENDPOINT=f"{web.url}/api/")
    assert status == 0, output
    assert output.splitlines()[-1] == "Well done, Ada" and f"Getting the data from {web.url}/api/\n" in output
    [(path, result)] = web.posted
    assert path == "/api/eval/"
    assert result.pop("code_quality") == harness.result()["code_quality"]
    assert result == {"username": "Ada", "email": "ada@example.com", "predictions": {"0": 3.0, "1": 2.0}}
    web.pages["/api/eval/"] = "[]"
    status, output = harness.run(ENDPOINT=f"{web.url}/api")
    assert status == 1 and "answered no text" in output
    del web.pages["/api/eval/"]
    status, output = harness.run(ENDPOINT=f"{web.url}/api")
    assert status == 1 and f"could not reach {web.url}/api/eval/: curl: " in output


def test_conda_gets_no_newer_python_than_init_looks_for() -> None:
    """Conda gets no newer Python than init.sh looks for, as the packages may lack support for it."""
    python, *_ = yaml.safe_load((PROJECT / "environment.yml").read_text())["dependencies"]
    [newest] = re.findall(r"for name in python3\.(\d+)", (PROJECT / "init.sh").read_text())
    assert python == f"python>=3.11,<3.{int(newest) + 1}"


class Builder:
    """A copy of init.sh, with a PATH that has no Python but those added to it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.programs = root / "programs"
        self.programs.mkdir(parents=True)
        for command in COMMANDS:
            (self.programs / command).symlink_to(shutil.which(command) or command)
        shutil.copy(PROJECT / "init.sh", root)
        self.list_packages("one==1.0  # why", '"two==2.0"')

    def list_packages(self, *packages: str) -> None:
        """Write environment.yml."""
        lines = ["name: x", "dependencies:", "  - python>=3.11", "  - pip:", *(f"    - {name}" for name in packages)]
        (self.root / "environment.yml").write_text("\n".join([*lines, "variables:", "  - no: package"]) + "\n")

    def start(self, **settings: str) -> subprocess.Popen[str]:
        """Start init.sh from another folder."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
        return subprocess.Popen(
            [BASH, str(self.root / "init.sh")],
            cwd="/",
            env=env | {"PATH": str(self.programs)} | settings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, **settings: str) -> tuple[int, str, str]:
        """Finish a run, check that no lock is left, and return the exit status, the output and the errors."""
        process = self.start(**settings)
        output, errors = process.communicate(timeout=120)
        assert not os.path.lexists(self.root / ".env.lock")
        return process.returncode, output, errors

    def calls(self) -> int:
        """Count the calls of pip."""
        calls = self.root / "pip.calls"
        return len(calls.read_text().splitlines()) if calls.exists() else 0


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """Set up init.sh in a path with a space, with a stub Python and a shim that always fails."""
    builder = Builder(tmp_path / "a root")
    write_program(builder.programs / "python3.14", "#!/bin/sh\necho 'python3.14: command not found' >&2\nexit 127\n")
    write_program(builder.programs / "python3", PYTHON)
    return builder


def test_init_builds_a_real_environment(tmp_path: Path) -> None:
    """The real Python and pip install a package, whatever the user's settings for them; a second run does nothing."""
    builder = Builder(tmp_path / "a root")
    builder.list_packages("tiny==1.0")
    (builder.programs / "python3.11").symlink_to(sys.executable)
    with zipfile.ZipFile(tmp_path / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")
    settings = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    status, output, errors = builder.run(**settings, PIP_USER="1", PYTHONHOME="/nowhere")
    assert (status, errors) == (0, ""), output
    python = builder.root / ".env" / "bin" / "python"
    subprocess.run([python, "-I", "-c", "import tiny"], check=True)
    assert builder.run() == (0, "init.sh: .env is up to date\n", "")


def test_init_builds_once_for_each_list(builder: Builder) -> None:
    """The same list of packages is not built again, another one is."""
    status, output, errors = builder.run()
    assert (status, errors) == (0, ""), output
    assert "Python 3.12.1" in output
    assert (builder.root / ".env" / "requirements.txt").read_text() == "one==1.0\ntwo==2.0\n"
    calls = builder.calls()
    # Nothing is built from source.
    assert (builder.root / "pip.calls").read_text().count("--only-binary=:all:") == calls > 0
    assert builder.run() == (0, "init.sh: .env is up to date\n", "")
    assert builder.calls() == calls
    builder.list_packages("one==1.1", "pip==26.1")
    assert builder.run()[0] == 0
    assert builder.calls() == 2 * calls
    assert "-m pip install pip==26.1 " in (builder.root / "pip.calls").read_text()


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"PYTHON_IS": "3.8.1|too old|/old"}, "no suitable Python"),
        ({"PYTHON_IS": "3.12.1|without ensurepip|/bin/sh"}, "apt install python3-venv"),
        ({"PYTHON_IS": "3.12.1||/gone"}, "python3 is 3.12.1, gone"),
        ({"PIP_IS": "WARNING: Retrying (Retry(total=1)) after connection broken"}, "no network"),
        ({"PIP_IS": "ERROR: [Errno 28] No space left on device"}, "the disk is full, here or in "),
        ({"PIP_IS": "ERROR: No matching distribution found for one==1.0"}, "python3 lacks a package"),
        ({"PIP_IS": "ERROR: the moon is full"}, "the moon is full"),
    ],
)
def test_init_fails_with_one_line(builder: Builder, settings: dict[str, str], reason: str) -> None:
    """A failure is reported in one line, and the next run builds again."""
    status, _, errors = builder.run(**settings)
    assert status == 1
    assert errors.count("\n") == 1 and reason in errors
    assert builder.run()[0] == 0


def test_init_takes_an_older_python(builder: Builder) -> None:
    """If a package is missing for the newest Python, init.sh says so and takes an earlier minor version."""
    newer = PYTHON.replace("${PIP_IS:-}", "No matching distribution found for one==1.0")
    for name, version in (("python3.13", "3.13.1"), ("python3.12", "3.13.0")):
        write_program(builder.programs / name, newer.replace("3.12.1", version))
    status, output, errors = builder.run()
    assert (status, errors) == (0, "")
    assert re.findall(r"Python (3\.\d+\.\d+)(?: \(|: No matching)", output) == ["3.13.1", "3.13.1", "3.12.1"]


def test_init_without_python_or_disk_or_place(builder: Builder) -> None:
    """Nothing is made if .env is something else, or without enough disk, a Python or a package list."""
    (builder.root / ".env").write_text("SECRET=1", encoding="utf-8")
    assert "no virtual environment" in builder.run()[2]
    assert (builder.root / ".env").read_text() == "SECRET=1"
    (builder.root / ".env").unlink()
    (builder.programs / "df").unlink()
    write_program(
        builder.programs / "df", "#!/bin/sh\nprintf 'Filesystem\\n/dev/sda 9000000 8990000  10000  99%% /\\n'\n"
    )
    assert "10 MB are free here, 2000 MB are needed, 6000 MB with PyTorch's CUDA packages" in builder.run()[2]
    write_program(builder.programs / "df", "#!/bin/sh\n")
    (builder.programs / "python3").unlink()
    assert "none was found" in builder.run()[2]
    builder.list_packages()
    assert "environment.yml holds no pip list" in builder.run()[2]
    assert not (builder.root / ".env").exists()


def test_init_is_interrupted(builder: Builder) -> None:
    """Only one run works at a time; a signal stops its pip too, and the next run repairs what a stopped one left."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    (builder.root / ".env.lock").symlink_to(str(dead.pid))
    process, pid = builder.start(PIP_IS="slow"), builder.root / "pip.pid"
    wait_until(lambda: pid.exists() and pid.read_text())
    other = builder.start()
    assert "another init.sh" in other.communicate(timeout=60)[1]
    process.terminate()
    process.communicate(timeout=60)
    assert (process.returncode, other.returncode) == (128 + signal.SIGTERM, 1)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)
    assert not (builder.root / ".env" / "init.stamp").exists()
    assert builder.run()[0] == 0
