"""CSV files in, checked tables out."""

from pathlib import Path
from typing import IO

import pandas as pd

from challenge.settings import FIXED, ChallengeError


class TableError(ChallengeError):
    """A table that cannot be used; the message names the line and the column."""


class CatalogueMissingError(ChallengeError):
    """There is no catalogue that can be read where the settings say it is."""


def read_csv(source: IO[bytes] | Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a CSV and check that columns are there once each, under their usual spelling.

    Parameters
    ----------
    source : file or path
        UTF-8 text, with or without a byte order mark.
    columns : tuple of str
        Columns that must be there.

    Returns
    -------
    DataFrame
        Columns that must be there as categories, without spaces around their cells, other columns as text; one row a
        line, the index is the line's distance from the header.

    Raises
    ------
    TableError
        If the file is no CSV or is empty, if a line has more than the header, if a column is not there once, or if a
        cell of it is nothing that an id may be.
    """
    try:
        table: pd.DataFrame = pd.read_csv(source, **FIXED.csv)
    except ValueError as error:
        raise TableError(f"the file cannot be read as CSV in UTF-8: {str(error).strip()}") from error
    # What has no name is an index that some program wrote.
    names = table.iloc[0].dropna().str.strip().replace(FIXED.names, regex=True)
    table = table[names.index].set_axis([*names], axis=1)[1:].dropna(how="all")
    for column in columns:
        if (found := (names == column).sum()) != 1:
            raise TableError(f"line 1: column '{column}' is there {found} times, not once, among {[*names]}"[:300])
        # Programs write .0 behind ids where a column has gaps.
        places, texts = pd.factorize(table[column].fillna(""))
        table[column] = pd.Categorical(texts.str.strip().str.replace(r"^(\d+)\.0$", r"\1", regex=True)).take(places)
        # A lone quote makes one id of many lines; a model holds all as wide as the longest, and drops a NUL at the end.
        reject(~table[column].str.fullmatch(FIXED.id), "is empty, has a NUL or more than 1000 characters")
    if table.empty:
        raise TableError("the file has no rows")
    return table


def reject(wrong: "pd.Series[bool]", what: str) -> None:
    """Raise a `TableError` that names a column's first wrong line, if there is one."""
    if wrong.any():
        # The index counts lines from 0, the header's; a reader counts from 1.
        raise TableError(f"line {wrong.index[wrong][0] + 1}, column '{wrong.name}': the cell {what}")


def read_pairs(source: IO[bytes] | Path, *, rated: bool) -> pd.DataFrame:
    """Read users and movies, and the ratings where the table has them.

    Parameters
    ----------
    source : file or path
        CSV with the columns ``userId`` and ``movieId`` (or ``movieID``), in any order; others are ignored.
    rated : bool
        Whether there is a column ``rating`` from 1 to 5.

    Returns
    -------
    DataFrame
        ``userId`` and ``movieId`` as categories of text, ``rating`` as float; rows in the file's order. Of rated
        pairs that come twice the last one stays.

    Raises
    ------
    TableError
        If the table cannot be used; the message names the line and the column.
    """
    columns = ("userId", "movieId", "rating") if rated else ("userId", "movieId")
    table = read_csv(source, columns)[[*columns]]
    if rated:
        ratings = pd.to_numeric(table["rating"], errors="coerce").astype(float)
        # What is no number is not between them either.
        reject(~ratings.between(*FIXED.stars), "is not a number between 1 and 5")
        table = table.assign(rating=ratings).drop_duplicates(["userId", "movieId"], keep="last")
    return table.reset_index(drop=True)


def read_catalogue(source: IO[bytes] | Path) -> pd.DataFrame:
    """Read the movies, every column as text; cells that say that nothing is known are gaps.

    Parameters
    ----------
    source : file or path
        CSV with the column ``movieId`` (or ``movieID``) and any others.

    Returns
    -------
    DataFrame
        One row a movie, indexed by ``movieId``; the column ``overview`` is always there.

    Raises
    ------
    CatalogueMissingError
        If there is no such file, or none that may be read.
    TableError
        If it cannot be used.
    """
    try:
        catalogue = read_csv(source, ("movieId",))
    except OSError as error:
        raise CatalogueMissingError(f"the catalogue {source} (CHALLENGE_CATALOGUE): {error.strerror}") from error
    except TableError as error:
        raise TableError(f"the catalogue: {error}") from error
    if len(doubled := catalogue.columns[catalogue.columns.duplicated()]):
        raise TableError(f"the catalogue: line 1: two columns are '{doubled[0]}'")
    catalogue = catalogue.assign(overview=catalogue.get("overview")).drop_duplicates("movieId", keep="last")
    return catalogue.astype({"movieId": str}).set_index("movieId").mask(lambda cells: cells.isin(FIXED.gaps))
