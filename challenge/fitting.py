"""Fitting the rating model, every term of a training row without its movie's fold."""

from collections.abc import Callable
from typing import Any

import lightgbm as lgb
import numpy as np
import pandas as pd

from challenge.features import MovieFeatures, is_number
from challenge.model import HABITS, RatingModel
from challenge.settings import FIXED
from challenge.tables import RATINGS, TableError
from challenge.taste import Floats, Indices, Ratings, Taste, shrunk_means, with_level

RUNGS = ("global mean", "user mean", "user mean and movie quality", "quality and taste", "model")


def boost(features: Floats, target: Floats, folds: Indices, seed: int) -> tuple[str, Floats]:
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
    str
        The trees, fitted on all rows.
    ndarray of shape (rows,)
        Prediction of each row by trees that have not seen its fold.

    References
    ----------
    Ke et al. 2017, LightGBM: A highly efficient gradient boosting decision tree.
    """
    settings = FIXED.trees | {"seed": seed}
    data = lgb.Dataset(features, target, params=settings, free_raw_data=False)
    splits = [(np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)) for fold in np.unique(folds)]
    trial = lgb.cv(settings | FIXED.search, data, folds=splits, return_cvbooster=True)["cvbooster"]
    held_out = np.empty(len(target))
    for booster, (_, rows) in zip(trial.boosters, splits):
        held_out[rows] = booster.predict(features[rows], num_iteration=trial.best_iteration)
    return lgb.train(settings, data, trial.best_iteration).model_to_string(), held_out


def fit_model(
    ratings: pd.DataFrame, catalogue: pd.DataFrame, embeddings: Floats, seed: int, enter: Callable[[str], Any]
) -> RatingModel:
    """Learn from ratings of movies in the catalogue.

    Quality is a ridge regression of movies' deviations on their vectors, taste one of a user's residuals; trees correct
    both, and others predict how far a rating will be off. Every term of a training row is computed without the fold of
    its movie, the scales of the sources aside: so the row looks like one to predict, whose movie nobody has rated.

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
    features = MovieFeatures(seed)
    described, sources = features.fit_transform(catalogue, embeddings)
    vectors = described[catalogue.index.get_indexer(movies)]
    enter("taste")
    stars, movie_fold = known["rating"].to_numpy(np.float32), np.arange(len(movies)) % FIXED.folds
    np.random.default_rng(seed).shuffle(movie_fold)
    activity, counts, mean = np.bincount(user), np.bincount(movie), stars.mean()
    trust, roots = counts / (counts + FIXED.prior), np.sqrt(counts / (counts + FIXED.public_prior), dtype=np.float32)
    personal = Ratings(user, movie, movie_fold[movie], stars - mean, np.ones_like(stars))
    taste = user_mean = shrunk_means(personal)[1]
    public, tastes = Taste(seed), Taste(seed)
    for rounds in FIXED.passes:
        deviations = np.bincount(movie, stars - mean - taste) / counts
        # The movies are the ratings of one user, the public.
        opinions = Ratings(np.zeros_like(counts), np.arange(len(movies)), movie_fold, deviations, roots)
        quality = public.fit(vectors, sources, opinions).held_out_
        expected = (mean + trust * deviations + (1 - trust) * quality).astype(np.float32)
        personal = personal._replace(stars=stars - expected[movie])
        taste = tastes.fit(np.column_stack([quality, vectors]), ["quality", *sources], personal, rounds).held_out_
    enter("trees")
    plain = mean + quality[movie] + taste
    squares = np.square(stars - plain)
    spreads, spread = shrunk_means(personal._replace(stars=squares - squares.mean()))
    given, surplus = expected - mean, expected - mean - quality
    # Who picks movies that are better than the catalogue promises will do so again.
    selections, selection = shrunk_means(personal._replace(stars=surplus[movie]))
    some = np.sort(np.random.default_rng(seed).permutation(len(stars))[: FIXED.corrected])
    folds, numbers = personal.folds[some], vectors[:, is_number(sources)][movie[some]]
    terms = [taste, quality[movie], activity[user], spread, selection]
    rows = np.column_stack([*(term[some] for term in terms), numbers])
    trees, correction = boost(rows, (stars - plain)[some], folds, seed)
    error = stars[some] - np.clip(plain[some] + correction, *RATINGS)
    reach_trees, reach = boost(rows, np.abs(error), folds, seed)
    scores = np.abs(error) / np.maximum(reach, FIXED.least_reach)
    away, level, limit = stars - mean, shrunk_means(personal)[1], np.quantile(scores[folds > 0], FIXED.level)
    errors = [away, away - user_mean, away - quality[movie] - level, stars - plain, error]
    report = {
        "rows": len(ratings),
        "rows of movies in the catalogue": len(known),
        "users": len(users),
        "movies": len(movies),
        "movies without overview": int(np.isnan(embeddings[:, 0]).sum()),
        "cross-validated mse": {rung: float(np.mean(np.square(off))) for rung, off in zip(RUNGS, errors)},
        "interval": {"coverage": float((scores[folds == 0] <= limit).mean()), "width": float(2 * limit * reach.mean())},
        "strongest features": pd.Series(tastes.strengths_).nlargest(FIXED.strongest).to_dict(),
    }
    history = {"users": np.array(list(users)), "movies": np.array(list(movies)), "stars": stars}
    history |= {"user": user.astype(np.int32), "movie": movie.astype(np.int32)}
    # The last user is any that is unknown.
    people = {name: np.append(column, 0) for name, column in zip(HABITS, (activity, spreads, selections))}
    people |= {"tastes": np.pad(tastes.weights_, ((0, 1), (0, 0))), "projection": tastes.projection_}
    public_taste = {"mean": mean, "quality": public.projection_ @ public.weights_[0]}
    # Tastes were learned from the rated movies as they look to the folds without them.
    rated = {"given": given, "surplus": surplus, "rated_vectors": with_level(quality, vectors) @ tastes.projection_}
    quantiles = np.quantile(scores, np.linspace(0, 1, 1001))
    final = {"trees": np.array(trees), "reach": np.array(reach_trees), "scores": quantiles}
    model = RatingModel(features.arrays_ | history | people | public_taste | rated | final, report)
    return model.describe(catalogue.index, described, sources)
