"""Tests of reading CSV files, and of refusing bad ones."""

from contextlib import suppress
from io import BytesIO
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from challenge.tables import CatalogueMissingError, TableError, read_catalogue, read_pairs

# What is wrong, whether ratings are required, the file, and parts of the message.
BAD: list[tuple[str, bool, bytes, list[str]]] = [
    ("no rating", True, b"userId,movieId\n1,2\n", ["line 1", "'rating'"]),
    ("no movie", True, b"userId,rating\n1,2\n", ["line 1", "'movieId'"]),
    ("no user", False, b"movieId,rating\n1,2\n", ["line 1", "'userId'"]),
    ("no header", False, b"1,2\n3,4\n", ["line 1", "'userId'"]),
    ("semicolons", False, b"userId;movieId\n1;2\n", ["line 1", "'userId'"]),
    ("two spellings", False, b"userId,movieId,movieID\n1,2,3\n", ["line 1", "'movieId'"]),
    ("a word", True, b"userId,movieId,rating\n1,2,3\n1,3,good\n", ["line 3", "'rating'", "not a number"]),
    ("not a number", True, b"userId,movieId,rating\n1,2,nan\n", ["line 2", "'rating'", "not a number"]),
    ("a truth", True, b"userId,movieId,rating\n1,2,True\n", ["line 2", "'rating'", "not a number"]),
    ("blanks", True, b'userId,movieId,rating\n1,2,"  "\n', ["line 2", "'rating'"]),
    ("no number", True, b"userId,movieId,rating\n1,2,3\n1,3,\n", ["line 3", "'rating'", "empty"]),
    ("a short row", True, b"userId,movieId,rating\n1,2,3\n1,3\n", ["line 3", "'rating'", "empty"]),
    ("an empty user", False, b"userId,movieId\n1,2\n,2\n", ["line 3", "'userId'", "empty"]),
    ("an empty movie", False, b"userId,movieId\r\n1,2\r\n2,\r\n", ["line 3", "'movieId'", "empty"]),
    ("a blank movie", False, b'userId,movieId\n1,2\n1," \t"\n', ["line 3", "'movieId'", "empty"]),
    ("too low", True, b"userId,movieId,rating\n1,2,1\n1,3,0.99\n", ["line 3", "'rating'", "between 1 and 5"]),
    ("too high", True, b"rating,userId,movieId\n5,1,2\n5.001,1,3\n", ["line 3", "'rating'", "between 1 and 5"]),
    ("infinite", True, b"userId,movieId,rating\n1,2,inf\n", ["line 2", "'rating'", "between 1 and 5"]),
    ("after blank lines", True, b"userId,movieId,rating\n\n1,2,3\n\n1,3,9\n", ["line 5", "'rating'"]),
    ("the first of many", True, b"userId,movieId,rating\n1,2,3\n1,3,7\n1,4,8\n", ["line 3", "'rating'"]),
    ("empty", True, b"", ["CSV"]),
    ("only blank lines", False, b"\n\n", ["CSV"]),
    ("only a header", True, b"userId,movieId,rating\n", ["no rows"]),
    ("a picture", False, b"\x89PNG\r\n\x1a\n\x00\x00", ["CSV"]),
    ("another encoding", False, "userId,movieId\nJosé,2\n".encode("latin-1"), ["CSV in UTF-8"]),
    ("an open quote", False, b'userId,movieId\n1,2\n"1,2\n', ["CSV", "after line 2"]),
    ("JSON", False, b'{"userId": 1, "movieId": 2}', ["line 1", "'userId'"]),
    ("what is there instead", False, b"user,movie\n1,2\n", ["'userId'", "['user', 'movie']"]),
    (
        "a lone quote",
        False,
        b'userId,movieId\n1,2\n"1,2\n' + b"1,2\n" * 300 + b'1",2\n',
        ["line 3", "'userId'", "255"],
    ),
    ("fields of fixed width", False, b"userId,movieId\n1\0\0,2\n", ["line 2", "'userId'", "NUL"]),
    ("a decimal comma", True, b"userId,rating,movieId\n1,4,5,10\n", ["CSV", "line 2"]),
    ("a later one", True, b"userId,rating,movieId\n1,4,10\n1,4,5,10\n", ["CSV", "line 3"]),
]
HEADERS = [
    "userId,movieId,rating",
    "userId,movieId",
    "\ufeffmovieID;rating",
    '"userId","movieId"',
    "USERID,rating,rating",
    "",
]
CELL = st.one_of(
    st.text(max_size=9), st.sampled_from(["1", "5", "nan", "1e400", '"', '""""', "\x00", "\r", "a,b", "３"])
)
LINES = st.lists(st.lists(CELL, max_size=4).map(",".join), max_size=5)
BREAKS = st.sampled_from(["\n", "\r\n", "\r"])
TEXTS = st.builds(lambda header, lines, end: end.join([header, *lines]), st.sampled_from(HEADERS), LINES, BREAKS)
FILES = st.one_of(
    st.binary(max_size=200),
    TEXTS.map(lambda text: text.encode("utf-8", "replace")),
    TEXTS.map(lambda text: text.encode("utf-16", "replace")),
)
BAD_IDS = [case[0] for case in BAD]
GOOD = {
    "plain": b"userId,movieId\n7,007\nab c,tt1\n",
    "byte order mark": b"\xef\xbb\xbfuserId,movieId\n7,007\nab c,tt1\n",
    "carriage returns": b"userId,movieId\r\n7,007\r\nab c,tt1\r\n",
    "no last newline": b"userId,movieId\n7,007\nab c,tt1",
    "quoted": b'\xef\xbb\xbf"userId","movieId"\r\n"7","007"\r\n"ab c","tt1"\r\n',
    "other order": b"movieId,userId\n007,7\ntt1,ab c\n",
    "other spelling": b"userId,movieID\n7,007\nab c,tt1\n",
    "capitals": b"USERID,MovieId\n7,007\nab c,tt1\n",
    "spaces": b' userId , movieId \n7, "007"\nab c,tt1\n',
    "more columns": b'note,userId,rating,movieId\n"x, y",7,bad,007\n,ab c,,tt1\n',
    "blank lines": b"userId,movieId\n\n7,007\n\n\nab c,tt1\n\n",
}


def read(table: bytes, rated: bool) -> dict[str, list[object]]:
    """Read pairs and return their columns as lists."""
    pairs = read_pairs(BytesIO(table), rated=rated)
    assert list(pairs.index) == list(range(len(pairs)))
    return {str(name): column.tolist() for name, column in pairs.items()}


@pytest.mark.parametrize("form", GOOD)
def test_forms(form: str) -> None:
    """All common forms of CSV are read alike, and ids keep leading zeros."""
    pairs = read(GOOD[form], rated=False)
    assert (pairs["userId"], pairs["movieId"]) == (["7", "ab c"], ["007", "tt1"])


def test_ids_are_text() -> None:
    """Ids that look like numbers or like gaps are kept as they are written."""
    ids = ["007", "7", "7.5", "1e3", "1.0.0", "v1.0", "NA", "null", "nan", "José"]
    ids += ["12345678901234567890", "a,b", 'say "so"']
    table = pd.DataFrame({"userId": ids, "movieId": ids}).to_csv(index=False).encode()
    assert read(table, rated=False) == {"userId": ids, "movieId": ids}


def test_ids_of_other_programs(tmp_path: Path) -> None:
    """An id is the same with spaces around it, or with the .0 that programs write in columns with gaps."""
    table = b"userId,movieId\n7.0,007\n 7 ,007 \n7,007\n"
    assert read(table, rated=False) == {"userId": ["7"] * 3, "movieId": ["007"] * 3}
    path = tmp_path / "movies.csv"
    path.write_bytes(b"movieId,year\n7.0,1\n 8 ,2\n7,3\n")
    assert read_catalogue(path)["year"].to_dict() == {"8": "2", "7": "3"}


def test_last_duplicate_counts() -> None:
    """Of repeated ratings of a pair, the last one is kept; of repeated pairs to predict, all are."""
    table = b"userId,movieId,rating\n1,2,3\n01,2,1\n1,3,5\n1,2,4.5\n"
    pairs = read(table, rated=True)
    rows = set(zip(pairs["userId"], pairs["movieId"], pairs["rating"], strict=True))
    assert rows == {("01", "2", 1.0), ("1", "3", 5.0), ("1", "2", 4.5)}
    assert len(pairs["userId"]) == 3
    assert read(table, rated=False)["movieId"] == ["2", "2", "3", "2"]


def test_ratings_are_floats() -> None:
    """Ratings are floats, even whole ones, and their column is found in any capitalisation."""
    pairs = read_pairs(BytesIO(b"userId,RATING,movieId\n1,4,2\n"), rated=True)
    assert pairs["rating"].tolist() == [4.0] and pairs["rating"].dtype == float


@pytest.mark.parametrize(("what", "rated", "table", "parts"), BAD, ids=BAD_IDS)
def test_bad_tables(what: str, rated: bool, table: bytes, parts: list[str]) -> None:
    """A bad table is refused, and the message names the line and column at fault, if any."""
    with pytest.raises(TableError) as caught:
        read_pairs(BytesIO(table), rated=rated)
    assert [part for part in parts if part not in str(caught.value)] == [], (what, str(caught.value))
    assert str(caught.value) == str(caught.value).strip()


@settings(max_examples=300, deadline=None, derandomize=True, database=None)
@given(table=FILES, rated=st.booleans())
def test_whatever_comes(table: bytes, rated: bool) -> None:
    """Any bytes are read as a table with rows, pairs without gaps, or refused with a `TableError`."""
    with suppress(TableError):
        pairs = read_pairs(BytesIO(table), rated=rated)
        assert len(pairs) and pairs.notna().all(axis=None)
    with suppress(TableError):
        assert len(read_catalogue(BytesIO(table)))


def test_catalogue(tmp_path: Path) -> None:
    """The catalogue is indexed by movie id, a movie's last row counts, and there is always a column of overviews."""
    path = tmp_path / "movies.csv"
    path.write_bytes(b'\xef\xbb\xbftitle,movieID,year\r\nOld,007,1\r\n"New, better",007,\r\nB,7,2\r\n')
    catalogue = read_catalogue(path)
    assert catalogue.index.tolist() == ["007", "7"]
    assert catalogue["title"].tolist() == ["New, better", "B"]
    assert catalogue["year"].isna().tolist() == [True, False]
    assert catalogue["overview"].isna().all()


GAPS = ["NA", "N/A", "n/a", "NaN", "nan", "None", "none", "NULL", "null", "\\N", "-", "?", "Unknown", "unknown"]


@pytest.mark.parametrize("gap", GAPS)
def test_gaps(tmp_path: Path, gap: str) -> None:
    """What programs write for missing values is read as a gap, except in ids."""
    path = tmp_path / "movies.csv"
    path.write_text(f"movieId,votes,Overview\n{gap},{gap},Somebody.\n7,1,{gap}\n", encoding="utf-8")
    catalogue = read_catalogue(path)
    assert catalogue.index.tolist() == [gap, "7"]
    assert catalogue["votes"].isna().tolist() == [True, False]
    assert catalogue["overview"].isna().tolist() == [False, True]


def test_two_overviews(tmp_path: Path) -> None:
    """A catalogue with two columns of the same name is refused, and the error names them."""
    path = tmp_path / "movies.csv"
    path.write_text("movieId,Overview,overview\n7,One.,Another.\n", encoding="utf-8")
    with pytest.raises(TableError, match="two columns are called 'overview'"):
        read_catalogue(path)


def test_columns_without_a_name(tmp_path: Path) -> None:
    """Unnamed columns, such as an index or what trailing commas add, are ignored, and messages are bounded."""
    path = tmp_path / "movies.csv"
    path.write_text(",movieId,title,,\n0,7,A,,\n1,8,B,,\n", encoding="utf-8")
    assert read_catalogue(path).columns.tolist() == ["title", "overview"]
    assert read(b",userId,movieId,note,note\n0,1,2,x,y\n", rated=False) == {"userId": ["1"], "movieId": ["2"]}
    with pytest.raises(TableError) as caught:
        read_pairs(BytesIO(b"x" * 100_000 + b"\n1\n"), rated=False)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    "text",
    [
        "",
        "title\nA\n",
        "movieId,title\n",
        "movieId,title\n1,A\n,B\n",
        "movieId,title\n1,A, B\n",
        "movieId,title,title\n1,A,B\n",
        "movieId,title,title\0s\n1,A,B\n",
        f"movieId,{'a' * 200}b,{'a' * 200}c\n1,A,B\n",
    ],
)
def test_bad_catalogue(tmp_path: Path, text: str) -> None:
    """A catalogue lacks movies or ids, or has an empty id, too long a line or two columns of one name: refused."""
    path = tmp_path / "movies.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(TableError, match="^the catalogue: "):
        read_catalogue(path)


def test_quote_left_open(tmp_path: Path) -> None:
    """A cell that has swallowed the lines after it is refused by its line and column."""
    path = tmp_path / "movies.csv"
    path.write_text('movieId,genres,overview\n1,a,A.\n2,b,"' + "B,C.\n" * 200_001 + '"\n', encoding="utf-8")
    with pytest.raises(TableError, match="^the catalogue: line 3, column 'overview': .*quote"):
        read_catalogue(path)
    path.write_text('movieId,genres,overview\n1,a,A.\n2,b,"' + "B,C.\n" * 200_000 + '"\n', encoding="utf-8")
    assert read_catalogue(path)["overview"].str.len().max() == 1_000_000


@pytest.mark.parametrize(("name", "reason"), [("", "Is a directory"), ("movies.csv", "No such file")])
def test_missing_catalogue(tmp_path: Path, name: str, reason: str) -> None:
    """If the catalogue cannot be opened, the error names its path, the setting and the reason."""
    with pytest.raises(CatalogueMissingError, match=rf"{tmp_path / name} \(CHALLENGE_CATALOGUE\): {reason}"):
        read_catalogue(tmp_path / name)
