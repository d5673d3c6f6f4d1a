"""Users' regressions, compared with textbook formulas."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from challenge.settings import FIXED
from challenge.taste import Taste, batches, evidence, fit_users, habits

RANDOM = np.random.default_rng(5)


@pytest.fixture(autouse=True)
def seeded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Draw the same numbers in a test whichever others ran before."""
    monkeypatch.setattr(f"{__name__}.RANDOM", np.random.default_rng(5))


def some_ratings(users: int, movies: int, size: int) -> pd.DataFrame:
    """Return random ratings."""
    movie = RANDOM.integers(0, movies, size)
    stars, root = RANDOM.normal(size=size).astype(np.float32), RANDOM.uniform(0.3, 1, size)
    user = RANDOM.integers(0, users, size)
    return pd.DataFrame({"user": user, "movie": movie, "fold": movie % 3, "stars": stars, "root": root})


def test_batches() -> None:
    """Every rating appears once, under its user and its fold."""
    ratings = some_ratings(40, 30, 500)
    seen: list[int] = []
    for batch, places, there in batches(ratings, 300):
        assert (ratings["user"].to_numpy()[places] == batch[:, None, None])[there].all()
        assert (ratings["fold"].to_numpy()[places] == np.arange(3)[:, None])[there].all()
        seen.extend(places[there])
    assert sorted(seen) == list(range(500))


def test_batches_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches are bounded in memory and hold users of similar activity, so there is little padding."""
    monkeypatch.setattr(FIXED, "numbers_in_memory", 20_000)
    user = np.minimum(RANDOM.geometric(0.01, 3_000), 500)
    ratings = pd.DataFrame({"user": user, "fold": RANDOM.integers(0, 3, len(user))})
    for batch, places, there in batches(ratings, 10):
        most = there.sum(axis=2).max(axis=1)
        assert most.max() < 2 * most.min() and len(batch) * 10**2 <= FIXED.numbers_in_memory
        assert places.size * 10 <= 2 * FIXED.numbers_in_memory
    assert len(list(batches(ratings, 1_000))) >= 300


@pytest.mark.parametrize("ratings", [3, 12])
def test_evidence(ratings: int) -> None:
    """The sums match primal ridge regressions for few and many ratings, also after QR reduces the rows."""
    rows, target = RANDOM.normal(size=(2, ratings, 6)), RANDOM.normal(size=(2, ratings))
    size, known, error = np.zeros(6), np.zeros(6), 0.0
    for row, value in zip(rows, target):
        covariance = np.linalg.inv(row.T @ row + np.eye(6))
        weight = covariance @ row.T @ value
        size += weight**2
        known += 1 - np.diag(covariance)
        error += np.square(value - row @ weight).sum()
    reduced: Any = np.linalg.qr(np.dstack([rows, target]), mode="r")
    for tables, targets in ((rows, target), (reduced[..., :-1], reduced[..., -1])):
        found = [sum(parts) for parts in zip(*map(evidence, tables, targets))]
        for one, expected in zip(found, (size, known, np.array(error))):
            np.testing.assert_allclose(one, expected, atol=1e-9)


@pytest.mark.parametrize("ratings", [3, 60])
def test_evidence_of_what_is_hardly_known(ratings: int) -> None:
    """Single precision suffices even where ratings hardly determine a weight."""
    rows = RANDOM.normal(size=(ratings, 6)) * [1, 1, 1, 1, 1e-4, 1e-7]
    exact, single = (evidence(table, table[:, 0])[1] for table in (rows, rows.astype(np.float32)))
    np.testing.assert_allclose(single, exact, rtol=1e-3)
    assert single.dtype == np.float32


@pytest.mark.parametrize("size", [4, 60])
def test_fit_users_holds_out(size: int) -> None:
    """For few and many dimensions, weights, scatter and held-out predictions match weighted ridge regressions."""
    vectors = RANDOM.normal(size=(30, size)).astype(np.float32)
    ratings, roots = some_ratings(5, 30, 80), RANDOM.normal(size=(4, size, size)).astype(np.float32)
    prior = roots @ roots.transpose(0, 2, 1) / size + np.eye(size, dtype=np.float32)
    weights, held_out, scatter = fit_users(vectors, ratings.astype({"root": np.float32}), prior, scatter=True)
    assert weights.dtype == held_out.dtype == scatter.dtype == np.float32
    expected = np.zeros((5, 4, size))
    for fold in range(4):
        total = np.zeros((size, size))
        for user in range(5):
            rest = ratings[(ratings["user"] == user) & (ratings["fold"] != fold)]
            rows = vectors[rest["movie"]]
            weighted = rows * rest[["root"]].to_numpy() ** 2
            covariance = np.linalg.inv(weighted.T @ rows + np.linalg.inv(prior[fold]))
            weight = covariance @ weighted.T @ rest["stars"]
            own = (ratings["user"] == user) & (ratings["fold"] == fold)
            np.testing.assert_allclose(held_out[own], vectors[ratings["movie"][own]] @ weight, atol=1e-3)
            total += covariance + np.outer(weight, weight)
            expected[user, fold] = weight
        np.testing.assert_allclose(scatter[fold], total, rtol=1e-3, atol=1e-3)
    # There is no fold 3, so the last fit is on all ratings.
    np.testing.assert_allclose(weights, expected[:, 3], atol=1e-4)


def test_habits() -> None:
    """Counts, excess mean squares and surpluses are those computed by hand, also without the fold."""
    movie = [0, 1, 1]
    ratings = pd.DataFrame({"user": [0, 0, 1], "movie": movie, "fold": movie, "stars": [1.0, 3.0, -1.0], "root": 1.0})
    told, held_out = habits(ratings, np.array([0.5, -0.5]), 1.0)
    sums, counts, prior = np.array([[8, 0], [0, -0.5]]), np.array([[2], [1]]), FIXED.prior
    np.testing.assert_allclose(told, np.hstack([counts, sums / (counts + prior)]), atol=1e-6)
    expected = [[2, 8 / (1 + prior), -0.5 / (1 + prior)], [2, 0, 0.5 / (1 + prior)], [1, 0, 0]]
    np.testing.assert_allclose(held_out, expected, atol=1e-6)


def test_users_without_ratings() -> None:
    """Users without ratings add nothing to sums and have the prior's mean as weights."""
    ratings = some_ratings(5, 30, 80)
    vectors, unit = RANDOM.normal(size=(30, 4)).astype(np.float32), np.eye(4, dtype=np.float32)
    few, many = (fit_users(vectors, ratings.assign(user=factor * ratings["user"]), unit, True) for factor in (1, 10))
    np.testing.assert_allclose(many[0][::10], few[0], atol=1e-6)
    np.testing.assert_allclose(many[2], few[2], rtol=1e-5, atol=1e-5)
    assert not np.delete(many[0], np.arange(0, 41, 10), axis=0).any()


def test_taste_finds_the_source_that_counts() -> None:
    """The prior finds the source that tastes come from, and suppresses the one of noise."""
    vectors = RANDOM.normal(size=(200, 8)).astype(np.float32)
    ratings = some_ratings(60, 200, 3000).assign(root=1.0)
    truth = RANDOM.normal(size=(60, 4))
    signal = (vectors[ratings["movie"], :4] * truth[ratings["user"]]).sum(axis=1)
    ratings["stars"] += signal.astype(np.float32)
    taste = Taste(9).fit(pd.DataFrame(vectors, columns=["a"] * 4 + ["b"] * 4), ratings)
    worth = np.sqrt((taste.projection_**2).sum(axis=1))
    assert worth[:4] == pytest.approx(1, rel=0.15)
    assert (worth[4:] < 0.2).all()
    assert np.corrcoef(taste.held_out_, signal)[0, 1] > 0.9
    # The ratings' own noise is 1; four weights of 1 have a strength of 2.
    assert (taste.noise_, taste.strengths_["a"]) == pytest.approx((1, 2), rel=0.15) and taste.strengths_["b"] < 0.4


def test_scales_of_a_sorted_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """What matters only for movies at the end of a sorted file is learned, though scales need no more ratings."""
    monkeypatch.setattr(FIXED, "scale_ratings", 40 * 30)
    vectors = RANDOM.normal(size=(90, 4)).astype(np.float32)
    vectors[:30, :2] = 0
    ratings = pd.DataFrame({"user": np.repeat(np.arange(40), 90), "movie": np.tile(np.arange(90), 40), "root": 1.0})
    signal = (vectors[ratings["movie"], :2] * RANDOM.normal(size=(40, 2))[ratings["user"]]).sum(axis=1)
    ratings["stars"] = (signal + RANDOM.normal(size=len(signal))).astype(np.float32)
    taste = Taste(5).fit(
        pd.DataFrame(vectors, columns=["a"] * 2 + ["b"] * 2), ratings.assign(fold=ratings["movie"] % 3)
    )
    assert (taste.noise_, taste.strengths_["a"] ** 2) == pytest.approx((1, 2 * 60 / 90), rel=0.2)


def test_scales_of_users_with_few_ratings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scales are learned from more users if each has rated little."""
    monkeypatch.setattr(FIXED, "scale_users", 3)
    vectors = RANDOM.normal(size=(200, 4)).astype(np.float32)
    ratings = some_ratings(300, 200, 3000).assign(root=1.0)
    ratings["stars"] += (vectors[ratings["movie"]] * RANDOM.normal(size=(300, 4))[ratings["user"]]).sum(axis=1)
    taste = Taste(5).fit(pd.DataFrame(vectors, columns=["a"] * 4), ratings)
    assert (taste.noise_, taste.strengths_["a"]) == pytest.approx((1, 2), rel=0.1)


def test_sources_of_noise_are_worth_nothing() -> None:
    """Most of many noise sources are suppressed, even though many users fit them by chance."""
    random = np.random.default_rng(0)
    vectors = random.normal(size=(200, 24)).astype(np.float32)
    user, movie = random.integers(0, 150, 6000), random.integers(0, 200, 6000)
    signal = (vectors[movie, :4] * random.normal(size=(150, 4))[user]).sum(axis=1)
    stars = (signal + random.normal(size=6000)).astype(np.float32)
    ratings = pd.DataFrame({"user": user, "movie": movie, "fold": movie % 3, "stars": stars, "root": 1.0})
    names = ["a"] * 4 + [f"noise {number}" for number in range(20)]
    strengths = Taste(25).fit(pd.DataFrame(vectors, columns=names), ratings).strengths_
    left = (strengths.drop("a") > 0.01).sum()
    assert strengths["a"] > 1.5 and left < 8, left


def test_wide_source_of_noise_is_worth_nothing() -> None:
    """A source of noise is suppressed however many dimensions it has, and however large they are."""
    ratings = some_ratings(60, 200, 3000).assign(root=1.0)
    vectors = RANDOM.normal(size=(200, 304)).astype(np.float32) * ([1] * 4 + [100] * 300)
    ratings["stars"] += (vectors[ratings["movie"], :4] * RANDOM.normal(size=(60, 4))[ratings["user"]]).sum(axis=1)
    taste = Taste(50).fit(pd.DataFrame(vectors, columns=["a"] * 4 + ["b"] * 300, dtype=np.float32), ratings)
    assert (taste.noise_, taste.strengths_["a"]) == pytest.approx((1, 2), rel=0.15) and taste.strengths_["b"] < 0.4


def test_axes_are_those_of_what_is_rated() -> None:
    """With fewer axes than dimensions, those along which the rated movies vary most are kept."""
    vectors = (RANDOM.normal(size=(100, 6)) * [0.1, 0.1, 1, 0.1, 0.1, 0]).astype(np.float32)
    vectors[60:, 5] = 50
    ratings = some_ratings(60, 60, 2000).assign(root=1.0)
    signal = 2 * vectors[ratings["movie"], 2] * RANDOM.normal(size=60)[ratings["user"]]
    taste = Taste(2).fit(pd.DataFrame(vectors, columns=["a"] * 6), ratings.assign(stars=ratings["stars"] + signal))
    assert np.mean((taste.held_out_ - signal) ** 2) < 0.2 * signal.var()


def test_unit_of_the_stars() -> None:
    """Tastes scale with the stars, the noise with their square."""
    vectors, ratings = RANDOM.normal(size=(60, 5)).astype(np.float32), some_ratings(40, 60, 800)
    ratings["stars"] += (vectors @ RANDOM.normal(size=(5, 40)))[ratings["movie"], ratings["user"]].astype(np.float32)
    frame = pd.DataFrame(vectors, columns=["a"] * 5)
    small, large = (Taste(6).fit(frame, ratings.assign(stars=unit * ratings["stars"]), 3) for unit in (1, 10))
    np.testing.assert_allclose(large.held_out_, 10 * small.held_out_, rtol=0.01, atol=0.05)
    assert large.noise_ == pytest.approx(100 * small.noise_, rel=0.01)
    assert large.strengths_["a"] == pytest.approx(10 * small.strengths_["a"], rel=0.01)


def test_doubtful_ratings_count_for_little() -> None:
    """Noisy ratings of accordingly small weight hardly change other predictions or the noise."""
    vectors, ratings = RANDOM.normal(size=(60, 5)).astype(np.float32), some_ratings(40, 60, 800).assign(root=1.0)
    wild = some_ratings(40, 60, 800).assign(root=0.01)
    wild["stars"] *= 100
    frame = pd.DataFrame(vectors, columns=["a"] * 5)
    alone, both = (Taste(6).fit(frame, some) for some in (ratings, pd.concat([ratings, wild], ignore_index=True)))
    np.testing.assert_allclose(both.held_out_[:800], alone.held_out_, atol=0.1)
    assert both.noise_ == pytest.approx(alone.noise_, rel=0.1)


def test_prior_learns_how_weights_go_together() -> None:
    """If all users' tastes lie along one axis, learning the covariance improves held-out predictions."""
    vectors = RANDOM.normal(size=(300, 12)).astype(np.float32)
    ratings = some_ratings(200, 300, 4000).assign(root=1.0)
    axis = (vectors.sum(axis=1) / 12**0.5)[ratings["movie"]] * RANDOM.normal(size=200)[ratings["user"]]
    ratings["stars"] += axis.astype(np.float32)
    tastes = [Taste(13).fit(pd.DataFrame(vectors, columns=["a"] * 12), ratings, rounds) for rounds in (0, 4)]
    errors = [np.mean((taste.held_out_ - axis) ** 2) for taste in tastes]
    assert errors[1] < 0.8 * errors[0]


def test_round_of_the_prior(monkeypatch: pytest.MonkeyPatch) -> None:
    """A round sets the covariance to the mean expected outer product of weights, the identity for pseudo users."""
    monkeypatch.setattr(FIXED, "pseudo_users", 7)
    vectors, ratings = RANDOM.normal(size=(60, 5)).astype(np.float32), some_ratings(40, 60, 800)
    table = pd.DataFrame(vectors, columns=["a"] * 5)
    taste = Taste(6).fit(table, ratings)
    before, noise = taste.projection_, taste.noise_
    total = 7 * np.eye(6)
    for _, own in ratings.groupby("user"):
        trust = own["root"].to_numpy()[:, None]
        rows = (np.column_stack([vectors, np.ones(60)]) @ before)[own["movie"]] * trust
        covariance = np.linalg.inv(rows.T @ rows + np.eye(6))
        weight = covariance @ rows.T @ (own[["stars"]] * trust / noise**0.5)
        total += covariance + weight.to_numpy() @ weight.to_numpy().T
    after = taste.fit(table, ratings, 1).projection_
    np.testing.assert_allclose(after @ after.T, before @ total @ before.T / (40 + 7), rtol=1e-3, atol=1e-6)


def test_fold_that_hardly_anybody_rated(monkeypatch: pytest.MonkeyPatch) -> None:
    """Learning the covariance works even if only one of many users has rated movies of the last fold."""
    monkeypatch.setattr(FIXED, "coupled", 3)
    ratings = some_ratings(40, 30, 500)
    ratings = ratings[(ratings["fold"] < 2) | (ratings["user"] == 39)].reset_index(drop=True)
    vectors = pd.DataFrame(RANDOM.normal(size=(30, 5)), columns=["a"] * 5, dtype=np.float32)
    for seed in range(5):
        assert np.isfinite(Taste(6, seed).fit(vectors, ratings, 2).held_out_).all()


def test_all_movies_are_the_same_along_the_last_axis() -> None:
    """Folding in the covariance keeps the last axis constant over movies, and changes no fit."""
    vectors, ratings = RANDOM.normal(size=(60, 5)).astype(np.float32), some_ratings(40, 60, 800)
    taste = Taste(4).fit(pd.DataFrame(vectors, columns=["a"] * 5), ratings, 3)
    design = np.column_stack([vectors, np.ones(60)]) @ taste.projection_
    assert design.shape == (60, 4) and np.ptp(design[:, -1]) == 0 < abs(design[0, -1])
    # On these axes the prior is the unit normal: the covariance is folded in.
    again, _, _ = fit_users(design, ratings, np.eye(4))
    np.testing.assert_allclose(again, taste.weights_, atol=1e-4)


def test_prior_leaves_the_fold_out() -> None:
    """A fold's ratings do not enter the covariance of the prior that predicts them."""
    vectors, ratings = RANDOM.normal(size=(60, 5)).astype(np.float32), some_ratings(40, 60, 800)
    taste = Taste(6).fit(pd.DataFrame(vectors, columns=["a"] * 5), ratings)
    changed = ratings.assign(stars=ratings["stars"].where(ratings["fold"] != 1, -9))
    first, second = (
        taste.fit(pd.DataFrame(vectors, columns=["a"] * 5), some, 3).held_out_ for some in (ratings, changed)
    )
    held_out = ratings["fold"] == 1
    np.testing.assert_allclose(first[held_out], second[held_out], atol=1e-4)
    assert not np.allclose(first[~held_out], second[~held_out], atol=0.1)


def test_users_who_rate_all_movies_the_same() -> None:
    """Fits stay accurate where tastes explain the ratings fully and users have fewer ratings than axes."""
    vectors, ratings = RANDOM.normal(size=(400, 100)).astype(np.float32), some_ratings(50, 400, 3000)
    ratings = ratings.assign(stars=ratings["user"].to_numpy(np.float32) % 5 - 2, root=1.0)
    taste = Taste(100).fit(pd.DataFrame(vectors, columns=["a"] * 100), ratings, 4)
    np.testing.assert_allclose(taste.held_out_, ratings["stars"], atol=0.1)
