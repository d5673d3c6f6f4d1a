"""The rating model: predicts the ratings of movies that nobody has rated, with intervals and reasons."""

from collections.abc import Callable, Iterator
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
from sklearn.metrics.pairwise import cosine_similarity

from challenge.features import GAPS, OVERVIEW, Arrays, Floats, fill, fit_sources, with_curves
from challenge.settings import FIXED, ChallengeError
from challenge.tables import TableError
from challenge.taste import Indices, Taste, fit_users, habits, shrunk_means

# The predictions whose errors the report compares, each knowing more than the one before.
RUNGS = ("global mean", "user mean", "user mean and movie quality", "quality and taste", "model")


class NotFoundError(ChallengeError):
    """There is nothing by that name or number."""


def products(weights: Floats, user: Indices, vectors: Floats, movie: Indices) -> Floats:
    """Return each pair's inner product of user weights and movie vector, in chunks that bound the memory."""
    chunks = np.array_split(np.arange(len(user)), 1 + len(user) // FIXED.pairs_in_memory)
    return np.concatenate([np.einsum("ij,ij->i", weights[user[rows]], vectors[movie[rows]]) for rows in chunks])


def derive(learned: Arrays, vectors: pd.DataFrame, quality: Floats, bias: Floats, shrinkage: Floats) -> dict[str, Any]:
    """Compute what predictions need to know about movies.

    Parameters
    ----------
    learned : dict of str to ndarray
        With the ``projection`` of tastes, the ``quality_weights``, and the principal ``axes`` of quality.
    vectors : DataFrame of shape (movies, dimensions)
        As from `with_curves`.
    quality : ndarray of shape (movies,)
        Stars above the mean, as predicted from the catalogue.
    bias : ndarray of shape (movies,)
        Item bias: stars above the mean, as the public gave them, shrunk towards the quality.
    shrinkage : ndarray of shape (movies,)
        Share of the quality in the item bias: 1 for a cold start, of a movie that nobody has rated.

    Returns
    -------
    dict of str to array
        ``traits``, which the trees read: numbers that have curves, and the coordinates on the axes, for interactions;
        ``vectors``, which users' weights are multiplied with, the last dimension being the same for all movies;
        ``item_biases``; the ``surplus`` of movies that nobody has rated; the ``shrinkage``; and the overview's part in
        vectors and item biases.
    """
    overview = vectors * (vectors.columns == OVERVIEW)
    # What the public gave does not come from the overview.
    told = np.where(shrinkage < 1, 0, overview @ learned["quality_weights"][:-1])
    return {
        "traits": np.hstack([vectors.filter(regex="^number/"), vectors @ learned["axes"]]),
        "vectors": vectors.assign(quality=quality, constant=np.float32(1)) @ learned["projection"],
        "item_biases": bias,
        "surplus": np.zeros(len(vectors)),
        "shrinkage": shrinkage,
        "overview_vectors": overview.assign(quality=told, constant=np.float32(0)) @ learned["projection"],
        "overview_biases": told,
    }


class RatingModel:
    """Predict ratings: the mean, plus the item bias, the user's taste for the movie, and what boosted trees add.

    The more ratings of a movie were learned from, the less the trees add.

    Parameters
    ----------
    arrays : dict of str to ndarray
        What was learned, the ratings it was learned from, what `derive` returns, and as ``gap_spread`` how far gaps
        are expected to leave each movie's quality from the truth, in stars; all are of numbers or text. The movies
        rated in the training come first; the last movie and the last user stand for any that is unknown.
    report : dict
        Sizes of the data, errors on held-out movies, and what the training adds: seconds, encoder, fingerprints.

    Attributes
    ----------
    features : dict of str to ndarray
        What `fit_sources` learned, for `movie_vectors`.
    users, movies : Index
        Ids of the known users and movies.
    """

    def __init__(self, arrays: Arrays, report: dict[str, Any]) -> None:
        self.arrays = arrays
        self.report = report
        self.features = {key: array for key, array in arrays.items() if "/" in key}
        self.users, self.movies = pd.Index(arrays["users"]), pd.Index(arrays["movies"])
        self.trees, self.spread = (lgb.Booster(model_str=str(arrays[name])) for name in ("trees", "spread"))

    def with_catalogue(self, known: pd.DataFrame) -> "RatingModel":
        """Return a model that knows the movies of a catalogue, and still those that ratings were learned from.

        Not for an updated model, as the movies of its added ratings may change places.

        Parameters
        ----------
        known : DataFrame of shape (movies, dimensions)
            Of the catalogue, by `movie_vectors`.

        Returns
        -------
        RatingModel
            A new one.
        """
        learned, rated = self.arrays, self.movies[: self.arrays["movie"].max() + 1]
        # The last movie, all gaps, stands for any that is unknown; no id is a space, as ids are stripped.
        others = known.reindex([*known.index.difference(rated, sort=False), " "])
        filled, gap_spread = fill(others, learned[GAPS], learned["gap_weights"])
        vectors = with_curves(filled)
        movies = rated.append(others.index[:-1])
        quality = np.asarray(vectors.assign(constant=np.float32(1)) @ learned["quality_weights"])
        arrays = learned | {"movies": np.array(list(movies)), "listed": movies.isin(known.index)}
        told = derive(learned, vectors, quality, quality, np.ones(len(others))) | {"gap_spread": gap_spread}
        for name, rows in told.items():
            arrays[name] = np.concatenate([learned[name][: len(rated)], rows])
        return RatingModel(arrays, self.report)

    def predict(self, pairs: pd.DataFrame) -> "pd.Series[float]":
        """Predict ratings.

        Parameters
        ----------
        pairs : DataFrame of shape (pairs, 2)
            ``userId`` and ``movieId`` as text, or faster as categories of text.

        Returns
        -------
        Series of shape (pairs,)
            Ratings from 1 to 5. Unknown users and movies count as average.
        """
        return pd.Series(self._rate(pairs)[0], pairs.index)

    def explain(self, pairs: pd.DataFrame, level: float = FIXED.level) -> pd.DataFrame:
        """Predict ratings, with intervals and reasons.

        Parameters
        ----------
        pairs : DataFrame of shape (pairs, 2)
            As in `predict`.
        level : float
            Share of the true ratings that the intervals should hold.

        Returns
        -------
        DataFrame of shape (pairs, 4)
            ``rating``, ``low``, ``high``, and ``why``: contributions in stars that add up to the rating, and the user's
            own ratings that weigh most in the taste for the movie.

        References
        ----------
        Papadopoulos et al. 2002, Inductive confidence machines for regression (normalised conformal intervals);
        Lundberg et al. 2020, From local explanations to global understanding with explainable AI for trees.
        """
        learned, (rating, features, user, movie) = self.arrays, self._rate(pairs)
        # What the trees add for each feature; the movies' traits, which follow, belong to the rest.
        added = self.trees.predict(features, pred_contrib=True).T[:5] * learned["shrinkage"][movie]
        by_taste, by_quality, activity, deviation, selection = added
        spread = np.hypot(self.spread.predict(features).clip(FIXED.least_spread), learned["gap_spread"][movie])
        margin = np.quantile(learned["scores"], level) * spread
        habit = learned["tastes"][user, -1] * learned["vectors"][movie, -1]
        overview_bias = learned["overview_biases"][movie]
        overview = products(learned["tastes"], user, learned["overview_vectors"], movie)
        why = pd.DataFrame(
            {
                "baseline": float(learned["mean"]),
                "user": habit + activity + deviation + selection,
                "quality": features[:, 1] - overview_bias + by_quality,
                "taste": features[:, 0] - habit - overview + by_taste,
                "overview": overview_bias + overview,
            }
        )
        told = why.assign(rest=rating - why.sum(axis=1), because=[*self._reasons(user, movie)]).to_dict("records")
        low, high = np.clip([rating - margin, rating + margin], *FIXED.stars)
        return pd.DataFrame({"rating": rating, "low": low, "high": high, "why": told}, pairs.index)

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
            ``movieId`` and ``similarity``, the expected correlation of users' tastes for the two movies; the most
            similar first.

        Raises
        ------
        NotFoundError
            If there is no such movie.
        """
        if movie not in self.movies:
            raise NotFoundError(f"there is no movie '{movie}'")
        # Leave out the last movie, which stands for unknown ones, and the last dimension, the same for all.
        vectors, others = self.arrays["vectors"][:-1, :-1], self.arrays["listed"] & (self.movies != movie)
        similarity = cosine_similarity(vectors, vectors[self.movies == movie])[others, 0]
        return pd.DataFrame({"movieId": self.movies[others], "similarity": similarity}).nlargest(count, "similarity")

    def recommend(self, user: str, count: int, level: float) -> pd.DataFrame:
        """Find the best movies that a user has not rated.

        Parameters
        ----------
        user : str
            Id of the user; one that is unknown counts as average.
        count : int
            Number of movies wanted.
        level : float
            As in `explain`.

        Returns
        -------
        DataFrame of shape (at most count, 5)
            ``movieId`` and the columns of `explain`, the best first; empty if nothing is left.
        """
        rated = self._history(self.users.get_indexer(pd.Index([user])))["movie"]
        pairs = pd.DataFrame({"userId": user, "movieId": self.movies})[self.arrays["listed"]]
        best = pairs.loc[self.predict(pairs).drop(rated, errors="ignore").nlargest(count).index]
        # LightGBM refuses to explain an empty table.
        if best.empty:
            return best[["movieId"]]
        return best[["movieId"]].join(self.explain(best, level))

    def update(self, ratings: pd.DataFrame) -> "RatingModel":
        """Return a model that knows more ratings, with the tastes and habits of their users fitted anew.

        Parameters
        ----------
        ratings : DataFrame of shape (ratings, 3)
            As in `fit_model`, but the last rating of a pair counts; users may be new, unknown movies are ignored.

        Returns
        -------
        RatingModel
            A new one.
        """
        old, first = self.arrays, len(self.users)
        ratings = ratings[ratings["movieId"].isin(self.movies)]
        user, users = pd.factorize(np.append(self.users, ratings["userId"]))
        concerned, movie = user[first:], self.movies.get_indexer(pd.Index(ratings["movieId"]))
        stars = ratings["rating"].to_numpy(np.float32) - old["mean"] - old["item_biases"][movie]
        added = {"user": concerned, "movie": movie, "stars": stars}
        arrays = old | {"users": users} | {name: np.append(old[name], column) for name, column in added.items()}
        arrays |= {name: np.pad(old[name], {0: (0, len(users) - first)}) for name in ("tastes", "habits")}
        new = RatingModel(arrays, self.report)
        history = new._history(concerned)
        arrays["tastes"][concerned] = fit_users(old["vectors"], history, np.eye(old["tastes"].shape[1]))[0][concerned]
        arrays["habits"][concerned] = habits(history, old["surplus"], float(old["usual"]))[0][concerned]
        return new

    def _history(self, users: Indices) -> pd.DataFrame:
        """Return the ratings of some users in the form of `fit_users`, the last one of each pair."""
        rows = np.flatnonzero(np.isin(self.arrays["user"], users))
        history = pd.DataFrame({name: self.arrays[name][rows] for name in ("user", "movie", "stars")})
        return history.drop_duplicates(["user", "movie"], keep="last").assign(fold=0, root=np.float32(1))

    def _rate(self, pairs: pd.DataFrame) -> tuple[Floats, Floats, Indices, Indices]:
        """Return ratings, the trees' features, and the indices of users and movies; -1, the last, is unknown."""
        learned, user = self.arrays, self.users.get_indexer(pd.Index(pairs["userId"]))
        movie = self.movies.get_indexer(pd.Index(pairs["movieId"]))
        taste, bias = products(learned["tastes"], user, learned["vectors"], movie), learned["item_biases"][movie]
        features = np.column_stack([taste, bias, learned["habits"][user], learned["traits"][movie]])
        # The trees correct what was predicted from the catalogue, not what the public gave.
        ratings = learned["mean"] + taste + bias + self.trees.predict(features) * learned["shrinkage"][movie]
        return ratings.clip(*FIXED.stars), features, user, movie

    def _reasons(self, user: Indices, movie: Indices) -> Iterator[Any]:
        """Yield, for each pair, the stars that the user's weightiest ratings add to the taste, by rated movie id."""
        learned, history = self.arrays, self._history(user)
        raters, movies, stars = (history[name].to_numpy() for name in ("user", "movie", "stars"))
        # In the dual form of ridge regression a rating's weight is its residual (Saunders et al. 1998).
        left = stars - products(learned["tastes"], raters, learned["vectors"], movies)
        own = history.groupby("user").indices
        for one, target in zip(user, movie):
            rows = own.get(one, [])
            rated = movies[rows]
            added = left[rows] * (learned["vectors"][rated, :-1] @ learned["vectors"][target, :-1])
            best = np.argsort(-np.abs(added))[: FIXED.reasons]
            yield dict(zip(learned["movies"][rated[best]].tolist(), added[best].tolist()))


def boost(features: Floats, target: Floats, folds: Indices, seed: int) -> tuple[str, Floats]:
    """Fit boosted trees, their number chosen by cross-validation.

    Parameters
    ----------
    features : ndarray of shape (rows, features)
        Without NaN.
    target : ndarray of shape (rows,)
        To predict.
    folds : ndarray of shape (rows,)
        The fold of each row's movie.
    seed : int
        Seed of the random samples of rows and features.

    Returns
    -------
    str
        The trees, fitted on all rows.
    ndarray of shape (rows,)
        Prediction of each row by trees fitted without its fold.

    References
    ----------
    Ke et al. 2017, LightGBM: A highly efficient gradient boosting decision tree.
    """
    settings = FIXED.trees | {"seed": seed, "early_stopping_min_delta": FIXED.least_gain * target.var() / len(target)}
    data = lgb.Dataset(features, target)
    splits = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in np.unique(folds)]
    trial = lgb.cv(settings | FIXED.tree_search, data, folds=splits, return_cvbooster=True)["cvbooster"]
    parts = [pd.Series(booster.predict(features[rows]), rows) for booster, (_, rows) in zip(trial.boosters, splits)]
    return lgb.train(settings, data, trial.best_iteration).model_to_string(), pd.concat(parts).sort_index().to_numpy()


def correct(
    features: Floats, rating: Floats, plain: Floats, gap_spread: Floats, folds: Indices, seed: int
) -> tuple[Arrays, Floats, Any]:
    """Fit trees to the residuals of ratings, and others to the errors that remain.

    Parameters
    ----------
    features : ndarray of shape (rows, features)
        Without NaN.
    rating, plain : ndarray of shape (rows,)
        True ratings, and those predicted without trees.
    gap_spread : ndarray of shape (rows,)
        How far the gaps of each row's movie are expected to leave its quality from the truth, in stars.
    folds : ndarray of shape (rows,)
        The fold of each row's movie.
    seed : int
        As in `boost`.

    Returns
    -------
    learned : dict of str to ndarray
        The ``trees`` that correct ratings, those that predict the ``spread`` (the absolute error), and as ``scores``
        the quantiles of the absolute errors divided by the hypotenuse of it and ``gap_spread`` (nonconformity scores).
    error : ndarray of shape (rows,)
        Residual of each rating after correction by trees fitted without its fold.
    interval : dict of str to float
        Coverage of the first fold by intervals calibrated on the others, and the mean width of all, in stars.
    """
    trees, correction = boost(features, rating - plain, folds, seed)
    error = rating - np.clip(plain + correction, *FIXED.stars)
    spread_trees, spread = boost(features, np.abs(error), folds, seed)
    spread = np.hypot(spread.clip(FIXED.least_spread), gap_spread)
    scores = np.abs(error) / spread
    limit = np.quantile(scores[folds > 0], FIXED.level)
    interval = {"coverage": float((scores[folds == 0] <= limit).mean()), "width": float(2 * limit * spread.mean())}
    quantiles = np.quantile(scores, np.linspace(0, 1, 1001))
    return {"trees": np.array(trees), "spread": np.array(spread_trees), "scores": quantiles}, error, interval


def fit_model(
    ratings: pd.DataFrame, catalogue: pd.DataFrame, embeddings: Floats, seed: int, enter: Callable[[str], Any]
) -> RatingModel:
    """Learn from ratings of movies in the catalogue.

    Quality is a ridge regression of movies' deviations on their vectors, taste one of a user's residuals; trees correct
    their sum, and others predict the absolute error. Every term of a training row is computed without its movie's fold,
    so that the row looks like one to predict, whose movie nobody has rated. Exceptions are users' numbers of ratings,
    means over all ratings, the scales of the sources with the noise and, indirectly, the qualities of other folds'
    movies, which are learned with this fold.

    Parameters
    ----------
    ratings : DataFrame of shape (ratings, 3)
        ``userId`` and ``movieId`` as categories of text, and ``rating``; each pair once.
    catalogue : DataFrame of shape (movies, columns)
        Cells as text, by movie id.
    embeddings : ndarray of shape (movies, dimensions)
        Of the overviews; NaN where a movie has none.
    seed : int
        Seed of the folds and of every random choice.
    enter : callable
        Called with the name of each stage as it begins: ``features``, ``taste``, ``trees``.

    Returns
    -------
    RatingModel
        Fitted, with the movies of the catalogue.

    Raises
    ------
    TableError
        If the catalogue holds too few of the rated movies.
    """
    enter("features")
    known = ratings[ratings["movieId"].isin(catalogue.index)]
    (user, users), (movie, movies) = (pd.factorize(known[column]) for column in ("userId", "movieId"))
    if len(movies) < 2 * FIXED.folds:
        raise TableError(f"the catalogue holds {len(movies)} of the rated movies; it takes {2 * FIXED.folds} or more")
    counts = np.bincount(movie)
    trust = pd.Series(counts / (counts + FIXED.public_prior), movies)
    # Rated movies make the centres and scales; what only others differ in is left out, as no rating tells its worth.
    weights = trust.reindex(catalogue.index, fill_value=np.finfo(float).eps).to_numpy()
    features, described = fit_sources(catalogue, embeddings, weights, seed)
    filled, _ = fill(described.loc[[*movies]], features[GAPS])
    vectors = with_curves(filled)
    enter("taste")
    rating = known["rating"].to_numpy(np.float32)
    mean, movie_fold = rating.mean(), np.random.default_rng(seed).permutation(len(movies)) % FIXED.folds
    stars, roots = rating - mean, np.sqrt(trust.to_numpy(np.float32))
    shrinkage = FIXED.prior / (counts + FIXED.prior)
    personal = pd.DataFrame({"user": user, "movie": movie, "fold": movie_fold[movie], "root": np.float32(1)})
    # The public is one user, who rates each movie once.
    opinions = pd.DataFrame({"user": 0, "movie": range(len(movies)), "fold": movie_fold, "root": roots})
    taste = user_mean = shrunk_means(personal.assign(stars=stars))[1]
    public, tastes = Taste(FIXED.public_dimensions, seed), Taste(FIXED.dimensions, seed)
    for rounds in FIXED.passes:
        deviations = np.bincount(movie, stars - taste) / counts
        quality = public.fit(vectors, opinions.assign(stars=deviations)).held_out_
        bias = (deviations + (quality - deviations) * shrinkage).astype(np.float32)
        personal = personal.assign(stars=stars - bias[movie])
        taste = tastes.fit(vectors.assign(quality=quality), personal, rounds).held_out_
    enter("trees")
    usual = np.square(personal["stars"]).mean()
    # Not of the bias: the tastes in it were learned from ratings in other folds, and would tell the trees of them.
    surplus = (np.bincount(movie, stars) / counts - quality) * (1 - shrinkage)
    user_habits, held_habits = habits(personal, surplus, usual)
    learned = {"users": np.array(list(users)), "movies": np.array(list(movies)), "mean": mean, "usual": usual}
    # Stars above what the public gave, which no later catalogue changes.
    learned |= {"user": user.astype(np.int32), "movie": movie.astype(np.int32), "stars": personal["stars"].to_numpy()}
    learned |= {"projection": tastes.projection_, "quality_weights": public.projection_ @ public.weights_[0]}
    # The last user stands for any that is unknown.
    learned |= {"tastes": np.pad(tastes.weights_, {0: (0, 1)}), "habits": np.pad(user_habits, {0: (0, 1)})}
    # Quality as if it were linear in the vectors without curves, for what their gaps hide; regularised as these are.
    learned["gap_weights"] = features[GAPS] @ (filled.T @ (quality - quality.mean()) / len(filled))
    _, spread = fill(described.loc[[*movies]], features[GAPS], learned["gap_weights"])
    learned |= features | {"axes": public.projection_[:-1, : FIXED.tree_axes], "gap_spread": spread * shrinkage}
    # Rated movies keep their out-of-fold quality: tastes were learned from it.
    learned |= derive(learned, vectors, quality, bias, shrinkage) | {"surplus": surplus}
    some = np.sort(np.random.default_rng(seed).permutation(len(stars))[: FIXED.tree_rows])
    plain, own = quality[movie] + taste, movie[some]
    rows = np.column_stack([taste[some], quality[own], held_habits[some], learned["traits"][own]])
    corrections, error, interval = correct(rows, rating[some], mean + plain[some], spread[own], movie_fold[own], seed)
    errors = [stars, stars - user_mean, stars - quality[movie] - shrunk_means(personal)[1], stars - plain, error]
    report = {
        "rows": len(ratings),
        "rows of movies in the catalogue": len(known),
        "users": len(users),
        "movies": len(movies),
        "movies without overview": int(np.isnan(embeddings[:, 0]).sum()),
        "cross-validated mse": {rung: float(np.mean(np.square(off))) for rung, off in zip(RUNGS, errors)},
        "interval": interval,
        "strongest features": tastes.strengths_.nlargest(FIXED.strongest).to_dict(),
    }
    return RatingModel(learned | corrections, report).with_catalogue(described)
