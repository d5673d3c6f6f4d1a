"""The service without HTTP."""

import pandas as pd
import pytest

from challenge.settings import Settings
from challenge.tables import TableError, read_pairs
from challenge.tests.conftest import DEMO, ENCODER
from challenge.training import NotTrainedError, Service, TrainingBusyError


@pytest.fixture(scope="module")
def ratings() -> pd.DataFrame:
    """Read the demo's ratings."""
    with (DEMO / "df_train.csv").open("rb") as file:
        return read_pairs(file, rated=True)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory, ratings: pd.DataFrame) -> Service:
    """Return a service that was trained on a part of the demo."""
    folder = tmp_path_factory.mktemp("models")
    settings = Settings(catalogue=DEMO / "df_movies.csv", models=folder, encoder=str(ENCODER))
    service = Service(settings)
    with pytest.raises(NotTrainedError):
        service.serving()
    service.train(ratings.head(3_000))
    return service


def test_described_once(service: Service) -> None:
    """While nothing changes the movies are described but once."""
    assert service.serving()[1] is service.serving()[1]


def test_one_training_at_a_time(service: Service, ratings: pd.DataFrame) -> None:
    """A second training is refused; one that failed does not stand in the way of the next."""
    before = service.model
    with service._training, pytest.raises(TrainingBusyError):
        service.train(ratings)
    for _ in range(2):
        with pytest.raises(TableError):
            service.train(ratings.assign(movieId="none"))
    assert service.model is before


def test_added_ratings_outlive_a_restart(service: Service, ratings: pd.DataFrame) -> None:
    """A service that starts anew knows the ratings that were added."""
    own = ratings[ratings["userId"] == ratings["userId"].iloc[0]]
    pairs = own.assign(userId="newcomer").astype({"userId": "category"})
    service.rate(pairs.assign(rating=5.0))
    model, movies = service.serving()
    again, same = Service(service.settings).serving()
    assert again.predict(pairs, same).tolist() == model.predict(pairs, movies).tolist()
    assert model.predict(pairs, movies).mean() > 4
