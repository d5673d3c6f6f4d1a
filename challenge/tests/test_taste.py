"""Users' regressions, against the textbook's formulas."""

import numpy as np
import pytest

from challenge.taste import Floats, Ratings, Taste, batches, evidence, fit_users, learn_prior, sample, solve

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


@pytest.mark.parametrize("ratings", [3, 60])
def test_evidence_of_what_is_hardly_known(ratings: int) -> None:
    """Single precision is enough also where ratings say next to nothing of a weight."""
    rows = RANDOM.normal(size=(1, ratings, 6)) * [1, 1, 1, 1, 1e-4, 1e-7]
    exact, single = (evidence(table, table[..., :1])[1][0] for table in (rows, rows.astype(np.float32)))
    np.testing.assert_allclose(single, exact, rtol=1e-3)
    np.testing.assert_allclose(single[4:], (rows[0, :, 4:] ** 2).sum(axis=0), rtol=0.99)


def some_prior(parts: int, axes: int) -> Floats:
    """Return random covariances."""
    roots = RANDOM.normal(size=(parts, axes, axes)).astype(np.float32)
    return roots @ roots.transpose(0, 2, 1) + np.eye(axes, dtype=np.float32)


def test_solve() -> None:
    """Conjugate gradients come where a direct solution comes; a part without any rating gives zeros."""
    rows = RANDOM.normal(size=(2, 9, 4)).astype(np.float32)
    target, prior = RANDOM.normal(size=(2, 9, 1)).astype(np.float32), some_prior(3, 2)
    kept = RANDOM.random((2, 9, 3)) < 0.7
    kept[..., 2] = False
    found = solve(rows, target, kept, prior)
    for row, value, there, solution in zip(rows, target, kept, found):
        for part in range(3):
            covariance = np.eye(4)
            covariance[:2, :2] = prior[part]
            kernel = (row @ covariance @ row.T)[np.ix_(there[:, part], there[:, part])]
            expected = np.linalg.solve(kernel + np.eye(len(kernel)), value[there[:, part], 0])
            np.testing.assert_allclose(solution[there[:, part], part], expected, rtol=0.02, atol=0.02)
            assert not solution[~there[:, part], part].any()


def test_fit_users_holds_out() -> None:
    """Weights are the weighted ridge regression's; held-out predictions those of a fit on the other folds."""
    vectors = RANDOM.normal(size=(30, 4)).astype(np.float32)
    ratings, prior = some_ratings(5, 30, 80), some_prior(4, 2)
    weights, held_out = fit_users(vectors, ratings, prior)
    for user in range(5):
        for fold in range(4):
            precision = np.eye(4)
            precision[:2, :2] = np.linalg.inv(prior[fold])
            rest = (ratings.users == user) & (ratings.folds != fold)
            rows = vectors[ratings.movies[rest]]
            weighted = rows * ratings.roots[rest, None] ** 2
            expected = np.linalg.solve(weighted.T @ rows + precision, weighted.T @ ratings.stars[rest])
            own = (ratings.users == user) & (ratings.folds == fold)
            np.testing.assert_allclose(held_out[own], vectors[ratings.movies[own]] @ expected, atol=0.02)
        # There is no fold 3: the last fit was on all of the user's ratings.
        np.testing.assert_allclose(weights[user], expected, atol=0.02)


def test_sample() -> None:
    """All ratings of the users drawn come along, the users numbered anew."""
    ratings = some_ratings(20, 30, 200)
    drawn = sample(ratings, 4, 0)
    assert set(drawn.users) == set(range(4))
    assert len(drawn.stars) in {np.isin(ratings.stars, drawn.stars).sum()}
    counts = np.bincount(ratings.users)
    assert set(np.bincount(drawn.users)) <= set(counts)


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


def test_prior_learns_how_weights_go_together() -> None:
    """Where all users' tastes lie along one axis, learning that predicts held-out ratings better."""
    vectors = RANDOM.normal(size=(300, 12)).astype(np.float32)
    ratings = some_ratings(200, 300, 4000)._replace(roots=np.ones(4000))
    axis = (vectors.sum(axis=1) / 12**0.5)[ratings.movies] * RANDOM.normal(size=200)[ratings.users]
    ratings = ratings._replace(stars=(ratings.stars + axis).astype(np.float32))
    priors = [np.stack([learn_prior(vectors, ratings, 1.0, rounds, part) for part in range(4)]) for rounds in (0, 4)]
    errors = [np.mean((fit_users(vectors, ratings, prior)[1] - axis) ** 2) for prior in priors]
    assert errors[1] < 0.8 * errors[0]


def test_prior_leaves_the_fold_out() -> None:
    """What a fold's ratings say does not come into the prior that predicts them."""
    vectors, ratings = RANDOM.normal(size=(60, 5)).astype(np.float32), some_ratings(40, 60, 800)
    changed = ratings._replace(stars=np.where(ratings.folds == 1, -9, ratings.stars).astype(np.float32))
    without, whole = ([learn_prior(vectors, some, 1.0, 3, part) for some in (ratings, changed)] for part in (1, 0))
    np.testing.assert_allclose(without[0], without[1], rtol=1e-5)
    assert not np.allclose(whole[0], whole[1], rtol=0.1)
