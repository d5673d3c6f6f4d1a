"""The rating model on small synthetic data."""

import numpy as np
import pandas as pd
import pytest

from challenge.model import RatingModel, boost
from challenge.tables import TableError
from challenge.tests.synthetic import make

DATA = make(users=80, movies=120, ratings=4000, seed=3)
CATALOGUE = DATA.movies.astype({"movieId": str}).set_index("movieId").astype(object)
CATALOGUE = CATALOGUE.where(CATALOGUE.isna(), CATALOGUE.astype(str))
EMBEDDINGS = np.zeros((len(CATALOGUE), 4), np.float32)
RATINGS = DATA.train.astype({"userId": str, "movieId": str}).astype({"userId": "category", "movieId": "category"})
PAIRS = DATA.test.astype(str).astype("category")


@pytest.fixture(scope="module")
def model() -> RatingModel:
    """Return a fitted model."""
    return RatingModel(0).fit(RATINGS, CATALOGUE, EMBEDDINGS)


def test_beats_the_user_mean(model: RatingModel) -> None:
    """Held-out movies are predicted better than by the user's mean, in the report and in truth."""
    truth = DATA.truth["rating"].to_numpy()
    means = PAIRS["userId"].astype(str).map(RATINGS.groupby("userId", observed=True)["rating"].mean()).to_numpy(float)
    error = np.mean((model.predict(PAIRS, model.describe(CATALOGUE, EMBEDDINGS)) - truth) ** 2)
    assert DATA.noise_floor < error < 0.95 * np.mean((means - truth) ** 2)
    errors = model.report_["cross-validated mse"]
    assert errors["model"] < errors["user mean"] < errors["global mean"]


def test_arrays_hold_all(model: RatingModel) -> None:
    """A model made anew from its arrays predicts the same to the last bit."""
    again = RatingModel.from_arrays(model.arrays_, model.report_)
    first = model.predict(PAIRS, model.describe(CATALOGUE, EMBEDDINGS))
    np.testing.assert_array_equal(again.predict(PAIRS, again.describe(CATALOGUE, EMBEDDINGS)), first)


def test_strangers(model: RatingModel) -> None:
    """An unknown movie gets the user's level, an unknown user what the public thinks of the movie."""
    pairs = pd.DataFrame({"userId": ["x", "x", "1", "1"], "movieId": ["y", "z", "y", "z"]}, dtype="category")
    ratings = model.predict(pairs, model.describe(CATALOGUE, EMBEDDINGS))
    assert ratings[0] == ratings[1] == pytest.approx(float(model.arrays_["mean"]))
    assert ratings[2] == ratings[3] != ratings[0]
    movies = PAIRS["movieId"].astype(str).unique()[:20]
    public = model.predict(
        pd.DataFrame({"userId": "x", "movieId": movies}, dtype="category"), model.describe(CATALOGUE, EMBEDDINGS)
    )
    assert len(set(public)) > 15


def test_too_few_movies() -> None:
    """Ratings of movies that the catalogue lacks cannot be learned from."""
    first = CATALOGUE.index.isin([RATINGS["movieId"].iloc[0]])
    with pytest.raises(TableError, match="holds 1 of the rated movies"):
        RatingModel(0).fit(RATINGS, CATALOGUE[first], EMBEDDINGS[first])


def test_catalogue_without_columns() -> None:
    """Where nothing is known of the movies the users' levels are left."""
    bare = CATALOGUE[[]].assign(overview=None)
    model = RatingModel(0).fit(RATINGS, bare, EMBEDDINGS * np.nan)
    errors = model.report_["cross-validated mse"]
    assert errors["model"] == pytest.approx(errors["user mean"], rel=0.05)


def test_boost_stays_out_of_fold() -> None:
    """Trees cannot predict pure noise of folds that they have not seen."""
    random = np.random.default_rng(1)
    features, target = random.normal(size=(600, 3)), random.normal(size=600)
    _, held_out = boost(features, target, np.arange(600) % 5, 0)
    assert np.mean((target - held_out) ** 2) > 0.95 * target.var()
