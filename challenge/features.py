"""Movie vectors from whatever columns a catalogue has."""

import re
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer

from challenge.settings import FIXED

Arrays = dict[str, NDArray[Any]]
Floats = NDArray[np.floating[Any]]
OVERVIEW = "vector/overview embedding"
# Not a source: what it takes to fill gaps.
GAPS = "gaps/numbers"


def tokens(cell: str) -> list[str]:
    """Split a cell into the items of its list, or else into words and numbers."""
    cell = cell.lower()
    if cell.startswith(("[", "{")):
        return ["".join(groups) for groups in re.findall(FIXED.item, cell)] or re.findall(FIXED.word, cell)
    return [*map(str.strip, cell.split("|"))] if "|" in cell else re.findall(FIXED.word, cell) or cell.split()


def as_numbers(column: "pd.Series[str]") -> Floats:
    """Read numbers, dates as fractional years, and years among words; NaN where a cell is none of them."""
    # Long cells are none of them, and would be slow to parse.
    texts = column.where(column.str.fullmatch(FIXED.measured))
    plain = pd.to_numeric(texts, errors="coerce")
    rest = texts[plain.isna()]
    numbers = plain.fillna(pd.to_numeric(rest.replace(FIXED.number_forms, regex=True), errors="coerce"))
    dates = pd.to_datetime(rest.where(rest.str.contains(FIXED.year)), errors="coerce", format="mixed", utc=True).dt
    years = rest.str.extract(FIXED.lone_year, expand=False).astype(float)
    return numbers.fillna(dates.year + dates.day_of_year / 366).fillna(years).to_numpy(np.float64)[:, None]


def rescale(values: Any, unit: float) -> Any:
    """Make numbers logarithmic beyond their unit and linear below it; without a unit, return values as they are."""
    return np.arcsinh(values / unit) if unit > 0 else values


# A movie's cells as a sparse row of their words' or list items' hashed counts, signed and normalised.
COUNTER = HashingVectorizer(analyzer=lambda cells: sum(map(tokens, cells), []))


def source_of(column: "pd.Series[str]") -> str:
    """Return the source that a column belongs to, ``kind/name``: its own, or that of several columns of words."""
    # Distinct values count, so that a frequent word for a gap does not turn a column of numbers into words.
    count, numbers = column.nunique(), as_numbers(column.drop_duplicates())
    told = numbers[np.isfinite(numbers)]
    if len(np.unique(told)) > 2 and len(told) >= FIXED.readable * count:
        return f"number/{column.name}"
    # The items of a list may be spread over actor_1, actor_2, and so on; but a yes or no says nothing without its name.
    return f"words/{re.sub(FIXED.numeral, '#', str(column.name))}" if count > 2 else f"flag/{column.name}"


def read(source: str, catalogue: pd.DataFrame) -> dict[str, Any]:
    """Read a source, and of numbers which are void, for `project`; a column that is not there counts as empty."""
    kind, _, name = source.partition("/")
    if kind == "number":
        numbers = as_numbers(catalogue.get(name, pd.Series("", catalogue.index)))
        # They may stand for gaps, as 0 does in the votes of an upcoming movie.
        void = numbers == FIXED.placeholders
        return {source: np.where(void.any(axis=1, keepdims=True), np.nan, numbers), f"void/{name}": 1.0 * void}
    names = [re.sub(FIXED.numeral, "#", column) if kind == "words" else column for column in catalogue.columns]
    return {source: COUNTER.transform(catalogue.loc[:, np.array(names) == name].fillna("").to_numpy())}


def fit_sources(catalogue: pd.DataFrame, embeddings: Floats, weights: Floats, seed: int) -> tuple[Arrays, pd.DataFrame]:
    """Make movie vectors, with gaps, from whatever columns a catalogue has.

    A column of numbers or dates is one dimension, on the scale of `rescale`. Zeros and other placeholders count as
    missing numbers; in case they do mean something, which movies have them is one more source. A flag, a column of two
    values at most, tells which one a movie has. Any other column, or several whose names differ only in numbers,
    becomes tf-idf weights of those of its words or list items that more than one movie has, reduced to topics by a
    singular value decomposition (latent semantic analysis, Deerwester et al. 1990); the overviews' embeddings are
    reduced likewise. Each source is centred on the weighted mean and scaled to a weighted variance of 1 in all. A
    number or date that is missing, or too far from the centre to be one, is a gap. `fill` fills gaps as if vectors were
    normally distributed; their covariance is learned in turn with the gaps (Buck 1960, A method of estimation of
    missing values).

    Parameters
    ----------
    catalogue : DataFrame of shape (movies, columns)
        Cells as text, by movie id.
    embeddings : ndarray of shape (movies, dimensions)
        Of the overviews; NaN where a movie has none.
    weights : ndarray of shape (movies,)
        Of each movie in the centres and variances; above 0.
    seed : int
        Seed of the decompositions.

    Returns
    -------
    fitted : dict of str to ndarray
        By ``kind/name`` of a source, in the order of the vectors' dimensions: its projected centre in the first row,
        its projection in the others, and in the first column the bucket that each row is for, below the unit of
        numbers, their median size. Under `GAPS`, the inverse of the vectors' covariance, for `fill`.
    known : DataFrame of shape (movies, dimensions)
        As from `movie_vectors`.
    """
    # Without any overview the width of embeddings is unknown.
    wide: dict[str, Any] = {OVERVIEW: embeddings} if np.isfinite(embeddings.sum(axis=1)).any() else {}
    for key in catalogue.apply(source_of).unique():
        wide |= read(key, catalogue)
    fitted = {key: axes for key in wide if (axes := fit_source(key, wide[key], weights, seed)).shape[1] > 1}
    known = project(fitted, wide, catalogue.index)
    # At first nothing depends on anything else.
    precision = each = np.eye(known.shape[1], dtype=np.float32)
    for _ in range(FIXED.gap_rounds):
        filled = fill(known, precision)[0].to_numpy(np.float32)
        precision = np.linalg.inv((filled.T @ filled + FIXED.gap_prior * each) / (len(known) + FIXED.gap_prior))
    return fitted | {GAPS: precision}, known


def fit_source(key: str, wide: Any, weights: Floats, seed: int) -> NDArray[np.float32]:
    """Learn the centre and projection of a source; no dimension is left if it tells no movies of any weight apart.

    The randomised SVD is written in numpy: scikit-learn's holds the interpreter during its LU steps, which delays
    predictions, and takes three times as long with QR.

    References
    ----------
    Halko et al. 2011, Finding structure with randomness, https://arxiv.org/abs/0909.4061
    """
    told = np.isfinite(np.ravel(wide.sum(axis=1)))
    known, weights = wide[told], weights[told]
    # The usual size of a number, so that it does not matter what it is counted in.
    unit = np.median(np.abs(known)) if key.startswith("number/") else -1
    known = rescale(known, unit)
    # What only one movie has says nothing about others.
    kept = np.flatnonzero(np.ravel((known != 0).sum(axis=0)) > 1)
    rarity = TfidfTransformer().fit(known).idf_[kept, None] if key.startswith("words/") else 1
    known = known[:, kept]
    sample = np.random.default_rng(seed).normal(size=(len(kept), min(len(kept), FIXED.topics + FIXED.oversampled)))
    for _ in range(FIXED.power_rounds):
        basis, _ = np.linalg.qr(known @ (rarity * sample))
        sample = rarity * (known.T @ basis)
    # Of a number, the only topic is the number itself, up to the sign.
    projection = rarity * np.linalg.svd(sample, full_matrices=False)[0][:, : FIXED.topics]
    block = known @ projection
    centre = np.average(block, axis=0, weights=weights)
    spread = np.average(np.square(block - centre), axis=0, weights=weights) ** 0.5
    # Without a kept bucket the block has no dimension.
    varied = spread > FIXED.rounding * np.abs(block).max(initial=0)
    axes = np.vstack([centre, projection])[:, varied] / np.linalg.norm(spread)
    # The centre belongs to no bucket, which leaves a place for the unit.
    return np.column_stack([[unit, *kept], axes]).astype(np.float32)


def movie_vectors(fitted: Arrays, catalogue: pd.DataFrame, embeddings: Floats) -> pd.DataFrame:
    """Make movie vectors, with gaps, also for movies that came after the fit.

    Parameters
    ----------
    fitted : dict of str to ndarray
        Of `fit_sources`.
    catalogue : DataFrame of shape (movies, columns)
        Cells as text, by movie id; a column that was there in the fit and is not now counts as empty.
    embeddings : ndarray of shape (movies, dimensions)
        Of the overviews; NaN where there is none.

    Returns
    -------
    DataFrame of shape (movies, dimensions)
        By movie id, each dimension under the ``kind/name`` of its source. A missing number or date is NaN, for `fill`;
        without an overview, a movie is at the centre of the embeddings; an empty cell of words has no words.
    """
    wide: dict[str, Any] = {OVERVIEW: embeddings}
    for key in {re.sub("^void/", "number/", key) for key in fitted.keys() - {OVERVIEW, GAPS}}:
        wide |= read(key, catalogue)
    return project(fitted, wide, catalogue.index)


def project(fitted: Arrays, wide: dict[str, Any], movies: "pd.Index[str]") -> pd.DataFrame:
    """Project each source; numbers that are missing, or too far from the centre to be true, are NaN."""
    blocks = {}
    for key, axes in [(key, axes) for key, axes in fitted.items() if key != GAPS]:
        # If none of the movies has an overview, one column of NaN stands for their embeddings.
        buckets = axes[1:, 0].astype(int) if wide[key].shape[1] > 1 else np.zeros(len(axes) - 1, int)
        block = rescale(wide[key][:, buckets], axes[0, 0]) @ axes[1:, 1:] - axes[0, 1:]
        most, gap = (FIXED.farthest, np.nan) if key.startswith("number/") else (np.inf, 0)
        blocks[key] = np.where(np.abs(block) < most, block, gap)
    names = [key for key, block in blocks.items() for _ in block.T]
    # If the catalogue tells no movies apart there is no block at all.
    return pd.DataFrame(np.hstack([np.empty((len(movies), 0)), *blocks.values()]), movies, names)


def fill(known: pd.DataFrame, precision: Floats, weights: Any = 0.0) -> tuple[pd.DataFrame, Floats]:
    """Fill gaps by their conditional means, all movies with the same gaps at once.

    Parameters
    ----------
    known : DataFrame of shape (movies, dimensions)
        Of `movie_vectors`.
    precision : ndarray of shape (dimensions, dimensions)
        Inverse of their covariance.
    weights : ndarray of shape (dimensions,) or float
        Of the dimensions in a sum.

    Returns
    -------
    filled : DataFrame of shape (movies, dimensions)
        Without gaps, for `with_curves`.
    spread : ndarray of shape (movies,)
        How far gaps leave the sum from the truth: its mean absolute deviation, given all that is known.
    """
    missing, filled, variances = np.isnan(known.to_numpy()), np.nan_to_num(known), np.zeros(len(known))
    for rows in known.groupby([bytes(row) for row in missing]).indices.values():
        gaps = missing[rows[0]]
        sides = np.column_stack([-precision[gaps] @ filled[rows].T, np.broadcast_to(weights, gaps.shape)[gaps]])
        *means, moved = np.linalg.solve(precision[np.ix_(gaps, gaps)], sides).T
        filled[np.ix_(rows, gaps)] = means
        variances[rows] = sides[:, -1] @ moved
    return pd.DataFrame(filled, known.index, known.columns), np.sqrt(variances * 2 / np.pi)


def with_curves(vectors: pd.DataFrame) -> pd.DataFrame:
    """Add radial basis functions along the first numbers that are of no wide table; name dimensions after families.

    They are for what is not linear in a number, and a source of their own: Gaussians less their values at the centre
    (Broomhead and Lowe 1988). Flags made of one list, columns that differ only in numbers, and those of a wide table
    have one name. The kind of a number without curves is ``linear``, by which it is kept from the trees.
    """
    numbers = vectors.filter(regex="^number/").columns.to_series()
    tables = numbers.replace(FIXED.table, regex=True)
    in_wide = tables.groupby(tables).transform("size") > FIXED.most_curves
    few = numbers[~in_wide].iloc[: FIXED.most_curves]
    centres, width = np.linspace(*FIXED.bumps, retstep=True)
    bumps = np.exp(-np.square((vectors[few].to_numpy()[..., None] - centres) / width) / 2)
    curves = bumps - np.exp(-np.square(centres / width) / 2)
    rest = tables.where(in_wide, numbers).drop(few).replace("^number/", "linear/", regex=True)
    names = [rest.get(key, key) for key in vectors] + [f"curve/{key}" for key in few for _ in centres]
    families = pd.Series(names).replace(FIXED.families, regex=True)
    return pd.DataFrame(np.hstack([vectors, *curves.swapaxes(0, 1)]), vectors.index, families, np.float32)
