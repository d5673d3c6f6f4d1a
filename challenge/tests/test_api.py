"""End to end: a real uvicorn, real curl, the demo data."""

import csv
import json
import time
from collections.abc import Iterator

import pandas as pd
import pytest

from challenge.encoder import choose
from challenge.tests.conftest import DEMO, ENCODER, PROJECT, Answer, Server, Start, Upload, error
from challenge.tests.test_tables import BAD, BAD_IDS, GOOD

REAL = PROJECT.parent / "shared" / "data" / "movielens-tmdb"
TRAIN, TEST = DEMO / "df_train.csv", DEMO / "df_test.csv"


@pytest.fixture(scope="module")
def report() -> dict[str, Answer]:
    """Keep the answer of the first training."""
    return {}


@pytest.fixture(scope="module")
def server(start: Start, report: dict[str, Answer]) -> Server:
    """Start a server and train it on the demo."""
    server = start(DEMO / "df_movies.csv", CHALLENGE_ENCODER=str(ENCODER))
    report["answer"] = server.train(TRAIN)
    assert report["answer"].status == 200, report["answer"].body
    return server


@pytest.fixture(scope="module")
def expected(server: Server) -> str:
    """Give what the trained server predicts for the demo's test rows."""
    answer = server.predict(TEST)
    assert answer.status == 200, answer.body
    return answer.body


@pytest.fixture(scope="module")
def untrained(start: Start) -> Server:
    """Start a server in an empty folder."""
    return start()


@pytest.fixture(scope="module")
def wordless(start: Start) -> Server:
    """Start a server that has a catalogue and cannot have the default encoder."""
    return start(DEMO / "df_movies.csv")


@pytest.fixture(scope="module")
def real(start: Start) -> Server:
    """Start a server with the real catalogue."""
    if not REAL.is_dir():
        pytest.skip("the real ratings are not beside the project")
    return start(REAL / "df_movies.csv", CHALLENGE_ENCODER=str(ENCODER))


@pytest.fixture(scope="module")
def real_training(real: Server) -> Iterator[Upload]:
    """Train on the real ratings, and do not wait for the answer."""
    upload = real.post("train", REAL / "df_train.csv")
    yield upload
    real.stop()
    upload.process.communicate()


@pytest.fixture(scope="module", autouse=True)
def ahead(request: pytest.FixtureRequest) -> None:
    """Let the longest training run beside the other tests, if it is wanted at all."""
    wanted = any(item.name == test_real_ratings.__name__ for item in request.session.items)
    if wanted and REAL.is_dir():
        request.getfixturevalue("real_training")


def test_report(server: Server, report: dict[str, Answer]) -> None:
    """Training tells what it learned from, how well and how long; ready shows the same."""
    told = report["answer"].json
    assert (told["rows"], told["users"], told["movies"]) == (15_873, 300, 320)
    assert told["encoder"] == choose(str(ENCODER), 512, "auto")._asdict()
    errors = told["cross-validated mse"]
    assert 0 < errors["model"] < errors["user mean"] < errors["global mean"] < 2
    assert len(told["seconds"]) > 1 and min(told["seconds"].values()) >= 0
    ready = server.get("/health/ready")
    assert ready.status == 200
    assert ready.json["model"] == told


def test_predictions_beat_the_mean(server: Server, ratings: pd.DataFrame) -> None:
    """The predictions lie on the scale and are much better than each user's mean."""
    answer = server.predict(TEST)
    assert answer.kind == "application/json"
    assert 1 <= min(answer.json.values()) < max(answer.json.values()) <= 5
    means = ratings["rating"].astype(float).groupby(ratings["userId"]).mean()
    users, truth = pd.read_csv(TEST, dtype=str)["userId"], pd.read_csv(DEMO / "df_test_ratings.csv")["rating"]
    baseline = float(((truth - users.map(means)) ** 2).mean())
    assert error(answer, DEMO) < 0.9 * baseline


def test_health_and_pages(server: Server) -> None:
    """The pages and the checks of health answer; an unknown path is a problem."""
    assert server.get("/health/live").json == {"status": "live"}
    docs = server.get("/docs")
    assert (docs.status, docs.kind.split(";")[0]) == (200, "text/html")
    assert {"/ratings", "/ratings/train", "/ratings/predict"} <= set(server.get("/openapi.json").json["paths"])
    server.get("/nowhere").refused(404)
    server.get("/ratings/train").refused(405)


@pytest.mark.parametrize(("what", "rated", "table", "parts"), BAD, ids=BAD_IDS)
def test_bad_tables(server: Server, what: str, rated: bool, table: bytes, parts: list[str]) -> None:
    """A table that cannot be used is answered with its line and column."""
    detail = (server.train if rated else server.predict)(table).refused(422)
    assert [part for part in parts if part not in detail] == [], (what, detail)


@pytest.mark.parametrize("verb", ["train", "predict"])
@pytest.mark.parametrize(
    "options",
    [["-X", "POST"], ["-F", "table=@-"], ["-F", "file=text"], ["-d", "file=text"], ["--json", "{}"]],
    ids=["no body", "another field", "a text field", "a plain form", "JSON"],
)
def test_bad_forms(server: Server, verb: str, options: list[str]) -> None:
    """A wrong or missing form field is named."""
    assert "file" in server.request(f"/ratings/{verb}", *options, data=b"userId").answer().refused(422)


@pytest.mark.parametrize("form", GOOD)
def test_forms(server: Server, form: str) -> None:
    """All ordinary forms of a CSV get the same predictions."""
    answer = server.predict(GOOD[form])
    assert (answer.status, answer.body) == (200, server.predict(GOOD["plain"]).body)


def test_unknown_users_and_movies(server: Server, ratings: pd.DataFrame) -> None:
    """An unknown user gets the movie's answer, an unknown movie an average one's."""
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
    """In detail each rating comes with an interval, wider for a higher level, and reasons that add up to it."""
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
    """A query that makes no sense is refused by its name."""
    assert query.split("=")[0] in server.post(f"predict?{query}", TEST).answer().refused(422)


def test_ratings_added(server: Server, expected: str, ratings: pd.DataFrame) -> None:
    """Ratings that are added count at once, after a kill right behind the answer, and in a later training."""
    own = ratings[ratings["userId"] == ratings["userId"].iloc[0]]
    pairs = pd.read_csv(TEST, dtype=str).assign(userId="newcomer").drop_duplicates("movieId").to_csv(index=False)
    stranger = server.predict(pairs).json
    path = server.folder / "models" / "ratings.sqlite"
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
        path.unlink()
        assert server.train(TRAIN).status == 200
    assert server.predict(pairs).json == stranger


def test_movie_added_after_training(server: Server, expected: str) -> None:
    """A movie that comes into the catalogue is predicted by what is said of it, without a training."""
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
    """After trainings that fail early and late the earlier model serves, also after a restart."""
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
    """Other ratings give another model; the first ones, in another form and with corrections, the first again."""
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
    """While it trains the server lives and predicts by the earlier model, and refuses a second training."""
    uploads = [server.post("train", TRAIN), server.post("train", TRAIN)]
    lives, predictions = [], set()
    while all(upload.running() for upload in uploads):
        time.sleep(0.01)
    while any(upload.running() for upload in uploads):
        predictions.add(server.predict(TEST).body)
        lives.append(server.get("/health/live").status)
    assert len(lives) > 1 and set(lives) == {200}
    assert predictions == {expected}
    done, busy = sorted((upload.answer() for upload in uploads), key=lambda answer: answer.status)
    assert done.status == 200
    assert "training" in busy.refused(409)


def test_not_trained(untrained: Server) -> None:
    """Before any training the server lives, is not ready and says what to do."""
    assert untrained.get("/health/live").status == 200
    assert "/ratings/train" in untrained.get("/health/ready").refused(503)
    assert "/ratings/train" in untrained.predict(TEST).refused(409)
    added = untrained.request("/ratings", "-F", "file=@-", data=TRAIN.read_bytes()).answer()
    assert "/ratings/train" in added.refused(409)


def test_no_catalogue(untrained: Server) -> None:
    """To train without a catalogue is refused by the name of the setting."""
    assert "CHALLENGE_CATALOGUE" in untrained.train(TRAIN).refused(409)


def test_no_encoder(wordless: Server) -> None:
    """Without the weights training is refused by the name of the setting, and nothing else breaks."""
    for _ in range(2):
        detail = wordless.train(TRAIN).refused(503)
        assert "CHALLENGE_ENCODER" in detail and "distilbert-base-uncased" in detail
    assert wordless.get("/health/live").status == 200
    wordless.predict(TEST).refused(409)


def test_real_ratings(real: Server, real_training: Upload) -> None:
    """Real movies that nobody has rated are predicted well."""
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
