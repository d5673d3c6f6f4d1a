"""Tastes: a Bayesian linear regression a user, all of them under one prior that is learned from all."""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from joblib import cpu_count
from numpy.typing import NDArray

from challenge.settings import FIXED

Floats = NDArray[np.floating[Any]]
Indices = NDArray[np.integer[Any]]

TINY, LARGEST = FIXED.scales
# The prior of weights that do not go together.
UNCOUPLED = np.ones((1, 1, 1), np.float32)


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


def side_by_side(task: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
    """Map like the built-in `map`, on all processors: numpy lets go of the interpreter while it computes."""
    # Threads of its own: those of a training would keep a prediction waiting.
    with ThreadPoolExecutor(cpu_count(), "taste") as threads:
        return list(threads.map(task, *arguments))


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
    filled = np.cumsum(np.maximum(counts[by_activity], width) * width) // FIXED.batch
    # Nobody in a batch has more than twice as many ratings as another: little is padded.
    scale = np.frexp(counts[by_activity])[1]
    for batch in filter(len, np.split(by_activity, np.flatnonzero(np.diff(filled) + np.diff(scale)) + 1)):
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
        return columns @ (inverse @ target), ((inverse @ rows) * rows).sum(axis=1)
    gram = columns @ rows
    inverse = np.linalg.inv(gram + np.eye(size, dtype=rows.dtype))
    # Not 1 - diagonal: what is hardly known would be rounding alone.
    return inverse @ (columns @ target), (inverse * gram).sum(axis=1)


def couple(weights: Floats, prior: Floats) -> Floats:
    """Multiply weights of shape (batch, dimensions, parts) by each part's prior covariance of the first axes."""
    axes = prior.shape[1]
    return np.concatenate([np.einsum("pij,bjp->bip", prior, weights[:, :axes]), weights[:, axes:]], axis=1)


def solve(rows: Floats, target: Floats, kept: NDArray[np.bool_], prior: Floats) -> Floats:
    """Solve (K + 1) x = target by conjugate gradients, K being the kernel of each user's ratings.

    Parameters
    ----------
    rows : ndarray of shape (batch, ratings, dimensions)
        Movie vectors.
    target : ndarray of shape (batch, ratings, 1)
        What is predicted.
    kept : ndarray of shape (batch, ratings, parts)
        False where a part is without the rating.
    prior : ndarray of shape (parts or 1, axes, axes)
        As of `couple`.

    Returns
    -------
    ndarray of shape (batch, ratings, parts)
        Zero where a part is without the rating.

    References
    ----------
    Hestenes and Stiefel 1952, Methods of conjugate gradients for solving linear systems.
    """
    columns, residual = np.ascontiguousarray(rows.transpose(0, 2, 1)), target * kept
    direction, solution, size = residual, np.zeros_like(residual), np.square(residual).sum(axis=1, keepdims=True)
    solved = FIXED.solved * size
    for _ in range(FIXED.steps):
        if (size <= solved).all():
            break
        image = kept * (rows @ couple(columns @ direction, prior)) + direction
        step = size / np.maximum((direction * image).sum(axis=1, keepdims=True), TINY)
        solution, residual = solution + step * direction, residual - step * image
        before, size = np.maximum(size, TINY), np.square(residual).sum(axis=1, keepdims=True)
        direction = residual + size / before * direction
    return solution


def fit_users(vectors: Floats, ratings: Ratings, prior: Floats = UNCOUPLED) -> tuple[Floats, Floats]:
    """Fit each user's weights on all ratings, and on all but each fold.

    Parameters
    ----------
    vectors : ndarray of shape (movies, dimensions)
        Scaled such that the prior of a weight is the unit normal in units of the noise.
    ratings : Ratings
        What is learned from.
    prior : ndarray of shape (folds + 1 or 1, axes, axes)
        Covariance of the first weights where each fold is left out, and where none is; that of the others is the unit
        matrix.

    Returns
    -------
    weights : ndarray of shape (users, dimensions)
        Posterior means.
    held_out : ndarray of shape (ratings,)
        Prediction of each rating from the ratings of other folds.
    """
    users, movies, folds, stars, roots = ratings
    weights = np.zeros((len(np.bincount(users)), vectors.shape[1]), np.float32)
    held_out, parts = np.zeros(len(users), np.float32), np.arange(folds.max(initial=0) + 2)

    def fit_batch(batch: Indices, places: Indices, there: NDArray[np.bool_]) -> None:
        rows, trust, fold = vectors[movies[places]], (there * roots[places])[..., None], folds[places][..., None]
        kept = there[..., None] & (fold != parts)
        shares = trust * solve(rows * trust, stars[places][..., None] * trust, kept, prior)
        weight = couple(rows.transpose(0, 2, 1) @ shares, prior)
        held_out[places[there]] = np.take_along_axis(rows @ weight, fold, axis=2)[there][:, 0]
        weights[batch] = weight[..., -1]

    side_by_side(fit_batch, *zip(*batches(users, vectors.shape[1])))
    return weights, held_out


def sample(ratings: Ratings, most: int, seed: int) -> Ratings:
    """Return the ratings of at most so many users, drawn at random."""
    drawn = np.random.default_rng(seed).permutation(ratings.users.max() + 1)[:most]
    rows = np.isin(ratings.users, drawn)
    some = Ratings._make(column[rows] for column in ratings)
    return some._replace(users=np.unique(some.users, return_inverse=True)[1])


def learn_prior(vectors: Floats, ratings: Ratings, noise: float, rounds: int, left_out: int) -> Floats:
    """Learn how the weights of all users go together, without the fold that they are to predict.

    Parameters
    ----------
    vectors : ndarray of shape (movies, axes)
        As of `fit_users`.
    ratings : Ratings
        What is learned from.
    noise : float
        Variance of a rating that no taste explains, in squared stars.
    rounds : int
        Steps of expectation maximisation.
    left_out : int
        The fold.

    Returns
    -------
    ndarray of shape (axes, axes)
        A part of the prior of `fit_users`.

    References
    ----------
    Gelman et al. 2013, Bayesian data analysis, chapter 15 (hierarchical linear models).
    """
    users, movies, folds, stars, roots = ratings
    size, width = users.max() + 1, vectors.shape[1]
    prior = unit = np.eye(width, dtype=np.float32)
    if not rounds:
        return unit
    grams, moments = np.zeros((size, width, width), np.float32), np.zeros((size, width, 1), np.float32)
    for batch, places, there in batches(users, width):
        rows, trust = vectors[movies[places]], ((there & (folds[places] != left_out)) * roots[places] ** 2)[..., None]
        columns = np.ascontiguousarray((rows * trust).transpose(0, 2, 1))
        grams[batch], moments[batch] = columns @ rows, columns @ stars[places][..., None]
    for _ in range(rounds):
        covariance = np.linalg.inv(grams + np.linalg.inv(prior))
        weights = (covariance @ moments)[..., 0]
        spread = weights.T @ weights / noise + covariance.sum(axis=0)
        prior = (FIXED.pseudo_users * unit + spread) / (FIXED.pseudo_users + size)
    return prior


def shrunk_means(ratings: Ratings) -> tuple[Floats, Floats]:
    """Average each user's stars, the prior counting as `prior` ratings of 0: the regression on a constant alone.

    Parameters
    ----------
    ratings : Ratings
        What is averaged.

    Returns
    -------
    means : ndarray of shape (users,)
        Of all of a user's ratings.
    held_out : ndarray of shape (ratings,)
        For each rating, of its user's ratings of other folds.
    """
    level = np.full((1, 1), FIXED.prior**-0.5, np.float32)
    weights, held_out = fit_users(level, ratings._replace(movies=np.zeros_like(ratings.movies)))
    return weights[:, 0] * level[0], held_out


class Taste:
    """How much more or less than the public each user likes a movie, from the movie's vector.

    Parameters
    ----------
    seed : int
        Seed of the samples of users that the scales and the covariance are learned from.

    Attributes
    ----------
    scales_ : ndarray of shape (1 + dimensions,)
        Prior deviation of a user's weights, in units of the noise's deviation; the first is of a constant.
    noise_ : float
        Variance of a rating that no taste explains, in squared stars.
    strengths_ : dict of str to float
        By source, the deviation in stars between movies that a user's taste for it is expected to make.
    projection_ : ndarray of shape (1 + dimensions, axes)
        The main axes of the scaled movie vectors, such that the prior of weights on them is the unit normal.
    weights_ : ndarray of shape (users, axes)
        Each user's posterior mean.
    held_out_ : ndarray of shape (ratings,)
        Prediction of each rating from its user's ratings of other folds.
    """

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def fit(self, vectors: Floats, sources: Iterable[str], ratings: Ratings, rounds: int = 0) -> "Taste":
        """Learn the prior, then each user's weights on all ratings and on all but each fold.

        Parameters
        ----------
        vectors : ndarray of shape (movies, dimensions)
            Movie vectors.
        sources : iterable of str, of length dimensions
            The source of each dimension; the dimensions of one source share their scale. A later fit keeps the scales.
        ratings : Ratings
            What is learned from.
        rounds : int
            As of `learn_prior`.

        Returns
        -------
        Taste
            Itself.
        """
        design = with_level(vectors)
        if not hasattr(self, "scales_"):
            self._learn_scales(design, np.unique(["level", *sources], return_inverse=True)[1], ratings)
        scaled = design[:, 1:] * self.scales_[1:]
        self.strengths_ = np.sqrt(self.noise_ * pd.Series(scaled.var(axis=0)).groupby([*sources]).sum()).to_dict()
        most, main = FIXED.dimensions - 1, slice(FIXED.axes)
        axes = np.fliplr(np.linalg.eigh(scaled.T @ scaled)[1])[:, :most]
        self.projection_ = np.zeros((design.shape[1], 1 + axes.shape[1]), np.float32)
        self.projection_[0, 0], self.projection_[1:, 1:] = self.scales_[0], self.scales_[1:, None] * axes
        projected, some = design @ self.projection_, sample(ratings, FIXED.coupled, self.seed)
        learn = partial(learn_prior, projected[:, main], some, self.noise_, rounds)
        prior = np.stack(side_by_side(learn, range(ratings.folds.max() + 2)))
        self.weights_, self.held_out_ = fit_users(projected, ratings, prior)
        # From here on the prior's covariance is part of the axes.
        root = np.linalg.cholesky(prior[-1])
        self.projection_[:, main] = self.projection_[:, main] @ root
        self.weights_[:, main] = np.linalg.solve(root, self.weights_[:, main].T).T
        return self

    def _learn_scales(self, design: Floats, sources: Indices, ratings: Ratings) -> None:
        """Maximise the marginal likelihood of some users' ratings (MacKay 1992, Bayesian interpolation, section 4)."""
        users, movies, _, stars, roots = sample(ratings, FIXED.learners, self.seed)
        most, problems, count = FIXED.learner_ratings // (users.max() + 1), [], 0
        for _, places, there in batches(users, len(sources)):
            places, there = places[:, :most], there[:, :most]
            trust = (there * roots[places])[..., None]
            problems.append((design[movies[places]] * trust, stars[places][..., None] * trust))
            count += there.sum()
        self.scales_ = np.full(len(sources), FIXED.first_scale, np.float32)
        for _ in range(FIXED.scale_rounds):
            size, known, error = np.zeros(len(sources)), np.zeros(len(sources)), TINY
            solved = side_by_side(lambda rows, target: evidence(rows * self.scales_, target), *zip(*problems))
            for (rows, target), (weights, determined) in zip(problems, solved):
                size += (weights[..., 0] ** 2).sum(axis=0)
                known += determined.sum(axis=0)
                error += np.square(target - rows @ (self.scales_[:, None] * weights)).sum()
            self.noise_ = float(error / max(count - known.sum(), 1))
            growth = np.bincount(sources, size) / np.maximum(np.bincount(sources, known), TINY) / self.noise_
            self.scales_ = np.clip(self.scales_ * growth[sources] ** FIXED.scale_step, TINY, LARGEST).astype(np.float32)
