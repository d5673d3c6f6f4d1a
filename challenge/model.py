"""The rating model: fitted on ratings and a catalogue, it predicts the ratings of movies that nobody has rated."""

from time import perf_counter
from typing import Any, NamedTuple

import lightgbm as lgb
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from challenge.features import MovieFeatures, is_number
from challenge.tables import RATINGS, TableError
from challenge.taste import PRIOR, Floats, Indices, Ratings, Taste, fit_users, with_level

FOLDS = 5
# Times that movies are judged by what their users' tastes leave unexplained, and tastes by what the movies leave.
# The numbers are the rounds in which the tastes' covariance is learned.
PASSES = (0, 4)
# Rows that are predicted at a time, so that memory stays bounded.
CHUNK = 100_000
TREES = {"learning_rate": 0.05, "num_leaves": 15, "min_data_in_leaf": 50}
SAMPLES = {"feature_fraction": 0.7, "bagging_fraction": 0.7, "bagging_freq": 1}
REPEATABLE = {"deterministic": True, "force_row_wise": True, "verbose": -1}


class Movies(NamedTuple):
    """Movies as ratings are predicted for them.

    Attributes
    ----------
    ids : Index of shape (movies,)
        Movie ids.
    quality : ndarray of shape (movies,)
        Expected stars above the mean.
    numbers : ndarray of shape (movies, numeric columns)
        The catalogue's numbers and dates.
    taste : ndarray of shape (movies, dimensions)
        What users' weights are multiplied with; the first dimension is the same for all movies.
    """

    ids: "pd.Index[str]"
    quality: Floats
    numbers: Floats
    taste: Floats


def boost(features: Floats, target: Floats, folds: Indices, seed: int) -> tuple[lgb.Booster, Floats]:
    """Fit boosted trees, as many as predict held-out folds best.

    Parameters
    ----------
    features : ndarray of shape (rows, features)
        Without gaps.
    target : ndarray of shape (rows,)
        What is predicted.
    folds : ndarray of shape (rows,)
        The fold of each row's movie.
    seed : int
        Seed of the samples of rows and features.

    Returns
    -------
    Booster
        Fitted on all rows.
    ndarray of shape (rows,)
        Prediction of each row by trees that have not seen its fold.

    References
    ----------
    Ke et al. 2017, LightGBM: A highly efficient gradient boosting decision tree.
    """
    settings = TREES | SAMPLES | REPEATABLE | {"seed": seed}
    data = lgb.Dataset(features, target, params=settings, free_raw_data=False)
    splits = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in np.unique(folds)]
    stopping = lgb.early_stopping(50, verbose=False)
    trial = lgb.cv(settings, data, 2000, folds=splits, callbacks=[stopping], return_cvbooster=True)["cvbooster"]
    held_out = np.empty(len(target))
    for booster, (_, rows) in zip(trial.boosters, splits):
        held_out[rows] = booster.predict(features[rows], num_iteration=trial.best_iteration)
    return lgb.train(settings, data, trial.best_iteration), held_out


class RatingModel:
    """A rating is the mean, plus the movie's quality, the user's taste for it, and what boosted trees add.

    Quality is a ridge regression of movies' deviations on their vectors, taste one of a user's residuals; trees correct
    both. Every term of a training row is computed without the fold of its movie, the scales of the sources aside: so
    the row looks like one to predict, whose movie nobody has rated.

    Parameters
    ----------
    seed : int
        Seed of the folds and of every random choice.

    Attributes
    ----------
    arrays_ : dict of str to ndarray
        All that was learned, as arrays of numbers and text.
    report_ : dict
        What was learned from, how well held-out movies are predicted, and the seconds of each stage.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.features_ = MovieFeatures(seed)

    def fit(self, ratings: pd.DataFrame, catalogue: pd.DataFrame, embeddings: NDArray[np.float32]) -> "RatingModel":
        """Learn from ratings of movies in the catalogue.

        Parameters
        ----------
        ratings : DataFrame of shape (ratings, 3)
            ``userId`` and ``movieId`` as categories of text, ``rating``; a pair comes once.
        catalogue : DataFrame of shape (movies, columns)
            Cells as text, by movie id.
        embeddings : ndarray of shape (movies, dimensions)
            Of the overviews; NaN where there is none.

        Returns
        -------
        RatingModel
            Itself.

        Raises
        ------
        TableError
            If the catalogue holds too few of the rated movies.
        """
        movie = catalogue.index.get_indexer(ratings["movieId"].cat.categories)[ratings["movieId"].cat.codes]
        known = ratings[movie >= 0].assign(userId=lambda table: table["userId"].cat.remove_unused_categories())
        rated, movie = np.unique(movie[movie >= 0], return_inverse=True)
        if len(rated) < 2 * FOLDS:
            raise TableError(f"the catalogue holds {len(rated)} of the rated movies; it takes {2 * FOLDS} or more")
        clock = [perf_counter()]
        vectors, sources = self.features_.fit(catalogue, embeddings).transform(catalogue, embeddings)
        clock.append(perf_counter())
        user, stars = known["userId"].cat.codes.to_numpy(np.intp), known["rating"].to_numpy(np.float32)
        vectors, everyone, ones = vectors[rated], np.zeros_like(rated), np.ones_like(stars)
        movie_fold = np.random.default_rng(self.seed).permutation(len(rated)) % FOLDS
        folds, counts = movie_fold[movie], np.bincount(movie)
        mean, taste, trust = stars.mean(), np.zeros_like(stars), counts / (counts + PRIOR)
        for rounds in PASSES:
            deviations = np.bincount(movie, stars - mean - taste) / counts
            # The movies are the ratings of one user, the public.
            opinions = Ratings(everyone, np.arange(len(rated)), movie_fold, deviations, np.sqrt(trust))
            public = Taste(self.seed).fit(vectors, sources, opinions)
            quality = public.held_out_
            residuals = stars - mean - (trust * deviations + (1 - trust) * quality)[movie]
            personal = Ratings(user, movie, folds, residuals.astype(np.float32), ones)
            tastes = Taste(self.seed, rounds).fit(np.column_stack([quality, vectors]), ["quality", *sources], personal)
            taste = tastes.held_out_
        clock.append(perf_counter())
        activity = np.bincount(user)
        plain = mean + quality[movie] + taste
        rows = np.column_stack([taste, quality[movie], activity[user], vectors[:, is_number(sources)][movie]])
        self.trees_, correction = boost(rows, stars - plain, folds, self.seed)
        clock.append(perf_counter())
        self.arrays_ = self.features_.arrays_ | {
            "users": known["userId"].cat.categories.to_numpy(np.str_),
            "tastes": tastes.weights_,
            "projection": tastes.projection_,
            "activity": activity,
            "quality": public.projection_ @ public.weights_[0],
            "mean": mean,
            "trees": np.array(self.trees_.model_to_string()),
        }
        # With a constant alone a user's regression is a shrunk mean.
        level = np.full((len(rated), 1), PRIOR**-0.5, np.float32)
        errors = {
            "global mean": stars - mean,
            "user mean": stars - mean - fit_users(level, personal._replace(stars=stars - mean))[1],
            "user mean and movie quality": stars - mean - quality[movie] - fit_users(level, personal)[1],
            "quality and taste": stars - plain,
            "model": stars - plain - correction,
        }
        self.report_: dict[str, Any] = {
            "rows": len(ratings),
            "rows of movies in the catalogue": len(known),
            "users": len(activity),
            "movies": len(rated),
            "movies without overview": int(np.isnan(embeddings[:, 0]).sum()),
            "cross-validated mse": {name: float(np.mean(error**2)) for name, error in errors.items()},
            "seconds": dict(zip(("features", "taste", "trees"), np.diff(clock).tolist())),
        }
        return self

    @classmethod
    def from_arrays(cls, arrays: dict[str, NDArray[Any]], report: dict[str, Any]) -> "RatingModel":
        """Return the model whose `arrays_` and `report_` these are."""
        model = cls()
        model.arrays_, model.report_ = arrays, report
        model.features_.arrays_ = {key: array for key, array in arrays.items() if "/" in key}
        model.trees_ = lgb.Booster(model_str=str(arrays["trees"]))
        return model

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
        vectors, sources = self.features_.transform(catalogue, embeddings)
        quality = with_level(vectors) @ self.arrays_["quality"]
        taste = with_level(quality, vectors) @ self.arrays_["projection"]
        return Movies(catalogue.index, quality, vectors[:, is_number(sources)], taste)

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
            Ratings from 1 to 5. An unknown user counts as an average one; an unknown movie gets the user's level.
        """
        users = pd.Index(self.arrays_["users"]).get_indexer(pairs["userId"].cat.categories)[pairs["userId"].cat.codes]
        places = movies.ids.get_indexer(pairs["movieId"].cat.categories)[pairs["movieId"].cat.codes]
        # The index -1, unknown, is the last: a user without any taste.
        tastes = np.pad(self.arrays_["tastes"], ((0, 1), (0, 0)))
        activity = np.append(self.arrays_["activity"], 0)
        ratings: Floats = self.arrays_["mean"] + tastes[users, 0] * movies.taste[0, 0]
        for rows in np.array_split(np.flatnonzero(places >= 0), 1 + len(places) // CHUNK):
            user, movie = users[rows], places[rows]
            taste = np.einsum("ij,ij->i", tastes[user], movies.taste[movie])
            features = np.column_stack([taste, movies.quality[movie], activity[user], movies.numbers[movie]])
            ratings[rows] = self.arrays_["mean"] + taste + movies.quality[movie] + self.trees_.predict(features)
        return np.clip(ratings, *RATINGS)
