"""The rating model on small synthetic data."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pandas as pd
import pytest

from challenge.features import Floats, movie_vectors
from challenge.model import RatingModel, boost, correct, fit_model
from challenge.settings import FIXED
from challenge.tables import TableError
from challenge.taste import Indices
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
    stages: list[str] = []
    model = fit_model(RATINGS, CATALOGUE, EMBEDDINGS, 0, stages.append)
    assert stages == ["features", "taste", "trees"]
    return model


def fit_world(
    user: Indices, movie: Indices, ratings: Floats, columns: dict[str, Any], embeddings: Floats
) -> RatingModel:
    """Fit a model on users and movies whose ids are their indices, without overview texts."""
    pairs = pd.DataFrame({"userId": user.astype(str), "movieId": movie.astype(str)}, dtype="category")
    movies = pd.Index(np.arange(len(embeddings)).astype(str))
    catalogue = pd.DataFrame({**columns, "overview": None}, movies, dtype=object)
    return fit_model(pairs.assign(rating=ratings), catalogue, embeddings.astype(np.float32), 0, str)


def test_beats_the_user_mean(model: RatingModel) -> None:
    """The model beats the user mean on held-out movies, in the report and on the true ratings."""
    truth = DATA.truth["rating"].to_numpy()
    means = PAIRS["userId"].astype(str).map(RATINGS.groupby("userId", observed=True)["rating"].mean()).to_numpy(float)
    error = np.mean((model.predict(PAIRS) - truth) ** 2)
    assert DATA.noise_floor < error < 0.95 * np.mean((means - truth) ** 2)
    errors = model.report["cross-validated mse"]
    assert errors["model"] < errors["user mean"] < errors["global mean"]


def test_report(model: RatingModel) -> None:
    """The report has the data's sizes, the interval width, falling errors, and the strongest sources, best first."""
    stray = pd.DataFrame({"userId": ["1", "2"], "rating": 3.0, "movieId": "none"})
    ratings = pd.concat([RATINGS, stray]).astype({"userId": "category", "movieId": "category"})
    some = np.where(np.arange(len(CATALOGUE))[:, None] < 7, np.nan, EMBEDDINGS)
    told = fit_model(ratings, CATALOGUE, some, 0, str).report
    counts = [told[name] for name in ("rows", "rows of movies in the catalogue", "users", "movies")]
    assert counts == [len(RATINGS) + 2, len(RATINGS), RATINGS["userId"].nunique(), RATINGS["movieId"].nunique()]
    assert told["movies without overview"] == 7
    strengths = list(told["strongest features"].values())
    assert len(strengths) == FIXED.strongest and strengths == sorted(strengths, reverse=True) and strengths[0] > 0.1
    answers = model.explain(PAIRS)
    # Intervals are clipped at the ends of the scale.
    inside = answers[(answers["low"] > 1) & (answers["high"] < 5)]
    assert model.report["interval"]["width"] == pytest.approx((inside["high"] - inside["low"]).mean(), rel=0.1)
    errors = [*model.report["cross-validated mse"].values()]
    assert errors[0] == pytest.approx(RATINGS["rating"].var(ddof=0), rel=1e-4) and errors[1] > errors[2] > errors[3]


def test_nothing_to_correct() -> None:
    """Trees see no trace of held-out ratings where each movie has one rating, a user's level and noise."""
    noise = np.random.default_rng(0)
    user = np.repeat(np.arange(100), 20)
    ratings = (3 + noise.normal(0, 0.7, 100)[user] + noise.normal(0, 0.8, 2000)).clip(1, 5)
    told = fit_world(user, np.arange(2000), ratings, {}, np.full((2000, 4), np.nan)).report["cross-validated mse"]
    assert told["model"] > 0.98 * told["quality and taste"]


def test_many_pairs_at_a_time(model: RatingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Predictions do not depend on the chunk size."""
    whole = model.predict(PAIRS)
    monkeypatch.setattr(FIXED, "pairs_in_memory", 7)
    np.testing.assert_allclose(model.predict(PAIRS), whole, atol=1e-5)


def test_seed() -> None:
    """The same seed gives the same model, another seed another."""
    few = RATINGS.head(1500)
    first, again, other = (fit_model(few, CATALOGUE, EMBEDDINGS, seed, str).predict(PAIRS) for seed in (0, 0, 1))
    np.testing.assert_array_equal(again, first)
    assert np.abs(other - first).max() > 0.01


def test_arrays_hold_all(model: RatingModel) -> None:
    """A model rebuilt from its arrays and report predicts exactly the same."""
    again = RatingModel(model.arrays, model.report)
    first = model.predict(PAIRS)
    np.testing.assert_array_equal(again.predict(PAIRS), first)


def test_rows_keep_their_index(model: RatingModel) -> None:
    """Predictions have the index of their rows, in whatever order these come."""
    whole, some = model.explain(PAIRS), PAIRS.iloc[[7, 3, 5]]
    for told in (model.predict(some), model.explain(some)["rating"]):
        pd.testing.assert_series_equal(told, whole["rating"].loc[[7, 3, 5]], check_names=False)


def test_strangers(model: RatingModel) -> None:
    """An unknown movie counts as average; an unknown user's prediction is what the public thinks of the movie."""
    pairs = pd.DataFrame({"userId": ["x", "x", "1", "1"], "movieId": ["y", "z", "y", "z"]}, dtype="category")
    ratings = model.predict(pairs)
    assert ratings[0] == ratings[1] == pytest.approx(float(model.arrays["mean"]), abs=0.2)
    assert ratings[2] == ratings[3] != ratings[0]
    assert not model.arrays["tastes"][-1].any() and not model.arrays["habits"][-1].any()
    movies = PAIRS["movieId"].astype(str).unique()[:20]
    public = model.predict(pd.DataFrame({"userId": "x", "movieId": movies}, dtype="category"))
    assert len(set(public)) > 15


def test_movie_without_a_name(model: RatingModel) -> None:
    """An unknown movie is not mistaken for one whose id is blank."""
    catalogue = pd.concat([CATALOGUE, CATALOGUE.iloc[[3]].set_axis([""])])
    vectors = movie_vectors(model.features, catalogue, np.zeros((len(catalogue), 4), np.float32))
    pairs = pd.DataFrame({"userId": "1", "movieId": ["nobody knows it", ""]}, dtype="category")
    known, again = model.predict(pairs), model.with_catalogue(vectors).predict(pairs)
    assert known[0] == again[0] != again[1]


def test_many_ask_why_at_once(model: RatingModel) -> None:
    """Explanations in parallel threads equal those of a single one."""
    alone = model.explain(PAIRS)
    with ThreadPoolExecutor(8) as threads:
        for told in threads.map(model.explain, [PAIRS] * 24):
            pd.testing.assert_frame_equal(told, alone)


def test_explanations_add_up(model: RatingModel) -> None:
    """The parts add up to the predicted rating, and the reasons are three of the user's own ratings."""
    told = model.explain(PAIRS)
    np.testing.assert_array_equal(told["rating"], model.predict(PAIRS))
    for rating, why in zip(told["rating"], told["why"]):
        assert sum(stars for name, stars in why.items() if name != "because") == pytest.approx(rating, abs=1e-6)
    rated = RATINGS.astype(str).groupby("userId")["movieId"].agg(set)
    for user, why in zip(PAIRS["userId"], told["why"]):
        assert len(why["because"]) == 3 and set(why["because"]) <= rated[user]


def test_reasons_add_up_to_the_taste(model: RatingModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The contributions of all of a user's ratings add up to the taste without its constant, largest first."""
    monkeypatch.setattr(FIXED, "reasons", 1000)
    why = model.explain(PAIRS.iloc[:5])["why"]
    _, _, user, movie = model._rate(PAIRS.iloc[:5])
    for one, place, reasons in zip(user, movie, why):
        taste = model.arrays["tastes"][one, :-1] @ model.arrays["vectors"][place, :-1]
        added = list(reasons["because"].values())
        assert sum(added) == pytest.approx(taste, abs=0.005)
        assert added == sorted(added, key=abs, reverse=True) and min(added) < 0 < max(added)


def test_reasons_are_the_users_own(model: RatingModel) -> None:
    """A user with one rating has one reason, a user with none has none."""
    rated, asked = CATALOGUE.index[0], CATALOGUE.index[1]
    one = pd.DataFrame({"userId": ["new"], "rating": [5.0], "movieId": [rated]})
    pairs = pd.DataFrame({"userId": ["new", "none"], "movieId": [asked, asked]}, dtype="category")
    why = model.update(one).explain(pairs)["why"]
    assert [list(reasons["because"]) for reasons in why] == [[rated], []]


def test_intervals(model: RatingModel) -> None:
    """Coverage matches the level asked for; a higher level gives wider intervals, and widths vary."""
    truth = DATA.truth["rating"]
    widths = []
    for level in (0.5, 0.9):
        told = model.explain(PAIRS, level)
        assert truth.between(told["low"], told["high"]).mean() == pytest.approx(level, abs=0.07)
        assert (told["low"] <= told["rating"]).all() and (told["rating"] <= told["high"]).all()
        widths.append(told["high"] - told["low"])
    assert (widths[0] <= widths[1]).all()
    assert widths[0].std() > 0.01
    assert model.report["interval"]["coverage"] == pytest.approx(0.9, abs=0.05)


def test_gaps_widen_intervals() -> None:
    """Intervals hold as much of the truth where all that matters is a number that is missing, or all is unknown."""
    random, movie, user = np.random.default_rng(0), np.repeat(np.arange(500), 40), np.tile(np.arange(40), 500)
    popularity, without = random.normal(size=500), np.full((500, 2), np.nan, np.float32)
    ratings = (3 + 0.5 * popularity[movie] + random.normal(0, 0.3, len(movie))).clip(1, 5)
    columns, new = {"popularity": np.exp(popularity).astype(str)}, movie >= 300
    model = fit_world(user[~new], movie[~new], ratings[~new], columns, without)
    pairs = pd.DataFrame({"userId": user[new].astype(str), "movieId": movie[new].astype(str)}, dtype="category")
    catalogue = pd.DataFrame(columns | {"overview": None}, model.movies[:500], dtype=object)
    widths = []
    for movies in (catalogue, catalogue.assign(popularity=""), catalogue[:300]):
        told = model.with_catalogue(movie_vectors(model.features, movies, without[: len(movies)])).explain(pairs)
        inside = (told["low"] <= ratings[new]) & (ratings[new] <= told["high"])
        assert inside.mean() == pytest.approx(0.9, abs=0.02)
        widths.append((told["high"] - told["low"]).mean())
    assert widths[1] > 1.5 * widths[0] and widths[2] == pytest.approx(widths[1], rel=0.01)


def test_intervals_of_steady_users() -> None:
    """Users who always give the same number of stars, beside others who give any, are covered as well."""
    draw = np.random.default_rng(0)
    user, movie = np.repeat(np.arange(200), 40), np.concatenate([draw.permutation(100)[:40] for _ in range(200)])
    ratings = np.where(user < 120, 3.0, draw.integers(1, 6, len(user)))
    scores = draw.normal(50, 9, 120).round(2).astype(str)
    model = fit_world(user, movie, ratings, {"score": scores}, np.full((120, 1), np.nan))
    names = [str(one) for one in range(120)]
    told = model.explain(pd.DataFrame({"userId": np.repeat(names, 20), "movieId": np.tile(names[100:], 120)}))
    assert ((told["low"] <= 3) & (told["high"] >= 3)).mean() > 0.95


def test_update_of_what_is_known(model: RatingModel) -> None:
    """Adding a user's known ratings again changes nothing."""
    again = model.update(RATINGS[RATINGS["userId"] == "1"])
    np.testing.assert_allclose(again.predict(PAIRS), model.predict(PAIRS), atol=0.002)


def test_public_has_spoken(model: RatingModel) -> None:
    """For an unknown user, the prediction of a rated movie follows its ratings rather than its catalogue entry."""
    means = RATINGS.astype({"movieId": str}).groupby("movieId")["rating"].mean()
    pairs = pd.DataFrame({"userId": "x", "movieId": means.index}, dtype="category")
    assert np.corrcoef(model.predict(pairs), means)[0, 1] > 0.97


def test_update(model: RatingModel) -> None:
    """A new user with a known one's ratings gets that taste, others do not; later ratings win; the old model stays."""
    pairs = PAIRS[PAIRS["userId"] == "1"]
    twin = pairs.assign(userId="twin").astype("category")
    before, public = model.predict(pairs), model.predict(twin)
    own = RATINGS[RATINGS["userId"] == "1"]
    updated = model.update(own.assign(userId="twin"))
    np.testing.assert_allclose(updated.predict(twin), before, atol=0.15)
    known, added = (updated.arrays["habits"][updated.users.get_loc(user)] for user in ("1", "twin"))
    assert added == pytest.approx(known, abs=1e-5) and added.all()
    assert np.abs(public - before).max() > 0.15
    np.testing.assert_array_equal(updated.predict(pairs), before)
    stranger = pairs.assign(userId="x").astype("category")
    np.testing.assert_array_equal(updated.predict(stranger), public)
    fond = model.update(own.assign(rating=5.0))
    assert fond.predict(pairs).mean() > before.mean() + 0.3
    np.testing.assert_array_equal(model.predict(pairs), before)


def test_catalogue_of_new_movies_alone(model: RatingModel) -> None:
    """Movies that left the catalogue are not recommended, but their ratings still count, also after an update."""
    new = CATALOGUE.loc[PAIRS["movieId"].cat.categories]
    left = model.with_catalogue(movie_vectors(model.features, new, EMBEDDINGS[: len(new)]))
    before = model.predict(PAIRS)
    np.testing.assert_allclose(left.predict(PAIRS), before, atol=1e-5)
    user = str(PAIRS["userId"].iloc[0])
    own = RATINGS[RATINGS["userId"] == user]
    np.testing.assert_allclose(left.update(own.iloc[:1]).predict(PAIRS), before, atol=0.002)
    added = pd.DataFrame({"userId": user, "rating": [5.0], "movieId": [new.index[0]]})
    assert left.update(added).arrays["habits"][left.users.get_loc(user), 0] == len(own) + 1
    assert set(left.recommend(user, 200, 0.9)["movieId"]) == set(new.index)


def test_nothing_to_recommend(model: RatingModel) -> None:
    """A user who has rated all movies is recommended none."""
    everything = pd.DataFrame({"userId": "1", "rating": 3.0, "movieId": CATALOGUE.index})
    assert model.update(everything).recommend("1", 5, 0.9).empty


def test_nothing_is_similar(model: RatingModel) -> None:
    """The only movie of a catalogue has no similar ones."""
    alone = model.with_catalogue(movie_vectors(model.features, CATALOGUE.iloc[[3]], EMBEDDINGS[[3]]))
    assert alone.similar(CATALOGUE.index[3], 5).empty


def test_corrected_catalogue(model: RatingModel) -> None:
    """A changed catalogue entry changes the predictions of unrated movies only."""
    other = CATALOGUE.sample(frac=1, random_state=0).set_index(CATALOGUE.index)
    changed = model.with_catalogue(movie_vectors(model.features, other, EMBEDDINGS))
    movies = pd.DataFrame({"userId": "1", "movieId": CATALOGUE.index}, dtype="category")
    same = np.isclose(model.predict(movies), changed.predict(movies), rtol=0, atol=1e-6)
    rated = CATALOGUE.index.isin(RATINGS["movieId"])
    assert same[rated].all() and same[~rated].mean() < 0.2


def test_movies_that_are_not_out_yet() -> None:
    """What all new movies have and no rated one, a status or placeholders for votes, does not distort their ratings."""
    new = CATALOGUE.index.isin(PAIRS["movieId"])
    plain = CATALOGUE.drop(columns="status")
    planned = plain.assign(status=np.where(new, "Planned", "Released"))
    unseen = (
        plain.assign(**{name: plain[name].mask(new, cell) for name in ("vote_average", "vote_count")})
        for cell in ("0", "-1", "1e9", None)
    )
    told, by_status, by_zeros, by_negatives, by_slips, by_gaps = (
        fit_model(RATINGS, catalogue, EMBEDDINGS, 0, str).predict(PAIRS) for catalogue in (plain, planned, *unseen)
    )
    assert np.abs(by_status - told).max() < 0.15
    assert all(np.abs(by_votes - by_gaps).max() < 0.15 for by_votes in (by_zeros, by_negatives, by_slips))


def test_rated_movies_owe_the_overview_nothing() -> None:
    """The overview contributes to the quality of unrated movies only; that of rated ones is the public's."""
    embeddings = np.random.default_rng(0).normal(size=EMBEDDINGS.shape).astype(np.float32)
    model = fit_model(RATINGS, CATALOGUE, embeddings, 0, str)
    movies = pd.DataFrame({"userId": "x", "movieId": CATALOGUE.index}, dtype="category")
    parts = pd.DataFrame(model.explain(movies)["why"].tolist(), index=CATALOGUE.index)
    rated = model.movies[: model.arrays["movie"].max() + 1]
    assert ((parts["overview"] == 0) == CATALOGUE.index.isin(rated)).all()
    biases = model.arrays["item_biases"][: len(rated)]
    assert np.corrcoef(parts["quality"][rated], biases)[0, 1] > 0.99


def test_update_by_unknown_movies(model: RatingModel) -> None:
    """Ratings of movies that neither the training nor the catalogue knows change no prediction."""
    ratings = pd.DataFrame({"userId": ["1", "new"], "rating": [5.0, 1.0], "movieId": ["none", "none"]})
    updated = model.update(ratings)
    assert updated.predict(PAIRS).tolist() == model.predict(PAIRS).tolist()


def test_too_few_movies() -> None:
    """A catalogue with too few rated movies is refused; the error counts them."""
    first = CATALOGUE.index.isin([RATINGS["movieId"].iloc[0]])
    with pytest.raises(TableError, match="holds 1 of the rated movies"):
        fit_model(RATINGS, CATALOGUE[first], EMBEDDINGS[first], 0, print)


def test_catalogue_without_columns() -> None:
    """With nothing known of movies the model is about as good as the user mean."""
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
    """Degenerate ratings still give a model whose predictions and intervals are numbers on the scale."""
    model = fit_model(ratings, CATALOGUE, EMBEDDINGS, 0, print)
    told = model.explain(PAIRS)
    assert 1 <= told["low"].min() <= told["rating"].min() and told["rating"].max() <= told["high"].max() <= 5
    assert not told.isna().any(axis=None)


def test_only_ratings_tell_nothing_of_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the trees' rows, taste and habits are 0 for a user's only rating, except for the number of ratings."""
    seen: list[Floats] = []

    def look(features: Floats, *others: Any) -> Any:
        seen.append(features)
        return correct(features, *others)

    monkeypatch.setattr("challenge.model.correct", look)
    once = RATINGS.drop_duplicates("movieId").head(40)
    once = once.assign(userId=[f"once {number}" for number in range(40)])
    ratings = pd.concat([RATINGS.head(1500), once]).astype({"userId": "category", "movieId": "category"})
    fit_model(ratings, CATALOGUE, EMBEDDINGS, 0, str)
    taste, _, activity, spread, selection, *_ = seen[0].T
    alone = activity == 1
    assert alone.sum() >= 40 and not np.array([taste, spread, selection])[:, alone].any()
    assert np.array([taste, spread, selection])[:, ~alone].all()


def test_boost_stays_out_of_fold() -> None:
    """Trees cannot predict pure noise in folds that they have not seen."""
    random = np.random.default_rng(1)
    features, target = random.normal(size=(600, 3)), random.normal(size=600)
    _, held_out = boost(features, target, np.arange(600) % 5, 0)
    assert np.mean((target - held_out) ** 2) > 0.95 * target.var()


def test_luck_grows_no_trees() -> None:
    """Pure noise grows hardly a tree, even if some number of trees does well by luck; a signal grows many."""
    random, grown = np.random.default_rng(0), []
    for _ in range(5):
        features, folds, noise = random.normal(size=(600, 20)), random.integers(0, 5, 600), random.normal(size=600)
        trees = [boost(features, target, folds, 0)[0] for target in (noise, noise + features[:, 0])]
        grown.append([text.count("\nTree=") for text in trees])
    nothing, something = np.median(grown, axis=0)
    assert nothing == 1 and something > 40 and np.mean(grown, axis=0)[0] < 5


def test_columns_together() -> None:
    """An interaction of two columns, which quality misses, is learned by the trees, also for unrated movies."""
    random = np.random.default_rng(0)
    dark, city = random.random((2, 160)) < 0.5
    effect = np.where(dark == city, 0.8, -0.8)
    # The last 40 movies have no ratings.
    user, movie = (random.random((60, 120)) < 0.3).nonzero()
    ratings = np.clip(np.round(3 + effect[movie] + random.normal(0, 0.7, len(user))), 1, 5)
    columns = {"tone": np.where(dark, "dark", "light"), "place": np.where(city, "city", "sea")}
    model = fit_world(user, movie, ratings, columns, np.full((160, 4), np.nan))
    errors = model.report["cross-validated mse"]
    assert errors["model"] < 0.7 < 1 < errors["quality and taste"]
    # It is not counted twice for rated movies.
    public = model.predict(pd.DataFrame({"userId": "x", "movieId": np.arange(160).astype(str)}, dtype="category"))
    off = np.square(public - 3 - effect)
    assert off[:120].mean() < 0.05 and off[120:].mean() < 0.1


def test_parts_are_what_they_say() -> None:
    """The effects of user, quality, taste and overview are each recovered under their name, with little rest."""
    random = np.random.default_rng(0)
    level, fondness = random.normal(0, 0.4, 100), random.choice([-0.6, 0.6], 100)
    good, funny = random.choice([-1, 1], (2, 200))
    told = random.normal(size=(200, 4))

    def effects(user: Indices, movie: Indices) -> dict[str, Floats]:
        quality, taste, overview = 0.5 * good[movie], fondness[user] * funny[movie], 0.4 * told[movie, 0]
        return {"user": level[user], "quality": quality, "taste": taste, "overview": overview}

    # The last 40 movies have no ratings.
    user, movie = (random.random((100, 160)) < 0.5).nonzero()
    ratings = np.clip(3 + sum(effects(user, movie).values()) + random.normal(0, 0.3, len(user)), 1, 5)
    columns = {"maker": np.where(good > 0, "able", "poor"), "kind": np.where(funny > 0, "fun", "fear")}
    model = fit_world(user, movie, ratings, columns, told)
    user, movie = (places.ravel() for places in np.mgrid[:100, 160:200])
    pairs = pd.DataFrame({"userId": user.astype(str), "movieId": movie.astype(str)}, dtype="category")
    parts = pd.DataFrame(model.explain(pairs)["why"].tolist())
    for name, effect in effects(user, movie).items():
        assert np.mean(np.square(parts[name] - effect)) < 0.15 * effect.var(), name
    assert parts["baseline"].tolist() == pytest.approx([ratings.mean()] * len(pairs))
    assert np.mean(np.square(parts["rest"])) < 0.01


def test_users_picks_count() -> None:
    """If the catalogue tells nothing, users who picked better movies are predicted higher ratings."""
    random = np.random.default_rng(0)
    quality, choosy = np.repeat([2.5, 4.0], 50), np.repeat([0.1, 0.9], 60)
    picks = random.random((120, 100)) < 0.4 * np.where(quality > 3, choosy[:, None], 1 - choosy[:, None])
    user, movie = picks.nonzero()
    ratings = np.clip(np.round(quality[movie] + random.normal(0, 0.7, len(user))), 1, 5)
    model = fit_world(user, movie, ratings, {}, np.full((100, 4), np.nan))
    errors = model.report["cross-validated mse"]
    assert errors["model"] < 1.02 * errors["user mean"] < 0.8 * errors["global mean"]
    strangers = pd.DataFrame({"userId": ["0", "119"], "movieId": "new"}, dtype="category")
    low, high = model.predict(strangers)
    assert low + 0.5 < high


def test_users_who_rate_all_movies_alike() -> None:
    """Users who give all movies the same rating are predicted almost without error."""
    ratings = RATINGS.assign(rating=RATINGS["userId"].cat.codes % 5 + 1.0)
    assert fit_model(ratings, CATALOGUE, EMBEDDINGS, 0, str).report["cross-validated mse"]["model"] < 1e-3
