"""The trained model and the ratings that came after it on disk: each there as a whole or not at all."""

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd

from challenge.model import RatingModel

FILE = "model.npz"
REPORT = "report"
RATINGS = "ratings.sqlite"


def save(model: RatingModel, folder: Path) -> None:
    """Write a model; until that is done the earlier one stays.

    Parameters
    ----------
    model : RatingModel
        A fitted one.
    folder : Path
        Where it goes; made when missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{FILE}.part").open("wb") as file:
        np.savez(file, allow_pickle=False, **model.arrays, **{REPORT: np.array(json.dumps(model.report))})
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, folder / FILE)


def load(folder: Path) -> RatingModel | None:
    """Read the model that was saved last.

    Parameters
    ----------
    folder : Path
        Where it was saved.

    Returns
    -------
    RatingModel or None
        None where there is none yet.
    """
    if not (folder / FILE).exists():
        return None
    with np.load(folder / FILE, allow_pickle=False) as file:
        arrays = dict(file)
    return RatingModel(arrays, json.loads(str(arrays.pop(REPORT))))


def add(ratings: pd.DataFrame, folder: Path) -> None:
    """Write ratings such that they outlive a crash right after this.

    Parameters
    ----------
    ratings : DataFrame of shape (ratings, 3)
        ``userId``, ``rating`` and ``movieId``.
    folder : Path
        Where the model is.
    """
    with closing(sqlite3.connect(folder / RATINGS, timeout=60)) as file, file:
        ratings.to_sql("ratings", file, if_exists="append", index=False)


def added(folder: Path) -> pd.DataFrame:
    """Read all ratings that were added.

    Parameters
    ----------
    folder : Path
        Where the model is.

    Returns
    -------
    DataFrame of shape (ratings, 3)
        As they were added, the oldest first.
    """
    with closing(sqlite3.connect(folder / RATINGS, timeout=60)) as file:
        file.execute("CREATE TABLE IF NOT EXISTS ratings (userId TEXT, rating REAL, movieId TEXT)")
        return pd.read_sql(
            "SELECT * FROM ratings ORDER BY rowid", file, dtype={"userId": "category", "movieId": "category"}
        )
