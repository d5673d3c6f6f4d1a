"""The rating model: it predicts the ratings of movies that nobody has rated, says how sure it is, and why."""

from copy import copy
from threading import Lock
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.metrics.pairwise import cosine_similarity

from challenge.features import OVERVIEW, MovieFeatures, is_number
from challenge.settings import FIXED, ChallengeError
from challenge.tables import RATINGS
from challenge.taste import Floats, Indices, Ratings, fit_users, shrunk_means, with_level

# What is known of a user beside the taste.
HABITS = ("activity", "spread", "selection")
# The first of the trees' features; the catalogue's numbers follow.
TERMS = ("taste", "quality", *HABITS)
# Trees' shares in a prediction have not always been safe to compute from several threads (LightGBM #5482).
SHAPLEY = Lock()


class NotFoundError(ChallengeError):
    """Something of that name is not there."""


def products(weights: Floats, user: Indices, vectors: Floats, movie: Indices) -> Floats:
    """Multiply each pair's weights and vector, so many pairs at a time that memory stays bounded."""
    chunks = np.array_split(np.arange(len(user)), 1 + len(user) // FIXED.chunk)
    return np.concatenate([np.einsum("ij,ij->i", weights[user[rows]], vectors[movie[rows]]) for rows in chunks])


class RatingModel:
    """A rating is the mean, plus the movie's quality, the user's taste for it, and what boosted trees add.

    Parameters
    ----------
    arrays : dict of str to ndarray
        All that was learned and what from, and the movies of a catalogue, as arrays of numbers and text.
    report : dict
        What was learned from, how well held-out movies are predicted, and the seconds of each stage.

    Attributes
    ----------
    features : MovieFeatures
        Fitted.
    users, movies, catalogue : Index
        Ids of the users and of the movies that ratings were learned from, and of the catalogue's movies.
    """

    def __init__(self, arrays: dict[str, NDArray[Any]], report: dict[str, Any]) -> None:
        self.arrays = arrays
        self.report = report
        self.features = MovieFeatures()
        self.features.arrays_ = {key: array for key, array in arrays.items() if "/" in key}
        self.users, self.movies = pd.Index(arrays["users"]), pd.Index(arrays["movies"])
        self.catalogue = pd.Index(arrays.get("catalogue", []))
        self.trees, self.reach = (lgb.Booster(model_str=str(arrays[name])) for name in ("trees", "reach"))

    def describe(self, catalogue: "pd.Index[str]", vectors: Floats, sources: NDArray[np.str_]) -> "RatingModel":
        """Return a model that knows the movies of a catalogue, and no others.

        Parameters
        ----------
        catalogue : Index of shape (movies,)
            Movie ids.
        vectors : ndarray of shape (movies, dimensions)
            Of these movies, by `features`.
        sources : ndarray of shape (dimensions,)
            As of `MovieFeatures.transform`.

        Returns
        -------
        RatingModel
            A new one. Its arrays of movies have one more at the end, for those that are unknown: ``numbers``, the
            catalogue's; ``vectors``, what users' weights are multiplied with, the first dimension being the same for
            all movies; ``qualities``, the stars above the mean that the catalogue promises, or that the public gave in
            the training; and the overview's part in both, none in what the public gave.
        """
        new, learned = copy(self), self.arrays
        vectors = np.pad(vectors, ((0, 1), (0, 0)))
        overview = np.where(sources == OVERVIEW, vectors, 0)
        quality, overview_quality = with_level(vectors) @ learned["quality"], overview @ learned["quality"][1:]
        described = {"numbers": vectors[:, is_number(sources)], "catalogue": np.array(list(catalogue))}
        described["vectors"] = with_level(quality, vectors) @ learned["projection"]
        described["overview_vectors"] = np.column_stack([overview_quality, overview]) @ learned["projection"][1:]
        there = self.movies.isin(catalogue)
        rated = catalogue.get_indexer(self.movies[there])
        quality[rated], overview_quality[rated] = learned["given"][there], 0
        described |= {"qualities": quality, "overview_qualities": overview_quality}
        new.catalogue, new.arrays = catalogue, learned | described
        return new

    def predict(self, pairs: pd.DataFrame) -> Floats:
        """Predict ratings.

        Parameters
        ----------
        pairs : DataFrame of shape (pairs, 2)
            ``userId`` and ``movieId`` as categories of text.

        Returns
        -------
        ndarray of shape (pairs,)
            Ratings from 1 to 5. An unknown user counts as an average one, an unknown movie as well.
        """
        return self._rate(self._features(*self._locate(pairs)))

    def explain(self, pairs: pd.DataFrame, level: float = FIXED.level) -> pd.DataFrame:
        """Predict ratings, how far they may be off, and why.

        Parameters
        ----------
        pairs : DataFrame of shape (pairs, 2)
            As of `predict`.
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
        learned, (user, movie) = self.arrays, self._locate(pairs)
        features = self._features(user, movie)
        with SHAPLEY:
            shares = dict(zip(TERMS, self.trees.predict(features, pred_contrib=True).T))
        rating = self._rate(features)
        reach = np.quantile(learned["scores"], level) * np.maximum(self.reach.predict(features), FIXED.least_reach)
        habit, quality = learned["tastes"][user, 0] * learned["vectors"][movie, 0], learned["overview_qualities"][movie]
        overview = products(learned["tastes"], user, learned["overview_vectors"], movie)
        why = pd.DataFrame(
            {
                "baseline": np.full(len(pairs), learned["mean"], float),
                "user": habit + sum(shares[name] for name in HABITS),
                "quality": features[:, 1] - quality + shares["quality"],
                "taste": features[:, 0] - habit - overview + shares["taste"],
                "overview": quality + overview,
            }
        )
        why["rest"] = rating - why.sum(axis=1)
        told = [stars | {"because": own} for stars, own in zip(why.to_dict("records"), self._reasons(user, movie))]
        low, high = np.clip([rating - reach, rating + reach], *RATINGS)
        return pd.DataFrame({"rating": rating, "low": low, "high": high, "why": told})

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
        if movie not in self.catalogue:
            raise NotFoundError(f"there is no movie '{movie}' in the catalogue")
        # The first dimension is the same for all, the last movie is any that is unknown.
        vectors, others = self.arrays["vectors"][:-1, 1:], self.catalogue != movie
        similarity = cosine_similarity(vectors[others], vectors[~others])[:, 0]
        return pd.DataFrame({"movieId": self.catalogue[others], "similarity": similarity}).nlargest(count, "similarity")

    def recommend(self, user: str, count: int, level: float) -> pd.DataFrame:
        """Find the best movies that a user has not rated.

        Parameters
        ----------
        user : str
            Its id; an unknown one counts as an average one.
        count : int
            Number of movies wanted.
        level : float
            As of `explain`.

        Returns
        -------
        DataFrame of shape (at most count, 5)
            ``movieId`` and the columns of `explain`, the best first.
        """
        rated = self.movies[self._history(self.users.get_indexer([user]))[1].movies]
        others = self.catalogue[~self.catalogue.isin(rated)]
        pairs = pd.DataFrame({"userId": user, "movieId": others}).astype("category")
        best = pairs.iloc[np.argsort(-self.predict(pairs), kind="stable")[:count]].reset_index(drop=True)
        return pd.concat([best["movieId"].astype(str), self.explain(best, level)], axis=1)

    def update(self, ratings: pd.DataFrame) -> "RatingModel":
        """Return a model that knows more ratings; their users' tastes and, but for the spread, habits are learned anew.

        Parameters
        ----------
        ratings : DataFrame of shape (ratings, 3)
            As of `fitting.fit_model`; the users may be new. Movies that neither the catalogue has nor ratings were
            learned from count for nothing.

        Returns
        -------
        RatingModel
            A new one.
        """
        old, new = self.arrays, copy(self)
        ratings = ratings[ratings["movieId"].isin(self.movies.append(self.catalogue))]
        first_user, first_movie = len(self.users), len(self.movies)
        user, users = pd.factorize(np.append(self.users, ratings["userId"]))
        movie, names = pd.factorize(np.append(self.movies, ratings["movieId"]))
        user, movie, more = user[first_user:], movie[first_movie:], (0, len(users) - first_user)
        new.users, new.movies = pd.Index(users), pd.Index(names)
        added = {"user": user, "movie": movie, "stars": ratings["rating"].to_numpy(np.float32)}
        places = self.catalogue.get_indexer(new.movies[first_movie:])
        added |= {"rated_vectors": old["vectors"][places], "given": old["qualities"][places]}
        added["surplus"] = np.zeros_like(places, np.float32)
        new.arrays = old | {"users": users, "movies": names, "tastes": np.pad(old["tastes"], (more, (0, 0)))}
        new.arrays |= {name: np.concatenate([old[name], part]) for name, part in added.items()}
        new.arrays |= {name: np.pad(old[name], more) for name in HABITS}
        concerned, history = new._history(user)
        new.arrays["tastes"][concerned] = fit_users(new.arrays["rated_vectors"], history)[0]
        new.arrays["activity"][concerned] = np.bincount(history.users)
        picked = history._replace(stars=new.arrays["surplus"][history.movies])
        new.arrays["selection"][concerned] = shrunk_means(picked)[0]
        return new

    def _history(self, users: Indices) -> tuple[Indices, Ratings]:
        """Return those of some users who rated movies, and these ratings, the last of each pair."""
        learned = self.arrays
        rows = np.flatnonzero(np.isin(learned["user"], users))
        pairs = pd.DataFrame({name: learned[name][rows] for name in ("user", "movie", "stars")})
        pairs = pairs.drop_duplicates(["user", "movie"], keep="last")
        (concerned, user), movie = np.unique(pairs["user"], return_inverse=True), pairs["movie"].to_numpy()
        stars = (pairs["stars"].to_numpy() - learned["mean"] - learned["given"][movie]).astype(np.float32)
        return concerned, Ratings(user, movie, np.zeros_like(movie), stars, np.ones_like(stars))

    def _locate(self, pairs: pd.DataFrame) -> list[Indices]:
        """Return the places of users and of movies; -1, the last, is unknown."""
        ids = {"userId": self.users, "movieId": self.catalogue}
        return [index.get_indexer(pairs[name].cat.categories)[pairs[name].cat.codes] for name, index in ids.items()]

    def _features(self, user: Indices, movie: Indices) -> Floats:
        learned = self.arrays
        taste = products(learned["tastes"], user, learned["vectors"], movie)
        terms = [taste, learned["qualities"][movie], *(learned[name][user] for name in HABITS)]
        return np.column_stack([*terms, learned["numbers"][movie]])

    def _rate(self, features: Floats) -> Floats:
        ratings: Floats = self.arrays["mean"] + features[:, 0] + features[:, 1] + self.trees.predict(features)
        return np.clip(ratings, *RATINGS)

    def _reasons(self, user: Indices, movie: Indices) -> list[dict[str, float]]:
        """Return the stars that the user's weightiest ratings add to the taste for each movie, by the ids rated."""
        learned, (concerned, history) = self.arrays, self._history(user)
        raters, reasons = concerned[history.users], []
        # In a ridge regression's dual form a rating weighs what the regression leaves of it (Saunders et al. 1998).
        left = history.stars - products(learned["tastes"], raters, learned["rated_vectors"], history.movies)
        own = pd.Series(raters).groupby(raters).indices
        for one, target in zip(user, movie):
            rows = own.get(one, [])
            rated = history.movies[rows]
            stars = left[rows] * (learned["rated_vectors"][rated, 1:] @ learned["vectors"][target, 1:])
            best = np.argsort(-np.abs(stars))[: FIXED.reasons]
            reasons.append(dict(zip(self.movies[rated[best]], stars[best].tolist())))
        return reasons
