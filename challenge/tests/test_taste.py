"""Users' regressions, against the textbook's formulas."""

import numpy as np
import pytest

from challenge.taste import Ratings, Taste, batches, evidence, fit_users

RANDOM = np.random.default_rng(5)


def some_ratings(users: int, movies: int, size: int) -> Ratings:
    """Return random ratings."""
    movie = RANDOM.integers(0, movies, size)
    stars, roots = RANDOM.normal(size=size).astype(np.float32), RANDOM.uniform(0.3, 1, size)
    return Ratings(RANDOM.integers(0, users, size), movie, movie % 3, stars, roots)


def test_batches() -> None:
    """Every rating comes once, with its user."""
    users = RANDOM.integers(0, 40, 500)
    seen: list[int] = []
    for batch, places, there in batches(users, 300):
        assert (users[places] == batch[:, None])[there].all()
        seen.extend(places[there])
    assert sorted(seen) == list(range(500))


@pytest.mark.parametrize("ratings", [3, 12])
def test_evidence(ratings: int) -> None:
    """Few ratings or many: both routes give the ridge regression's weights."""
    rows, target = RANDOM.normal(size=(2, ratings, 6)), RANDOM.normal(size=(2, ratings, 1))
    weights, known = evidence(rows, target)
    for row, value, weight, share in zip(rows, target, weights, known):
        covariance = np.linalg.inv(row.T @ row + np.eye(6))
        np.testing.assert_allclose(weight, covariance @ row.T @ value, atol=1e-9)
        np.testing.assert_allclose(share, 1 - np.diag(covariance), atol=1e-9)


def test_fit_users_holds_out() -> None:
    """Weights are the weighted ridge regression's; held-out predictions those of a fit on the other folds."""
    vectors = RANDOM.normal(size=(30, 4)).astype(np.float32)
    ratings = some_ratings(5, 30, 80)
    weights, held_out = fit_users(vectors, ratings)
    for user in range(5):
        for fold in range(4):
            rest = (ratings.users == user) & (ratings.folds != fold)
            rows, weighted = (
                vectors[ratings.movies[rest]],
                vectors[ratings.movies[rest]] * ratings.roots[rest, None] ** 2,
            )
            expected = np.linalg.solve(weighted.T @ rows + np.eye(4), weighted.T @ ratings.stars[rest])
            own = (ratings.users == user) & (ratings.folds == fold)
            np.testing.assert_allclose(held_out[own], vectors[ratings.movies[own]] @ expected, atol=1e-4)
        # There is no fold 3: the last fit was on all of the user's ratings.
        np.testing.assert_allclose(weights[user], expected, atol=1e-4)


def test_taste_finds_the_source_that_counts() -> None:
    """The prior keeps to the source that tastes come from; noise is not let in."""
    vectors = RANDOM.normal(size=(200, 8)).astype(np.float32)
    ratings = some_ratings(60, 200, 3000)._replace(roots=np.ones(3000))
    truth = RANDOM.normal(size=(60, 4))
    signal = (vectors[ratings.movies, :4] * truth[ratings.users]).sum(axis=1)
    taste = Taste().fit(
        vectors, ["a"] * 4 + ["b"] * 4, ratings._replace(stars=ratings.stars + signal.astype(np.float32))
    )
    worth = np.sqrt((taste.projection_**2).sum(axis=1))
    assert worth[1:5] == pytest.approx(1, rel=0.15)
    assert worth[0] < 0.2 and (worth[5:] < 0.2).all()
    assert np.corrcoef(taste.held_out_, signal)[0, 1] > 0.9


def test_fit_users_learns_how_weights_go_together() -> None:
    """Where all users' tastes lie along one axis, learning that predicts held-out ratings better."""
    vectors = RANDOM.normal(size=(300, 12)).astype(np.float32)
    ratings = some_ratings(200, 300, 4000)._replace(roots=np.ones(4000))
    axis = (vectors.sum(axis=1) / 12**0.5)[ratings.movies] * RANDOM.normal(size=200)[ratings.users]
    ratings = ratings._replace(stars=(ratings.stars + axis).astype(np.float32))
    errors = [np.mean((fit_users(vectors, ratings, rounds=rounds)[1] - axis) ** 2) for rounds in (0, 4)]
    assert errors[1] < 0.8 * errors[0]
