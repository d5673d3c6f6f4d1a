"""Users' regressions, against the textbook's formulas."""

import numpy as np
import pytest

from challenge.taste import batches, evidence, fit_users, learn_scales

RANDOM = np.random.default_rng(5)


def test_batches() -> None:
    """Every rating comes once, with its user."""
    users = RANDOM.integers(0, 40, 500)
    seen: list[int] = []
    for batch, places, there in batches(users, 41, 300):
        assert (users[places] == batch[:, None])[there].all()
        seen.extend(places[there])
    assert sorted(seen) == list(range(500))


@pytest.mark.parametrize("ratings", [3, 12])
def test_evidence(ratings: int) -> None:
    """Few ratings or many: both routes give the ridge regression's weights."""
    rows, target = RANDOM.normal(size=(2, ratings, 6)), RANDOM.normal(size=(2, ratings))
    weights, known = evidence(rows, target)
    for row, value, weight, share in zip(rows, target, weights, known):
        covariance = np.linalg.inv(row.T @ row + np.eye(6))
        np.testing.assert_allclose(weight, covariance @ row.T @ value, atol=1e-9)
        np.testing.assert_allclose(share, 1 - np.diag(covariance), atol=1e-9)


def test_fit_users_holds_out() -> None:
    """Held-out predictions are those of a fit on the other folds."""
    vectors = RANDOM.normal(size=(30, 4)).astype(np.float32)
    users, movies = RANDOM.integers(0, 5, 80), RANDOM.integers(0, 30, 80)
    folds, target = movies % 3, RANDOM.normal(size=80).astype(np.float32)
    weights, held_out = fit_users(vectors, users, movies, folds, target, 6)
    assert not weights[5].any()
    for user in range(5):
        for fold in range(3):
            own, rest = (users == user) & (folds == fold), (users == user) & (folds != fold)
            rows = vectors[movies[rest]]
            expected = np.linalg.solve(rows.T @ rows + np.eye(4), rows.T @ target[rest])
            np.testing.assert_allclose(held_out[own], vectors[movies[own]] @ expected, atol=1e-4)


def test_learn_scales_finds_the_source_that_counts() -> None:
    """Noise gets no weight; the source that made the target does, in the right proportion to the noise."""
    rows = RANDOM.normal(size=(60, 50, 8)).astype(np.float32)
    truth = RANDOM.normal(size=(60, 4)) * 2
    target = np.einsum("bij,bj->bi", rows[:, :, :4], truth) + RANDOM.normal(size=(60, 50))
    scales = learn_scales([(rows, target.astype(np.float32), 3000)], np.repeat([0, 1], 4))
    assert scales[0] == pytest.approx(2, rel=0.15)
    assert scales[4] < 0.1
