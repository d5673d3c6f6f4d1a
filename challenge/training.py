"""The model that serves, and the training that replaces it."""

import logging
from threading import Lock, RLock
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from challenge import store
from challenge.encoder import encode
from challenge.fitting import fit_model
from challenge.model import Movies, RatingModel
from challenge.settings import Settings
from challenge.tables import read_catalogue

logger = logging.getLogger(__name__)


class NotTrainedError(RuntimeError):
    """There is no model yet."""


class TrainingBusyError(RuntimeError):
    """A training is at work."""


class Service:
    """Trains, and keeps the model that serves, with the ratings that came after its training.

    Parameters
    ----------
    settings : Settings
        Where things are.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.model = store.load(settings.models)
        self._training = Lock()
        self._preparing = RLock()
        self._state: tuple[RatingModel, int] | None = None
        self._prepared: tuple[RatingModel, Movies]

    def train(self, ratings: pd.DataFrame) -> dict[str, Any]:
        """Train on ratings and the catalogue; the new model serves at once, the earlier one until then.

        Parameters
        ----------
        ratings : DataFrame
            Of `tables.read_pairs`.

        Returns
        -------
        dict
            The training's report.

        Raises
        ------
        TrainingBusyError
            If a training is at work.
        """
        if not self._training.acquire(blocking=False):
            raise TrainingBusyError("a training is at work; try again when it is done")
        try:
            started = perf_counter()
            self.settings.models.mkdir(parents=True, exist_ok=True)
            if len(added := store.added(self.settings.models)):
                ratings = pd.concat([ratings, added]).drop_duplicates(["userId", "movieId"], keep="last")
            encoder, lessons = self.settings.encoder, dict[str, float]()
            if self.settings.teach:
                # Slow to import, and seldom needed.
                from challenge.teaching import teach_for

                encoder, lessons = teach_for(self.settings, ratings)
            catalogue, embeddings = self._read_catalogue(encoder)
            seconds = {"encoder": perf_counter() - started}
            # Several threads only wait for each other at so many small systems of equations.
            with threadpool_limits(limits=1, user_api="blas"):
                model = fit_model(ratings, catalogue, embeddings, self.settings.seed)
            model.report |= {"encoder": encoder, "teaching": lessons, "seconds": seconds | model.report["seconds"]}
            store.save(model, self.settings.models)
            self.model = model
        finally:
            self._training.release()
        logger.info("trained: %s", model.report)
        return model.report

    def rate(self, ratings: pd.DataFrame) -> None:
        """Keep more ratings for good; from now on predictions know them.

        Parameters
        ----------
        ratings : DataFrame
            Of `tables.read_pairs`.

        Raises
        ------
        NotTrainedError
            If there was no training yet.
        """
        with self._preparing:
            model, movies = self.serving()
            store.add(ratings, self.settings.models)
            self._prepared = model.update(ratings, movies), movies

    def serving(self) -> tuple[RatingModel, Movies]:
        """Prepare to predict.

        Returns
        -------
        model : RatingModel
            Of the last training; ratings that were added since are known to it.
        movies : Movies
            As the catalogue now has them.

        Raises
        ------
        NotTrainedError
            If there was no training yet.
        """
        if (trained := self.model) is None:
            raise NotTrainedError("there is no model yet: POST ratings to /ratings/train first")
        path = self.settings.catalogue
        state = (trained, path.stat().st_mtime_ns if path.exists() else 0)
        with self._preparing:
            if self._state != state:
                # The encoder that the model was trained with: the setting may have changed since.
                movies = trained.describe(*self._read_catalogue(trained.report["encoder"]))
                self._prepared = trained.update(store.added(self.settings.models), movies), movies
                self._state = state
            return self._prepared

    def _read_catalogue(self, encoder: str) -> tuple[pd.DataFrame, NDArray[np.float32]]:
        catalogue = read_catalogue(self.settings.catalogue)
        texts, cache = catalogue["overview"].fillna("").tolist(), self.settings.models / "embeddings.sqlite"
        return catalogue, encode(texts, encoder, self.settings.max_tokens, cache)
