"""User taste: one Bayesian linear regression per user, all under one prior that is learned from all users.

Ratings are tables with the columns ``user``, ``movie`` and ``fold``, the indices of the user, the movie and the movie's
fold, ``stars``, how far the rating is above what is expected, and ``root``, the square root of its weight.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
from joblib import cpu_count
from scipy.linalg import block_diag
from scipy.sparse import csr_array

from challenge.features import Floats
from challenge.settings import FIXED

Indices = np.typing.NDArray[np.integer[Any]]


def side_by_side(task: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
    """Do as the built-in `map`, but on all processors, as numpy releases the interpreter while it computes."""
    # Its own threads: a prediction does not wait for those of a training.
    with ThreadPoolExecutor(cpu_count(), "taste") as threads:
        return list(threads.map(task, *arguments))


def batches(ratings: pd.DataFrame, width: int) -> Iterator[tuple[Indices, Indices, np.typing.NDArray[np.bool_]]]:
    """Yield batches of users of similar activity, with the places of their ratings.

    Parameters
    ----------
    ratings : DataFrame
        Of the users wanted.
    width : int
        Numbers held in memory per rating.

    Yields
    ------
    batch : ndarray of shape (batch,)
        Indices of the users.
    places : ndarray of shape (batch, folds, most ratings of any)
        Rows of their ratings in each fold.
    there : ndarray of shape (batch, folds, most ratings of any)
        False where a user has no more ratings: padding.
    """
    user, fold = ratings["user"].to_numpy(), ratings["fold"].to_numpy()
    users, folds = user.max(initial=-1) + 1, fold.max(initial=0) + 1
    # One row per user and fold, whose columns are the places: building it sorts in linear time.
    table = csr_array((fold >= 0, (user * folds + fold, np.arange(len(user)))), (users * folds, len(user)))
    starts, counts = (own.reshape(users, folds) for own in (table.indptr[:-1], np.diff(table.indptr)))
    most = pd.Series(counts.max(axis=1)).sort_values(kind="stable")
    filled = (np.maximum(most * folds, width) * width).cumsum() // FIXED.numbers_in_memory
    # Within a batch the largest counts differ at most by a factor of two, so there is little padding.
    for _, alike in most[most > 0].groupby([filled, np.frexp(most)[1]]):
        batch, steps = alike.index.to_numpy(), np.arange(alike.max())
        there = steps < counts[batch][..., None]
        yield batch, table.indices[np.where(there, starts[batch][..., None] + steps, 0)], there


def evidence(rows: Floats, target: Floats) -> tuple[Floats, Floats, Floats]:
    """Solve a ridge regression with a unit prior and unit noise, in its dual form.

    Parameters
    ----------
    rows : ndarray of shape (ratings, dimensions)
        Predictors.
    target : ndarray of shape (ratings,)
        Response.

    Returns
    -------
    size, known : ndarray of shape (dimensions,)
        Each weight's squared posterior mean, and how well the data determine it, from 0 to 1.
    error : floating
        Sum of squared residuals.
    """
    inverse = np.linalg.inv(rows @ rows.T + np.eye(len(rows), dtype=rows.dtype))
    left = inverse @ target
    return np.square(rows.T @ left), (inverse @ rows * rows).sum(axis=0), np.square(left).sum()


def fit_users(vectors: Floats, ratings: pd.DataFrame, prior: Floats, scatter: bool = False) -> tuple[Floats, ...]:
    """Fit each user's weights on all ratings and on all but each fold, from sums that these fits share.

    Parameters
    ----------
    vectors : ndarray of shape (movies, dimensions)
        Movie vectors.
    ratings : DataFrame
        To learn from.
    prior : ndarray of shape (folds + 1 or 1, dimensions, dimensions) or (dimensions, dimensions)
        Covariance of the weights in units of the noise variance: for each fold left out and, last, for none, or one for
        all.
    scatter : bool
        Whether the scatter is wanted, which takes twice as long as all else.

    Returns
    -------
    weights : ndarray of shape (users, dimensions)
        Posterior means; 0, the prior's mean, for users without ratings.
    held_out : ndarray of shape (ratings,)
        Prediction of each rating from its user's ratings in other folds.
    scatter : ndarray of shape (folds + 1, dimensions, dimensions)
        Expected outer products of weights, summed over users, for each fold left out and, last, for none; if stars are
        in units of the noise's standard deviation. 0 if it is not wanted.
    """
    users, movies, stars, roots = (ratings[name].to_numpy() for name in ("user", "movie", "stars", "root"))
    weights = np.zeros((users.max(initial=-1) + 1, vectors.shape[1]), np.float32)
    held_out, precision = np.zeros(len(users), np.float32), np.linalg.inv(prior)

    def fit_batch(batch: Indices, places: Indices, there: np.typing.NDArray[np.bool_]) -> Any:
        rows, trust = vectors[movies[places]], (there * roots[places])[..., None]
        trusted, folds = rows * trust, there.shape[1]
        # The folds that each fit keeps: all but one, and last all.
        kept = 1 - np.eye(folds + 1, folds, dtype=np.float32)
        systems = np.einsum("ef,uf...->ue...", kept, trusted.mT @ trusted) + precision
        moments = np.einsum("ef,uf...->ue...", kept, trusted.mT @ (stars[places][..., None] * trust))
        weight = np.linalg.solve(systems, moments)
        held_out[places[there]] = (rows @ weight[:, :-1])[there][:, 0]
        weights[batch] = weight[:, -1, :, 0]
        outer = weight[..., 0].transpose(1, 2, 0) @ weight[..., 0].swapaxes(0, 1)
        return np.linalg.inv(systems).sum(axis=0) + outer if scatter else 0

    return weights, held_out, sum(side_by_side(fit_batch, *zip(*batches(ratings, vectors.shape[1]))))


def shrunk_means(ratings: pd.DataFrame) -> tuple[Floats, Floats]:
    """Average each user's stars, shrunk as if by ``FIXED.prior`` more ratings of 0: the regression on a constant.

    Parameters
    ----------
    ratings : DataFrame
        To average.

    Returns
    -------
    means : ndarray of shape (users,)
        Over all of a user's ratings.
    held_out : ndarray of shape (ratings,)
        For each rating, over its user's ratings in other folds.
    """
    means, held_out, _ = fit_users(np.ones((1, 1), np.float32), ratings.assign(movie=0), np.eye(1) / FIXED.prior)
    return means[:, 0], held_out


def habits(ratings: pd.DataFrame, surplus: Floats, usual: float) -> tuple[Floats, Floats]:
    """Summarise how users rate, whatever the movie.

    Parameters
    ----------
    ratings : DataFrame
        Of any number of users.
    surplus : ndarray of shape (movies,)
        By how many stars the public likes a movie better than its catalogue entry predicts: whoever picks such movies
        will do so again.
    usual : float
        Mean square of all users' stars.

    Returns
    -------
    habits : ndarray of shape (users, 3)
        Number of ratings, their excess mean square, and their movies' mean surplus, the last two shrunk.
    held_out : ndarray of shape (ratings, 3)
        For each rating, the same from its user's ratings in other folds; the number is of all folds.
    """
    targets, counts = (np.square(ratings["stars"]) - usual, surplus[ratings["movie"]]), np.bincount(ratings["user"])
    users, held_out = zip(*(shrunk_means(ratings.assign(stars=stars.astype(np.float32))) for stars in targets))
    return np.column_stack([counts, *users]), np.column_stack([counts[ratings["user"]], *held_out])


class Taste:
    """A linear regression of each user's stars on movie vectors; of the public's, as one user's, it is quality.

    Parameters
    ----------
    dimensions : int
        Number of axes: principal axes of the movie vectors, and a constant.
    seed : int
        Seed of the samples of users and ratings from which scales and covariance are learned.

    Attributes
    ----------
    scales_ : ndarray of shape (vector dimensions + 1,)
        Prior standard deviations of a user's weights, in units of the noise's; the last is the constant's.
    noise_ : float
        Variance of ratings that no taste explains, in squared stars.
    strengths_ : Series of shape (names of dimensions,)
        By name, the standard deviation over movies, in stars, that a user's taste for it is expected to have.
    projection_ : ndarray of shape (vector dimensions + 1, axes)
        Axes on which the prior of the weights is the standard normal; along the last all movies are the same.
    weights_ : ndarray of shape (users, axes)
        Each user's posterior mean.
    held_out_ : ndarray of shape (ratings,)
        Prediction of each rating from its user's ratings in other folds.
    """

    def __init__(self, dimensions: int, seed: int = 0) -> None:
        self.dimensions = dimensions
        self.seed = seed

    def fit(self, vectors: pd.DataFrame, ratings: pd.DataFrame, rounds: int = 0) -> "Taste":
        """Learn the prior, then each user's weights on all ratings and on all but each fold.

        Parameters
        ----------
        vectors : DataFrame of shape (movies, dimensions)
            Movie vectors; dimensions of one name, those of a source or of a family of sources, share one scale. Scales
            are learned by the first fit and kept by later ones.
        ratings : DataFrame
            To learn from.
        rounds : int
            Steps of expectation maximisation for the covariance of the weights, for each fold without its ratings.

        Returns
        -------
        Taste
            Itself.

        References
        ----------
        Gelman et al. 2013, Bayesian data analysis, chapter 15 (hierarchical linear models).
        """
        design = vectors.assign(constant=np.float32(1)).to_numpy()
        # The first has rated a movie of the last fold, from which `batches` tells how many there are; then at random.
        last = ratings["user"].iloc[ratings["fold"].argmax()]
        counts = np.bincount(ratings["user"])
        drawn = np.append(last, np.random.default_rng(self.seed).permutation(len(counts)))
        if not hasattr(self, "scales_"):
            most = FIXED.scale_ratings // min(len(counts), FIXED.scale_users)
            users = drawn[: int(FIXED.scale_ratings / counts.clip(FIXED.few_ratings, most).mean())]
            # Shuffled, as a file may be sorted by movie or by date.
            some = ratings[ratings["user"].isin(users)].sample(frac=1, random_state=self.seed)
            self._learn_scales(design, [*vectors, "constant"], some.groupby("user").head(most))
        scaled = design[:, :-1] * self.scales_[:-1]
        self.strengths_ = pd.Series(self.noise_ * scaled.var(axis=0), vectors.columns).groupby(level=0).sum() ** 0.5
        # Each movie is weighted by its number of ratings.
        roots = np.sqrt(np.bincount(ratings["movie"], minlength=len(vectors)), dtype=np.float32)[:, None]
        # The triangular factor has no more rows than there are movies: few movies are cheap, whatever the dimensions.
        axes = np.linalg.svd(np.linalg.qr(scaled * roots, "r"), full_matrices=False).Vh[: self.dimensions - 1].T
        projection = block_diag(self.scales_[:-1, None] * axes, self.scales_[-1:])
        # The prior makes the systems double precision: single is not enough where tastes explain the ratings fully.
        projected, prior = design @ projection, np.eye(len(projection.T))[None]
        some = ratings.assign(stars=ratings["stars"] / self.noise_**0.5)[ratings["user"].isin(drawn[: FIXED.coupled])]
        for _ in range(rounds):
            _, _, total = fit_users(projected, some, prior, scatter=True)
            prior = (FIXED.pseudo_users * np.eye(len(prior.T)) + total) / (FIXED.pseudo_users + some["user"].nunique())
        weights, self.held_out_, _ = fit_users(projected, ratings, prior)
        # Work the covariance into the axes, on which the prior is then standard normal again.
        root = np.linalg.cholesky(prior[-1])
        self.projection_, self.weights_ = projection @ root, np.linalg.solve(root, weights.T).T
        return self

    def _learn_scales(self, design: Floats, names: list[str], ratings: pd.DataFrame) -> None:
        """Maximise the marginal likelihood over scales and noise (MacKay 1992, Bayesian interpolation, section 4)."""
        sources = np.unique(names, return_inverse=True)[1]
        rows = np.column_stack([design[ratings["movie"]], ratings["stars"]]) * ratings[["root"]].to_numpy()
        # The triangular factor gives the same regression with no more rows than columns.
        small = [np.linalg.qr(rows[own], "r") for own in ratings.groupby("user").indices.values()]
        # What a worthless source seems to be worth by chance grows with the root of the number of users.
        pseudo_known = FIXED.pseudo_known * len(small) ** 0.5
        # At first all sources together are to explain as much as the noise, in equal parts: of many, most are noise.
        sizes = np.bincount(sources, np.square(design).mean(axis=0))
        self.scales_ = ((len(sizes) * sizes + FIXED.rounding) ** -0.5)[sources].astype(np.float32)
        for _ in range(FIXED.scale_rounds):
            sums = side_by_side(lambda rows: evidence(rows[:, :-1] * self.scales_, rows[:, -1]), small)
            size, known, error = (sum(parts) for parts in zip(*sums))
            self.noise_ = max(float(error / max(len(ratings) - known.sum(), 1)), FIXED.least_noise)
            growth = np.bincount(sources, size) / (np.bincount(sources, known) + pseudo_known) / self.noise_
            self.scales_ = np.clip(self.scales_ * growth[sources] ** FIXED.scale_step, *FIXED.scales).astype(np.float32)
