"""Tests of the synthetic data and of the demo made from it."""

import filecmp
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from challenge.tests import synthetic

DEMO_FOLDER = Path(synthetic.__file__).parent.parent / "demo"
FILES = ["df_train.csv", "df_test.csv", "df_movies.csv", "df_test_ratings.csv"]


@pytest.fixture(scope="module")
def demo() -> synthetic.Synthetic:
    """Make the demo data."""
    return synthetic.make(**synthetic.DEMO)


def test_same_seed_same_files(demo: synthetic.Synthetic, tmp_path: Path) -> None:
    """The demo is small and byte for byte what the generator makes; another seed makes other data."""
    synthetic.write(demo, tmp_path)
    assert filecmp.cmpfiles(tmp_path, DEMO_FOLDER, FILES, shallow=False) == (FILES, [], [])
    assert sum((DEMO_FOLDER / name).stat().st_size for name in FILES) < 3_000_000
    other = synthetic.make(**(synthetic.DEMO | {"seed": 8}))
    assert not other.movies["overview"].equals(demo.movies["overview"])
    assert not other.train.equals(demo.train)


def test_split_is_cold(demo: synthetic.Synthetic) -> None:
    """The test movies, a fifth of all, are unrated in train; test users are all known there."""
    test_movies = set(demo.test["movieId"])
    assert not test_movies & set(demo.train["movieId"])
    assert test_movies | set(demo.train["movieId"]) <= set(demo.movies["movieId"])
    assert len(test_movies) == 80
    assert set(demo.test["userId"]) <= set(demo.train["userId"])
    assert len(demo.test) == len(demo.truth) == len(demo.expected)
    assert len(demo.train) + len(demo.test) == 20_000
    pairs = pd.concat([demo.train[["userId", "movieId"]], demo.test])
    assert not pairs.duplicated().any()
    activity = pairs["userId"].value_counts()
    assert activity.min() >= synthetic.LEAST_RATINGS
    assert activity.max() > 3 * activity.median()


def test_ratings_are_half_stars(demo: synthetic.Synthetic) -> None:
    """Ratings are half stars, and every step of the scale occurs."""
    for ratings in (demo.train["rating"], demo.truth["rating"]):
        assert sorted(ratings.unique()) == synthetic.RUNGS.tolist()


def test_catalogue_has_every_kind_of_column() -> None:
    """The catalogue's CSV has numbers, dates, lists, categories and texts, with gaps in each column."""
    movies = pd.read_csv(DEMO_FOLDER / "df_movies.csv")
    assert movies["movieId"].is_unique
    assert movies.drop(columns="movieId").isna().any().all()
    numbers = ["runtime", "budget", "popularity", "vote_average", "vote_count"]
    assert all(pd.api.types.is_float_dtype(movies[column]) for column in numbers)
    assert 0.1 < (movies["budget"] == 0).mean() < 0.5
    pd.to_datetime(movies["release_date"].dropna(), format="%Y-%m-%d")
    for column in ("genres", "keywords", "production_companies"):
        items = [item for cell in movies[column].dropna() for item in json.loads(cell)]
        assert {frozenset(item) for item in items} == {frozenset({"id", "name"})}
    assert movies["status"].nunique() == len(synthetic.STATUSES)
    assert movies["original_language"].nunique() == len(synthetic.LANGUAGES)
    assert not movies["title"].dropna().map(str.isascii).all()
    assert movies["tagline"].isna().mean() > 0.1


def test_overviews_name_what_they_are_about(demo: synthetic.Synthetic) -> None:
    """Overviews are unique, of ordinary length, and nearly all name a keyword of the movie."""
    full = demo.movies.dropna(subset=["overview", "keywords"])
    full = full[full["keywords"] != "[]"]
    lengths = [len(overview.split()) for overview in full["overview"]]
    assert 25 <= min(lengths) <= max(lengths) <= 80
    assert full["overview"].is_unique
    named = [
        any(item["name"] in overview.lower() for item in json.loads(cell))
        for overview, cell in zip(full["overview"], full["keywords"], strict=True)
    ]
    assert np.mean(named) > 0.95


def test_noise_floor_is_the_best_error(demo: synthetic.Synthetic) -> None:
    """The noise floor is the error of the best prediction, well below that of the user mean."""
    figures = synthetic.summary(demo)
    assert 0.45 < figures["noise floor MSE"] < 0.55
    assert figures["noise floor MSE"] + 0.2 < figures["user mean MSE"] < figures["global mean MSE"]
    reached = np.mean((demo.truth["rating"].to_numpy() - demo.expected) ** 2)
    assert reached == pytest.approx(demo.noise_floor, rel=0.06)


def test_moments_match_drawn_ratings() -> None:
    """Mean and variance after rounding and clipping agree with a large sample, also at the ends of the scale."""
    means = np.array([0.5, 2.1, 3.25, 4.9, 6.0])
    spreads = np.array([0.4, 0.1, 0.8, 0.9, 0.3])
    expected, variance = synthetic.rounded_moments(means, spreads)
    draws = means + spreads * np.random.default_rng(0).normal(size=(200_000, 5))
    ratings = np.clip(np.floor(2.0 * draws + 0.5) / 2.0, 1.0, 5.0)
    np.testing.assert_allclose(expected, ratings.mean(axis=0), atol=0.01)
    np.testing.assert_allclose(variance, ratings.var(axis=0), atol=0.01)


def test_larger_set() -> None:
    """With ten times the ratings the structure is the same; with little noise the floor is nearly 0."""
    data = synthetic.make(users=2_000, movies=1_000, ratings=200_000, seed=1)
    assert len(data.train) + len(data.test) == 200_000
    assert not set(data.test["movieId"]) & set(data.train["movieId"])
    assert 0.0 < data.noise_floor < synthetic.summary(data)["user mean MSE"]
    quiet = synthetic.make(users=200, movies=100, ratings=5_000, seed=1, noise=0.01)
    assert quiet.noise_floor < 0.05


@pytest.mark.parametrize("ratings", [10, 50_000])
def test_impossible_sizes(ratings: int) -> None:
    """Fewer ratings than users, or more than the movies allow, are refused."""
    with pytest.raises(ValueError, match="users can rate"):
        synthetic.make(users=50, movies=100, ratings=ratings, seed=0)


def test_smallest_sets() -> None:
    """Tiny data still has a cold-start split, with every test user known."""
    data = synthetic.make(users=20, movies=10, ratings=60, seed=3)
    assert set(data.test["userId"]) <= set(data.train["userId"])
    assert not set(data.test["movieId"]) & set(data.train["movieId"])


def test_labelled_sets() -> None:
    """Overviews name the keywords, runtimes count the genres, and the seed determines the catalogue."""
    movies = synthetic.make_labelled(movies=50, seed=1)
    assert movies.equals(synthetic.make_labelled(50, 1)) and not movies.equals(synthetic.make_labelled(50, 2))
    assert movies.index.is_unique
    for movie in movies.itertuples():
        assert all(item["name"] in str(movie.overview) for item in json.loads(str(movie.keywords)))
        assert float(str(movie.runtime)) == 90 + 20 * len(json.loads(str(movie.genres)))


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The command writes the files and prints the noise floor."""
    sizes = ["--users", "40", "--movies", "30", "--ratings", "700"]
    monkeypatch.setattr("sys.argv", ["synthetic", str(tmp_path / "new" / "folder"), *sizes])
    synthetic.main()
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == sorted(FILES)
    assert "noise floor MSE" in capsys.readouterr().out
