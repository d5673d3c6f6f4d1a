"""Tastes: a Bayesian linear regression a user, all of them under one prior that is learned from all."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.integer[Any]]

DIMENSIONS = 128
# A shrunk mean counts its prior as so many ratings.
PRIOR = 5.0
# The prior is learned from so many users, and from so many ratings of theirs in all.
LEARNERS = 150
LEARNER_RATINGS = 30_000
ROUNDS = 12
START = 0.2
TINY = 1e-9
# Numbers that are held at a time for a batch of users.
BATCH = 4_000_000


class Ratings(NamedTuple):
    """Ratings as regressions read them, each an array of shape (ratings,).

    Attributes
    ----------
    users, movies, folds : ndarray
        Index of the user, of the movie, and of the movie's fold.
    stars : ndarray
        Stars above what is expected.
    roots : ndarray
        Square root of each rating's weight.
    """

    users: Indices
    movies: Indices
    folds: Indices
    stars: Floats
    roots: Floats


def with_level(*parts: Floats) -> Floats:
    """Put a column of ones before others."""
    return np.column_stack([np.ones(len(parts[0])), *parts]).astype(np.float32)


def batches(users: Indices, width: int) -> Iterator[tuple[Indices, Indices, NDArray[np.bool_]]]:
    """Yield users of like activity together with the places of their ratings.

    Parameters
    ----------
    users : ndarray of shape (ratings,)
        Index of each rating's user.
    width : int
        Numbers that are held for a rating.

    Yields
    ------
    batch : ndarray of shape (batch,)
        Indices of the users.
    places : ndarray of shape (batch, most ratings of any)
        Places of their ratings in `users`.
    there : ndarray of shape (batch, most ratings of any)
        False where a user has no more ratings.
    """
    counts = np.bincount(users)
    starts = counts.cumsum() - counts
    by_user, by_activity = np.argsort(users, kind="stable"), np.argsort(counts, kind="stable")
    filled = np.cumsum(np.maximum(counts[by_activity], width) * width) // BATCH
    for batch in np.split(by_activity, np.flatnonzero(np.diff(filled)) + 1):
        steps = np.arange(counts[batch].max())
        there = steps < counts[batch, None]
        yield batch, by_user[np.where(there, starts[batch, None] + steps, 0)], there


def evidence(rows: Floats, target: Floats) -> tuple[Floats, Floats]:
    """Solve ridge regressions with a unit prior and unit noise.

    Parameters
    ----------
    rows : ndarray of shape (batch, ratings, dimensions)
        Predictors; rows of zeros count for nothing.
    target : ndarray of shape (batch, ratings, 1)
        What is predicted.

    Returns
    -------
    weights : ndarray of shape (batch, dimensions, 1)
        Posterior means.
    known : ndarray of shape (batch, dimensions)
        From 0 to 1, how far the ratings determine each weight.
    """
    columns, size = rows.transpose(0, 2, 1), min(rows.shape[1:])
    if size < rows.shape[2]:
        inverse = np.linalg.inv(rows @ columns + np.eye(size, dtype=rows.dtype))
        return columns @ (inverse @ target), np.einsum("bij,bij->bj", inverse @ rows, rows)
    inverse = np.linalg.inv(columns @ rows + np.eye(size, dtype=rows.dtype))
    return inverse @ (columns @ target), 1 - np.diagonal(inverse, axis1=1, axis2=2)


def fit_users(vectors: Floats, ratings: Ratings) -> tuple[Floats, Floats]:
    """Fit each user's weights, their prior the unit normal and so the noise, on all ratings and on all but each fold.

    Parameters
    ----------
    vectors : ndarray of shape (movies, dimensions)
        Movie vectors.
    ratings : Ratings
        What is learned from.

    Returns
    -------
    weights : ndarray of shape (users, dimensions)
        Posterior means.
    held_out : ndarray of shape (ratings,)
        Prediction of each rating from its user's ratings of other folds.
    """
    users, movies, folds, stars, roots = ratings
    width = vectors.shape[1]
    weights, held_out = np.zeros((users.max() + 1, width), np.float32), np.zeros(len(users), np.float32)
    for batch, places, there in batches(users, width):
        rows, trust = vectors[movies[places]], (there * roots[places] ** 2)[..., None]
        inside = [there & (folds[places] == fold) for fold in range(folds.max() + 1)]
        parts = [(rows * trust * fold[..., None]).transpose(0, 2, 1) for fold in inside]
        grams, moments = [part @ rows for part in parts], [part @ stars[places][..., None] for part in parts]
        gram, moment = sum(grams, np.eye(width, dtype=np.float32)), sum(moments)
        weights[batch] = np.linalg.solve(gram, moment)[..., 0]
        for fold, fold_gram, fold_moment in zip(inside, grams, moments):
            predicted = rows @ np.linalg.solve(gram - fold_gram, moment - fold_moment)
            held_out[places[fold]] = predicted[fold][:, 0]
    return weights, held_out


class Taste:
    """How much more or less than the public each user likes a movie, from the movie's vector.

    Parameters
    ----------
    seed : int
        Seed of the sample of users that the prior is learned from.

    Attributes
    ----------
    projection_ : ndarray of shape (1 + dimensions, at most DIMENSIONS)
        The main axes of movie vectors whose sources are scaled by what they are worth; the first is a constant.
    weights_ : ndarray of shape (users, at most DIMENSIONS)
        Each user's posterior mean.
    held_out_ : ndarray of shape (ratings,)
        Prediction of each rating from its user's ratings of other folds.

    References
    ----------
    MacKay 1992, Bayesian interpolation, section 4: the scales maximise the marginal likelihood of all users' ratings.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, vectors: Floats, sources: Iterable[str], ratings: Ratings) -> "Taste":
        """Learn the prior, then each user's weights on all ratings and on all but each fold.

        Parameters
        ----------
        vectors : ndarray of shape (movies, dimensions)
            Movie vectors.
        sources : iterable of str, of length dimensions
            The source of each dimension; the dimensions of one source share their prior.
        ratings : Ratings
            What is learned from.

        Returns
        -------
        Taste
            Itself.
        """
        design = with_level(vectors)
        scales = self._learn_scales(design, np.unique(["", *sources], return_inverse=True)[1], ratings)
        scaled = design[:, 1:] * scales[1:]
        axes = np.linalg.eigh(scaled.T @ scaled)[1][:, ::-1][:, : DIMENSIONS - 1]
        self.projection_ = np.zeros((len(scales), 1 + axes.shape[1]), np.float32)
        self.projection_[0, 0], self.projection_[1:, 1:] = scales[0], scales[1:, None] * axes
        self.weights_, self.held_out_ = fit_users(design @ self.projection_, ratings)
        return self

    def _learn_scales(self, design: Floats, sources: Indices, ratings: Ratings) -> Floats:
        """Return the prior deviation of each dimension's weights, in units of the noise's."""
        learners = np.random.default_rng(self.seed).permutation(ratings.users.max() + 1)[:LEARNERS]
        chosen = np.flatnonzero(np.isin(ratings.users, learners))
        users = np.unique(ratings.users[chosen], return_inverse=True)[1]
        movies, stars, roots = ratings.movies[chosen], ratings.stars[chosen], ratings.roots[chosen]
        problems = []
        for _, places, there in batches(users, len(sources)):
            places, there = places[:, : LEARNER_RATINGS // len(learners)], there[:, : LEARNER_RATINGS // len(learners)]
            weight = (there * roots[places])[..., None]
            problems.append((design[movies[places]] * weight, stars[places][..., None] * weight))
        count = sum(np.count_nonzero(target) for _, target in problems)
        scales = np.full(len(sources), START, np.float32)
        for _ in range(ROUNDS):
            size, known, error = np.zeros(len(sources)), np.full(len(sources), TINY), TINY
            for rows, target in problems:
                weights, determined = evidence(rows * scales, target)
                size += (weights[..., 0] ** 2).sum(axis=0)
                known += determined.sum(axis=0)
                error += np.square(target - rows @ (scales[:, None] * weights)).sum()
            noise = error / max(count - known.sum(), 1)
            growth = np.bincount(sources, size) / np.bincount(sources, known) / noise
            scales = (scales * np.sqrt(growth[sources])).astype(np.float32)
        return scales
