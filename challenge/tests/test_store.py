"""Models, trainings and added ratings on disk."""

import errno
import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd
import pytest

from challenge.model import NotFoundError, RatingModel, boost
from challenge.settings import VERSION
from challenge.store import ModelDamagedError, NotTrainedError, Store, TrainingBusyError, replace

TREES = boost(np.arange(200.0)[:, None], np.arange(200.0), np.arange(200) % 5, 0)[0]
ARRAYS = {"trees": np.array(TREES), "spread": np.array(TREES), "users": np.array(["1"]), "movies": np.array(["2"])}
MODEL = RatingModel(ARRAYS, {"fingerprints": {"package": VERSION}})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Open a store in a new folder whose parent does not exist either."""
    return Store(tmp_path / "new" / "models")


def train(store: Store, keep: int = 5) -> int:
    """Save a model as a training does, with its number in the report, and return the number."""
    number = store.begin()
    store.save(RatingModel(ARRAYS, MODEL.report | {"model": number}), number, keep)
    return number


def files(store: Store) -> list[str]:
    """List the files and folders of models, leftovers included."""
    return sorted(path.name for path in store.folder.iterdir() if "model-" in path.name)


def test_model_comes_back(store: Store) -> None:
    """A saved model is active and loads unchanged; before, there is none."""
    assert (store.active(), store.state()) == (None, (None, 0))
    with pytest.raises(NotFoundError, match="model 1"):
        store.load(1)
    assert train(store) == 1
    assert (store.active(), store.state()) == (1, (1, 0))
    loaded = Store(store.folder).load(1)
    assert loaded.report == MODEL.report | {"model": 1}
    assert {name: array.tolist() for name, array in loaded.arrays.items()} == {
        name: array.tolist() for name, array in MODEL.arrays.items()
    }


def test_old_models_are_removed(store: Store) -> None:
    """The newest models stay, with the encoders taught for them; the others are removed."""
    first = train(store)
    train(store)
    (store.folder / f"model-{first}.encoder").mkdir()
    switched = store.state()
    store.activate(first)
    assert store.state() != switched and store.active() == first
    for _ in range(3):
        store.begin()
    last = train(store, keep=1)
    assert files(store) == [f"model-{last}.npz"]
    # Removing a model is no switch: the one that serves stays.
    assert store.state() == (4, 0)
    (store.folder / f"model-{last}.encoder").mkdir()
    older = train(store, keep=2)
    assert files(store) == [f"model-{last}.encoder", f"model-{last}.npz", f"model-{older}.npz"]
    store.activate(last)
    newer = train(store, keep=1)
    assert files(store) == [f"model-{newer}.npz"]
    with pytest.raises(NotFoundError):
        store.activate(older)
    assert store.active() == newer


def test_activated_while_another_is_saved(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model activated right before old ones are removed is kept."""
    first, second, update = train(store), store.begin(), store.update

    def activate_then(number: int, **columns: Any) -> None:
        update(number, **columns)
        store.activate(first)

    monkeypatch.setattr(store, "update", activate_then)
    store.save(MODEL, second, 1)
    assert (store.active(), files(store)) == (first, [f"model-{first}.npz", f"model-{second}.npz"])


def test_models_are_listed(store: Store) -> None:
    """The list says when each model was made; removing one keeps its training's state and duration."""
    first = train(store)
    (model,) = store.models()
    assert set(model) == {"id", "created", "sha256", "report"} and len(model["sha256"]) == 64
    store._rows("UPDATE trainings SET started = '2026-01-01T00:00:00.000Z', ended = '2026-01-01T00:00:02.500Z'")
    assert store.models()[0]["created"] == "2026-01-01T00:00:02.500Z"
    train(store, keep=1)
    assert [store.training(first)[name] for name in ("state", "seconds")] == ["done", 2.5]


def test_half_a_model_is_none(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A failed write or an unregistered file leaves the earlier model active; leftovers are removed."""
    first, second = train(store), store.begin()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        store.save(MODEL, second, 5)
    monkeypatch.undo()
    assert files(store) == [f"model-{first}.npz"]
    store.path(second).write_bytes(store.path(first).read_bytes())
    (store.folder / f".model-{second}.npz-killed").mkdir()
    with pytest.raises(NotFoundError):
        store.load(second)
    assert store.active() == first
    third = train(store)
    assert files(store) == [f"model-{first}.npz", f"model-{third}.npz"]


@pytest.mark.parametrize("damage", ["a bit", "no file", "half a file"])
def test_damaged_model(store: Store, damage: str) -> None:
    """A damaged or missing file is refused by name, and the model that served before is loaded, if any."""
    first, second = train(store), train(store)
    path = store.path(second)
    content = path.read_bytes()
    if damage == "no file":
        path.unlink()
    else:
        path.write_bytes(content[:-9] + b"x" + content[-8:] if damage == "a bit" else content[: len(content) // 2])
    with pytest.raises(ModelDamagedError, match=path.name):
        store.load(second)
    assert store.load_active().report["model"] == first
    store.path(first).unlink()
    with pytest.raises(NotTrainedError, match="no model"):
        store.load_active()


def test_model_of_another_version(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that another version of the package trained is refused."""
    number = train(store)
    monkeypatch.setattr("challenge.store.VERSION", "99")
    with pytest.raises(ModelDamagedError, match="another version"):
        store.load(number)


def test_report_of_another_time(store: Store) -> None:
    """A model whose report lacks the package's version is refused, too."""
    number = store.begin()
    store.save(RatingModel(ARRAYS, {}), number, 5)
    with pytest.raises(ModelDamagedError, match=f"model {number} "):
        store.load(number)


def test_nothing_is_pickled(store: Store) -> None:
    """Arrays of anything but numbers and text are refused."""
    number = store.begin()
    with pytest.raises(ValueError, match="Object arrays"):
        store.save(RatingModel(ARRAYS | {"odd": np.array([None])}, MODEL.report), number, 5)
    assert files(store) == []


def test_removed_while_it_is_loaded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """If another worker's training removes the active model during a load, one that served before is loaded."""
    first, second, load = train(store), train(store), store.load
    store.activate(first)

    def late(number: int) -> RatingModel:
        if number == first:
            train(store, keep=2)
        return load(number)

    monkeypatch.setattr(store, "load", late)
    assert store.load_active().report["model"] == second
    assert files(store) == [f"model-{second}.npz", f"model-{second + 1}.npz"]


def test_one_training_at_a_time(store: Store) -> None:
    """Only one holder has the lock, across stores too; a dead holder's training counts as failed."""
    other, done = Store(store.folder), train(store)
    with store.alone():
        number = store.begin()
        for one in (store, other):
            with pytest.raises(TrainingBusyError, match=f"training {number} .*again") as caught:
                one.alone()
            assert caught.value.number == number
        Store(store.folder)
        assert store.training(number)["state"] == "running"
    Store(store.folder)
    dead = store.training(number)
    assert dead["state"] == "failed" and "stopped" in dead["error"]
    assert store.training(done)["state"] == "done"
    with other.alone():
        pass


def test_lock_held_for_a_moment(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock held only for a moment, as by a starting worker, is waited for; any thread may release a lock."""
    held = store.alone()

    def release(_: float) -> None:
        with ThreadPoolExecutor(1) as threads:
            threads.submit(held.__exit__, None, None, None).result()

    monkeypatch.setattr("time.sleep", release)
    with Store(store.folder).alone():
        pass


def test_start_on_a_full_disk(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store opens and loads even if nothing can be written, also after a training that was killed."""
    number, dead = train(store), store.begin()
    rows = Store._rows

    def full(self: Store, query: str, *values: Any) -> list[dict[str, Any]]:
        if not query.startswith("SELECT"):
            raise sqlite3.OperationalError("database or disk is full")
        return rows(self, query, *values)

    monkeypatch.setattr(Store, "_rows", full)
    assert Store(store.folder).load_active().report["model"] == number
    with pytest.raises(sqlite3.OperationalError, match="full"):
        store.alone()
    monkeypatch.undo()
    with store.alone():
        assert (store.active(), store.training(dead)["state"]) == (number, "failed")


def test_start_on_a_disk_that_is_only_read(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store whose lock file cannot be opened still loads its models."""
    number = train(store)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    assert Store(store.folder).load_active().report["model"] == number
    with pytest.raises(OSError, match="Read-only"):
        store.alone()


def test_progress(store: Store) -> None:
    """A training shows its stage and pace, then its report or error."""
    number = store.begin()
    assert [store.training(number)[name] for name in ("stage", "done", "total")] == ["waiting", 0, 0]
    store.update(number, stage="encoder", done=3, total=9)
    told = store.training(number)
    assert [told[name] for name in ("state", "stage", "done", "total")] == ["running", "encoder", 3, 9]
    assert told["seconds"] >= 0
    assert all(told[name] is None for name in ("report", "error", "done_per_second", "seconds_left"))
    store._rows("UPDATE paces SET began = began - 2")
    store.update(number, done=6, total=9)
    told = store.training(number)
    assert told["done_per_second"] == pytest.approx(1.5, abs=0.3) and told["seconds_left"] == pytest.approx(2, abs=1)
    store.update(number, done=9, total=9)
    assert store.training(number)["seconds_left"] is None
    store.save(MODEL, number, 5)
    told = store.training(number)
    assert [told[name] for name in ("state", "report", "seconds_left")] == ["done", MODEL.report, None]
    assert told["done_per_second"] > 0
    failed = store.begin()
    for done in (0, 3):
        store.update(failed, done=done, total=9)
        store._rows("UPDATE paces SET began = began - 2")
    assert store.training(failed)["seconds_left"] > 0
    store.update(failed, error="no luck")
    told = store.training(failed)
    assert [told[name] for name in ("state", "error", "seconds_left")] == ["failed", "no luck", None]
    with pytest.raises(NotFoundError, match="training 9"):
        store.training(9)


def test_ratings_come_back_in_order(store: Store) -> None:
    """Added ratings are read in the order they came, with ids as text; at first there are none."""
    assert store.added().empty
    first = pd.DataFrame({"userId": ["07", "x"], "rating": [4.5, 1.0], "movieId": ["1", "2"]})
    first = first.astype({"userId": "category", "movieId": "category"})
    store.add(first)
    store.add(first.assign(rating=2.0))
    added = store.added()
    assert added["userId"].tolist() == ["07", "x"] * 2
    assert added["movieId"].tolist() == ["1", "2"] * 2
    assert added["rating"].tolist() == [4.5, 1.0, 2.0, 2.0]
    assert store.state()[1] == 4
    assert store.added(1, 3)["rating"].tolist() == [1.0, 2.0]


def test_all_ratings_or_none(store: Store) -> None:
    """If one row fails, none is added, and the error is SQLite's own."""
    with sqlite3.connect(store.folder / "registry.sqlite") as file:
        file.execute(
            "CREATE TRIGGER full BEFORE INSERT ON ratings WHEN NEW.rating = 2 BEGIN SELECT RAISE(FAIL, 'full'); END"
        )
    file.close()
    ratings = pd.DataFrame({"userId": ["1", "2"], "rating": [1.0, 2.0], "movieId": ["1", "1"]})
    with pytest.raises(sqlite3.Error, match="^full$"):
        store.add(ratings)
    assert store.added().empty


def test_replace(tmp_path: Path) -> None:
    """A file is replaced as a whole or not at all, with no leftovers."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    temporary: list[str] = []

    def write_half(file: IO[bytes]) -> None:
        file.write(b"half")
        # Beside the file, so that a rename can replace it, and named after it.
        temporary.extend(found.name for found in tmp_path.iterdir() if found != path)
        raise KeyError

    with pytest.raises(KeyError):
        replace(path, write_half)
    assert path.read_bytes() == b"old"
    assert len(temporary) == 1 and temporary[0].startswith(".file-")
    replace(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_replaced_when_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All content is synced to disk before the old file is replaced."""
    path, synced = tmp_path / "file", []
    path.write_bytes(b"old")
    monkeypatch.setattr("os.fsync", lambda number: synced.append((os.fstat(number).st_size, path.read_bytes())))
    replace(path, lambda file: file.write(b"newer"))
    assert synced == [(5, b"old")]
