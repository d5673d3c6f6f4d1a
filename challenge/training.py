"""The model that serves, and the training that replaces it."""

import logging
from threading import Lock
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from challenge import store
from challenge.encoder import encode
from challenge.model import Movies, RatingModel
from challenge.settings import Settings
from challenge.tables import read_catalogue

logger = logging.getLogger(__name__)


class NotTrainedError(RuntimeError):
    """There is no model yet."""


class TrainingBusyError(RuntimeError):
    """A training is at work."""


class Service:
    """Trains, and predicts by the model that was trained last.

    Parameters
    ----------
    settings : Settings
        Where things are.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.model = store.load(settings.models)
        self._training = Lock()
        self._describing = Lock()
        self._described: tuple[tuple[RatingModel, int], Movies] | None = None

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
            catalogue, embeddings = self._read_catalogue(self.settings.encoder)
            seconds = {"encoder": perf_counter() - started}
            model = RatingModel(self.settings.seed).fit(ratings, catalogue, embeddings)
            model.report_ |= {"encoder": self.settings.encoder, "seconds": seconds | model.report_["seconds"]}
            store.save(model, self.settings.models)
            self.model = model
        finally:
            self._training.release()
        logger.info("trained: %s", model.report_)
        return model.report_

    def predict(self, pairs: pd.DataFrame) -> "pd.Series[float]":
        """Predict ratings by the model that serves.

        Parameters
        ----------
        pairs : DataFrame
            Of `tables.read_pairs`.

        Returns
        -------
        Series of shape (pairs,)
            A rating from 1 to 5 a row, by row number.

        Raises
        ------
        NotTrainedError
            If there was no training yet.
        """
        if (model := self.model) is None:
            raise NotTrainedError("there is no model yet: POST ratings to /ratings/train first")
        return pd.Series(model.predict(pairs, self._describe(model)))

    def _read_catalogue(self, encoder: str) -> tuple[pd.DataFrame, NDArray[np.float32]]:
        catalogue = read_catalogue(self.settings.catalogue)
        texts, cache = catalogue["overview"].fillna("").tolist(), self.settings.models / "embeddings.sqlite"
        return catalogue, encode(texts, encoder, self.settings.max_tokens, cache)

    def _describe(self, model: RatingModel) -> Movies:
        """Describe the movies as the catalogue now has them; a movie that came after the training counts too."""
        path = self.settings.catalogue
        state = (model, path.stat().st_mtime_ns if path.exists() else 0)
        with self._describing:
            if self._described is None or self._described[0] != state:
                # The encoder that the model was trained with: the setting may have changed since.
                self._described = (state, model.describe(*self._read_catalogue(model.report_["encoder"])))
            return self._described[1]
