"""The model that serves, and the trainings that replace it."""

import os
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import cached_property, partial
from hashlib import sha256
from threading import Lock
from time import perf_counter
from typing import IO, Any

import pandas as pd
from prometheus_client import Summary
from threadpoolctl import threadpool_limits

from challenge.encoder import Encoder, choose, encode
from challenge.features import movie_vectors
from challenge.model import RatingModel, fit_model
from challenge.settings import FIXED, VERSION, Settings, logger
from challenge.store import NotTrainedError, Store, digest, replace
from challenge.tables import CatalogueMissingError, TableError, read_catalogue

SECONDS = Summary("challenge_training_stage_seconds", "Seconds that a stage of a training took", ["stage"])
# Seconds after which a training must give up the interpreter to a prediction.
sys.setswitchinterval(0.0005)


class Service:
    """Trains, and serves the active model, whichever worker trained it.

    Parameters
    ----------
    settings : Settings
        The operator's.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._encode = partial(encode, cache=settings.models / "embeddings.sqlite", most=settings.cached_texts)
        # On Linux this makes only the trainer's thread, and what it starts, nice: predictions go first.
        self._trainer = ThreadPoolExecutor(1, "training", os.nice, (10,))
        self._preparing = Lock()
        # The model that serves and the last rating it knows, keyed by the last switch and the catalogue's time.
        self._serving: dict[tuple[int | None, int], tuple[RatingModel, int]] = {}

    @cached_property
    def store(self) -> Store:
        """What all workers share; opened on first use."""
        return Store(self.settings.models)

    def train(self, ratings: pd.DataFrame) -> tuple[int, Future[dict[str, Any]]]:
        """Start a training on ratings and the catalogue; the earlier model serves until that is done.

        Parameters
        ----------
        ratings : DataFrame
            From `tables.read_pairs`.

        Returns
        -------
        number : int
            Of the training and of its model.
        report : Future of dict
            The training's report, or its exception.

        Raises
        ------
        TrainingBusyError
            If a training is running.
        """
        alone, number = self.store.alone(), self.store.begin()

        def work() -> dict[str, Any]:
            # The thread releases the lock.
            with alone:
                try:
                    return self._train(number, ratings)
                except BaseException as error:
                    # Perhaps nobody waits for the result.
                    logger.exception("training %d failed", number)
                    # Frees up to a gigabyte: a full disk then has room for the reason and the next training.
                    self.store.tidy()
                    self.store.update(number, error=str(error) or repr(error))
                    raise

        return number, self._trainer.submit(copy_context().run, work)

    def _train(self, number: int, ratings: pd.DataFrame) -> dict[str, Any]:
        clock = {"preparation": perf_counter()}

        def enter(stage: str) -> None:
            self.store.update(number, stage=stage)
            clock[stage] = perf_counter()

        # Digested before it is read: if it is replaced in between, the digest is the old one, and `refresh` reads anew.
        told: dict[str, Any] = {"fingerprints": {"package": VERSION, "catalogue": digest(self.settings.catalogue)}}
        catalogue, name = read_catalogue(self.settings.catalogue), self.settings.encoder
        if len(added := self.store.added()):
            # Concatenation turns differing categories into text, which is slower to compare.
            ratings = pd.concat([ratings, added]).astype(FIXED.pair).drop_duplicates([*FIXED.pair], keep="last")
        if self.settings.teach:
            # Slow to import and seldom needed.
            from challenge.teaching import read_plan, teach

            enter("teaching")
            folder = self.store.path(number).with_suffix(".encoder")
            told["teaching"] = teach(catalogue, ratings, folder, read_plan(self.settings.teach, encoder=name))
            name = str(folder)
        enter("encoder")
        encoder = choose(name, self.settings.max_tokens, self.settings.precision, tuple(catalogue["overview"].dropna()))
        embeddings, encoded = self._encode(catalogue["overview"], encoder, progress=partial(self.store.update, number))
        # Tastes are fitted on threads of their own; with so many small systems BLAS's would only wait for each other.
        with threadpool_limits(limits=1, user_api="blas"):
            model = fit_model(ratings, catalogue, embeddings, self.settings.seed, enter)
        told["fingerprints"]["ratings"] = sha256(pd.util.hash_pandas_object(ratings).to_numpy().tobytes()).hexdigest()
        enter("saving")
        told["seconds"] = pd.Series(clock).diff().shift(-1).dropna().to_dict()
        model.report |= told | {"model": number, "encoder": encoder._asdict(), "overviews encoded": encoded}
        self.store.save(model, number, self.settings.keep)
        for stage, took in told["seconds"].items():
            SECONDS.labels(stage).observe(took)
        logger.info("trained: %s", model.report)
        return model.report

    def replace_catalogue(self, source: IO[bytes]) -> int:
        """Replace the catalogue, once all of the new one is checked and its overviews are encoded.

        Parameters
        ----------
        source : file
            CSV as in `tables.read_catalogue`.

        Returns
        -------
        int
            Number of movies.

        Raises
        ------
        TableError
            If it cannot be used; the message names the line and the column.
        EncoderUnavailableError
            If it has overviews to encode, and the weights cannot be loaded.
        """
        catalogue = read_catalogue(source)
        with suppress(NotTrainedError):
            # Now, so that no prediction waits for it, or fails for lack of the encoder.
            self._encode(catalogue["overview"], Encoder(**self.store.load_active().report["encoder"]))
        source.seek(0)
        replace(self.settings.catalogue.resolve(), lambda file: file.writelines(source))
        return len(catalogue)

    def serving(self) -> RatingModel:
        """Return the model to predict with.

        Returns
        -------
        RatingModel
            The active one, or if it cannot be used, the one that served before. It knows the added ratings, and the
            catalogue as it is now, or if that cannot be read, as it was in the training.

        Raises
        ------
        NotTrainedError
            If no model can be used.
        EncoderUnavailableError
            As in `replace_catalogue`.
        """
        path = self.settings.catalogue
        with self._preparing:
            switch, last_rating = self.store.state()
            # The change time: a file moved here keeps its modification time, which may equal the earlier file's. By os,
            # as Path.exists may raise where access is denied.
            origin = switch, path.stat().st_ctime_ns if os.path.exists(path) else 0
            model, known = self._serving.get(origin) or (self.refresh(self.store.load_active()), 0)
            if known != last_rating:
                model = model.update(self.store.added(known, last_rating))
            self._serving = {origin: (model, last_rating)}
            return model

    def refresh(self, model: RatingModel) -> RatingModel:
        """Adapt a model to the catalogue as it is now.

        Parameters
        ----------
        model : RatingModel
            As it was saved.

        Returns
        -------
        RatingModel
            One that knows the catalogue as it is now, or if that cannot be read, as it was in the training.

        Raises
        ------
        EncoderUnavailableError
            As in `replace_catalogue`.
        """
        try:
            if digest(self.settings.catalogue) != model.report["fingerprints"]["catalogue"]:
                catalogue = read_catalogue(self.settings.catalogue)
                # With the encoder of the training, as the settings may have changed since.
                embeddings, _ = self._encode(catalogue["overview"], Encoder(**model.report["encoder"]))
                model = model.with_catalogue(movie_vectors(model.features, catalogue, embeddings))
        except (CatalogueMissingError, TableError) as error:
            logger.error("%s; the movies that the model was trained with stay", error)
        return model
