"""Fitting the rating model on small synthetic data."""

import numpy as np
import pandas as pd
import pytest

from challenge.fitting import boost, fit_model
from challenge.tables import TableError
from challenge.tests.test_model import CATALOGUE, EMBEDDINGS, PAIRS, RATINGS


def test_too_few_movies() -> None:
    """Ratings of movies that the catalogue lacks cannot be learned from."""
    first = CATALOGUE.index.isin([RATINGS["movieId"].iloc[0]])
    with pytest.raises(TableError, match="holds 1 of the rated movies"):
        fit_model(RATINGS, CATALOGUE[first], EMBEDDINGS[first], 0, print)


def test_catalogue_without_columns() -> None:
    """Where nothing is known of the movies the users' levels are left."""
    bare = CATALOGUE[[]].assign(overview=None)
    model = fit_model(RATINGS, bare, EMBEDDINGS * np.nan, 0, print)
    errors = model.report["cross-validated mse"]
    assert errors["model"] == pytest.approx(errors["user mean"], rel=0.05)


@pytest.mark.parametrize(
    "ratings",
    [
        RATINGS.assign(rating=3.0),
        RATINGS[RATINGS["userId"] == "1"],
        RATINGS.drop_duplicates("userId"),
        RATINGS.drop_duplicates("movieId").head(10),
        RATINGS.assign(rating=np.where(RATINGS["userId"] == "1", 5.0, 1.0)),
    ],
    ids=["all alike", "one user", "one rating a user", "ten ratings", "users of one mind"],
)
def test_odd_ratings(ratings: pd.DataFrame) -> None:
    """Ratings that tell little, or all, make a model that predicts on the scale, surely and unsurely."""
    model = fit_model(ratings, CATALOGUE, EMBEDDINGS, 0, print)
    told = model.explain(PAIRS)
    assert 1 <= told["low"].min() <= told["rating"].min() and told["rating"].max() <= told["high"].max() <= 5
    assert not told.isna().any(axis=None)


def test_boost_stays_out_of_fold() -> None:
    """Trees cannot predict pure noise of folds that they have not seen."""
    random = np.random.default_rng(1)
    features, target = random.normal(size=(600, 3)), random.normal(size=600)
    _, held_out = boost(features, target, np.arange(600) % 5, 0)
    assert np.mean((target - held_out) ** 2) > 0.95 * target.var()


def test_users_picks_count() -> None:
    """Where a catalogue tells nothing, who has rated better movies than others gets higher ratings."""
    random = np.random.default_rng(0)
    quality, choosy = np.repeat([2.5, 4.0], 50), np.repeat([0.1, 0.9], 60)
    picks = random.random((120, 100)) < 0.4 * np.where(quality > 3, choosy[:, None], 1 - choosy[:, None])
    user, movie = picks.nonzero()
    ratings = np.clip(np.round(quality[movie] + random.normal(0, 0.7, len(user))), 1, 5)
    table = pd.DataFrame({"userId": user.astype(str), "movieId": movie.astype(str), "rating": ratings})
    catalogue = pd.DataFrame({"overview": None}, index=pd.Index(np.arange(100).astype(str)), dtype=object)
    blank = np.full((100, 4), np.nan, np.float32)
    model = fit_model(table.astype({"userId": "category", "movieId": "category"}), catalogue, blank, 0, print)
    errors = model.report["cross-validated mse"]
    assert errors["model"] < 1.02 * errors["user mean"] < 0.8 * errors["global mean"]
    strangers = pd.DataFrame({"userId": ["0", "119"], "movieId": "new"}, dtype="category")
    low, high = model.predict(strangers)
    assert low + 0.5 < high
