"""The rating model: it predicts the ratings of movies that nobody has rated, says how sure it is, and why."""

from collections.abc import Callable, Iterator
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd
from sklearn.metrics.pairwise import cosine_similarity

from challenge.features import OVERVIEW, Arrays, fit_sources
from challenge.settings import FIXED, ChallengeError
from challenge.tables import TableError
from challenge.taste import Floats, Indices, Taste, fit_users, habits, shrunk_means

# What the report tells the errors of, each knowing more than the one before.
RUNGS = ("global mean", "user mean", "user mean and movie quality", "quality and taste", "model")


class NotFoundError(ChallengeError):
    """Something of that name is not there."""


def products(weights: Floats, user: Indices, vectors: Floats, movie: Indices) -> Floats:
    """Multiply each pair's weights and vector, so many pairs at a time that memory stays bounded."""
    chunks = np.array_split(np.arange(len(user)), 1 + len(user) // FIXED.chunk)
    return np.concatenate([np.einsum("ij,ij->i", weights[user[rows]], vectors[movie[rows]]) for rows in chunks])


def describe(learned: Arrays, vectors: pd.DataFrame, promised: Floats, given: Floats, doubts: Floats) -> dict[str, Any]:
    """Work out all that predictions need of movies.

    Parameters
    ----------
    learned : dict of str to ndarray
        With the ``projection`` of tastes, the weights of the movies' ``quality``, and its main ``axes``.
    vectors : DataFrame of shape (movies, dimensions)
        As of `movie_vectors`.
    promised, given : ndarray of shape (movies,)
        Stars above the mean that the catalogue promises, and that the public gave, or again what is promised.
    doubts : ndarray of shape (movies,)
        Share that promises have in what is given: 1 where nobody has rated a movie.

    Returns
    -------
    dict of str to array
        ``traits``, what trees read: the catalogue's numbers, and the places on the axes, for what columns say together;
        ``vectors``, what users' weights are multiplied with, the last dimension being the same for all movies;
        ``qualities``, what is given, the ``surplus`` over what is promised, and the ``doubts``; and the overview's part
        in vectors and qualities.
    """
    overview = vectors * (vectors.columns == OVERVIEW)
    # What the public gave owes the overview nothing.
    told = np.where(doubts < 1, 0, overview @ learned["quality"][:-1])
    return {
        "traits": np.hstack([vectors.filter(regex="^number/"), vectors @ learned["axes"]]),
        "vectors": vectors.assign(quality=promised, level=np.float32(1)) @ learned["projection"],
        "qualities": given,
        "surplus": given - promised,
        "doubts": doubts,
        "overview_vectors": overview.assign(quality=told, level=np.float32(0)) @ learned["projection"],
        "overview_qualities": told,
    }


class RatingModel:
    """A rating is the mean, plus the movie's quality, the user's taste for it, and what boosted trees add.

    Trees add the less, the more ratings of the movie were learned from.

    Parameters
    ----------
    arrays : dict of str to ndarray
        All that was learned and what from, and what `describe` tells of movies, as arrays of numbers and text. The
        first movies are those that ratings were learned from, the last one is any that is unknown; so is the last user.
    report : dict
        What was learned from, how well held-out movies are predicted, and the seconds of each stage.

    Attributes
    ----------
    features : dict of str to ndarray
        What `movie_vectors` needs of `fit_sources`.
    users, movies : Index
        Ids of the users, and of the movies that are known.
    """

    def __init__(self, arrays: Arrays, report: dict[str, Any]) -> None:
        self.arrays = arrays
        self.report = report
        self.features = {key: array for key, array in arrays.items() if "/" in key}
        self.users, self.movies = pd.Index(arrays["users"]), pd.Index(arrays["movies"])
        self.trees, self.reach = (lgb.Booster(model_str=str(arrays[name])) for name in ("trees", "reach"))

    def with_catalogue(self, vectors: pd.DataFrame) -> "RatingModel":
        """Return a model that knows the movies of a catalogue, and as before those that ratings were learned from.

        Not of an updated model: ratings that were added may be of movies that have another place afterwards.

        Parameters
        ----------
        vectors : DataFrame of shape (movies, dimensions)
            Of these movies, by `movie_vectors`.

        Returns
        -------
        RatingModel
            A new one.
        """
        learned, rated = self.arrays, self.movies[: self.arrays["movie"].max() + 1]
        # The last movie is any that is unknown; an id has no spaces around it, so none is called like that.
        others = vectors.reindex([*vectors.index.difference(rated, sort=False), " "], fill_value=0)
        movies = rated.append(others.index[:-1])
        promised = np.asarray(others.assign(level=np.float32(1)) @ learned["quality"])
        arrays = learned | {"movies": np.array(list(movies)), "listed": movies.isin(vectors.index)}
        for name, rows in describe(learned, others, promised, promised, np.ones(len(others))).items():
            arrays[name] = np.concatenate([learned[name][: len(rated)], rows])
        return RatingModel(arrays, self.report)

    def predict(self, pairs: pd.DataFrame) -> "pd.Series[float]":
        """Predict ratings.

        Parameters
        ----------
        pairs : DataFrame of shape (pairs, 2)
            ``userId`` and ``movieId`` as text, fastest in categories.

        Returns
        -------
        Series of shape (pairs,)
            Ratings from 1 to 5. An unknown user counts as an average one, an unknown movie as well.
        """
        return pd.Series(self._rate(pairs)[0], pairs.index)

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
        learned, (rating, features, user, movie) = self.arrays, self._rate(pairs)
        # What trees add for each feature; those of the movies' traits follow.
        added = self.trees.predict(features, pred_contrib=True).T[:5] * learned["doubts"][movie]
        by_taste, by_quality, activity, spread, selection = added
        reach = np.quantile(learned["scores"], level) * np.maximum(self.reach.predict(features), FIXED.least_reach)
        habit = learned["tastes"][user, -1] * learned["vectors"][movie, -1]
        quality = learned["overview_qualities"][movie]
        overview = products(learned["tastes"], user, learned["overview_vectors"], movie)
        why = pd.DataFrame(
            {
                "baseline": float(learned["mean"]),
                "user": habit + activity + spread + selection,
                "quality": features[:, 1] - quality + by_quality,
                "taste": features[:, 0] - habit - overview + by_taste,
                "overview": quality + overview,
            }
        )
        told = why.assign(rest=rating - why.sum(axis=1), because=[*self._reasons(user, movie)]).to_dict("records")
        low, high = np.clip([rating - reach, rating + reach], *FIXED.stars)
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
            ``movieId`` and ``similarity``, the correlation that users' tastes for the two movies are expected to have;
            the most similar first.

        Raises
        ------
        NotFoundError
            If there is no such movie.
        """
        if movie not in self.movies:
            raise NotFoundError(f"there is no movie '{movie}'")
        # The last movie is any that is unknown, the last dimension the same for all.
        vectors, others = self.arrays["vectors"][:-1, :-1], self.arrays["listed"] & (self.movies != movie)
        similarity = cosine_similarity(vectors, vectors[self.movies == movie])[others, 0]
        return pd.DataFrame({"movieId": self.movies[others], "similarity": similarity}).nlargest(count, "similarity")

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
            ``movieId`` and the columns of `explain`, the best first; no row where nothing is left.
        """
        rated = self._history(self.users.get_indexer(pd.Index([user])))["movie"]
        pairs = pd.DataFrame({"userId": user, "movieId": self.movies})[self.arrays["listed"]]
        best = pairs.loc[self.predict(pairs).drop(rated, errors="ignore").nlargest(count).index]
        # LightGBM cannot tell what it adds to no rating at all.
        if best.empty:
            return best[["movieId"]]
        return best[["movieId"]].join(self.explain(best, level))

    def update(self, ratings: pd.DataFrame) -> "RatingModel":
        """Return a model that knows more ratings; their users' tastes and habits are learned anew.

        Parameters
        ----------
        ratings : DataFrame of shape (ratings, 3)
            As of `fit_model`; the users may be new. Movies that are not known count for nothing.

        Returns
        -------
        RatingModel
            A new one.
        """
        old, first = self.arrays, len(self.users)
        ratings = ratings[ratings["movieId"].isin(self.movies)]
        user, users = pd.factorize(np.append(self.users, ratings["userId"]))
        concerned, movie = user[first:], self.movies.get_indexer(pd.Index(ratings["movieId"]))
        stars = ratings["rating"].to_numpy(np.float32) - old["mean"] - old["qualities"][movie]
        added = {"user": concerned, "movie": movie, "stars": stars}
        arrays = old | {"users": users} | {name: np.append(old[name], column) for name, column in added.items()}
        arrays |= {name: np.pad(old[name], {0: (0, len(users) - first)}) for name in ("tastes", "habits")}
        new = RatingModel(arrays, self.report)
        history = new._history(concerned)
        arrays["tastes"][concerned] = fit_users(old["vectors"], history, np.eye(old["tastes"].shape[1]))[0][concerned]
        arrays["habits"][concerned] = habits(history, old["surplus"], float(old["usual"]))[0][concerned]
        return new

    def _history(self, users: Indices) -> pd.DataFrame:
        """Return the ratings of some users as `fit_users` reads them, the last of each pair."""
        rows = np.flatnonzero(np.isin(self.arrays["user"], users))
        history = pd.DataFrame({name: self.arrays[name][rows] for name in ("user", "movie", "stars")})
        return history.drop_duplicates(["user", "movie"], keep="last").assign(fold=0, root=np.float32(1))

    def _rate(self, pairs: pd.DataFrame) -> tuple[Floats, Floats, Indices, Indices]:
        """Return ratings, the trees' features, and the places of users and of movies; -1, the last, is unknown."""
        learned, user = self.arrays, self.users.get_indexer(pd.Index(pairs["userId"]))
        movie = self.movies.get_indexer(pd.Index(pairs["movieId"]))
        taste, quality = products(learned["tastes"], user, learned["vectors"], movie), learned["qualities"][movie]
        features = np.column_stack([taste, quality, learned["habits"][user], learned["traits"][movie]])
        # What the public gave needs no correction of what was promised.
        ratings = learned["mean"] + taste + quality + self.trees.predict(features) * learned["doubts"][movie]
        return ratings.clip(*FIXED.stars), features, user, movie

    def _reasons(self, user: Indices, movie: Indices) -> Iterator[Any]:
        """Yield the stars that the user's weightiest ratings add to the taste for each movie, by the ids rated."""
        learned, history = self.arrays, self._history(user)
        raters, movies, stars = (history[name].to_numpy() for name in ("user", "movie", "stars"))
        # In a ridge regression's dual form a rating weighs what the regression leaves of it (Saunders et al. 1998).
        left = stars - products(learned["tastes"], raters, learned["vectors"], movies)
        own = history.groupby("user").indices
        for one, target in zip(user, movie):
            rows = own.get(one, [])
            rated = movies[rows]
            added = left[rows] * (learned["vectors"][rated, :-1] @ learned["vectors"][target, :-1])
            best = np.argsort(-np.abs(added))[: FIXED.reasons]
            yield dict(zip(learned["movies"][rated[best]].tolist(), added[best].tolist()))


def boost(features: Floats, target: Floats, folds: Indices, seed: int) -> tuple[str, Floats]:
    """Fit boosted trees, as many as predict held-out folds best by more than luck.

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
    str
        The trees, fitted on all rows.
    ndarray of shape (rows,)
        Prediction of each row by trees that have not seen its fold.

    References
    ----------
    Ke et al. 2017, LightGBM: A highly efficient gradient boosting decision tree.
    """
    settings = FIXED.trees | {"seed": seed, "early_stopping_min_delta": FIXED.luck * target.var() / len(target)}
    data = lgb.Dataset(features, target, params=settings, free_raw_data=False)
    splits = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in np.unique(folds)]
    trial = lgb.cv(settings | FIXED.search, data, folds=splits, return_cvbooster=True)["cvbooster"]
    parts = [pd.Series(booster.predict(features[rows]), rows) for booster, (_, rows) in zip(trial.boosters, splits)]
    return lgb.train(settings, data, trial.best_iteration).model_to_string(), pd.concat(parts).sort_index().to_numpy()


def correct(features: Floats, rating: Floats, plain: Floats, folds: Indices, seed: int) -> tuple[Arrays, Floats, Any]:
    """Learn what is left of ratings, and how far they will be off even so.

    Parameters
    ----------
    features : ndarray of shape (rows, features)
        Without gaps.
    rating, plain : ndarray of shape (rows,)
        Ratings, and what is predicted without trees.
    folds : ndarray of shape (rows,)
        The fold of each row's movie.
    seed : int
        As of `boost`.

    Returns
    -------
    learned : dict of str to ndarray
        The ``trees`` that correct, those that predict the ``reach`` of errors, and by ``scores`` how far errors go
        beyond it: their quantiles.
    error : ndarray of shape (rows,)
        What trees that have not seen a row's fold leave of its rating.
    interval : dict of str to float
        Share of the first fold's ratings in the intervals that the other folds make, and the intervals' mean width.
    """
    trees, correction = boost(features, rating - plain, folds, seed)
    error = rating - np.clip(plain + correction, *FIXED.stars)
    reach_trees, reach = boost(features, np.abs(error), folds, seed)
    scores = np.abs(error) / np.maximum(reach, FIXED.least_reach)
    limit = np.quantile(scores[folds > 0], FIXED.level)
    interval = {"coverage": float((scores[folds == 0] <= limit).mean()), "width": float(2 * limit * reach.mean())}
    quantiles = np.quantile(scores, np.linspace(0, 1, 1001))
    return {"trees": np.array(trees), "reach": np.array(reach_trees), "scores": quantiles}, error, interval


def fit_model(
    ratings: pd.DataFrame, catalogue: pd.DataFrame, embeddings: Floats, seed: int, enter: Callable[[str], Any]
) -> RatingModel:
    """Learn from ratings of movies in the catalogue.

    Quality is a ridge regression of movies' deviations on their vectors, taste one of a user's residuals; trees correct
    both, and others predict how far a rating will be off. Every term of a training row is computed without the fold of
    its movie: so the row looks like one to predict, whose movie nobody has rated. Exceptions are the counts of users'
    ratings, the means over all ratings, the scales of the sources and, at second hand, the qualities of the other
    folds' movies, which are learned with this fold.

    Parameters
    ----------
    ratings : DataFrame of shape (ratings, 3)
        ``userId`` and ``movieId`` as categories of text, ``rating``; a pair comes once.
    catalogue : DataFrame of shape (movies, columns)
        Cells as text, by movie id.
    embeddings : ndarray of shape (movies, dimensions)
        Of the overviews; NaN where there is none.
    seed : int
        Seed of the folds and of every random choice.
    enter : callable
        Told the name of each stage as it begins: ``features``, ``taste``, ``trees``.

    Returns
    -------
    RatingModel
        Fitted; it knows the movies of the catalogue.

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
    features, described = fit_sources(catalogue, embeddings, seed)
    vectors = described.loc[[*movies]]
    enter("taste")
    rating, counts = known["rating"].to_numpy(np.float32), np.bincount(movie)
    mean, movie_fold = rating.mean(), np.random.default_rng(seed).permutation(len(movies)) % FIXED.folds
    stars, roots = rating - mean, np.sqrt(counts / (counts + FIXED.public_prior), dtype=np.float32)
    doubts = FIXED.prior / (counts + FIXED.prior)
    personal = pd.DataFrame({"user": user, "movie": movie, "fold": movie_fold[movie], "root": np.float32(1)})
    # The movies are the ratings of one user, the public.
    opinions = pd.DataFrame({"user": 0, "movie": range(len(movies)), "fold": movie_fold, "root": roots})
    taste = user_mean = shrunk_means(personal.assign(stars=stars))[1]
    public, tastes = Taste(FIXED.public_dimensions, seed), Taste(FIXED.dimensions, seed)
    for rounds in FIXED.passes:
        deviations = np.bincount(movie, stars - taste) / counts
        quality = public.fit(vectors, opinions.assign(stars=deviations)).held_out_
        given = (deviations + (quality - deviations) * doubts).astype(np.float32)
        personal = personal.assign(stars=stars - given[movie])
        taste = tastes.fit(vectors.assign(quality=quality), personal, rounds).held_out_
    enter("trees")
    usual = np.square(personal["stars"]).mean()
    user_habits, held_habits = habits(personal, given - quality, usual)
    learned = {"users": np.array(list(users)), "movies": np.array(list(movies)), "mean": mean, "usual": usual}
    # Those above what the public gave, as tastes read them: no later catalogue changes that.
    learned |= {"user": user.astype(np.int32), "movie": movie.astype(np.int32), "stars": personal["stars"].to_numpy()}
    learned |= {"projection": tastes.projection_, "quality": public.projection_ @ public.weights_[0]}
    # The last user is any that is unknown.
    learned |= {"tastes": np.pad(tastes.weights_, {0: (0, 1)}), "habits": np.pad(user_habits, {0: (0, 1)})}
    learned |= features | {"axes": public.projection_[:-1, : FIXED.axes]}
    # Tastes were learned from the rated movies as they look to the folds without them.
    learned |= describe(learned, vectors, quality, given, doubts)
    some = np.sort(np.random.default_rng(seed).permutation(len(stars))[: FIXED.corrected])
    plain = quality[movie] + taste
    rows = np.column_stack([taste[some], quality[movie[some]], held_habits[some], learned["traits"][movie[some]]])
    corrections, error, interval = correct(rows, rating[some], mean + plain[some], movie_fold[movie[some]], seed)
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
