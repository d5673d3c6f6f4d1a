"""The service without HTTP."""

import os
import shutil
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from challenge import teaching
from challenge.api import activate
from challenge.encoder import Encoder, EncoderUnavailableError
from challenge.model import NotFoundError
from challenge.settings import Settings
from challenge.store import NotTrainedError, TrainingBusyError
from challenge.tables import TableError, read_pairs
from challenge.tests.conftest import DEMO, ENCODER
from challenge.training import Service

Damage = Callable[[int], None]


@pytest.fixture(scope="module")
def ratings() -> pd.DataFrame:
    """Read the demo's ratings."""
    return read_pairs(DEMO / "df_train.csv", rated=True)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ratings: pd.DataFrame) -> Service:
    """Return a service trained twice, on a part of the demo and then on a larger one."""
    folder = tmp_path_factory.mktemp("models")
    catalogue = folder / "movies.csv"
    catalogue.write_bytes((DEMO / "df_movies.csv").read_bytes())
    service = Service(
        Settings(CHALLENGE_CATALOGUE=catalogue, CHALLENGE_MODELS=folder / "models", CHALLENGE_ENCODER=str(ENCODER))
    )
    with pytest.raises(NotTrainedError):
        service.serving()
    for rows in (3_000, 4_000):
        number, report = service.train(ratings.head(rows))
        assert report.result()["model"] == number
    return service


def other(service: Service) -> Service:
    """Return another worker."""
    return Service(service.settings)


def gone(_: Encoder) -> None:
    """Fail as `encoder.load` does without the weights."""
    raise EncoderUnavailableError("gone")


def test_described_once(service: Service) -> None:
    """While nothing changes, the same model serves, so movies are described only once."""
    assert service.serving() is service.serving()


def test_one_training_at_a_time(service: Service, ratings: pd.DataFrame) -> None:
    """A second training is refused by every worker; one that failed does not block the next."""
    before = service.serving()
    with service.store.alone():
        number = service.store.begin()
        for worker in (service, other(service)):
            with pytest.raises(TrainingBusyError, match=f"training {number}"):
                worker.train(ratings)
    for _ in range(2):
        number, report = service.train(ratings.assign(movieId="none"))
        with pytest.raises(TableError):
            report.result()
        told = service.store.training(number)
        assert (told["state"], told["stage"]) == ("failed", "features") and "the catalogue holds" in told["error"]
    assert service.serving() is before


def test_failure_is_logged(service: Service, ratings: pd.DataFrame, caplog: pytest.LogCaptureFixture) -> None:
    """The log says which training failed and why."""
    number, report = service.train(ratings.assign(movieId="none"))
    assert report.exception()
    assert f"training {number} failed" in caplog.text and "the catalogue holds" in caplog.text


def test_fingerprints(service: Service) -> None:
    """The same catalogue and package have the same fingerprints; other ratings have different ones."""
    first, second = (model["report"]["fingerprints"] for model in service.store.models())
    assert first["ratings"] != second["ratings"]
    assert [first[name] == second[name] for name in ("catalogue", "package")] == [True] * 2


def test_switch_reaches_other_workers(service: Service) -> None:
    """A model that one worker makes active serves in another one too, there and back."""
    worker = other(service)
    assert worker.serving().report["model"] == 2
    for number in (1, 2):
        service.store.activate(number)
        assert service.serving().report["model"] == number
        assert worker.serving().report["model"] == service.serving().report["model"] == number
    with pytest.raises(NotFoundError, match="model 77"):
        service.store.activate(77)


def test_damaged_model_is_left_out(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """If the active model is damaged, the one before it serves, and the log names the damaged file."""
    path = service.store.path(2)
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    try:
        assert other(service).serving().report["model"] == 1
        assert path.name in caplog.text
    finally:
        path.write_bytes(content)


def test_full_disk(service: Service, ratings: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that cannot be saved says why and leaves no files behind; the earlier model serves."""
    before, files = service.serving(), sorted(service.settings.models.glob("*model*"))
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    number, report = service.train(ratings.head(3_000))
    with pytest.raises(OSError, match="No space left"):
        report.result()
    told = service.store.training(number)
    assert (told["stage"], told["error"]) == ("saving", "[Errno 28] No space left on device")
    assert sorted(service.settings.models.glob("*model*")) == files
    assert service.serving() is before


def test_failure_leaves_no_encoder(service: Service, ratings: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that fails while it teaches an encoder removes the unfinished one before it records the reason."""
    plan, files = Path(teaching.__file__).with_suffix(".yaml"), sorted(service.settings.models.glob("*model*"))

    def half(_: pd.DataFrame, __: pd.DataFrame, folder: Path, ___: teaching.Plan) -> None:
        (folder / "training").mkdir(parents=True)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("challenge.teaching.teach", half)
    worker = Service(service.settings.model_copy(update={"teach": plan}))
    update = worker.store.update

    def full(number: int, **columns: Any) -> None:
        assert "error" not in columns or sorted(service.settings.models.glob("*model*")) == files, "disk is full"
        update(number, **columns)

    # To record the reason takes disk space, too.
    monkeypatch.setattr(worker.store, "update", full)
    number, report = worker.train(ratings.head(3_000))
    with pytest.raises(OSError, match="No space left"):
        report.result()
    assert sorted(service.settings.models.glob("*model*")) == files
    assert "No space left" in worker.store.training(number)["error"]


def test_failure_after_the_switch(
    service: Service, ratings: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A training that fails once its model is active keeps the encoder that it taught for it."""
    # Another folder, so that the other tests do not see the training.
    update = {"models": tmp_path / "models", "teach": Path(teaching.__file__).with_suffix(".yaml")}
    worker = Service(service.settings.model_copy(update=update))
    plans: list[teaching.Plan] = []

    def copy(_: pd.DataFrame, __: pd.DataFrame, folder: Path, plan: teaching.Plan) -> None:
        plans.append(plan)
        shutil.copytree(ENCODER, folder)

    monkeypatch.setattr("challenge.teaching.teach", copy)
    # Used first thing after the switch; None makes it fail.
    monkeypatch.setattr("challenge.training.SECONDS", None)
    number, report = worker.train(ratings.head(3_000))
    assert isinstance(report.exception(), AttributeError) and worker.store.active() == number
    assert Path(worker.store.load_active().report["encoder"]["name"]).is_dir()
    # The setting overrides the plan's encoder.
    assert plans[0].encoder == service.settings.encoder


def test_added_ratings_reach_other_workers(service: Service, ratings: pd.DataFrame, tmp_path: Path) -> None:
    """Added ratings count alike in every worker and after a restart."""
    # A copy, so that the other tests' trainings do not read them.
    models = shutil.copytree(service.settings.models, tmp_path / "models")
    service = Service(service.settings.model_copy(update={"models": models}))
    own = ratings[ratings["userId"] == ratings["userId"].iloc[0]]
    pairs, worker = own.assign(userId="newcomer").astype({"userId": "category"}), other(service)
    worker.serving()
    for some in (pairs.head(5), pairs.tail(len(pairs) - 5)):
        service.store.add(some.assign(rating=5.0))
        service.serving()
    ratings_of = [one.serving().predict(pairs).tolist() for one in (service, worker, other(service))]
    assert ratings_of[0] == ratings_of[1] == ratings_of[2]
    assert sum(ratings_of[0]) > 4 * len(pairs)


def test_added_ratings_override(service: Service, ratings: pd.DataFrame, tmp_path: Path) -> None:
    """An added rating overrides that of the same pair in the file of a later training."""
    models = shutil.copytree(service.settings.models, tmp_path / "models")
    worker, some = Service(service.settings.model_copy(update={"models": models})), ratings.head(3_000)
    own = some[some["userId"] == some["userId"].iloc[0]]
    worker.store.add(own.assign(rating=5.0))
    number, report = worker.train(some)
    assert report.result()["rows"] == len(some)
    first, again = (worker.store.load(model).predict(own).mean() for model in (1, number))
    assert again > max(4.3, first + 0.3)


def test_similar_movies(service: Service) -> None:
    """A movie's twin is the most similar one; a movie not in the catalogue is refused by name."""
    movies = pd.read_csv(DEMO / "df_movies.csv", dtype=str)
    twin = movies.iloc[[5]].assign(movieId="twin")
    table = pd.concat([movies, twin]).to_csv(index=False).encode()
    assert service.replace_catalogue(BytesIO(table)) == len(movies) + 1
    best = service.serving().similar("twin", 4)
    assert (len(best), best["movieId"].iloc[0]) == (4, movies["movieId"].iloc[5])
    assert best["similarity"].iloc[0] == pytest.approx(1)
    assert best["similarity"].is_monotonic_decreasing and best["similarity"].iloc[1] < 0.999
    with pytest.raises(NotFoundError, match="'none'"):
        service.serving().similar("none", 4)


def test_recommendations(service: Service, ratings: pd.DataFrame) -> None:
    """The best unrated movies come first, each with the details of its prediction."""
    model = service.serving()
    user = ratings["userId"].iloc[0]
    known = ratings.head(4_000)
    rated = set(known["movieId"][known["userId"] == user]) & set(model.movies)
    best = model.recommend(user, 7, 0.5)
    assert len(best) == 7 and best["rating"].is_monotonic_decreasing
    assert not rated & set(best["movieId"])
    everything = pd.DataFrame({"userId": user, "movieId": model.movies}).astype("category")
    told = model.explain(everything, 0.5).assign(movieId=model.movies).set_index("movieId")
    assert told.loc[best["movieId"]].reset_index().to_dict("records") == best.to_dict("records")
    assert told["rating"].drop(list(rated)).max() == best["rating"].iloc[0]
    assert len(model.recommend("a stranger", 10_000, 0.9)) == len(model.movies)


@pytest.mark.parametrize("table", [b"", b"title\nA\n", b"movieId,title\n1,A\n,B\n"])
def test_bad_catalogue_changes_nothing(service: Service, table: bytes) -> None:
    """An unusable catalogue is refused, and the earlier one stays."""
    before = service.settings.catalogue.read_bytes()
    with pytest.raises(TableError):
        service.replace_catalogue(BytesIO(table))
    assert service.settings.catalogue.read_bytes() == before
    assert list(service.settings.catalogue.parent.glob(".*")) == []


@pytest.mark.parametrize("table", [None, b"title\nA\n"])
def test_catalogue_that_cannot_be_read(service: Service, caplog: pytest.LogCaptureFixture, table: bytes | None) -> None:
    """If the catalogue is gone or cannot be used, the log says so, and predictions stay the same."""
    path, pairs = service.settings.catalogue, read_pairs(DEMO / "df_test.csv", rated=False).head(99)
    content, before = path.read_bytes(), service.serving().predict(pairs)
    path.unlink()
    try:
        if table:
            path.write_bytes(table)
        np.testing.assert_allclose(service.serving().predict(pairs), before, atol=1e-6)
        assert "catalogue" in caplog.text
    finally:
        path.write_bytes(content)


def test_catalogue_that_may_not_be_read(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """A folder in the catalogue's place, as Docker makes for a missing file, is logged; predictions stay the same."""
    path, pairs = service.settings.catalogue, read_pairs(DEMO / "df_test.csv", rated=False).head(99)
    before = service.serving().predict(pairs)
    kept = path.rename(path.with_name("kept.csv"))
    path.mkdir()
    try:
        np.testing.assert_allclose(service.serving().predict(pairs), before, atol=1e-6)
        assert "movies.csv" in caplog.text
    finally:
        path.rmdir()
        kept.rename(path)


def test_catalogue_that_cannot_be_looked_for(service: Service) -> None:
    """A catalogue that the system cannot look up (no access or, here, too long a name) stops no model from serving."""
    lost = service.settings.model_copy(update={"catalogue": service.settings.catalogue.with_name(999 * "x")})
    assert Service(lost).serving().report == service.serving().report


def test_catalogue_of_the_same_time(service: Service) -> None:
    """A catalogue moved into the place of another counts, even with the same modification time."""
    path, known = service.settings.catalogue, len(service.serving().movies)
    content, times = path.read_bytes(), path.stat()
    new = path.with_suffix(".new")
    columns = content.splitlines()[0].count(b",")
    new.write_bytes(content.rstrip() + b"\nanother" + b"," * columns + b"\n")
    os.utime(new, ns=(times.st_atime_ns, times.st_mtime_ns))
    new.replace(path)
    try:
        assert len(service.serving().movies) == known + 1
    finally:
        path.write_bytes(content)


def test_catalogue_without_the_encoder(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A catalogue whose overviews cannot be encoded is refused, even by a worker that has not predicted yet."""
    before, worker = service.settings.catalogue.read_bytes(), other(service)

    monkeypatch.setattr("challenge.encoder.load", gone)
    with pytest.raises(EncoderUnavailableError):
        worker.replace_catalogue(BytesIO(b"movieId,overview\n1,What nobody has read.\n"))
    assert service.settings.catalogue.read_bytes() == before


def test_switch_without_the_encoder(
    service: Service, ratings: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that needs a lost encoder for a newer catalogue cannot be made active; the earlier one serves."""
    # A copy, so that the other tests do not see the training.
    models, catalogue = shutil.copytree(service.settings.models, tmp_path / "models"), tmp_path / "movies.csv"
    shutil.copyfile(service.settings.catalogue, catalogue)
    update = {"models": models, "catalogue": catalogue, "max_tokens": 64}
    worker = Service(service.settings.model_copy(update=update))
    number, report = worker.train(ratings.head(3_000))
    report.result()
    worker.replace_catalogue(BytesIO(b"movieId,overview\n1,What the other model has not read.\n"))
    monkeypatch.setattr("challenge.encoder.load", gone)
    monkeypatch.setattr("challenge.api.service", worker)
    with pytest.raises(EncoderUnavailableError):
        activate(1)
    assert worker.store.active() == other(worker).serving().report["model"] == number


def test_catalogue_without_a_model(tmp_path: Path) -> None:
    """The catalogue can be replaced before the first training, also through a link."""
    service = Service(Settings(CHALLENGE_CATALOGUE=tmp_path / "movies.csv", CHALLENGE_MODELS=tmp_path / "models"))
    assert service.replace_catalogue(BytesIO(b"movieId\n1\n2\n")) == 2
    assert service.settings.catalogue.read_bytes() == b"movieId\n1\n2\n"
    # The link itself stays.
    link = tmp_path / "link.csv"
    link.symlink_to(service.settings.catalogue)
    worker = Service(service.settings.model_copy(update={"catalogue": link}))
    assert worker.replace_catalogue(BytesIO(b"movieId\n3\n")) == 1
    assert link.is_symlink() and service.settings.catalogue.read_bytes() == b"movieId\n3\n"


def test_folder_of_the_models(service: Service) -> None:
    """Besides the models, it holds the cached embeddings and what workers share, and nothing else."""
    names = {path.name for path in service.settings.models.iterdir() if not path.name.startswith("model-")}
    assert names == {"embeddings.sqlite", "registry.sqlite", "training.lock"}
