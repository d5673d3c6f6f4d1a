"""End to end: a real uvicorn, real curl, the demo data."""

import csv
import json
import re
import resource
import signal
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import jsonschema
import pandas as pd
import pytest

from challenge.encoder import choose
from challenge.settings import VERSION
from challenge.store import Store
from challenge.tests.conftest import DEMO, ENCODER, PROJECT, Answer, Server, Start, Upload, error
from challenge.tests.test_tables import BAD, BAD_IDS, GOOD

REAL = PROJECT.parent / "shared" / "data" / "movielens-tmdb"
TRAIN, TEST = DEMO / "df_train.csv", DEMO / "df_test.csv"


@pytest.fixture(scope="module")
def report() -> dict[str, Answer]:
    """Hold the answer to the first training, and what readiness says after it."""
    return {}


@pytest.fixture(scope="module")
def server(start: Start, report: dict[str, Answer]) -> Server:
    """Start a server and train it on the demo."""
    server = start(DEMO / "df_movies.csv", CHALLENGE_ENCODER=str(ENCODER))
    report["answer"] = server.train(TRAIN)
    assert report["answer"].status == 200, report["answer"].body
    report["ready"] = server.get("/health/ready")
    return server


@pytest.fixture(scope="module")
def expected(server: Server) -> str:
    """Return what the trained server predicts for the demo's test rows."""
    answer = server.predict(TEST)
    assert answer.status == 200, answer.body
    return answer.body


@pytest.fixture(scope="module")
def untrained(start: Start) -> Server:
    """Start a server in an empty folder."""
    return start()


@pytest.fixture(scope="module")
def wordless(start: Start) -> Server:
    """Start a server that has a catalogue but cannot load the default encoder."""
    return start(DEMO / "df_movies.csv")


@pytest.fixture(scope="module")
def real(start: Start) -> Server:
    """Start a server with the real catalogue."""
    if not REAL.is_dir():
        pytest.skip("the real ratings are not beside the project")
    return start(REAL / "df_movies.csv", CHALLENGE_ENCODER=str(ENCODER))


@pytest.fixture(scope="module")
def real_training(real: Server) -> Iterator[Upload]:
    """Start a training on the real ratings without waiting for the answer."""
    upload = real.post("train", REAL / "df_train.csv")
    yield upload
    real.stop()
    upload.process.communicate()


@pytest.fixture(scope="module", autouse=True)
def ahead(request: pytest.FixtureRequest) -> None:
    """Run the longest training beside the other tests, if its test is selected."""
    wanted = any(item.name == test_real_ratings.__name__ for item in request.session.items)
    if wanted and REAL.is_dir():
        request.getfixturevalue("real_training")


def test_report(server: Server, report: dict[str, Answer]) -> None:
    """A training reports its data, encoder, errors and seconds; readiness shows the same report."""
    told = report["answer"].json
    assert (told["rows"], told["users"], told["movies"]) == (15_873, 300, 320)
    assert told["encoder"] == choose(str(ENCODER), 512, "auto")._asdict()
    # Six of the 400 movies have no overview.
    assert told["overviews encoded"] == 394
    errors = told["cross-validated mse"]
    assert 0 < errors["model"] < errors["user mean"] < errors["global mean"] < 2
    assert [*told["seconds"]] == ["preparation", "encoder", "features", "taste", "trees"]
    assert min(told["seconds"].values()) >= 0
    assert report["ready"].status == 200
    assert report["ready"].json["model"] == told


def test_predictions_beat_the_mean(server: Server, ratings: pd.DataFrame) -> None:
    """Predictions lie on the scale and are much better than each user's mean."""
    answer = server.predict(TEST)
    assert answer.kind == "application/json"
    assert 1 <= min(answer.json.values()) < max(answer.json.values()) <= 5
    means = ratings["rating"].astype(float).groupby(ratings["userId"]).mean()
    users, truth = pd.read_csv(TEST, dtype=str)["userId"], pd.read_csv(DEMO / "df_test_ratings.csv")["rating"]
    baseline = float(((truth - users.map(means)) ** 2).mean())
    assert error(answer, DEMO) < 0.9 * baseline


def test_health_and_pages(server: Server) -> None:
    """The health pages and the docs page answer; an unknown path or method is a problem document."""
    assert server.get("/health/live").json == {"status": "live"}
    ready = server.get("/health/ready").json
    assert (ready["status"], ready["model"]["model"]) == ("ready", server.get("/models").json["active"])
    assert [server.get(path, "--head").status for path in ("/health/live", "/health/ready")] == [200, 200]
    docs = server.get("/", "--location")
    assert (docs.status, docs.kind.split(";")[0]) == (200, "text/html")
    # The server itself has the page's scripts and styles.
    needed = re.findall(r'"([^"]*\.(?:js|css))"', docs.body)
    assert [server.get(path).status for path in needed] == [200, 200]
    server.get("/nowhere").refused(404)
    server.get("/ratings/train").refused(405)


def test_description(server: Server) -> None:
    """The OpenAPI document has the README's requests, the key, the version and the asynchronous answer."""
    described = server.get("/openapi.json").json
    table = re.findall(r"^\| `([A-Z]+) ([^`?]+)", (PROJECT / "README.md").read_text("utf-8"), re.MULTILINE)
    promised = {(verb.lower(), re.sub("{.+?}", "{}", path)) for verb, path in table}
    there = {(verb, re.sub("{.+?}", "{}", path)) for path, verbs in described["paths"].items() for verb in verbs}
    assert promised - {("get", "/metrics"), ("get", "/")} == there
    assert described["info"]["version"] == VERSION
    assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert "202" in described["paths"]["/ratings/train"]["post"]["responses"]


def test_answers_are_as_described(server: Server, report: dict[str, Answer]) -> None:
    """Real answers, also of errors, match their schemas in the OpenAPI document, which leave no key out."""
    described = server.get("/openapi.json").json
    number = server.get("/models").json["active"]
    answers = {
        ("post", "/ratings/train"): report["answer"],
        ("get", "/trainings/{number}"): server.get(f"/trainings/{number}"),
        ("get", "/models"): server.get("/models"),
        ("put", "/models/active"): server.get("/models/active", "-X", "PUT", "--json", json.dumps({"model": number})),
        ("put", "/movies"): server.get("/movies", "-X", "PUT", *form(DEMO / "df_movies.csv")),
        ("get", "/movies/{movie}/similar"): server.get("/movies/890/similar?count=2"),
        ("get", "/users/{user}/recommendations"): server.get("/users/240/recommendations?count=2"),
        ("post", "/ratings"): server.post("", "userId,movieId,rating\nnobody,nothing,3\n").answer(),
        ("post", "/ratings/predict"): server.post("predict?detail=true", TEST).answer(),
        ("get", "/health/live"): server.get("/health/live"),
        ("get", "/health/ready"): server.get("/health/ready"),
    }
    assert answers.keys() == {(verb, path) for path, verbs in described["paths"].items() for verb in verbs}
    answers |= {("post", "/ratings/predict "): server.predict(TEST), ("get", "/models "): server.get("/users/240")}
    parts = {"components": described["components"]}
    for (verb, path), answer in answers.items():
        responses = described["paths"][path.strip()][verb]["responses"]
        told = responses.get(str(answer.status), responses["4XX"])
        jsonschema.validate(answer.json, told["content"][answer.kind]["schema"] | parts)
        assert {name.lower() for name in told.get("headers", {})} <= answer.headers.keys()
    keys = {name: schema["properties"].keys() for name, schema in parts["components"]["schemas"].items()}
    assert report["answer"].json.keys() == keys["Report"] - {"teaching"}
    assert answers["get", "/trainings/{number}"].json.keys() == keys["Training"]
    explained = answers["post", "/ratings/predict"].json["0"]
    assert explained.keys() == keys["Explained"]
    whys = parts["components"]["schemas"]["Explained"]["properties"]["why"]["properties"]
    assert explained["why"].keys() == whys.keys()


@pytest.mark.parametrize(("what", "rated", "table", "parts"), BAD, ids=BAD_IDS)
def test_bad_tables(server: Server, what: str, rated: bool, table: bytes, parts: list[str]) -> None:
    """An unusable table is refused; the error says what is wrong, with line and column where it can."""
    detail = (server.train if rated else server.predict)(table).refused(422)
    assert [part for part in parts if part not in detail] == [], (what, detail)


@pytest.mark.parametrize("verb", ["train", "predict"])
@pytest.mark.parametrize(
    "options",
    [["-X", "POST"], ["-F", "table=@-"], ["-F", "file=text"], ["-d", "file=text"], ["--json", "{}"]],
    ids=["no body", "another field", "a text field", "a plain form", "JSON"],
)
def test_bad_forms(server: Server, verb: str, options: list[str]) -> None:
    """A wrong or missing form field is refused by name."""
    detail = server.request(f"/ratings/{verb}", *options, data=b"userId").answer().refused(422)
    assert detail.startswith("body file: ") and "curl -F" in detail


@pytest.mark.parametrize("form", GOOD)
def test_forms(server: Server, form: str) -> None:
    """All common forms of a CSV get the same predictions."""
    answer = server.predict(GOOD[form])
    assert (answer.status, answer.body) == (200, server.predict(GOOD["plain"]).body)


def test_unknown_users_and_movies(server: Server, ratings: pd.DataFrame) -> None:
    """An unknown user is rated between a critic and a fan; a user's unknown movies are all rated the same."""
    means = ratings["rating"].astype(float).groupby(ratings["userId"]).mean()
    low, high = str(means.idxmin()), str(means.idxmax())
    first, second = pd.read_csv(TEST, dtype=str)["movieId"].unique()[:2]
    rows = [("new", first), ("0" + high, first), ("new", second), (high, first), (low, first)]
    rows += [(high, "none"), (high, "0" + first), (low, "none"), ("new", "none")]
    answer = server.predict("userId,movieId\n" + "".join(f"{user},{movie}\n" for user, movie in rows))
    assert answer.status == 200
    new, zero, other, fan, critic, fan_none, fan_zero, critic_none, new_none = answer.json.values()
    assert new == zero != other
    assert critic < new < fan
    assert fan_none == fan_zero
    assert critic_none < new_none < fan_none
    assert fan_none != fan


def test_detail(server: Server, expected: str) -> None:
    """With detail, ratings have 90 % intervals, narrower at a lower level, and reasons that add up to them."""
    answers = [server.post(f"predict?detail=true{level}", TEST).answer() for level in ("", "&level=0.5")]
    usual, narrow = (pd.DataFrame(answer.json).T for answer in answers)
    plain = pd.Series(json.loads(expected))
    assert list(usual.index) == list(plain.index)
    assert (usual["rating"] - plain).abs().max() < 1e-6
    sums = usual["why"].map(lambda why: sum(stars for name, stars in why.items() if name != "because"))
    assert (sums - plain).abs().max() < 1e-6
    assert (narrow["high"] - narrow["low"]).mean() < 0.6 * (usual["high"] - usual["low"]).mean()
    truth = pd.read_csv(DEMO / "df_test_ratings.csv")["rating"].to_numpy()
    assert ((usual["low"] <= truth) & (truth <= usual["high"])).mean() == pytest.approx(0.9, abs=0.03)


@pytest.mark.parametrize("query", ["level=1", "level=0", "level=nan", "level=high", "detail=perhaps"])
def test_bad_queries(server: Server, query: str) -> None:
    """A nonsensical query is refused, and the error names the parameter."""
    detail = server.post(f"predict?{query}", TEST).answer().refused(422)
    assert detail.startswith(f"query {query.split('=')[0]}: Input ")


def test_ratings_added(server: Server, expected: str, ratings: pd.DataFrame) -> None:
    """Added ratings survive a kill right after the answer, count without a training, and enter the next one."""
    own = ratings[ratings["userId"] == ratings["userId"].iloc[0]]
    pairs = pd.read_csv(TEST, dtype=str).assign(userId="newcomer").drop_duplicates("movieId").to_csv(index=False)
    stranger = server.predict(pairs).json
    try:
        table = own.assign(userId="newcomer", rating="5").to_csv(index=False)
        answer = server.request("/ratings", "-F", "file=@-", data=table.encode()).answer()
        assert (answer.status, answer.json) == (200, {"rows": len(own), "users": 1})
        assert server.process
        server.process.kill()
        server.stop()
        server.start()
        newcomer = server.predict(pairs).json
        assert sum(newcomer.values()) > sum(stranger.values()) + 0.3 * len(stranger)
        assert server.predict(TEST).body == expected
        assert server.train(TRAIN).json["users"] == 301
        server.request("/ratings", "-F", "file=@-", data=b"userId,movieId\n1,2\n").answer().refused(422)
    finally:
        with sqlite3.connect(server.folder / "models" / "registry.sqlite") as file:
            file.execute("DELETE FROM ratings")
        file.close()
        assert server.train(TRAIN).status == 200
    assert server.predict(pairs).json == stranger


def test_movie_added_after_training(server: Server, expected: str) -> None:
    """A movie added to the catalogue is predicted by its entry there, without a training."""
    rows = "userId,movieId\nnew,late\nnew,none\n"
    absent, none = server.predict(rows).json.values()
    path = server.folder / "df_movies.csv"
    before = path.read_bytes()
    movies = pd.read_csv(path, dtype=str)
    best = movies.assign(vote_average=movies["vote_average"].astype(float)).nlargest(1, "vote_average").iloc[0]
    late = best.to_dict() | {"movieId": "late", "overview": "A late overview that nobody has read."}
    try:
        pd.concat([movies, pd.DataFrame([late])]).to_csv(path, index=False)
        present, still_none = server.predict(rows).json.values()
    finally:
        path.write_bytes(before)
    assert absent == none == still_none != present
    assert server.predict(TEST).body == expected


def test_failed_training_changes_nothing(server: Server, expected: str) -> None:
    """After trainings that were refused or failed, the earlier model serves, also after a restart."""
    server.train("userId,movieId,rating\n1,8,6\n").refused(422)
    server.train("userId,movieId,rating\n1,none,3\n2,none,4\n").refused(422)
    catalogue = server.folder / "df_movies.csv"
    catalogue.rename(catalogue.with_suffix(".away"))
    try:
        server.train(TRAIN).refused(409)
    finally:
        catalogue.with_suffix(".away").rename(catalogue)
    assert server.predict(TEST).body == expected
    server.stop()
    server.start()
    assert server.get("/health/ready").status == 200
    assert server.predict(TEST).body == expected


def test_same_ratings_same_model(server: Server, ratings: pd.DataFrame, expected: str) -> None:
    """Other ratings give another model; the first ones, reformatted and with overridden duplicates, the same one."""
    assert server.train(ratings.head(8_000).to_csv(index=False)).status == 200
    assert server.predict(TEST).body != expected
    wrong = ratings.head(50).assign(rating="1")
    table = pd.concat([wrong, ratings])[["movieId", "rating", "userId"]].assign(note="x, y")
    text = table.rename(columns={"movieId": "movieID"}).to_csv(
        index=False, quoting=csv.QUOTE_ALL, lineterminator="\r\n"
    )
    report = server.train(b"\xef\xbb\xbf" + text.replace("\r\n", "\r\n\r\n", 3).encode())
    assert (report.status, report.json["rows"]) == (200, len(ratings))
    assert server.predict(TEST).body == expected


def test_answers_during_training(server: Server, expected: str) -> None:
    """While a training runs, the server is live, the earlier model predicts, and a second training is refused."""
    earlier = server.predict(TEST).headers["x-model"]
    uploads = [server.post("train", TRAIN), server.post("train", TRAIN)]
    lives, models, predictions = [], [], set()
    while all(upload.running() for upload in uploads):
        time.sleep(0.01)
    while any(upload.running() for upload in uploads):
        answer = server.predict(TEST)
        predictions.add(answer.body)
        models.append(answer.headers["x-model"])
        lives.append(server.get("/health/live").status)
    assert len(lives) > 1 and set(lives) == {200}
    # The new model serves a moment before its training is answered.
    assert predictions == {expected} and models[0] == earlier and models == sorted(models, key=int)
    done, busy = sorted((upload.answer() for upload in uploads), key=lambda answer: answer.status)
    assert done.status == 200
    assert "training" in busy.refused(409)


KEY = "a key"
BEARER = ("-H", f"Authorization: Bearer {KEY}")


@pytest.fixture(scope="module")
def pair(start: Start, server: Server) -> Server:
    """Start two workers on a copy of the trained models, with a key, a small upload limit and a proxy's path."""
    limits = {"CHALLENGE_MAX_UPLOAD": "300kB", "CHALLENGE_API_KEY": KEY, "CHALLENGE_LOG": "json"}
    limits["UVICORN_ROOT_PATH"] = "/behind/a/proxy"
    models = server.folder / "models"
    return start(DEMO / "df_movies.csv", models, CHALLENGE_ENCODER=str(ENCODER), WEB_CONCURRENCY="2", **limits)


def form(path: Path) -> tuple[str, str]:
    """Return the curl options that send a file."""
    return "-F", f"file=@{path}"


def test_training_as_a_job(server: Server, expected: str) -> None:
    """An asynchronous training tells its progress, then its report; a second one meanwhile gets its address."""
    own = "fedcba9876543210" * 2
    # Preferences may be spread over several headers, in upper or lower case.
    wishes = "-H", "Prefer: handling=strict", "-H", "Prefer: wait=9, Respond-Async"
    begun = server.get("/ratings/train", *form(TRAIN), *wishes, "-H", f"X-Request-ID: {own}")
    assert (begun.status, begun.headers["preference-applied"]) == (202, "respond-async")
    path = begun.headers["location"]
    busy = server.get("/ratings/train", *form(TRAIN))
    assert path == busy.headers["location"] and path.split("/")[-1] in busy.refused(409)
    stages = [begun.json["stage"]]
    while (told := server.get(path).json)["state"] == "running":
        assert told["report"] is told["error"] is None
        stages.append(told["stage"])
        time.sleep(0.05)
    assert set(stages) <= {"waiting", *told["report"]["seconds"], "saving"} and "taste" in stages
    assert (told["state"], told["report"]["rows"]) == ("done", 15_873)
    assert told["seconds"] > 1
    # The model serves a moment before the log says so.
    deadline = time.monotonic() + 60
    while f"[{own}] challenge: trained" not in (server.folder / "server.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert server.predict(TEST).body == expected
    server.get("/trainings/123456").refused(404)
    for number in (0, 2**53 + 1):
        server.get(f"/trainings/{number}").refused(422)
    failed = server.get("/ratings/train", "-F", "file=@-", "-H", "Prefer: respond-async")
    assert failed.refused(422)


def test_models_are_switched(server: Server, ratings: pd.DataFrame, expected: str) -> None:
    """An earlier model can be made active again, and answers name the model that serves."""
    before = server.get("/models").json
    assert before["active"] == before["models"][-1]["id"]
    assert server.train(ratings.head(8_000).to_csv(index=False)).status == 200
    after = server.get("/models").json
    assert after["active"] == after["models"][-1]["id"] > before["active"]
    assert len(after["models"][-1]["sha256"]) == 64
    for number in (before["active"], after["active"], before["active"]):
        answer = server.get("/models/active", "-X", "PUT", "--json", json.dumps({"model": number}))
        assert (answer.status, answer.json["model"]) == (200, number)
        predicted = server.predict(TEST)
        assert predicted.headers["x-model"] == str(number)
        assert (predicted.body == expected) == (number == before["active"])
    server.get("/models/active", "-X", "PUT", "--json", '{"model": 999}').refused(404)
    for odd in ('"last"', "true", "1.5", 0, 2**53 + 1):
        server.get("/models/active", "-X", "PUT", "--json", f'{{"model": {odd}}}').refused(422)


def test_damaged_model_is_refused(server: Server, expected: str) -> None:
    """A model whose file has changed cannot be made active; the error names it."""
    if len(server.get("/models").json["models"]) == 1:
        assert server.train(TRAIN).status == 200
    models = server.get("/models").json
    other = next(model["id"] for model in models["models"] if model["id"] != models["active"])
    path = server.folder / "models" / f"model-{other}.npz"
    path.write_bytes(path.read_bytes()[:-1])
    detail = server.get("/models/active", "-X", "PUT", "--json", json.dumps({"model": other})).refused(409)
    assert f"model {other} " in detail
    assert server.get("/models").json["active"] == models["active"]
    assert server.predict(TEST).body == expected


def test_lists(server: Server) -> None:
    """Similar movies and recommendations come in the number asked for, the latter best first."""
    similar = server.get("/movies/890/similar?count=4").json
    assert len(similar) == 4 and set(similar[0]) == {"movieId", "similarity"}
    best = server.get("/users/1/recommendations?count=3&level=0.5").json
    assert [set(row) for row in best] == [{"movieId", "rating", "low", "high", "why"}] * 3
    assert best == sorted(best, key=lambda row: -row["rating"])
    # Ids as programs write them.
    assert server.get("/movies/890.0/similar?count=4").json == similar
    assert server.get("/users/%201.0/recommendations?count=3&level=0.5").json == best
    stranger = server.get("/users/some%2Fone%20new/recommendations").json
    assert len(stranger) == 10 and stranger[0]["why"]["because"] == {}
    assert "'none'" in server.get("/movies/none/similar").refused(404)
    for count in (0, 1001):
        assert server.get(f"/movies/890/similar?count={count}").refused(422).startswith("query count: ")


def test_catalogue_is_replaced(server: Server, expected: str, tmp_path: Path) -> None:
    """An uploaded catalogue replaces the earlier one, but only if all of its rows are valid."""
    path, movies = tmp_path / "movies.csv", pd.read_csv(DEMO / "df_movies.csv", dtype=str)
    movies.assign(movieId=movies["movieId"].where(movies.index != 7)).to_csv(path, index=False)
    assert "line 9, column 'movieId'" in server.get("/movies", "-X", "PUT", *form(path)).refused(422)
    assert server.predict(TEST).body == expected
    movies.head(50).assign(overview="What nobody has read.").to_csv(path, index=False)
    assert server.get("/movies", "-X", "PUT", *form(path)).json == {"movies": 50}
    assert server.predict(TEST).body != expected
    assert len(server.get("/users/nobody/recommendations?count=100").json) == 50
    movies[["movieId"]].head(50).to_csv(path, index=False)
    assert server.get("/movies", "-X", "PUT", *form(path)).json == {"movies": 50}
    assert server.predict(TEST).status == 200
    assert server.get("/movies", "-X", "PUT", *form(DEMO / "df_movies.csv")).status == 200
    assert server.predict(TEST).body == expected


def test_problem_types(server: Server) -> None:
    """Different problems have different types, all in the OpenAPI document; answers have the request's id."""
    types = server.get("/openapi.json").json["components"]["schemas"]["Problem"]["properties"]["type"]["enum"]
    answers = [server.get("/nowhere"), server.predict(b""), server.get("/trainings/x"), server.get("/trainings/99999")]
    assert len({answer.json["type"] for answer in answers}) == 4
    assert {answer.json["type"] for answer in answers} < set(types)
    own = "0123456789abcdef" * 2
    for path in ("/nowhere", "/health/live"):
        assert server.get(path, "-H", f"X-Request-ID: {own}").headers["x-request-id"] == own
    assert own in (server.folder / "server.log").read_text()
    assert "POST" in server.get("/ratings").headers["allow"]


def test_key(server: Server, pair: Server) -> None:
    """Without the key, only health and the docs are open; a server without a key accepts any."""
    assert server.get("/models", *BEARER).status == 200
    assert pair.get("/").headers["location"] == "docs"
    for path in ("/health/live", "/health/ready", "/docs", "/docs/files/swagger-ui.css", "/openapi.json"):
        assert pair.get(path).status == 200
    for options in ((), ("-H", "Authorization: Bearer wrong"), ("-H", "Authorization: Bearer ä")):
        for path in ("/models", "/metrics", "/nowhere"):
            answer = pair.get(path, *options)
            assert "CHALLENGE_API_KEY" in answer.refused(401) and answer.headers["www-authenticate"] == "Bearer"
    assert pair.get("/models", *BEARER).status == 200
    assert KEY not in (pair.folder / "server.log").read_text()


@pytest.mark.parametrize("length", ["told", "chunked"])
def test_too_large(pair: Server, length: str) -> None:
    """A body may be as large as the limit but no larger, whether or not its length is declared."""
    header = ("-H", "Transfer-Encoding: chunked") if length == "chunked" else ()
    options = (*BEARER, *header, "-H", "Content-Type: multipart/form-data; boundary=part", "--data-binary", "@-")
    part = b'--part\r\nContent-Disposition: form-data; name="file"; filename="a.csv"\r\n\r\n%s\r\n--part--'
    body = part % b"userId,movieId,%s\n1,2"

    def predict(size: int) -> Answer:
        # What fills it up is the name of a third column.
        data = body % (b"x" * (size - len(body) + 2))
        assert len(data) == size
        return pair.request("/ratings/predict", *options, data=data).answer()

    assert predict(300_000).status == 200
    assert "CHALLENGE_MAX_UPLOAD" in predict(300_001).refused(413)
    assert "CHALLENGE_MAX_UPLOAD" in predict(1_000_000).refused(413)
    assert predict(1_000).status == 200


def test_workers_are_one(pair: Server, expected: str, ratings: pd.DataFrame) -> None:
    """A new model, an added rating and the metrics are the same in all workers."""

    def rows() -> float:
        counts = pair.get("/metrics", *BEARER).body.splitlines()
        return sum(float(line.split()[-1]) for line in counts if line.startswith("challenge_predicted_rows_total"))

    def predicted(user: str) -> str:
        pairs = f"userId,movieId\n{user},890\n".encode()
        return pair.request("/ratings/predict", "-F", "file=@-", *BEARER, data=pairs).answer().body

    before, models = rows(), pair.get("/models", *BEARER).json
    answers = {pair.get("/ratings/predict", *form(TEST), *BEARER).body for _ in range(10)}
    assert answers == {expected}
    assert rows() - before == 10 * len(json.loads(expected))
    assert f"challenge_active_model {models['active']}.0" in pair.get("/metrics", *BEARER).body
    assert pair.get("/ratings/train", *form(TRAIN), *BEARER).status == 200
    assert 'challenge_training_stage_seconds_count{stage="taste"} 1.0' in pair.get("/metrics", *BEARER).body
    trained = pair.get("/models", *BEARER).json["active"]
    assert trained >= models["active"] + 1
    served = {pair.get("/ratings/predict", *form(TEST), *BEARER).headers["x-model"] for _ in range(10)}
    assert served == {str(trained)}
    rated = ratings.head(30).assign(userId="newcomer", rating="5").to_csv(index=False).encode()
    assert pair.request("/ratings", "-F", "file=@-", *BEARER, data=rated).answer().status == 200
    told = {predicted("newcomer") for _ in range(10)}
    assert len(told) == 1 and told != {predicted("stranger")}


def test_address_behind_a_proxy(pair: Server) -> None:
    """A training's address is under the proxy's path, so that the client of the proxy finds it."""
    begun = pair.get("/ratings/train", *form(TRAIN), *BEARER, "-H", "Prefer: respond-async")
    busy = pair.get("/ratings/train", *form(TRAIN), *BEARER)
    path = begun.headers["location"]
    assert busy.refused(409) and path == busy.headers["location"] == f"/behind/a/proxy/trainings/{begun.json['id']}"
    # The proxy strips its path.
    while pair.get(path.removeprefix("/behind/a/proxy"), *BEARER).json["state"] == "running":
        time.sleep(0.05)


def test_unknown_paths_are_counted_as_one(pair: Server) -> None:
    """Paths that nobody serves are counted under one name, so that they do not swell the metrics."""
    for path in ("/models/", "/movies/1/similar/", "/invented"):
        pair.get(path, *BEARER).refused(404)
        pair.get(path).refused(401)
    handlers = set(re.findall('handler="([^"]*)"', pair.get("/metrics", *BEARER).body))
    assert "none" in handlers and not handlers & {"/models/", "/movies/1/similar/", "/invented"}


def test_active_model_is_counted_from_the_start(start: Start, server: Server, expected: str) -> None:
    """The first scrape of the metrics shows the active model, before any prediction."""
    assert expected
    active = server.get("/models").json["active"]
    fresh = start(DEMO / "df_movies.csv", server.folder / "models", CHALLENGE_ENCODER=str(ENCODER))
    assert f"challenge_active_model {active}.0" in fresh.get("/metrics").body


def test_json_log(pair: Server) -> None:
    """In the JSON log, the access line of a request is an object that holds its id."""
    identity = pair.get("/health/live").headers["x-request-id"]
    lines = [line for line in (pair.folder / "server.log").read_text().splitlines() if identity in line]
    assert [json.loads(line)["name"] for line in lines] == ["uvicorn.access"]


def test_too_much_at_a_time(start: Start, server: Server) -> None:
    """Requests beyond the limit are told to retry later; SIGTERM lets those under way finish."""
    models = server.folder / "models"
    busy = start(DEMO / "df_movies.csv", models, CHALLENGE_ENCODER=str(ENCODER), CHALLENGE_CONCURRENCY="1")
    store = Store(busy.folder / "models")
    training = busy.post("train", TRAIN)
    while training.running() and not store._rows("SELECT id FROM progress WHERE state = 'running'"):
        time.sleep(0.01)
    answer = busy.get("/models")
    assert answer.headers["retry-after"] == "1" and "CHALLENGE_CONCURRENCY" in answer.refused(503)
    assert busy.get("/health/ready").status == 200
    assert busy.process
    busy.process.send_signal(signal.SIGTERM)
    assert training.answer().status == 200
    assert busy.process.wait(20) in (0, -signal.SIGTERM)


def test_waiting_probes_hold_up_no_request(server: Server) -> None:
    """However many probes of readiness wait for something, other requests are answered."""
    with closing(sqlite3.connect(server.folder / "models" / "registry.sqlite", isolation_level=None)) as file:
        file.execute("BEGIN EXCLUSIVE")
        probes = [server.request("/health/ready") for _ in range(60)]
        server.request("/ratings/predict", "-F", "file=@-", "--max-time", "30").answer().refused(422)
        assert all(probe.running() for probe in probes)
        file.execute("ROLLBACK")
    assert {probe.answer().status for probe in probes} == {200}


@pytest.mark.skipif(sys.platform != "linux", reason="no other system limits a running process")
def test_no_room_for_an_upload(untrained: Server) -> None:
    """An upload that the server cannot store is a server error, and the answer says why."""
    assert untrained.process
    before = resource.prlimit(untrained.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(untrained.process.pid, resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        assert "File too large" in untrained.predict("userId,movieId\n" + "1,2\n" * 500_000).refused(500)
    finally:
        resource.prlimit(untrained.process.pid, resource.RLIMIT_FSIZE, before)


def test_not_trained(untrained: Server) -> None:
    """Before any training, the server is live but not ready, and says what to do."""
    assert untrained.get("/health/live").status == 200
    assert "/ratings/train" in untrained.get("/health/ready").refused(503)
    assert "/ratings/train" in untrained.predict(TEST).refused(409)
    added = untrained.request("/ratings", "-F", "file=@-", data=TRAIN.read_bytes()).answer()
    assert "/ratings/train" in added.refused(409)
    assert Store(untrained.folder / "models").added().empty
    assert "challenge_active_model 0.0" in untrained.get("/metrics").body


def test_no_catalogue(untrained: Server) -> None:
    """Training without a catalogue is refused, and the error names the setting."""
    assert "CHALLENGE_CATALOGUE" in untrained.train(TRAIN).refused(409)


def test_no_encoder(wordless: Server) -> None:
    """Training without the weights is refused, the error names the setting, and the server stays up."""
    for _ in range(2):
        detail = wordless.train(TRAIN).refused(503)
        assert "CHALLENGE_ENCODER" in detail and "distilbert-base-uncased" in detail
    assert wordless.get("/health/live").status == 200
    wordless.predict(TEST).refused(409)


def test_real_ratings(real: Server, real_training: Upload) -> None:
    """Real movies that nobody has rated are predicted well, with the right coverage at every user activity."""
    answer = real_training.answer()
    assert answer.status == 200, answer.body
    assert error(real.predict(REAL / "df_test.csv"), REAL) <= 0.605
    told = pd.DataFrame(real.post("predict?detail=true", REAL / "df_test.csv").answer().json).T
    truth, users = pd.read_csv(REAL / "df_test_ratings.csv")["rating"], pd.read_csv(REAL / "df_test.csv")["userId"]
    inside = truth.between(told["low"].to_numpy(float), told["high"].to_numpy(float)).astype(float)
    assert inside.mean() == pytest.approx(0.9, abs=0.02)
    activity = pd.read_csv(REAL / "df_train.csv")["userId"].value_counts()
    quarters = users.map(pd.qcut(activity, 4, labels=False))
    assert inside.groupby(quarters).mean().to_numpy() == pytest.approx(0.9, abs=0.05)


def test_errors_of_the_operator(start: Start, tmp_path: Path) -> None:
    """An unusable plan or folder is a problem of its own type, which names the setting and has its request's id."""
    (tmp_path / "plan.yaml").write_text("tasks: 3")
    planned = start(DEMO / "df_movies.csv", CHALLENGE_ENCODER=str(ENCODER), CHALLENGE_TEACH=str(tmp_path / "plan.yaml"))
    answer = planned.train(TRAIN)
    assert "plan.yaml" in answer.refused(409) and answer.json["type"] == "/problems/plan"
    without_folder = start(DEMO / "df_movies.csv", CHALLENGE_MODELS=str(tmp_path / "plan.yaml"))
    own = "0123456789abcdef" * 2
    answer = without_folder.get("/models", "-H", f"X-Request-ID: {own}")
    assert "plan.yaml" in answer.refused(500) and answer.headers["x-request-id"] == own
    assert "CHALLENGE_MODELS" in answer.json["title"] and answer.json["type"] == "/problems/storage"
