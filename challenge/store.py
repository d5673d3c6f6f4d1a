"""Models, trainings and added ratings on disk, written atomically and shared by all workers."""

import json
import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager, closing, suppress
from hashlib import file_digest
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

from challenge.model import NotFoundError, RatingModel
from challenge.settings import FIXED, PACKAGE, VERSION, ChallengeError, logger

sqlite3.register_converter("JSON", json.loads)


class ModelDamagedError(ChallengeError):
    """A model's file is damaged, or another version of this package wrote it."""


class NotTrainedError(ChallengeError):
    """There is no model yet, or none that can be used."""


class TrainingBusyError(ChallengeError):
    """A training is running.

    Parameters
    ----------
    number : int
        Its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"training {number} is running; try again when it is done")
        self.number = number


def replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file that replaces another one once all of it is on disk.

    Parameters
    ----------
    path : Path
        Of the file; what is there now stays if writing fails.
    write : callable
        Called with the open file.
    """
    with TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder, open(f"{folder}/new", "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, path)


def digest(path: Path) -> str:
    """Return the sha256 of a file's content, or an empty string if it cannot be read."""
    with suppress(OSError), path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
    return ""


class Store:
    """The models of a folder, and everything else that its workers share.

    Parameters
    ----------
    folder : Path
        Created if missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with closing(self._connect()) as file:
            file.executescript((PACKAGE / "schema.sql").read_text(encoding="utf-8"))
        # Marks a dead worker's training as failed. On a full or read-only disk, the next training will.
        with suppress(TrainingBusyError, sqlite3.OperationalError, OSError), self.alone():
            pass

    def alone(self) -> AbstractContextManager[Any]:
        """Take the lock that a training holds among all workers; the system releases it if the worker dies.

        Returns
        -------
        context manager
            Releases the lock when it exits.

        Raises
        ------
        TrainingBusyError
            If a training is running.
        """
        try:
            # Another worker may hold it for a moment, as it starts.
            alone = FileLock(self.folder / "training.lock", timeout=0.5, thread_local=False).acquire()
        except Timeout as error:
            raise TrainingBusyError(self._rows("SELECT max(id) AS last FROM trainings")[0]["last"]) from error
        # Whoever has the lock knows that the worker of an unfinished training is dead.
        self._rows("UPDATE trainings SET error = 'the server was stopped' WHERE ended IS NULL")
        return alone

    def begin(self) -> int:
        """Register a training and return its number."""
        return int(self._rows("INSERT INTO trainings DEFAULT VALUES RETURNING id")[0]["id"])

    def update(self, number: int, **columns: Any) -> None:
        """Record how far a training is.

        Parameters
        ----------
        number : int
            Of the training.
        **columns
            New values; ``error`` or ``sha256`` ends the training.
        """
        names = ", ".join(f"{name} = ?" for name in columns)
        self._rows(f"UPDATE trainings SET {names} WHERE id = ?", *columns.values(), number)

    def training(self, number: int) -> dict[str, Any]:
        """Return a training's state, progress, and report or error; raise `NotFoundError` if there is none."""
        return self._row("training", number, "SELECT * FROM progress WHERE id = ?")

    def state(self) -> tuple[int | None, int]:
        """Return the number of the last switch of models, if any, and of the last added rating."""
        return tuple(self._rows("SELECT * FROM state")[0].values())

    def active(self) -> int | None:
        """Return the number of the active model, if there is one."""
        return next((row["model"] for row in self._rows("SELECT model FROM active")), None)

    def models(self) -> list[dict[str, Any]]:
        """Return what is known of each model, the oldest first."""
        return self._rows("SELECT * FROM models ORDER BY id")

    def activate(self, number: int) -> None:
        """Make a model the active one; raise `NotFoundError` if it does not exist, or no longer."""
        self._row("model", number, "INSERT INTO switches (model) SELECT id FROM models WHERE id = ? RETURNING id")

    def save(self, model: RatingModel, number: int, keep: int) -> None:
        """Write the model of a training, activate it, and remove old ones.

        Parameters
        ----------
        model : RatingModel
            A fitted one.
        number : int
            Of the training.
        keep : int
            How many of the newest models to keep; the active one is always kept.
        """
        replace(self.path(number), lambda file: np.savez(file, allow_pickle=False, **model.arrays))
        self.update(number, report=json.dumps(model.report), sha256=digest(self.path(number)))
        self._rows("UPDATE trainings SET sha256 = NULL WHERE id IN (SELECT id FROM spare WHERE place > ?)", keep)
        self.tidy()

    def tidy(self) -> None:
        """Remove the files of models that are not kept, and of trainings that failed or were killed."""
        kept = {f"model-{row['id']}" for row in self.models()}
        for path in [*self.folder.glob("model-*"), *self.folder.glob(".model-*")]:
            if path.name.strip(".").split(".")[0] not in kept:
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()

    def load(self, number: int) -> RatingModel:
        """Read a model.

        Parameters
        ----------
        number : int
            Of its training.

        Returns
        -------
        RatingModel
            As it was saved.

        Raises
        ------
        NotFoundError
            If there is none of that number.
        ModelDamagedError
            If its file is missing or has changed, or if another version of this package saved it.
        """
        path, saved = self.path(number), self._row("model", number, "SELECT * FROM models WHERE id = ?")
        try:
            if saved["report"]["fingerprints"]["package"] != VERSION:
                raise ValueError("another version of this package trained it")
            if digest(path) != saved["sha256"]:
                raise ValueError("its file is gone or has changed")
            with np.load(path, allow_pickle=False) as file:
                return RatingModel(dict(file), saved["report"])
        except Exception as error:
            raise ModelDamagedError(f"model {number} ({path}) cannot be used: {error}") from error

    def load_active(self) -> RatingModel:
        """Read the active model, or if it cannot be used, the one that served before.

        Returns
        -------
        RatingModel
            The last one that can be used.

        Raises
        ------
        NotTrainedError
            If there is none.
        """
        for row in self._rows("SELECT model FROM candidates"):
            try:
                return self.load(row["model"])
            # A training that ends just now may have removed it.
            except (ModelDamagedError, NotFoundError) as error:
                logger.error("%s", error)
        raise NotTrainedError("there is no model that can be used: POST ratings to /ratings/train first")

    def path(self, number: int) -> Path:
        """Return the path of a model's file."""
        return self.folder / f"model-{number}.npz"

    def add(self, ratings: pd.DataFrame) -> None:
        """Add ratings; they are on disk when this returns.

        Parameters
        ----------
        ratings : DataFrame of shape (ratings, 3)
            ``userId``, ``rating`` and ``movieId``.
        """
        rows = ratings[["userId", "rating", "movieId"]].itertuples(index=False, name=None)
        # Not by pandas, whose error does not say that a disk is full.
        with closing(self._connect()) as file, file:
            file.executemany("INSERT INTO ratings (userId, rating, movieId) VALUES (?, ?, ?)", rows)

    def added(self, after: int = 0, last: int = 2**63 - 1) -> pd.DataFrame:
        """Read added ratings.

        Parameters
        ----------
        after, last : int
            Numbers of the last rating to leave out and of the last one to read.

        Returns
        -------
        DataFrame of shape (ratings, 3)
            As added, the oldest first.
        """
        query = "SELECT userId, rating, movieId FROM ratings WHERE id > ? AND id <= ? ORDER BY id"
        with closing(self._connect()) as file:
            return pd.read_sql(query, file, params=(after, last), dtype=FIXED.pair)

    def _rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Run one statement as a durable transaction."""
        with closing(self._connect()) as file, file:
            file.row_factory = sqlite3.Row
            return [dict(row) for row in file.execute(query, values)]

    def _row(self, what: str, number: int, query: str) -> dict[str, Any]:
        if not (rows := self._rows(query, number)):
            raise NotFoundError(f"there is no {what} {number}")
        return rows[0]

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.folder / "registry.sqlite", timeout=60, detect_types=sqlite3.PARSE_DECLTYPES)
