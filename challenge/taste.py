"""What each user likes: a Bayesian linear regression a user, all users under one prior."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Indices = NDArray[np.integer]

DIMENSIONS = 128
# A shrunk mean counts its prior as so many ratings.
PRIOR = 5.0
START = 0.2
TINY = 1e-9
# Users and their ratings that the prior is learned from, and the rounds that it takes.
LEARNERS = 150
LEARNER_RATINGS = 200
ROUNDS = 8
# Numbers in a batch of users: a bound on memory.
BATCH = 4_000_000


def batches(users: Indices, size: int, width: int) -> Iterator[tuple[Indices, Indices, NDArray[np.bool_]]]:
    """Yield users with about as many ratings, together with the places of their ratings.

    Parameters
    ----------
    users : ndarray of shape (ratings,)
        Index of each rating's user.
    size : int
        Number of users.
    width : int
        Numbers that are held a rating.

    Yields
    ------
    batch : ndarray of shape (batch,)
        Indices of the users.
    places : ndarray of shape (batch, most ratings of any)
        Places of their ratings in `users`.
    there : ndarray of shape (batch, most ratings of any)
        False where a user has no more ratings.
    """
    counts = np.bincount(users, minlength=size)
    ends = counts.cumsum()
    by_user = np.argsort(users, kind="stable")
    by_count = np.argsort(counts, kind="stable")
    cells = np.cumsum(np.maximum(counts[by_count], width) * width)
    for batch in np.split(by_count, np.flatnonzero(np.diff(cells // BATCH)) + 1):
        steps = np.arange(counts[batch].max())
        there = steps < counts[batch, None]
        starts = (ends - counts)[batch, None]
        yield batch, by_user[np.where(there, starts + steps, 0)], there


def evidence(rows: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Solve ridge regressions with a unit prior and unit noise.

    Parameters
    ----------
    rows : ndarray of shape (batch, ratings, dimensions)
        Predictors; rows of zeros count for nothing.
    target : ndarray of shape (batch, ratings)
        What is predicted.

    Returns
    -------
    weights : ndarray of shape (batch, dimensions)
        Posterior means.
    known : ndarray of shape (batch, dimensions)
        From 0 to 1, how far the ratings determine each weight.
    """
    columns = rows.transpose(0, 2, 1)
    if rows.shape[1] < rows.shape[2]:
        inverse = np.linalg.inv(rows @ columns + np.eye(rows.shape[1], dtype=rows.dtype))
        weights = columns @ (inverse @ target[..., None])
        return weights[..., 0], np.einsum("bij,bij->bj", inverse @ rows, rows)
    covariance = np.linalg.inv(columns @ rows + np.eye(rows.shape[2], dtype=rows.dtype))
    weights = covariance @ (columns @ target[..., None])
    return weights[..., 0], 1 - np.diagonal(covariance, axis1=1, axis2=2)


def learn_scales(problems: list[tuple[Floats, Floats, int]], sources: Indices) -> Floats:
    """Find how much each source of dimensions is worth, by the marginal likelihood of all problems.

    Parameters
    ----------
    problems : list of (rows, target, ratings)
        Batches as in `evidence`, and how many of their rows are there.
    sources : ndarray of shape (dimensions,)
        Index of each dimension's source.

    Returns
    -------
    ndarray of shape (dimensions,)
        Prior standard deviation of each weight in units of the noise's, one value a source.

    References
    ----------
    MacKay 1992, Bayesian interpolation, section 4 (re-estimation of the regularisation constants).
    """
    scales = np.full(len(sources), START, np.float32)
    for _ in range(ROUNDS):
        size, known, error = np.zeros(len(sources)), np.zeros(len(sources)), 0.0
        for rows, target, _ in problems:
            weights, determined = evidence(rows * scales, target)
            size += (weights**2).sum(axis=0)
            known += determined.sum(axis=0)
            error += ((target - ((rows * scales) @ weights[..., None])[..., 0]) ** 2).sum()
        noise = error / max(sum(ratings for *_, ratings in problems) - known.sum(), 1)
        growth = np.bincount(sources, size) / np.bincount(sources, known + TINY) / (noise + TINY)
        scales = (scales * np.sqrt(growth[sources])).astype(np.float32)
    return scales


def fit_movies(
    vectors: Floats, sources: Indices, folds: Indices, deviations: Floats, trust: Floats
) -> tuple[Floats, Floats]:
    """Fit the movies' quality, on all of them and on all but each fold.

    Parameters
    ----------
    vectors : ndarray of shape (movies, dimensions)
        The first dimension is the same for all movies.
    sources : ndarray of shape (dimensions,)
        Index of each dimension's source.
    folds, deviations, trust : ndarray of shape (movies,)
        Fold, mean deviation in stars, and its weight from 0 to 1.

    Returns
    -------
    weights : ndarray of shape (dimensions,)
        Posterior means.
    held_out : ndarray of shape (movies,)
        Quality of each movie by the movies of other folds.
    """
    # The movies are the ratings of one user, the public.
    root, everyone = np.sqrt(trust).astype(np.float32), np.arange(len(trust))
    rows, target = vectors * root[:, None], (deviations * root).astype(np.float32)
    scales = learn_scales([(rows[None], target[None], len(target))], sources)
    weights, held_out = fit_users(rows * scales, np.zeros_like(everyone), everyone, folds, target, 1)
    return scales * weights[0], held_out / root


def learn_projection(
    vectors: Floats, sources: Indices, users: Indices, movies: Indices, target: Floats, seed: int
) -> Floats:
    """Find the few dimensions of movies that tell most of tastes.

    Parameters
    ----------
    vectors : ndarray of shape (movies, dimensions)
        The first dimension is the same for all movies.
    sources : ndarray of shape (dimensions,)
        Index of each dimension's source.
    users, movies, target : ndarray of shape (ratings,)
        Index of the user and of the movie, stars above what is expected of the movie.
    seed : int
        Seed of the users' sample.

    Returns
    -------
    ndarray of shape (dimensions, at most DIMENSIONS)
        Projection onto the main axes of what `learn_scales` made of the vectors.
    """
    learners = np.random.default_rng(seed).permutation(users.max() + 1)[:LEARNERS]
    chosen = np.flatnonzero(np.isin(users, learners))
    learner = np.unique(users[chosen], return_inverse=True)[1]
    # A user who rates wildly would otherwise count for many.
    counts, squares = np.bincount(learner), np.bincount(learner, target[chosen] ** 2)
    spread = np.sqrt((squares + PRIOR * np.var(target)) / (counts + PRIOR)).astype(np.float32)
    problems = []
    for batch, places, there in batches(learner, len(counts), vectors.shape[1]):
        places, there = chosen[places[:, :LEARNER_RATINGS]], there[:, :LEARNER_RATINGS]
        rows = vectors[movies[places]] * there[..., None]
        problems.append((rows, target[places] * there / spread[batch, None], int(there.sum())))
    scales = learn_scales(problems, sources)
    scaled = vectors[:, 1:] * scales[1:]
    axes = np.linalg.eigh(scaled.T @ scaled)[1][:, ::-1][:, : DIMENSIONS - 1]
    projection = np.zeros((len(sources), 1 + axes.shape[1]), np.float32)
    projection[0, 0], projection[1:, 1:] = scales[0], scales[1:, None] * axes
    return projection


def fit_users(
    vectors: Floats, users: Indices, movies: Indices, folds: Indices, target: Floats, size: int
) -> tuple[Floats, Floats]:
    """Fit each user's weights on all of the ratings, and on all but each fold.

    Parameters
    ----------
    vectors : ndarray of shape (movies, dimensions)
        Scaled such that a weight's prior is the unit normal and so is the noise.
    users, movies, folds : ndarray of shape (ratings,)
        Index of the user, the movie and the movie's fold.
    target : ndarray of shape (ratings,)
        What is predicted: stars above what is expected of the movie.
    size : int
        Number of users.

    Returns
    -------
    weights : ndarray of shape (size, dimensions)
        Posterior means.
    held_out : ndarray of shape (ratings,)
        Prediction of each rating from the user's ratings of other folds.
    """
    width = vectors.shape[1]
    weights, held_out = np.zeros((size, width), np.float32), np.zeros(len(target), np.float32)
    for batch, places, there in batches(users, size, width):
        rows = vectors[movies[places]]
        inside = [(there & (folds[places] == fold))[..., None] for fold in range(folds.max() + 1)]
        parts = [(rows * fold).transpose(0, 2, 1) for fold in inside]
        grams = [part @ rows for part in parts]
        moments = [part @ target[places][..., None] for part in parts]
        gram, moment = sum(grams, np.eye(width, dtype=np.float32)), sum(moments)
        weights[batch] = np.linalg.solve(gram, moment)[..., 0]
        for fold, fold_gram, fold_moment in zip(inside, grams, moments):
            without = rows @ np.linalg.solve(gram - fold_gram, moment - fold_moment)
            held_out[places[fold[..., 0]]] = without[fold]
    return weights, held_out
