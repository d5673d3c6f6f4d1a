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
# The prior of how weights go together counts as so many users.
PSEUDO_USERS = 100
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


def fit_users(vectors: Floats, ratings: Ratings, noise: float = 1.0, rounds: int = 0) -> tuple[Floats, Floats]:
    """Fit each user's weights on all ratings, and on all but each fold.

    Parameters
    ----------
    vectors : ndarray of shape (movies, dimensions)
        Scaled such that the prior of a weight is the unit normal in units of the noise.
    ratings : Ratings
        What is learned from.
    noise : float
        Variance of a rating that no taste explains, in squared stars.
    rounds : int
        Steps of expectation maximisation that learn how the weights of all users go together; without a fold's ratings
        where they are to predict that fold.

    Returns
    -------
    weights : ndarray of shape (users, dimensions)
        Posterior means.
    held_out : ndarray of shape (ratings,)
        Prediction of each rating from the ratings of other folds.

    References
    ----------
    Gelman et al. 2013, Bayesian data analysis, chapter 15 (hierarchical linear models).
    """
    users, movies, folds, stars, roots = ratings
    size, width, unit = int(users.max()) + 1, vectors.shape[1], np.eye(vectors.shape[1], dtype=np.float32)
    weights, held_out = np.zeros((size, width), np.float32), np.zeros(len(users), np.float32)
    # One part a fold, to be left out; the last part is empty.
    parts = range(folds.max() + 2)
    precision = [unit for _ in parts]
    for _ in range(rounds + 1):
        spread = [PSEUDO_USERS * unit for _ in parts]
        for batch, places, there in batches(users, width):
            rows, trust = vectors[movies[places]], (there * roots[places] ** 2)[..., None]
            inside = [there & (folds[places] == part) for part in parts]
            columns = [(rows * trust * mask[..., None]).transpose(0, 2, 1) for mask in inside]
            grams, moments = [side @ rows for side in columns], [side @ stars[places][..., None] for side in columns]
            gram, moment = sum(grams), sum(moments)
            for part in parts:
                covariance = np.linalg.inv(gram - grams[part] + precision[part])
                weight = covariance @ (moment - moments[part])
                spread[part] = spread[part] + weight[..., 0].T @ weight[..., 0] / noise + covariance.sum(axis=0)
                held_out[places[inside[part]]] = (rows @ weight)[inside[part]][:, 0]
            weights[batch] = weight[..., 0]
        precision = [np.linalg.inv(total / (size + PSEUDO_USERS)).astype(np.float32) for total in spread]
    return weights, held_out


class Taste:
    """How much more or less than the public each user likes a movie, from the movie's vector.

    Parameters
    ----------
    seed : int
        Seed of the sample of users that the prior is learned from.
    rounds : int
        As in `fit_users`.

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

    def __init__(self, seed: int = 0, rounds: int = 0) -> None:
        self.seed = seed
        self.rounds = rounds

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
        scales, noise = self._learn_scales(design, np.unique(["level", *sources], return_inverse=True)[1], ratings)
        scaled = design[:, 1:] * scales[1:]
        axes = np.linalg.eigh(scaled.T @ scaled)[1][:, ::-1][:, : DIMENSIONS - 1]
        self.projection_ = np.zeros((len(scales), 1 + axes.shape[1]), np.float32)
        self.projection_[0, 0], self.projection_[1:, 1:] = scales[0], scales[1:, None] * axes
        self.weights_, self.held_out_ = fit_users(design @ self.projection_, ratings, noise, self.rounds)
        return self

    def _learn_scales(self, design: Floats, sources: Indices, ratings: Ratings) -> tuple[Floats, float]:
        """Return the prior deviation of each dimension's weights, in units of the noise's, and the noise's variance."""
        learners = np.random.default_rng(self.seed).permutation(ratings.users.max() + 1)[:LEARNERS]
        chosen = np.flatnonzero(np.isin(ratings.users, learners))
        users = np.unique(ratings.users[chosen], return_inverse=True)[1]
        movies, stars, roots = ratings.movies[chosen], ratings.stars[chosen], ratings.roots[chosen]
        problems, count = [], 0
        for _, places, there in batches(users, len(sources)):
            places, there = places[:, : LEARNER_RATINGS // len(learners)], there[:, : LEARNER_RATINGS // len(learners)]
            weight = (there * roots[places])[..., None]
            problems.append((design[movies[places]] * weight, stars[places][..., None] * weight))
            count += there.sum()
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
        return scales, float(noise)
