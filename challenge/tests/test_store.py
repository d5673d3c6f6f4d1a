"""Models and added ratings on disk."""

import sqlite3
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from challenge import store
from challenge.fitting import boost
from challenge.model import RatingModel

TREES = boost(np.arange(200.0)[:, None], np.arange(200.0), np.arange(200) % 5, 0)[0]
ARRAYS = {"trees": np.array(TREES), "reach": np.array(TREES), "users": np.array(["1"]), "movies": np.array(["2"])}
MODEL = RatingModel(ARRAYS, {"rows": 3})


def test_model_comes_back(tmp_path: Path) -> None:
    """What was saved is loaded; before that there is none."""
    assert store.load(tmp_path / "models") is None
    store.save(MODEL, tmp_path / "models")
    loaded = store.load(tmp_path / "models")
    assert loaded and loaded.report == MODEL.report
    assert {name: array.tolist() for name, array in loaded.arrays.items()} == {
        name: array.tolist() for name, array in MODEL.arrays.items()
    }


def test_half_a_file_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash while a model is written leaves the earlier one."""
    store.save(MODEL, tmp_path)
    before = (tmp_path / store.FILE).read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.save(RatingModel(MODEL.arrays, {"rows": 4}), tmp_path)
    assert (tmp_path / store.FILE).read_bytes() == before


def test_ratings_come_back_in_order(tmp_path: Path) -> None:
    """Added ratings are read in the order in which they came, ids as text; at first there are none."""
    assert store.added(tmp_path).empty
    first = pd.DataFrame({"userId": ["07", "x"], "rating": [4.5, 1.0], "movieId": ["1", "2"]})
    first = first.astype({"userId": "category", "movieId": "category"})
    store.add(first, tmp_path)
    store.add(first.assign(rating=2.0), tmp_path)
    added = store.added(tmp_path)
    assert added["userId"].tolist() == ["07", "x"] * 2
    assert added["movieId"].tolist() == ["1", "2"] * 2
    assert added["rating"].tolist() == [4.5, 1.0, 2.0, 2.0]


def test_all_ratings_or_none(tmp_path: Path) -> None:
    """A failure among the rows leaves no row behind."""
    store.added(tmp_path)
    with sqlite3.connect(tmp_path / store.RATINGS) as file:
        file.execute(
            "CREATE TRIGGER full BEFORE INSERT ON ratings WHEN NEW.rating = 2 BEGIN SELECT RAISE(FAIL, 'x'); END"
        )
    file.close()
    ratings = pd.DataFrame({"userId": ["1", "2"], "rating": [1.0, 2.0], "movieId": ["1", "1"]})
    with pytest.raises(Exception, match="x"):
        store.add(ratings, tmp_path)
    assert store.added(tmp_path).empty
