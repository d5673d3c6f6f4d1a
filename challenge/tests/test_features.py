"""Tests of movie vectors from columns of every kind."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy.stats import norm
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LinearRegression

from challenge.features import GAPS, Arrays, as_numbers, fill, fit_sources, movie_vectors, tokens, with_curves
from challenge.settings import FIXED

CATALOGUE = pd.DataFrame(
    {
        "budget": ["10", None, "1000", "1e6"],
        "premiere": ["1999-01-01", "2001-07-01", None, "1408-01-01"],
        "labels": ['[{"id": 1, "name": "Night"}]', '["Night", "Day"]', "['Day']", "[]"],
        "kind": ["film", "film", "series", None],
        "constant": ["same", "same", "same", "same"],
        "nothing": [None, None, None, None],
    },
    index=pd.Index(["a", "b", "c", "d"], name="movieId"),
)
EMBEDDINGS = np.array([[1, 0], [0, 2], [1, 1], [np.nan, np.nan]], np.float32)


def fit(catalogue: pd.DataFrame, embeddings: NDArray[np.float32]) -> tuple[Arrays, tuple[NDArray[Any], NDArray[Any]]]:
    """Return what was fitted, and the vectors, without gaps, and their sources as arrays."""
    features, known = fit_sources(catalogue, embeddings, np.ones(len(catalogue)), seed=0)
    vectors = with_curves(fill(known, features[GAPS])[0])
    assert vectors.index.equals(catalogue.index)
    return features, (vectors.to_numpy(), vectors.columns.to_numpy())


def describe(
    features: Arrays, catalogue: pd.DataFrame, embeddings: NDArray[np.float32]
) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the vectors of later movies, without gaps, and their sources as arrays."""
    vectors = with_curves(fill(movie_vectors(features, catalogue, embeddings), features[GAPS])[0])
    return vectors.to_numpy(), vectors.columns.to_numpy()


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ('[{"id": 1, "name": "Science Fiction"}, {"id": 2, "name": "Night"}]', ["science fiction", "night"]),
        ("['Ocean', 'Sea']", ["ocean", "sea"]),
        ('{"id": 2, "name": "Science Fiction"}', ["science fiction"]),
        ("[{'id': 2, 'name': 'Night Sky'}]", ["night sky"]),
        (r"""['A "B" it\'s', 'C']""", [r"""a "b" it\'s""", "c"]),
        ('["It\'s"]', ["it's"]),
        (r'["Caf\u00e9", "A \"B\"", "C"]', [r"caf\u00e9", r"a \"b\"", "c"]),
        ("[28, 12]", ["28", "12"]),
        ("[28 12.5 7]", ["28", "12", "5", "7"]),
        ("[Science Fiction, It's War , 7]", ["science fiction", "it's war", "7"]),
        ('{War,"Science Fiction"}', ["war", "science fiction"]),
        ("{name: War, id: 7}", ["name", "war", "id", "7"]),
        ("R", ["r"]),
        ("Drama|War", ["drama", "war"]),
        (" Drama | Science Fiction", ["drama", "science fiction"]),
        ("['Night' 'Science Fiction'\n \"It's\"]", ["night", "science fiction", "it's"]),
        ("東京 1953", ["東", "京", "1953"]),
        ("ゴジラ", ["ゴ", "ジ", "ラ"]),
        ("[\"It's\" 'Science Fiction']", ["it's", "science fiction"]),
        ("★★★☆☆ ✓", ["★★★☆☆", "✓"]),
        ("Étoile du Nord!", ["étoile", "du", "nord"]),
        ("[]", []),
        ("", []),
    ],
)
def test_tokens(cell: str, found: list[str]) -> None:
    """A list is split into its items, other text into words."""
    assert tokens(cell) == found


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("[" + 200_000 * r"{\"name\"}", 200_000 * ["name"]),
        ("[" + 200_000 * r"{\'name\'}", 200_000 * ["name"]),
        ("a" + 1_000_000 * " " + "b|c", ["a" + 1_000_000 * " " + "b", "c"]),
        ("[a" + 1_000_000 * " " + "b", ["a", "b"]),
        ("[" + 500_000 * "a," + 500_000 * " a", 500_000 * ["a"]),
    ],
    ids=["escaped quotes", "escaped single quotes", "spaces", "spaces without quotes", "items without quotes"],
)
def test_long_cells(cell: str, found: list[str]) -> None:
    """Parsing time is linear in the length of a cell; quadratic time would never finish here."""
    assert tokens(cell) == found


def test_kinds() -> None:
    """Each column is read according to its kind; one that tells no movies apart is left out."""
    features, (vectors, sources) = fit(CATALOGUE, EMBEDDINGS)
    kinds = {"number/budget", "number/premiere", "words/labels", "flag/*", "vector/overview embedding"}
    assert set(sources) == kinds | {"curve/number/budget", "curve/number/premiere"}
    assert vectors.shape == (4, len(sources)) and np.isfinite(vectors).all()
    assert {vectors.dtype, *(array.dtype for array in features.values())} == {np.dtype(np.float32)}


def test_centred_and_scaled() -> None:
    """A source's vectors are centred, and their mean square norm is 1."""
    _, (vectors, sources) = fit(CATALOGUE, EMBEDDINGS)
    for source, known in (("number/budget", [0, 2, 3]), ("vector/overview embedding", [0, 1, 2])):
        block = vectors[:, sources == source]
        np.testing.assert_allclose(block[known].mean(axis=0), 0, atol=1e-6)
        assert (block[known] ** 2).sum(axis=1).mean() == pytest.approx(1, rel=1e-5)


def test_gaps_are_filled() -> None:
    """A missing number is inferred from all else, also for later movies; one that depends on nothing is the centre."""
    random = np.random.default_rng(0)
    first, noise, genre = random.normal(size=3000), random.normal(size=3000), random.integers(0, 3, 3000)
    second = 0.6 * first + 0.8 * (genre - 1)
    lacking = np.arange(3000) % 3 == 0
    columns = {"first": first, "second": np.where(lacking, np.nan, second), "noise": np.where(lacking, np.nan, noise)}
    catalogue = pd.DataFrame(columns, [f"m{place}" for place in range(3000)]).astype(str).replace("nan", None)
    catalogue = catalogue.assign(genre=np.array(["War", "Drama", "Night"])[genre], overview=None)
    without = np.full((3000, 2), np.nan, np.float32)
    features, (vectors, sources) = fit(catalogue, without)
    number = {name: vectors[:, sources == f"number/{name}"][:, 0] for name in columns}
    assert np.corrcoef(number["second"], second)[0, 1] > 0.98 and np.abs(number["noise"][lacking]).max() < 0.3
    assert np.mean((number["second"][lacking] - number["second"][lacking].mean()) ** 2) > 0.7
    for movies in (catalogue.assign(second=None), catalogue.drop(columns="second").head(30)):
        filled, _ = describe(features, movies, without[: len(movies)])
        told, count = filled[:, sources == "number/second"][:, 0], len(movies)
        np.testing.assert_allclose(told[lacking[:count]], number["second"][:count][lacking[:count]], atol=1e-4)
        assert np.corrcoef(told, second[:count])[0, 1] > 0.95


def test_spread_of_gaps() -> None:
    """The spread of a sum is that of its gaps given all else, as in Gaussian conditioning; without gaps it is 0."""
    first, second = np.random.default_rng(0).normal(size=(2, 100_000))
    second = 0.8 * first + 0.6 * second
    known = pd.DataFrame({"first": [2.0, 2.0, np.nan], "second": [1.0, np.nan, np.nan]})
    filled, spread = fill(known, np.linalg.inv(np.cov(first, second)), np.array([1, 3]))
    np.testing.assert_allclose(filled, [[2.0, 1.0], [2.0, 1.6], [0.0, 0.0]], atol=0.02)
    left = 3 * (second - 0.8 * first), first + 3 * second
    np.testing.assert_allclose(spread, np.append(0, np.abs(left).mean(axis=1)), rtol=0.02)


def test_gaps_of_few_movies() -> None:
    """What a few movies seem to say of a gap is not believed."""
    random = np.random.default_rng(0)
    numbers = pd.DataFrame(random.normal(size=(30, 20))).add_prefix("x").astype(str)
    numbers["x7"] = numbers["x7"].where(np.arange(30) > 9, None)
    _, (vectors, sources) = fit(numbers.assign(overview=None), np.full((30, 2), np.nan, np.float32))
    assert np.abs(vectors[:10, sources == "number/x#"][:, 7]).max() < 0.7


@pytest.mark.parametrize("placeholders", [("0", "0.0", "$0", "0 votes"), ("-1", "-1.0"), ("-999",)])
def test_void_numbers_are_gaps(placeholders: tuple[str, ...]) -> None:
    """A zero or another placeholder is a gap, which where the fit has some shows in a dimension of its own."""
    size, votes = np.random.default_rng(0).normal(size=(2, 300))
    without = np.full((300, 2), np.nan, np.float32)
    amounts = pd.DataFrame({"size": np.exp(size), "votes": np.exp(size + 0.1 * votes), "overview": None}).astype(str)
    features, (_, sources) = fit(amounts, without)
    assert not any(source.startswith("void/") for source in sources)
    gaps, _ = describe(features, amounts.assign(votes=""), without)
    for cell in placeholders:
        np.testing.assert_array_equal(describe(features, amounts.assign(votes=cell), without)[0], gaps)
    none = np.arange(300) % 3 == 0
    _, (vectors, sources) = fit(amounts.assign(votes=amounts["votes"].mask(none, placeholders[0])), without)
    shows = vectors[:, sources == "void/votes"][:, 0]
    assert np.ptp(shows[none]) == np.ptp(shows[~none]) == 0 and abs(shows[0] - shows[1]) > 1
    assert abs(np.corrcoef(vectors[none][:, sources == "number/votes"][:, 0], size[none])[0, 1]) > 0.95


def test_negative_numbers() -> None:
    """Negative numbers are numbers, whatever others there are; none is lost if a column has zeros and -1 as well."""
    without = np.full((90, 2), np.nan, np.float32)
    numbers = pd.DataFrame({"profit": np.linspace(-5, 3, 90), "mood": np.arange(90) % 3 - 1, "overview": None})
    features, (vectors, sources) = fit(numbers.astype(str), without)
    assert abs(np.corrcoef(vectors[:, sources == "number/profit"][:, 0], numbers["profit"])[0, 1]) > 0.95
    alone, _ = describe(features, numbers[:1].astype(str), without[:1])
    np.testing.assert_allclose(alone, vectors[:1], rtol=1e-5, atol=1e-6)
    moods = vectors[:, np.char.endswith(sources.astype(str), "mood")]
    assert "void/profit" not in sources and len(np.unique(moods, axis=0)) == 3


def test_numbers_too_far_away_are_gaps() -> None:
    """A number that no movie of any weight comes near is inferred, however many others have it."""
    size = np.exp(np.random.default_rng(0).normal(size=200))
    catalogue = pd.DataFrame({"size": size, "minutes": 90 + size, "overview": None}).astype(str)
    without, new = np.full((200, 2), np.nan, np.float32), np.arange(200) >= 100
    weights, cells = np.where(new, 1e-16, 1), catalogue["minutes"]
    slips, gaps = (
        fit_sources(catalogue.assign(minutes=cells.mask(new, cell)), without, weights, 0) for cell in ("9999", "")
    )
    minutes = [fill(known, features[GAPS])[0]["number/minutes"] for features, known in (slips, gaps)]
    # The slips change the unit, above which numbers become logarithmic.
    np.testing.assert_allclose(minutes[0], minutes[1], atol=0.05)
    assert minutes[0][new].std() > 0.3
    later = [movie_vectors(slips[0], catalogue.assign(minutes=cell), without) for cell in ("9999", "-500", "")]
    assert later[0].equals(later[2]) and later[1].equals(later[2])


def test_zeros_written_in_several_ways() -> None:
    """A column whose only number is zero is none of numbers."""
    zeros = pd.DataFrame({"votes": ["0", "0.0", "0.00"] * 4, "overview": None})
    _, (_, sources) = fit(zeros, np.full((12, 2), np.nan, np.float32))
    assert not any(source.startswith("number/") for source in sources)


def test_weights() -> None:
    """What only movies of next to no weight differ in makes no dimension; the others are centred and scaled."""
    states = pd.DataFrame({"status": np.repeat(["Released", "Planned", ""], [80, 10, 10]), "overview": None})
    states["weeks"] = np.append(np.repeat(5, 80), np.arange(10, 30)).astype(str)
    states["size"] = np.append(np.arange(80), np.arange(100, 120)).astype(str)
    weights, without = np.repeat([1, 1e-16], [80, 20]), np.full((100, 2), np.nan, np.float32)
    features, known = fit_sources(states, without, weights, seed=0)
    vectors = with_curves(fill(known, features[GAPS])[0])
    assert {*vectors} == {"number/size", "curve/number/size"}
    size = vectors["number/size"][1:80]
    assert abs(size.mean()) < 0.1 and abs(size.std() - 1) < 0.1 and vectors["number/size"][80:].abs().min() > 1.3


def test_curves() -> None:
    """Radial basis functions fit what a straight line cannot: how far a number is from the middle."""
    numbers = np.linspace(-0.9, 0.9, 101)
    catalogue = pd.DataFrame({"x": numbers.astype(str), "overview": None}, dtype=object)
    _, (vectors, sources) = fit(catalogue, np.full((101, 2), np.nan, np.float32))
    target = np.abs(numbers) - np.abs(numbers).mean()
    errors = [
        np.std(target - LinearRegression().fit(some, target).predict(some))
        for some in (vectors[:, sources == "number/x"], vectors[:, sources == "curve/number/x"])
    ]
    assert errors[0] > 0.9 * target.std() and errors[1] < 0.1 * target.std()


@pytest.mark.parametrize("table", ["tag_", "x"])
def test_many_numbers(table: str) -> None:
    """The first 32 columns of numbers have curves, but none of a table of more columns, wherever in the file it is."""
    embeddings = np.full((9, 2), np.nan, np.float32)
    own = [f"{first}{second}" for first in "abcde" for second in "stuvwxyz"]
    wide = [f"{table}{number}" for number in range(33)]
    cells = pd.DataFrame(np.random.default_rng(0).normal(size=(9, 73)).astype(str), columns=[*wide, *own])
    for numbers in (cells, cells[[*own, *wide]], cells[wide]):
        features, (_, sources) = fit(numbers.assign(overview=None), embeddings)
        found = {kind: {*sources[np.char.startswith(sources.astype(str), f"{kind}/")]} for kind in ("curve", "linear")}
        single = [name for name in numbers if name in own]
        assert found["curve"] == {f"curve/number/{name}" for name in single[:32]}
        assert found["linear"] == {f"linear/{name}" for name in single[32:]} | {"linear/" + table.strip("_") + "*"}
        np.testing.assert_array_equal(describe(features, numbers.iloc[:, ::-1], embeddings)[1], sources)
    _, (_, sources) = fit(cells[wide[1:]].assign(overview=None), embeddings)
    assert {*sources} == {f"number/{table}#", f"curve/number/{table}#"}


def test_width_of_bumps() -> None:
    """Each radial basis function is a Gaussian as wide as the distance to the next, less its value at the centre."""
    _, (vectors, sources) = fit(CATALOGUE, EMBEDDINGS)
    number, centres = vectors[:, sources == "number/budget"], np.linspace(-2, 2, 10)
    expected = (norm.pdf(number, centres, 4 / 9) - norm.pdf(0, centres, 4 / 9)) / norm.pdf(0, 0, 4 / 9)
    np.testing.assert_allclose(vectors[:, sources == "curve/number/budget"], expected, atol=1e-6)


def test_later_movies() -> None:
    """Later movies get the vectors that the same movies had in the fit; missing columns count as empty."""
    features, (whole, sources) = fit(CATALOGUE, EMBEDDINGS)
    np.testing.assert_array_equal(describe(features, CATALOGUE, EMBEDDINGS)[0], whole)
    part, _ = describe(features, CATALOGUE.iloc[[2]], EMBEDDINGS[[2]])
    np.testing.assert_allclose(part, whole[[2]], atol=1e-6)
    gone, empty = CATALOGUE.drop(columns="budget"), CATALOGUE.assign(budget=None)
    without, _ = describe(features, gone, EMBEDDINGS)
    np.testing.assert_array_equal(without, describe(features, empty, EMBEDDINGS)[0])
    assert np.abs(without[:, sources == "number/budget"]).max() < 0.2


@pytest.mark.parametrize(
    "form", ["{}", "${}", "{}%", "{:,}", "€{:,}", "{} USD", "{}€", "$ {:,}", "US${:,}", "USD {:,}", "{} %", "{:,} min"]
)
def test_dressed_numbers(form: str) -> None:
    """A number is read without its currency, unit and thousands separators."""
    numbers = [1.0, 250.0, 2500.0, 7250000.0]
    written = pd.Series([form.format(int(number)) for number in numbers])
    np.testing.assert_allclose(as_numbers(written)[:, 0], numbers)


@pytest.mark.parametrize("between", [" ", "\u00a0", "\u202f", "'"])
def test_divided_thousands(between: str) -> None:
    """Spaces and apostrophes are thousands separators, too."""
    assert as_numbers(pd.Series([f"7{between}250{between}000"]))[0, 0] == pytest.approx(7250000)


@pytest.mark.parametrize(
    ("cell", "number"),
    [
        ("(1995)", 1995),
        ("12 Monkeys (Twelve Monkeys) (1995)", 1995),
        ("300 (2006)", 2006),
        ("1999-Q3", 1999),
        ("Q3 1999", 1999),
        ("(12,345)", 12345),
        ("($12,345)", -12345),
        ("-$5,000", -5000),
        ("7.7 (1200)", 7.7),
        ("$5,000,000 (1999)", 5e6),
        ("1,7647", 1.7647),
        ("0,892", 0.892),
        ("6,898", 6898),
        ("1130万", 1.13e7),
        ("7.14亿元", 7.14e8),
        ("1,5 Mrd", 1.5e9),
        ("₹10 crore", 1e8),
        ("22 lakh", 2.2e6),
        ("$3.5 mil", 3.5e6),
        ("1995–1998", 1995),
        ("circa 1995", 1995),
        ("~90", 90),
        ("# 12", 12),
        ("7,7", 7.7),
        ("-7,25 %", -7.25),
        ("1 234,5 EUR", 1234.5),
        ("7.250.000 €", 7_250_000),
        ("12.345.678.901", 12_345_678_901),
        ("€ 1.500,50", 1500.5),
        ("7.7/10", 7.7),
        ("70 / 100", 70),
        ("4.5 out of 5", 4.5),
        ("7.7 (1,200 votes)", 7.7),
        ("$30,000,000 (estimated)", 3e7),
        ("12.3K", 12300),
        ("12 thousand", 12000),
        ("$1.5M", 1.5e6),
        ("1.5m USD", 1.5e6),
        ("5 million dollars", 5e6),
        ("1,2 Mio", 1.2e6),
        ("1,2 Billion", 1.2e9),
        ("81min", 81),
        ("81mins.", 81),
        ("5,000+", 5000),
        ("5★", 5),
        ("120 分钟", 120),
        ("[7.7]", 7.7),
        ('["7.7"]', 7.7),
        ("7.7/10 (IMDb)", 7.7),
    ],
)
def test_numbers_in_other_words(cell: str, number: float) -> None:
    """Years in brackets, remarks, decimal commas, the maximum of a score, multipliers and units are understood."""
    assert as_numbers(pd.Series([cell]))[0, 0] == pytest.approx(number)


@pytest.mark.parametrize("form", ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%SZ", "%m/%d/%Y", "%d.%m.%Y", "%b %d, %Y", "%d-%b-%Y"])
def test_dates(form: str) -> None:
    """Dates become fractional years, however they are written."""
    dates = pd.to_datetime(pd.Series(["1999-01-31", "2001-07-30", "1954-12-31"]))
    np.testing.assert_allclose(as_numbers(dates.dt.strftime(form))[:, 0], [1999.08, 2001.58, 1955], atol=0.01)


def test_years_of_two_digits() -> None:
    """Dates with a two-digit year become whole years; 30 and above are of the twentieth century."""
    dates = ["1/31/99", "30-Jul-01", "31.12.10 13:05", "1/31/65", "30 Jul 30", "Jul-01", "July 30, 99"]
    np.testing.assert_allclose(as_numbers(pd.Series(dates))[:, 0], [1999, 2001, 2010, 1965, 1930, 2001, 1999])


def test_years_among_words() -> None:
    """A date that only people understand becomes its year; two years, or no plausible one, are no date."""
    cells = ["July 30, 2001 (Sweden)", "30 juillet 2001", "2001年7月30日", "2001-W31", '{"$date": "2001-07-30T00:00Z"}']
    np.testing.assert_allclose(as_numbers(pd.Series([*cells, "the 1990s"]))[:, 0], [*5 * [2001], 1990])
    others = pd.Series(["Metropolis 1927 and 1984", "Airport 1575", "bus 18342", "A" * 60 + "1984"])
    assert np.isnan(as_numbers(others)).all()


def test_dates_of_two_time_zones() -> None:
    """A column may mix dates with and without time zones."""
    dates = pd.Series(["1999-01-31T00:00:00Z", "2001-07-30", "2001-07-30T23:00:00+05:00"])
    np.testing.assert_allclose(as_numbers(dates)[:, 0], [1999.08, 2001.58, 2001.58], atol=0.01)


def test_no_dates() -> None:
    """A cell without a year is not a date, though pandas would fill in the present."""
    cells = ["Mon", "May", "now", "today", "12A", "10:30", "10:30:15.12345"]
    assert np.isnan(as_numbers(pd.Series(cells))).all()


def test_no_numbers() -> None:
    """Cells that only resemble numbers, are out of all proportion, or have more than 60 characters are not numbers."""
    cells = [
        "1.7976931348623157e+308",
        "3.4028235E38",
        "5e-324",
        "5 trillion",
        "12abc",
        "1234Q5",
        "28 (Action)",
        "1,2,3",
        "1.2.3",
        "3/4",
        "12th",
        "B12",
        "PG-13",
        "8 Men Out",
        "Se7en",
    ]
    assert np.isnan(as_numbers(pd.Series([*cells, "0" * 60 + "7"]))).all()
    assert as_numbers(pd.Series(["0" * 59 + "7"]))[0, 0] == pytest.approx(7)
    assert as_numbers(pd.Series(["7.5e+29"]))[0, 0] == pytest.approx(7.5e29)


def test_units_do_not_matter() -> None:
    """Numbers in other units give the same vectors, now and for later movies; a wild one leaves the others apart."""
    numbers = np.append(0, np.random.default_rng(0).lognormal(3, 1, 299))
    plain, thousands, wild = (
        pd.DataFrame({"votes": [str(number) for number in column], "overview": None})
        for column in (numbers, numbers * 1000, np.append(1e30, numbers[1:]))
    )
    embeddings = np.full((300, 2), np.nan, np.float32)
    (_, (expected, _)), (features, (vectors, _)) = fit(plain, embeddings), fit(thousands, embeddings)
    np.testing.assert_allclose(vectors, expected, atol=1e-4)
    later, _ = describe(features, thousands[:5], embeddings[:5])
    np.testing.assert_allclose(later, expected[:5], atol=1e-4)
    assert fit(wild, embeddings)[1][0][1:, 0].std() > 0.1


def test_numbers_with_words_for_gaps() -> None:
    """A column of numbers remains one despite a frequent word for gaps; one of a single value tells who has it."""
    catalogue = pd.DataFrame(
        {"votes": [*map(str, range(60)), *["TBA"] * 40], "award": ["1", None] * 50, "overview": None}
    )
    _, (_, sources) = fit(catalogue.astype(object), np.full((100, 2), np.nan, np.float32))
    assert set(sources) == {"number/votes", "curve/number/votes", "flag/*"}


def test_share_of_numbers() -> None:
    """A column is one of numbers if nine tenths of its distinct values, and at least three, are; flags are words."""
    columns = {
        "most": [*"123456789", "x"],
        "fewer": [*"1234", "x"] * 2,
        "three": ["1", "2", "3", "3", "3"] * 2,
        "flags": ["1", "0"] * 5,
        "one": ["1"] * 10,
    }
    _, (_, sources) = fit(
        pd.DataFrame(columns | {"overview": None}, dtype=object), np.full((10, 1), np.nan, np.float32)
    )
    assert {source for source in sources if "curve" not in source} == {
        "number/most",
        "words/fewer",
        "number/three",
        "flag/*",
    }


def test_lists_spread_over_columns() -> None:
    """Columns of words whose names differ in numbers only are read as one list; flags and numbers are not."""
    listed = {"stars": ["Kay Ray", "Ray Lee", "Lee Kay", "Kay Ray Day", "Day"], "overview": None}
    spread = {
        "star_1": ["Kay", "Lee", None, "Day", None],
        "star_22": ["Ray", "Ray", "Lee Kay", "Ray", "Day"],
        "star_3": ["", "", "", "Kay", ""],
        "tag_1": [*"10101"],
        "tag_2": [*"00111"],
        "fee_1": [*"12345"],
        "fee_2": [*"54321"],
        "overview": None,
    }
    embeddings = np.full((5, 2), np.nan, np.float32)
    _, (expected, _) = fit(pd.DataFrame(listed, dtype=object), embeddings)
    features, (vectors, sources) = fit(pd.DataFrame(spread, dtype=object), embeddings)
    assert {*sources} == {"words/star_#", "flag/tag*", "number/fee_#", "curve/number/fee_#"}
    assert {"words/star_#", "flag/tag_1", "flag/tag_2", "number/fee_1", "number/fee_2"} <= features.keys()
    np.testing.assert_allclose(vectors[:, sources == "words/star_#"], expected, atol=1e-6)
    later, sources = describe(features, pd.DataFrame({"star_7": ["Kay Ray"]}, dtype=object), embeddings[:1])
    np.testing.assert_allclose(later[:, sources == "words/star_#"], expected[:1], atol=1e-6)


def test_families() -> None:
    """Flags with the same prefix, those without any, and columns that differ only in numbers, share a name each."""
    flags = {name: [*"1001"] for name in ("genre_war", "genre: Road Movie", "War", "Road Movie", "is.b1")}
    numbers = {name: [*"1234"] for name in ("tag1", "tag22", "vote_count", "vote_average")}
    catalogue = pd.DataFrame(flags | numbers | {"overview": None}, dtype=object)
    _, (_, sources) = fit(catalogue, np.full((4, 2), np.nan, np.float32))
    measured = {"number/tag#", "number/vote_count", "number/vote_average"}
    assert {*sources} == {"flag/genre*", "flag/*", "flag/is*"} | measured | {f"curve/{source}" for source in measured}


def test_rare_words_weigh_more() -> None:
    """Words are weighted by their inverse document frequency; one that only a single movie has is ignored."""
    cells = ["common rare", "common", "common other", "other", "other common", "common"]
    catalogue = pd.DataFrame({"plot": cells, "overview": None}, dtype=object)
    _, (vectors, _) = fit(catalogue, np.full((6, 1), np.nan, np.float32))
    plain = TfidfVectorizer(norm="l2", use_idf=False).fit(cells)
    weighted = plain.transform(cells).toarray() * TfidfVectorizer().fit(cells).idf_
    weighted[:, plain.vocabulary_["rare"]] = 0
    weighted -= weighted.mean(axis=0)
    expected = weighted / np.sqrt(np.square(weighted).sum(axis=1).mean())
    np.testing.assert_allclose(vectors @ vectors.T, expected @ expected.T, atol=1e-5)


def test_what_is_told_of_one_movie_alone() -> None:
    """A column in which no two movies share anything is left out and does not affect the others."""
    paths = CATALOGUE.assign(path=["/aqX.", "/bZ7.", "/cc2.", ""])
    expected, (_, sources) = fit(CATALOGUE, EMBEDDINGS)
    found, (_, same) = fit(paths, EMBEDDINGS)
    assert [*sources] == [*same] and all((expected[key] == array).all() for key, array in found.items())


def test_first_overviews_come_later() -> None:
    """If there were no overviews in the fit, those of a later catalogue are ignored."""
    features, (whole, sources) = fit(CATALOGUE, EMBEDDINGS * np.nan)
    assert "vector/overview embedding" not in sources
    np.testing.assert_array_equal(describe(features, CATALOGUE, EMBEDDINGS)[0], whole)


def test_later_movies_without_overviews() -> None:
    """If no later movie has an overview, the embeddings, whose width is then unknown, are gaps."""
    features, (whole, sources) = fit(CATALOGUE, EMBEDDINGS)
    vectors, _ = describe(features, CATALOGUE, np.full((4, 1), np.nan, np.float32))
    overview = sources == "vector/overview embedding"
    assert not vectors[:, overview].any()
    # The others lack a number, which is inferred from their overview, too.
    np.testing.assert_array_equal(vectors[[0, 3]][:, ~overview], whole[[0, 3]][:, ~overview])


def test_numbers_without_bounds() -> None:
    """An infinite number, or one too large for a float, counts as a gap."""
    features, _ = fit(CATALOGUE, EMBEDDINGS)
    vectors, _ = describe(features, CATALOGUE.assign(budget=["inf", "-inf", "1e999", "5"]), EMBEDDINGS)
    gaps, _ = describe(features, CATALOGUE.assign(budget=["", "", "", "5"]), EMBEDDINGS)
    np.testing.assert_array_equal(vectors, gaps)
    assert np.isfinite(vectors).all()


def test_largest_number_as_a_placeholder() -> None:
    """The largest number of a type stands for a gap, also where dividing it by the usual number would overflow."""
    shares = [*map(str, np.linspace(0.01, 0.2, 20)), "1.7976931348623157e+308"]
    catalogue = pd.DataFrame({"share": shares}, [*map(str, range(21))])
    features, _ = fit(catalogue, np.full((21, 1), np.nan))
    gap, _ = fit(catalogue.replace(shares[-1], ""), np.full((21, 1), np.nan))
    assert features.keys() == gap.keys()
    np.testing.assert_array_equal(features["number/share"], gap["number/share"])


def test_rounding_is_no_difference() -> None:
    """Embeddings that differ only by rounding tell no movies apart and are left out."""
    rounding = np.random.default_rng(0).normal(1, 1e-7, EMBEDDINGS.shape).astype(np.float32)
    _, (_, sources) = fit(CATALOGUE, 1000 * rounding)
    assert "vector/overview embedding" not in sources


def test_no_more_topics_than_that() -> None:
    """However wide the embeddings, they are reduced to `FIXED.topics` dimensions."""
    wide = np.random.default_rng(0).normal(size=(99, 90)).astype(np.float32)
    _, (vectors, _) = fit(pd.DataFrame({"overview": [None] * 99}, dtype=object), wide)
    assert vectors.shape == (99, FIXED.topics)


def test_few_values_make_few_topics() -> None:
    """A column has no more dimensions than distinct values, which stay distinct: more would be rounding."""
    values = ["red car", "blue car", "green bike", "car bike"] * 20
    catalogue = pd.DataFrame({"thing": values, "overview": None}, dtype=object)
    _, (vectors, sources) = fit(catalogue, np.full((80, 2), np.nan, np.float32))
    assert set(sources) == {"words/thing"} and len(sources) <= 4
    assert len(np.unique(vectors.round(4), axis=0)) == 4
