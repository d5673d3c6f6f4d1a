"""Models, trainings and added ratings on disk: each there as a whole or not at all, and the same for all workers."""

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
from challenge.settings import PACKAGE, VERSION, ChallengeError, logger

sqlite3.register_converter("JSON", json.loads)


class ModelDamagedError(ChallengeError):
    """A model's file is not what the training wrote, or what another version of this package wrote."""


class NotTrainedError(ChallengeError):
    """There is no model yet, or none that can be used."""


class TrainingBusyError(ChallengeError):
    """A training is at work.

    Parameters
    ----------
    number : int
        Its number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"training {number} is at work; try again when it is done")
        self.number = number


def replace(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a file that takes the place of another one when all of it is on disk.

    Parameters
    ----------
    path : Path
        The file's place; what was there stays until then, and for good if the writing fails.
    write : callable
        Given the file, writes to it.
    """
    with TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder, open(f"{folder}/new", "wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
        os.replace(file.name, path)


def digest(path: Path) -> str:
    """Return the sha256 of a file's content, or nothing where no file can be read."""
    with suppress(OSError), path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()
    return ""


class Store:
    """The models of a folder, and what else its workers share.

    Parameters
    ----------
    folder : Path
        Made when missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with closing(self._connect()) as file:
            file.executescript((PACKAGE / "schema.sql").read_text(encoding="utf-8"))
        # Whoever gets the lock tells what a dead worker left behind; on a disk that is full, or that the system now
        # only reads, the next training does.
        with suppress(TrainingBusyError, sqlite3.OperationalError, OSError), self.alone():
            pass

    def alone(self) -> AbstractContextManager[Any]:
        """Take the lock of all workers that a training holds; the system lets go of it if the worker dies.

        Returns
        -------
        context manager
            Lets go of it at the end of a ``with``.

        Raises
        ------
        TrainingBusyError
            If a training is at work.
        """
        try:
            # Another worker may hold it for a moment, to see whether a training is at work.
            alone = FileLock(self.folder / "training.lock", timeout=0.5, thread_local=False).acquire()
        except Timeout as error:
            raise TrainingBusyError(self._rows("SELECT max(id) AS last FROM trainings")[0]["last"]) from error
        # What a dead worker was at will not be finished.
        self._rows("UPDATE trainings SET error = 'the server was stopped' WHERE ended IS NULL")
        return alone

    def begin(self) -> int:
        """Return the number of a new training."""
        return int(self._rows("INSERT INTO trainings DEFAULT VALUES RETURNING id")[0]["id"])

    def update(self, number: int, **columns: Any) -> None:
        """Write down how far a training is.

        Parameters
        ----------
        number : int
            The training's.
        **columns
            New values; with ``error`` the training has ended.
        """
        names = ", ".join(f"{name} = ?" for name in columns)
        self._rows(f"UPDATE trainings SET {names} WHERE id = ?", *columns.values(), number)

    def training(self, number: int) -> dict[str, Any]:
        """Return the state of a training, its progress, and its report or error; raise `NotFoundError` without it."""
        return self._row("training", number, "SELECT * FROM progress WHERE id = ?")

    def state(self) -> tuple[int | None, int]:
        """Return the number of the last switch of models, if there was one, and of the last rating that was added."""
        return tuple(self._rows("SELECT * FROM state")[0].values())

    def active(self) -> int | None:
        """Return the number of the active model, if there is one."""
        return next((row["model"] for row in self._rows("SELECT model FROM active")), None)

    def models(self) -> list[dict[str, Any]]:
        """Return what is known of each model, the oldest first."""
        return self._rows("SELECT * FROM models ORDER BY id")

    def activate(self, number: int) -> None:
        """Make a model the active one; raise `NotFoundError` if it is not there, or no longer."""
        self._row("model", number, "INSERT INTO switches (model) SELECT id FROM models WHERE id = ? RETURNING id")

    def save(self, model: RatingModel, number: int, keep: int) -> None:
        """Write the model of a training, which serves from then on, and remove old ones.

        Parameters
        ----------
        model : RatingModel
            A fitted one.
        number : int
            The training's.
        keep : int
            Models that stay, the newest; the active one always does.
        """
        replace(self.path(number), lambda file: np.savez(file, allow_pickle=False, **model.arrays))
        self.update(number, report=json.dumps(model.report), sha256=digest(self.path(number)))
        self._rows("UPDATE trainings SET sha256 = NULL WHERE id IN (SELECT id FROM spare WHERE place > ?)", keep)
        self.tidy()

    def tidy(self) -> None:
        """Remove the files of models that are not kept, also what trainings left that failed or were killed."""
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
            If its file is not there or is not what was saved, or if another version of this package saved it.
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
        """Read the active model, or if it cannot be used the one that served before.

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
            # A training that ends now may have removed it.
            except (ModelDamagedError, NotFoundError) as error:
                logger.error("%s", error)
        raise NotTrainedError("there is no model that can be used: POST ratings to /ratings/train first")

    def path(self, number: int) -> Path:
        """Return the place of a model's file."""
        return self.folder / f"model-{number}.npz"

    def add(self, ratings: pd.DataFrame) -> None:
        """Write ratings such that they outlive a crash right after this.

        Parameters
        ----------
        ratings : DataFrame of shape (ratings, 3)
            ``userId``, ``rating`` and ``movieId``.
        """
        rows = ratings[["userId", "rating", "movieId"]].itertuples(index=False, name=None)
        # Not by pandas: it says of a full disk that the execution failed.
        with closing(self._connect()) as file, file:
            file.executemany("INSERT INTO ratings (userId, rating, movieId) VALUES (?, ?, ?)", rows)

    def added(self, after: int = 0, last: int = 2**63 - 1) -> pd.DataFrame:
        """Read ratings that were added.

        Parameters
        ----------
        after, last : int
            Number of the last rating to leave out, and of the last one to read.

        Returns
        -------
        DataFrame of shape (ratings, 3)
            As they were added, the oldest first.
        """
        query = "SELECT userId, rating, movieId FROM ratings WHERE id > ? AND id <= ? ORDER BY id"
        with closing(self._connect()) as file:
            return pd.read_sql(query, file, params=(after, last), dtype={"userId": "category", "movieId": "category"})

    def _rows(self, query: str, *values: Any) -> list[dict[str, Any]]:
        """Run one statement as a transaction, which is on disk afterwards."""
        with closing(self._connect()) as file, file:
            file.row_factory = sqlite3.Row
            return [dict(row) for row in file.execute(query, values)]

    def _row(self, what: str, number: int, query: str) -> dict[str, Any]:
        if not (rows := self._rows(query, number)):
            raise NotFoundError(f"there is no {what} {number}")
        return rows[0]

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.folder / "registry.sqlite", timeout=60, detect_types=sqlite3.PARSE_DECLTYPES)
