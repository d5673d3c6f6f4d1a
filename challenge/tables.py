"""CSV files in, checked tables out."""

from pathlib import Path
from typing import IO

import pandas as pd

from challenge.settings import FIXED, ChallengeError


class TableError(ChallengeError):
    """A table that cannot be used; the message names the line and the column."""


class CatalogueMissingError(ChallengeError):
    """There is no readable catalogue where the settings say it is."""


def read_csv(source: IO[bytes] | Path, columns: list[str]) -> pd.DataFrame:
    """Read a CSV as text and check its required columns.

    Parameters
    ----------
    source : file or path
        UTF-8 text, with or without a byte order mark.
    columns : list of str
        Required columns.

    Returns
    -------
    DataFrame
        Required columns as categories, stripped of surrounding spaces, under the spelling asked for; other columns as
        text. The index is each row's line number, the header's being 0.

    Raises
    ------
    TableError
        If the file is empty or not a CSV, if a line has more cells than the header, if a required column is missing or
        repeated, or if one of its cells cannot be an id.
    """
    try:
        table: pd.DataFrame = pd.read_csv(source, **FIXED.csv)
    except ValueError as error:
        # pandas counts the row of a quote left open from 0.
        raise TableError(f"this is no CSV in UTF-8: {str(error).strip().replace('at row', 'after line')}") from error
    # A column without a name is an index that some program wrote.
    names = table.iloc[0].dropna().str.strip().replace(FIXED.names, regex=True)
    table = table[names.index].set_axis([*names], axis=1)[1:].dropna(how="all")
    for column in columns:
        if (found := (names == column).sum()) != 1:
            raise TableError(f"line 1: expected one column '{column}', found {found} in {[*names]}"[:300])
        places, texts = pd.factorize(table[column].fillna(""))
        table[column] = pd.Categorical(texts.str.replace(FIXED.id_form, r"\1\2", regex=True)).take(places)
        # A stray quote swallows many lines into one id, and numpy pads all ids to the longest and drops a trailing NUL.
        reject(~table[column].str.fullmatch(FIXED.id), "is empty, has a NUL or more than 255 characters")
    if table.empty:
        raise TableError("the file has no rows")
    return table


def reject(wrong: "pd.Series[bool]", what: str) -> None:
    """Raise a `TableError` that names the first wrong line of a column, if there is one."""
    if wrong.any():
        # People count lines from 1.
        raise TableError(f"line {wrong.index[wrong][0] + 1}, column '{wrong.name}': the cell {what}")


def read_pairs(source: IO[bytes] | Path, *, rated: bool) -> pd.DataFrame:
    """Read pairs of users and movies, with or without ratings.

    Parameters
    ----------
    source : file or path
        CSV with the columns ``userId`` and ``movieId`` (or ``movieID``) in any order; others are ignored.
    rated : bool
        Whether a column ``rating``, from 1 to 5, is required.

    Returns
    -------
    DataFrame
        ``userId`` and ``movieId`` as categories of text, ``rating`` as float; rows in the file's order. Of repeated
        ratings of a pair, the last one is kept.

    Raises
    ------
    TableError
        If the table cannot be used; the message names the line and the column.
    """
    columns = [*FIXED.pair, "rating"] if rated else [*FIXED.pair]
    table = read_csv(source, columns)[columns]
    if rated:
        ratings = pd.to_numeric(table["rating"], errors="coerce").astype(float)
        # NaN is not in this range either.
        reject(~ratings.between(*FIXED.stars), "is not a number between 1 and 5")
        table = table.assign(rating=ratings).drop_duplicates([*FIXED.pair], keep="last")
    return table.reset_index(drop=True)


def read_catalogue(source: IO[bytes] | Path) -> pd.DataFrame:
    """Read the movies, every column as text; cells like ``N/A`` become gaps.

    Parameters
    ----------
    source : file or path
        CSV with a column ``movieId`` (or ``movieID``) and any others.

    Returns
    -------
    DataFrame
        One row per movie, indexed by ``movieId``; the column ``overview`` is always there.

    Raises
    ------
    CatalogueMissingError
        If the file is missing or cannot be opened.
    TableError
        If it cannot be used; the message names the line and the column.
    """
    try:
        catalogue = read_csv(source, ["movieId"])
        for _, column in catalogue.items():
            reject(column.str.len() > FIXED.longest_cell, "has more than 1000000 characters; is a quote left open?")
    except OSError as error:
        raise CatalogueMissingError(f"the catalogue {source} (CHALLENGE_CATALOGUE): {error.strerror}") from error
    except TableError as error:
        raise TableError(f"the catalogue: {error}") from error
    if len(doubled := catalogue.columns[catalogue.columns.duplicated()]):
        raise TableError(f"the catalogue: line 1: two columns are called '{doubled[0]}'")
    catalogue = catalogue.assign(overview=catalogue.get("overview")).drop_duplicates("movieId", keep="last")
    return catalogue.astype({"movieId": str}).set_index("movieId").mask(lambda cells: cells.isin(FIXED.missing))
