"""The rating model: it predicts the ratings of movies that nobody has rated, says how sure it is, and why."""

from copy import copy
from threading import Lock
from typing import Any, NamedTuple

import lightgbm as lgb
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from challenge.features import OVERVIEW, MovieFeatures, is_number
from challenge.tables import RATINGS
from challenge.taste import Floats, Indices, Ratings, batches, fit_users, solve, uncoupled, with_level

# Pairs whose weights and vectors are held at a time.
CHUNK = 100_000
# Levels at which the errors' quantiles are kept, the usual one, and the least error that is expected, in stars.
LEVELS = np.linspace(0, 1, 1001)
LEVEL = 0.9
LEAST_REACH = 0.05
# Trees' shares in a prediction have not always been safe to compute from several threads (LightGBM #5482).
SHAPLEY = Lock()
# A reason names so many of the user's ratings.
REASONS = 3


class Movies(NamedTuple):
    """Movies as ratings are predicted for them; in each array one more comes last, for movies that are unknown.

    Attributes
    ----------
    ids : Index of shape (movies,)
        Movie ids.
    numbers : ndarray of shape (movies + 1, numeric columns)
        The catalogue's numbers and dates.
    expected : ndarray of shape (movies + 1,)
        Stars that the public gives a movie, or gave it where it has ratings.
    quality, overview_quality : ndarray of shape (movies + 1,)
        Stars above the mean that the catalogue promises, and the overview's part in them.
    taste, overview_taste : ndarray of shape (movies + 1, dimensions)
        What users' weights are multiplied with, the first dimension being the same for all movies, and the overview's
        part in it.
    """

    ids: "pd.Index[str]"
    numbers: Floats
    expected: Floats
    quality: Floats
    overview_quality: Floats
    taste: Floats
    overview_taste: Floats


def products(weights: Floats, user: Indices, vectors: Floats, movie: Indices) -> Floats:
    """Multiply each pair's weights and vector, so many pairs at a time that memory stays bounded."""
    chunks = np.array_split(np.arange(len(user)), 1 + len(user) // CHUNK)
    return np.concatenate([np.einsum("ij,ij->i", weights[user[rows]], vectors[movie[rows]]) for rows in chunks])


class RatingModel:
    """A rating is the mean, plus the movie's quality, the user's taste for it, and what boosted trees add.

    Parameters
    ----------
    arrays : dict of str to ndarray
        All that was learned and what from, as arrays of numbers and text.
    report : dict
        What was learned from, how well held-out movies are predicted, and the seconds of each stage.
    """

    def __init__(self, arrays: dict[str, NDArray[Any]], report: dict[str, Any]) -> None:
        self.arrays = arrays
        self.report = report
        self.features = MovieFeatures()
        self.features.arrays_ = {key: array for key, array in arrays.items() if "/" in key}
        self.users, self.movies = pd.Index(arrays["users"]), pd.Index(arrays["movies"])
        self.trees, self.reach = (lgb.Booster(model_str=str(arrays[name])) for name in ("trees", "reach"))

    def describe(self, catalogue: pd.DataFrame, embeddings: NDArray[np.float32]) -> Movies:
        """Describe the movies that ratings will be asked for.

        Parameters
        ----------
        catalogue : DataFrame of shape (movies, columns)
            Cells as text, by movie id.
        embeddings : ndarray of shape (movies, dimensions)
            Of the overviews; NaN where there is none.

        Returns
        -------
        Movies
            In the catalogue's order.
        """
        vectors, sources = self.features.transform(catalogue, embeddings)
        vectors = np.pad(vectors, ((0, 1), (0, 0)))
        overview = np.where(sources == OVERVIEW, vectors, 0)
        learned = self.arrays
        quality, overview_quality = with_level(vectors) @ learned["quality"], overview @ learned["quality"][1:]
        taste = with_level(quality, vectors) @ learned["projection"]
        overview_taste = np.column_stack([overview_quality, overview]) @ learned["projection"][1:]
        expected, places = learned["mean"] + quality, catalogue.index.get_indexer(self.movies)
        expected[places[places >= 0]] = learned["expected"][places >= 0]
        numbers = vectors[:, is_number(sources)]
        return Movies(catalogue.index, numbers, expected, quality, overview_quality, taste, overview_taste)

    def predict(self, pairs: pd.DataFrame, movies: Movies) -> Floats:
        """Predict ratings.

        Parameters
        ----------
        pairs : DataFrame of shape (pairs, 2)
            ``userId`` and ``movieId`` as categories of text.
        movies : Movies
            What `describe` returned.

        Returns
        -------
        ndarray of shape (pairs,)
            Ratings from 1 to 5. An unknown user counts as an average one, an unknown movie as well.
        """
        user, movie = self._locate(pairs, movies)
        return self._rate(self._features(user, movie, movies))

    def explain(self, pairs: pd.DataFrame, movies: Movies, level: float = LEVEL) -> pd.DataFrame:
        """Predict ratings, how far they may be off, and why.

        Parameters
        ----------
        pairs : DataFrame of shape (pairs, 2)
            As of `predict`.
        movies : Movies
            What `describe` returned.
        level : float
            Share of the true ratings that shall lie in the intervals.

        Returns
        -------
        DataFrame of shape (pairs, 4)
            ``rating``, ``low`` and ``high``, and ``why``: stars that add up to the rating, and the user's ratings that
            weigh most in the taste for the movie.

        References
        ----------
        Papadopoulos et al. 2002, Inductive confidence machines for regression (normalised conformal intervals);
        Lundberg et al. 2020, From local explanations to global understanding with explainable AI for trees.
        """
        learned, (user, movie) = self.arrays, self._locate(pairs, movies)
        features = self._features(user, movie, movies)
        with SHAPLEY:
            shares = self.trees.predict(features, pred_contrib=True)
        rating = self._rate(features)
        reach = np.interp(level, LEVELS, learned["scores"]) * np.maximum(self.reach.predict(features), LEAST_REACH)
        habit, quality = learned["tastes"][user, 0] * movies.taste[movie, 0], movies.overview_quality[movie]
        overview = products(learned["tastes"], user, movies.overview_taste, movie)
        why = pd.DataFrame(
            {
                "baseline": np.full(len(pairs), learned["mean"], float),
                "user": habit + shares[:, 2] + shares[:, 3],
                "quality": features[:, 1] - quality + shares[:, 1],
                "taste": features[:, 0] - habit - overview + shares[:, 0],
                "overview": quality + overview,
            }
        )
        why["rest"] = rating - why.sum(axis=1)
        reasons = self._reasons(user, movie, movies)
        told = [stars | {"because": reason} for stars, reason in zip(why.to_dict("records"), reasons)]
        low, high = np.clip([rating - reach, rating + reach], *RATINGS)
        return pd.DataFrame({"rating": rating, "low": low, "high": high, "why": told})

    def update(self, ratings: pd.DataFrame, movies: Movies) -> "RatingModel":
        """Return a model that knows more ratings; the tastes of their users are learned anew, all else stays.

        Parameters
        ----------
        ratings : DataFrame of shape (ratings, 3)
            As of `fitting.fit_model`; the users may be new. What the catalogue lacks counts for nothing.
        movies : Movies
            What `describe` returned.

        Returns
        -------
        RatingModel
            A new one.
        """
        old, new = self.arrays, copy(self)
        first_user, first_movie = len(self.users), len(self.movies)
        user, users = pd.factorize(np.append(self.users, ratings["userId"]))
        movie, names = pd.factorize(np.append(self.movies, ratings["movieId"]))
        user, movie, more = user[first_user:], movie[first_movie:], (0, len(users) - first_user)
        new.users, new.movies = pd.Index(users), pd.Index(names)
        added = {"user": user, "movie": movie, "stars": ratings["rating"].to_numpy(np.float32)}
        new.arrays = old | {"users": users, "movies": names, "tastes": np.pad(old["tastes"], (more, (0, 0)))}
        new.arrays |= {name: np.append(old[name], column) for name, column in added.items()}
        new.arrays |= {name: np.pad(old[name], more) for name in ("activity", "spread")}
        history = new._history(user, movies)
        if history.users.size:
            concerned, index = np.unique(history.users, return_inverse=True)
            tastes = fit_users(movies.taste, history._replace(users=index), uncoupled(2))[0]
            new.arrays["tastes"][concerned], new.arrays["activity"][concerned] = tastes, np.bincount(index)
        return new

    def _history(self, users: Indices, movies: Movies) -> Ratings:
        """Return all ratings of some users, the last of each pair, as far as their movies are in the catalogue."""
        learned = self.arrays
        rows = np.flatnonzero(np.isin(learned["user"], users))
        places = movies.ids.get_indexer(self.movies)[learned["movie"][rows]]
        pairs = pd.DataFrame({"user": learned["user"][rows], "place": places, "stars": learned["stars"][rows]})
        pairs = pairs[places >= 0].drop_duplicates(["user", "place"], keep="last")
        user, place = pairs["user"].to_numpy(), pairs["place"].to_numpy()
        stars = (pairs["stars"].to_numpy() - movies.expected[place]).astype(np.float32)
        return Ratings(user, place, np.zeros_like(place), stars, np.ones_like(stars))

    def _locate(self, pairs: pd.DataFrame, movies: Movies) -> list[Indices]:
        """Return the places of users and of movies; -1, the last, is unknown."""
        ids = {"userId": self.users, "movieId": movies.ids}
        return [index.get_indexer(pairs[name].cat.categories)[pairs[name].cat.codes] for name, index in ids.items()]

    def _features(self, user: Indices, movie: Indices, movies: Movies) -> Floats:
        learned = self.arrays
        terms = [products(learned["tastes"], user, movies.taste, movie), movies.quality[movie]]
        return np.column_stack([*terms, learned["activity"][user], learned["spread"][user], movies.numbers[movie]])

    def _rate(self, features: Floats) -> Floats:
        ratings: Floats = self.arrays["mean"] + features[:, 0] + features[:, 1] + self.trees.predict(features)
        return np.clip(ratings, *RATINGS)

    def _reasons(self, user: Indices, movie: Indices, movies: Movies) -> list[dict[str, float]]:
        """Return the stars that the user's weightiest ratings add to the taste for each movie, by the ids rated."""
        reasons: list[dict[str, float]] = [{} for _ in user]
        rows, history = pd.Series(user).groupby(user).indices, self._history(np.unique(user), movies)
        if not history.users.size:
            return reasons
        concerned, index = np.unique(history.users, return_inverse=True)
        for batch, places, there in batches(index, movies.taste.shape[1]):
            rated, target = history.movies[places], history.stars[places][..., None]
            shares = there[..., None] * solve(movies.taste[rated], target, there[..., None], uncoupled(1))
            pulls = (movies.taste[rated] * shares)[..., 1:]
            for one, own, pull, kept in zip(concerned[batch], rated, pulls, there):
                for row in rows[one]:
                    stars = pull[kept] @ movies.taste[movie[row], 1:]
                    best = np.argsort(-np.abs(stars))[:REASONS]
                    reasons[row] = dict(zip(movies.ids[own[best]], stars[best].tolist()))
        return reasons
