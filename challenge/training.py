"""The model that serves, and the trainings that replace it."""

import logging
import shutil
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from contextvars import copy_context
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from threading import RLock
from time import perf_counter
from typing import IO, Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from prometheus_client import Counter, Gauge, Summary
from sklearn.metrics.pairwise import cosine_similarity
from threadpoolctl import threadpool_limits

from challenge.encoder import Encoder, choose, encode
from challenge.fitting import fit_model
from challenge.model import Movies, RatingModel
from challenge.settings import VERSION, Settings
from challenge.store import NotFoundError, Store, replacing
from challenge.tables import read_catalogue

ACTIVE = Gauge("challenge_active_model", "Number of the model that serves", multiprocess_mode="mostrecent")
SECONDS = Summary("challenge_training_stage_seconds", "Seconds that a stage of a training took", ["stage"])
OVERVIEWS = Counter("challenge_overviews", "Overviews whose vectors were cached, or were not", ["source"])
Encoded = tuple[NDArray[np.float32], int]
logger = logging.getLogger(__name__)
# A prediction waits so many seconds for the interpreter while a training has it.
sys.setswitchinterval(0.0005)


class NotTrainedError(RuntimeError):
    """There is no model yet."""


class Serving(NamedTuple):
    """What predictions are made with; it never changes.

    Attributes
    ----------
    state : tuple of int
        Number of the active model, time of the catalogue, number of the last rating that was added.
    model : RatingModel
        The active one, or the last good one; the added ratings are known to it.
    movies : Movies
        As the catalogue has them.
    """

    state: tuple[int, int, int]
    model: RatingModel
    movies: Movies


def fingerprint(table: pd.DataFrame) -> str:
    """Return the sha256 of a table's cells."""
    return sha256(pd.util.hash_pandas_object(table).to_numpy().tobytes()).hexdigest()


class Service:
    """Trains, and predicts with the model that is active, which any worker may have trained.

    Parameters
    ----------
    settings : Settings
        Where things are.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._trainer = ThreadPoolExecutor(1, "training")
        self._preparing = RLock()
        self._serving: Serving | None = None

    @cached_property
    def store(self) -> Store:
        """What all workers share, from the first use on."""
        return Store(self.settings.models)

    def train(self, ratings: pd.DataFrame) -> tuple[int, Future[dict[str, Any]]]:
        """Start a training on ratings and the catalogue; when it is done its model serves, until then the earlier one.

        Parameters
        ----------
        ratings : DataFrame
            Of `tables.read_pairs`.

        Returns
        -------
        number : int
            The training's, and that of its model.
        report : Future of dict
            The training's report, or what went wrong.

        Raises
        ------
        TrainingBusyError
            If a training is at work.
        """
        with ExitStack() as alone:
            alone.enter_context(self.store.alone())
            number = self.store.begin()
            # The thread lets go of the lock.
            return number, self._trainer.submit(copy_context().run, self._train, number, ratings, alone.pop_all())

    def _train(self, number: int, ratings: pd.DataFrame, alone: ExitStack) -> dict[str, Any]:
        with alone:
            try:
                model = self._fit(number, ratings)
                self.store.update(number, stage="saving")
                self.store.save(model, number, self.settings.keep)
            except BaseException as error:
                self.store.update(number, error=str(error) or repr(error))
                raise
        for stage, seconds in model.report["seconds"].items():
            SECONDS.labels(stage).observe(seconds)
        logger.info("trained: %s", model.report)
        return model.report

    def _fit(self, number: int, ratings: pd.DataFrame) -> RatingModel:
        clock, name, lessons = [perf_counter()], self.settings.encoder, {}
        catalogue = read_catalogue(self.settings.catalogue)
        if len(added := self.store.added()):
            ratings = pd.concat([ratings, added]).drop_duplicates(["userId", "movieId"], keep="last")
        if self.settings.teach:
            # Slow to import, and seldom needed.
            from challenge.teaching import read_plan, teach

            self.store.update(number, stage="teaching")
            plan = read_plan(self.settings.teach).model_copy(update={"encoder": name})
            name = str(self.store.path(number).with_suffix(".encoder"))
            lessons = teach(catalogue, ratings, Path(name), plan)
        clock.append(perf_counter())
        self.store.update(number, stage="encoder")
        encoder = choose(name, self.settings.max_tokens, self.settings.precision)
        embeddings, encoded = self._encode(catalogue, encoder, number)
        clock.append(perf_counter())
        self.store.update(number, stage="fitting")
        # Several threads only wait for each other at so many small systems of equations.
        with threadpool_limits(limits=1, user_api="blas"):
            model = fit_model(ratings, catalogue, embeddings, self.settings.seed)
        sources = {"ratings": ratings, "catalogue": catalogue, "embeddings": pd.DataFrame(embeddings)}
        fingerprints = {name: fingerprint(table) for name, table in sources.items()} | {"package": VERSION}
        model.report |= {"model": number, "encoder": encoder._asdict(), "fingerprints": fingerprints}
        model.report |= {"overviews encoded": encoded} | ({"teaching": lessons} if lessons else {})
        model.report["seconds"] |= dict(zip(("preparation", "encoder"), np.diff(clock).tolist()))
        return model

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
        self.serving()
        self.store.add(ratings)
        self.serving()

    def activate(self, number: int) -> dict[str, Any]:
        """Make a model serve, in all workers.

        Parameters
        ----------
        number : int
            The model's.

        Returns
        -------
        dict
            Its report.

        Raises
        ------
        NotFoundError
            If there is no such model.
        ModelDamagedError
            If its file is not there or is not what was saved.
        """
        report = self.store.load(number).report
        self.store.activate(number)
        self.serving()
        return report

    def replace_catalogue(self, source: IO[bytes]) -> int:
        """Put other movies in the place of the catalogue, once they are all checked and their overviews encoded.

        Parameters
        ----------
        source : file
            CSV as of `tables.read_catalogue`.

        Returns
        -------
        int
            Number of movies.

        Raises
        ------
        TableError
            If it cannot be used; the message names the line and the column.
        """
        catalogue = read_catalogue(source)
        if self._serving:
            # Now, lest the next prediction waits for it.
            self._encode(catalogue, Encoder(**self._serving.model.report["encoder"]))
        source.seek(0)
        with replacing(self.settings.catalogue.resolve()) as file:
            shutil.copyfileobj(source, file)
        return len(catalogue)

    def serving(self) -> tuple[RatingModel, Movies]:
        """Prepare to predict.

        Returns
        -------
        model : RatingModel
            The active one, or if it is damaged the one that served before; it knows the ratings that were added.
        movies : Movies
            As the catalogue now has them.

        Raises
        ------
        NotTrainedError
            If there was no training yet.
        """
        serving = self._serving
        if serving is None or serving.state != self._state():
            with self._preparing:
                serving = self._serving = self._prepare()
        return serving.model, serving.movies

    def similar(self, movie: str, count: int) -> pd.DataFrame:
        """Find the movies that the same users will like.

        Parameters
        ----------
        movie : str
            Its id.
        count : int
            Number of movies wanted.

        Returns
        -------
        DataFrame of shape (at most count, 2)
            ``movieId`` and ``similarity``, the correlation that users' tastes for the two movies are expected to have;
            the most similar first.

        Raises
        ------
        NotFoundError
            If the catalogue has no such movie.
        """
        _, movies = self.serving()
        if movie not in movies.ids:
            raise NotFoundError(f"there is no movie '{movie}' in the catalogue")
        # The first dimension is the same for all, the last movie is any that is unknown.
        vectors = movies.taste[:-1, 1:]
        similarity = cosine_similarity(vectors, vectors[movies.ids == movie])[:, 0]
        table = pd.DataFrame({"movieId": movies.ids, "similarity": similarity})
        return table[movies.ids != movie].nlargest(count, "similarity")

    def recommend(self, user: str, count: int, level: float) -> pd.DataFrame:
        """Find the movies that a user will rate best of those not rated yet.

        Parameters
        ----------
        user : str
            Its id; an unknown one counts as an average one.
        count : int
            Number of movies wanted.
        level : float
            As of `RatingModel.explain`.

        Returns
        -------
        DataFrame of shape (at most count, 5)
            ``movieId`` and the columns of `RatingModel.explain`, the best first.
        """
        model, movies = self.serving()
        rated = model.movies[model.arrays["movie"][model.arrays["user"] == model.users.get_indexer([user])[0]]]
        pairs = pd.DataFrame({"userId": user, "movieId": movies.ids.difference(rated, sort=False)}).astype("category")
        best = pairs.iloc[np.argsort(-model.predict(pairs, movies), kind="stable")[:count]].reset_index(drop=True)
        return pd.concat([best["movieId"].astype(str), model.explain(best, movies, level)], axis=1)

    def _state(self) -> tuple[int, int, int]:
        path, (active, last_rating) = self.settings.catalogue, self.store.state()
        if active is None:
            raise NotTrainedError("there is no model yet: POST ratings to /ratings/train first")
        return active, path.stat().st_mtime_ns if path.exists() else 0, last_rating

    def _prepare(self) -> Serving:
        old, state = self._serving, self._state()
        if old is None or old.state[:2] != state[:2]:
            trained = self.store.load_active()
            # The encoder that the model was trained with: the settings may have changed since.
            catalogue, encoder = read_catalogue(self.settings.catalogue), Encoder(**trained.report["encoder"])
            movies = trained.describe(catalogue, self._encode(catalogue, encoder)[0])
            old = Serving((*state[:2], 0), trained, movies)
            ACTIVE.set(trained.report["model"])
        added = self.store.added(old.state[2], state[2])
        return Serving(state, old.model.update(added, old.movies) if len(added) else old.model, old.movies)

    def _encode(self, catalogue: pd.DataFrame, encoder: Encoder, number: int | None = None) -> Encoded:
        """Return the overviews' embeddings, and how many of them were not in the cache."""
        told: list[int] = []

        def tell(done: int, total: int) -> None:
            told.append(done)
            if number:
                self.store.update(number, done=done, total=total)

        texts, cache = catalogue["overview"].fillna("").tolist(), self.settings.models / "embeddings.sqlite"
        vectors = encode(texts, encoder, cache, self.settings.cached_texts, tell)
        OVERVIEWS.labels("cached").inc(told[0])
        OVERVIEWS.labels("encoded").inc(told[-1] - told[0])
        return vectors, told[-1] - told[0]
