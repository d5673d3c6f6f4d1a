"""Synthetic movies and ratings of any size, with a known best possible error.

``python -m challenge.tests.synthetic FOLDER`` writes the demo data.

Every rating is ``centre + user bias + movie quality + user taste . movie latent + noise``, rounded to half stars and
clipped to 1..5. A movie's latent vector comes from its genres, keywords and themes, and themes show only in the
overview. Its quality shows partly in the votes, date, runtime, companies, genres and themes, and partly nowhere.
"""

import argparse
import datetime
import json
import random
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtr

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

DEMO = {"users": 300, "movies": 400, "ratings": 20_000, "seed": 7}
COLD_SHARE = 0.2
LEAST_RATINGS = 15
CENTRE = 3.4
USER_SPREAD = 0.45
QUALITY_SPREAD = 0.5
TASTE_SPREADS = np.array([0.34, 0.16, 0.08])
RUNGS = np.arange(1.0, 5.5, 0.5)
# Number of genres in labelled sets: few, so that a small model learns them within seconds.
LABELLED = 5
NEWEST = datetime.date(2024, 12, 31).toordinal()


class Genre(NamedTuple):
    """A genre and the vocabulary of its movies."""

    number: int
    name: str
    label: str
    keywords: tuple[str, ...]
    heroes: tuple[str, ...]
    places: tuple[str, ...]
    goals: tuple[str, ...]
    moods: tuple[str, ...]


class Theme(NamedTuple):
    """A theme that shows in a movie's overview and nowhere else."""

    name: str
    sentences: tuple[str, ...]


class Cast(NamedTuple):
    """Each movie's shares of genres, keywords and themes, its company, and its age in years."""

    genres: Floats
    keywords: Floats
    themes: Floats
    company: Integers
    years: Floats


class Synthetic(NamedTuple):
    """Synthetic data: the four tables of the service, and what is known about them.

    Attributes
    ----------
    train : pandas.DataFrame
        Columns ``userId, rating, movieId``.
    test : pandas.DataFrame
        Columns ``userId, movieId``: movies without ratings in `train`, users with some.
    truth : pandas.DataFrame
        Column ``rating``: the true rating of each row of `test`.
    movies : pandas.DataFrame
        The catalogue, one row per movie.
    noise_floor : float
        Expected squared error of the best possible prediction of `test`, in squared stars.
    expected : numpy.ndarray
        That prediction for each row of `test`, in stars.
    """

    train: pd.DataFrame
    test: pd.DataFrame
    truth: pd.DataFrame
    movies: pd.DataFrame
    noise_floor: float
    expected: Floats


GENRES = (
    Genre(
        28,
        "Action",
        "action picture",
        ("car chases", "street fights", "hostages", "martial arts", "explosions", "bounty hunters", "sword duels"),
        ("a retired stunt driver", "a disgraced bodyguard", "a lone courier", "an ex-boxer with a bad knee"),
        ("the docks of a sleepless harbour", "a mountain border post", "a half-built skyscraper"),
        ("stop a convoy before dawn", "carry a witness across the city", "hold a bridge against an army for hire"),
        ("loud", "breathless", "bruising", "fast"),
    ),
    Genre(
        12,
        "Adventure",
        "adventure",
        ("lost maps", "jungle rivers", "buried treasure", "shipwrecks", "desert caravans", "polar ice", "old ruins"),
        ("a stubborn cartographer", "a young deckhand", "two rival explorers", "a museum guide"),
        ("an island that no chart shows", "the upper reaches of a great river", "a valley walled in by ice"),
        ("find a temple under the sand", "sail beyond the last lighthouse", "bring a stolen idol home"),
        ("sweeping", "sunlit", "daring", "restless"),
    ),
    Genre(
        16,
        "Animation",
        "animated film",
        ("talking animals", "living toys", "tiny robots", "flying machines", "singing trees", "clever mice"),
        ("a curious fox cub", "a clockwork rabbit", "a very small dragon", "a girl who draws doors"),
        ("a toy shop after closing time", "a village on a whale's back", "a forest that rearranges itself"),
        ("win the great kite race", "wake the sleeping moon", "teach a thundercloud some manners"),
        ("colourful", "gentle", "whimsical", "bright"),
    ),
    Genre(
        35,
        "Comedy",
        "comedy",
        ("mistaken identities", "office pranks", "awkward dinners", "family feuds", "bad dates", "road trips"),
        ("an unlucky wedding planner", "a hopeless waiter", "three idle brothers", "a teacher who cannot lie"),
        ("a seaside hotel out of season", "the dullest office in town", "an overbooked wedding hall"),
        ("hide a goat from the landlord", "pass for a famous surgeon", "win back a fortune lost at cards"),
        ("silly", "warm", "quick-witted", "cheerful"),
    ),
    Genre(
        80,
        "Crime",
        "crime story",
        ("bank heists", "police informers", "mob bosses", "forged papers", "prison breaks", "cold cases"),
        ("a tired detective", "a safe-cracker on parole", "a young prosecutor", "the bookkeeper of a gang"),
        ("a rain-soaked city precinct", "the back room of a pawn shop", "a courthouse full of secrets"),
        ("rob the vault that nobody has opened", "name the killer before the trial ends", "leave the mob alive"),
        ("tense", "brooding", "hard-boiled", "shadowy"),
    ),
    Genre(
        18,
        "Drama",
        "drama",
        ("family secrets", "long illness", "class divides", "estranged parents", "small-town gossip", "hard winters"),
        ("a widowed farmer", "a nurse on the night shift", "two sisters who no longer speak", "a failing pianist"),
        ("a mining town in decline", "a crowded apartment block", "a farmhouse at the end of the road"),
        ("keep the farm through one more winter", "tell the truth about the accident", "raise a brother's child"),
        ("quiet", "moving", "patient", "tender"),
    ),
    Genre(
        14,
        "Fantasy",
        "fantasy",
        ("ancient spells", "dragons", "enchanted swords", "hidden kingdoms", "witches", "prophecies"),
        ("an apprentice wizard", "an exiled queen", "a thief with a cursed ring", "the last giant"),
        ("a kingdom under a spell", "a tower without doors", "the market where dreams are sold"),
        ("break a curse older than the crown", "return a stolen name", "wake the stone guardians"),
        ("magical", "lavish", "strange", "mythic"),
    ),
    Genre(
        27,
        "Horror",
        "horror film",
        ("haunted houses", "ghosts", "missing children", "blood rituals", "deadly masks", "creatures in the dark"),
        ("a sceptical priest", "a babysitter", "a family new to the village", "a night watchman"),
        ("a house with one room too many", "a hospital closed for decades", "a fogbound village"),
        ("survive until sunrise", "find out what scratches behind the wall", "bury what will not stay buried"),
        ("chilling", "grim", "merciless", "ghostly"),
    ),
    Genre(
        10402,
        "Music",
        "musical film",
        ("jazz clubs", "rival bands", "stage fright", "lost recordings", "street choirs", "dance contests"),
        ("a washed-up singer", "a shy drummer", "a choir master", "a cellist on the run"),
        ("a smoky basement club", "a conservatory with thin walls", "a tour bus on its last wheels"),
        ("finish the song that broke up the band", "fill the hall just once", "win the contest with borrowed shoes"),
        ("rousing", "tuneful", "bittersweet", "swinging"),
    ),
    Genre(
        10749,
        "Romance",
        "romance",
        ("love letters", "chance meetings", "arranged marriages", "summer flings", "old flames", "missed trains"),
        ("a lonely translator", "a baker who writes poems", "a runaway bride", "a sailor home on leave"),
        ("a ferry between two islands", "a bookshop about to close", "a lakeside town in summer"),
        ("win a heart promised elsewhere", "answer a letter ten years late", "say yes before the train leaves"),
        ("tender", "wistful", "glowing", "close"),
    ),
    Genre(
        878,
        "Science Fiction",
        "science fiction film",
        ("space stations", "time loops", "rogue machines", "first contact", "cloned soldiers", "dying suns"),
        ("a stranded engineer", "an android with a borrowed memory", "a linguist", "the crew of a cargo ship"),
        ("a colony under a red sky", "a laboratory beneath the sea", "a station that fell silent"),
        ("shut down the mind that runs the ship", "decode a signal from a dead star", "undo a single day"),
        ("cerebral", "vast", "cold", "visionary"),
    ),
    Genre(
        10752,
        "War",
        "war film",
        ("trench raids", "resistance fighters", "field hospitals", "prisoners of war", "sieges", "deserters"),
        ("a frightened medic", "a radio operator", "a sergeant and his raw recruits", "a village schoolmaster"),
        ("a ruined town on the front line", "a beach under fire", "a convoy in winter seas"),
        ("bring one message through the lines", "hold the farm until relief comes", "hide forty children"),
        ("harrowing", "muddy", "stark", "sombre"),
    ),
)

THEMES = (
    Theme(
        "forgiveness",
        (
            "At its heart lies an old wrong, and the slow work of forgiving it.",
            "Only those who forgive will be free by the end.",
            "An apology, years too late, changes everything.",
        ),
    ),
    Theme(
        "revenge",
        (
            "Revenge is patient, and it has kept a list.",
            "Every step brings vengeance closer, and peace no nearer.",
            "Somebody came back to settle the score.",
        ),
    ),
    Theme(
        "friendship",
        (
            "Unlikely friends find that loyalty costs more than they thought.",
            "A friendship grows where none was wanted.",
            "Old friends are held together by a promise made as children.",
        ),
    ),
    Theme(
        "ambition",
        (
            "Ambition opens every door and empties every room behind it.",
            "Fame beckons, and the price of success keeps rising.",
            "Greed and glory turn partners into rivals.",
        ),
    ),
    Theme(
        "memory",
        (
            "Memories return in pieces, and not all of them are true.",
            "The past is told three times, never the same way.",
            "Something forgotten waits to be remembered.",
        ),
    ),
    Theme(
        "growing up",
        (
            "In the last summer of childhood, everyone grows up at once.",
            "A teenager learns that adults make it up as they go.",
            "School ends, innocence with it, and youth looks for a way out.",
        ),
    ),
    Theme(
        "justice",
        (
            "The law says one thing and justice another.",
            "An innocent man waits while honest people look away.",
            "Someone has to speak for those without a voice.",
        ),
    ),
    Theme(
        "survival",
        (
            "With food and hope running out, survival becomes the only rule.",
            "The cold, the hunger and the dark spare nobody.",
            "Not everyone will make it through the night.",
        ),
    ),
    Theme(
        "deception",
        (
            "Nothing is what it seems, and the last twist hides in plain sight.",
            "Lies pile up until even the liars lose count.",
            "Each answer turns out to be another deception.",
        ),
    ),
    Theme(
        "belonging",
        (
            "Far from home, strangers build a family of their own.",
            "An outsider looks for a place to belong.",
            "Home is a word that each of them spells differently.",
        ),
    ),
)

OPENINGS = (
    "{hero} must {goal} in {place}.",
    "In {place}, {hero} is asked to {goal}.",
    "With {first} closing in on {place}, {hero} has one chance to {goal}.",
    "Nobody in {place} expects {hero} to {goal}, least of all amid {first}.",
    "{hero} comes to {place} with a single purpose: to {goal}.",
)
MIDDLES = (
    "What begins with {first} soon turns into {second}, and {other} must choose a side.",
    "Between {first} and {second}, {other} learns what the others would rather hide.",
    "{other} joins in, knows all about {second}, and has a plan nobody trusts.",
    "There will be {first}, there will be {second}, and {other} will pay for both.",
    "Then {other} turns up, and so do {second} and a few old debts.",
)
EXTRAS = (
    "Along the way wait {third}.",
    "Rumours of {third} are true after all.",
    "Nobody warned them about {third}.",
)
CLOSINGS = (
    "A {mood} and {tone} {label}.",
    "A {mood} {label} with a {tone} heart.",
    "This {label} is {mood}, {tone} and hard to forget.",
)
TAGLINES = (
    "Beware of {first}.",
    "{first}. {second}. No way back.",
    "Some things are worse than {first}.",
    "This year, everybody will {goal}.",
    "Be {mood}. Be {tone}. Be there.",
)

TITLES = {
    "en": (
        ("The Silent", "Midnight", "A Distant", "The Seventh", "Broken", "The Last", "Paper", "Golden", "Northern")
        + ("Another", "My Brother's", "The Glass", "Hollow", "Seven Miles of", "Beyond the", "Waiting for the"),
        ("Harbour", "Promise", "Orchard", "Signal", "Winter", "Mirror", "Kingdom", "Passenger", "Letter", "Engine")
        + ("River", "Garden", "Crown", "Sky", "Bridge", "Stranger", "Parade", "Lighthouse", "Café", "Tide"),
    ),
    "fr": (
        ("L'été", "La forêt", "Le rêve", "La fenêtre", "Le garçon", "La soirée"),
        ("oublié·e", "d'à côté", "de Noël", "sans fin", "à l'étranger", "des âmes"),
    ),
    "es": (
        ("El niño", "La mañana", "El corazón", "La estación", "El sueño", "La canción"),
        ("perdida", "del otoño", "de Ángela", "sin dueño", "de cada día", "del león"),
    ),
    "de": (
        ("Die Brücke", "Der König", "Das Mädchen", "Die Straße", "Größe", "Frühling"),
        ("über dem Fluss", "für alle", "der Träume", "ohne Schlüssel", "im Süden", "und Verrat"),
    ),
    "ja": (
        ("夜の", "東京", "最後の", "青い", "遠い", "雨の"),
        ("手紙", "物語", "約束", "列車", "記憶", "庭"),
    ),
}
LANGUAGES = ("en", "fr", "es", "de", "ja")
LANGUAGE_SHARES = (0.82, 0.06, 0.05, 0.04, 0.03)
STATUSES = ("Released", "Post Production", "Rumored")
STATUS_SHARES = (0.96, 0.025, 0.015)
COMPANY_NAMES = ("Lantern", "Blue Heron", "Ostrava", "Kestrel", "Señorial", "Fjord & Söhne", "Tin Roof", "Meridian")
COMPANY_KINDS = ("Pictures", "Films", "Studio", "Entertainment")
COMPANIES = tuple(f"{name} {kind}" for name in COMPANY_NAMES for kind in COMPANY_KINDS)

GAPS = {
    "title": 0.003,
    "overview": 0.015,
    "tagline": 0.22,
    "genres": 0.01,
    "keywords": 0.03,
    "production_companies": 0.03,
    "release_date": 0.03,
    "runtime": 0.02,
    "budget": 0.05,
    "popularity": 0.01,
    "vote_average": 0.02,
    "vote_count": 0.02,
    "original_language": 0.01,
    "status": 0.01,
}
WHOLE_NUMBERS = ("budget", "runtime", "vote_count")


def standardised(values: Floats) -> Floats:
    """Standardise each column to mean 0 and standard deviation 1.

    Parameters
    ----------
    values : numpy.ndarray, shape (n,) or (n, columns)
        Any numbers.

    Returns
    -------
    numpy.ndarray, same shape
        Constant columns become zeros.
    """
    spread = values.std(axis=0)
    scaled: Floats = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return scaled


def shares(picked: NDArray[np.bool_]) -> Floats:
    """Turn each movie's kinds into equal shares that sum to 1.

    Parameters
    ----------
    picked : numpy.ndarray of bool, shape (movies, kinds)
        Which kinds each movie has.

    Returns
    -------
    numpy.ndarray, shape (movies, kinds)
        Rows that sum to 1, or to 0 where nothing is picked.
    """
    parts: Floats = picked / np.maximum(picked.sum(axis=1, keepdims=True), 1)
    return parts


def pick(rng: np.random.Generator, weights: Floats, counts: Integers) -> NDArray[np.bool_]:
    """Sample kinds without replacement, by weight, for all movies at once.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    weights : numpy.ndarray, shape (movies, kinds)
        How likely each kind is; one of weight 0 comes after all others.
    counts : numpy.ndarray of int, shape (movies,)
        Number of kinds that each movie gets.

    Returns
    -------
    numpy.ndarray of bool, shape (movies, kinds)
        True where a kind was picked.
    """
    waits = rng.exponential(size=weights.shape) / np.maximum(weights, 1e-9)
    order = waits.argsort(axis=1, kind="stable").argsort(axis=1, kind="stable")
    chosen: NDArray[np.bool_] = order < counts[:, None]
    return chosen


def draw_cast(rng: np.random.Generator, movies: int) -> Cast:
    """Draw genres, keywords, themes, companies and ages.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    movies : int
        Number of movies.

    Returns
    -------
    Cast
        One row per movie.
    """
    fame = np.linspace(1.6, 0.6, len(GENRES))[rng.permutation(len(GENRES))]
    genres = pick(rng, np.tile(fame, (movies, 1)), rng.choice([1, 2, 3], movies, p=[0.3, 0.45, 0.25]))
    owners = np.repeat(np.arange(len(GENRES)), [len(genre.keywords) for genre in GENRES])
    keyword_weights = np.where(genres[:, owners], 1.0, 0.02)
    keywords = pick(rng, keyword_weights, rng.choice([0, 2, 3, 4, 5, 6], movies, p=[0.03, 0.1, 0.27, 0.3, 0.2, 0.1]))
    themes = pick(rng, np.ones((movies, len(THEMES))), rng.choice([1, 2], movies, p=[0.55, 0.45]))
    company = rng.integers(len(COMPANIES), size=movies)
    years = 70.0 * rng.beta(0.9, 2.6, movies)
    return Cast(shares(genres), shares(keywords), shares(themes), company, years)


def movie_latents(rng: np.random.Generator, cast: Cast) -> Floats:
    """Place every movie in the space of tastes.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    cast : Cast
        As of `draw_cast`.

    Returns
    -------
    numpy.ndarray, shape (movies, dimensions)
        Mean 0 and standard deviation 1 in each dimension.
    """
    dimensions = len(TASTE_SPREADS)
    latent = np.zeros((len(cast.years), dimensions))
    for part, weight in ((cast.genres, 1.0), (cast.keywords, 0.45), (cast.themes, 0.45)):
        latent += weight * standardised(part @ rng.normal(size=(part.shape[1], dimensions)))
    return standardised(latent)


def draw_catalogue(rng: np.random.Generator, cast: Cast) -> tuple[pd.DataFrame, Floats, Floats]:
    """Draw the catalogue's numbers and the quality behind them.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    cast : Cast
        As of `draw_cast`.

    Returns
    -------
    table : pandas.DataFrame
        ``movieId`` and the numeric, date and category columns, one row per movie.
    quality : numpy.ndarray, shape (movies,)
        What each movie adds to its ratings, in stars.
    appeal : numpy.ndarray, shape (movies,)
        Weight of each movie in the draw of ratings.
    """
    movies = len(cast.years)
    minutes = np.clip(np.round(rng.normal(106.0, 17.0, movies)), 62, 220)
    craft, luck, buzz = rng.normal(size=(3, movies))
    effects = (
        (craft, 0.75),
        (cast.genres @ rng.normal(size=len(GENRES)), 0.25),
        (cast.themes @ rng.normal(size=len(THEMES)), 0.3),
        (rng.normal(size=len(COMPANIES))[cast.company], 0.2),
        (cast.years, 0.25),
        (-np.abs(minutes - 125.0), 0.2),
    )
    seen = standardised(np.sum([weight * standardised(values) for values, weight in effects], axis=0))
    fame = standardised(0.45 * seen + buzz)
    votes = np.round(np.exp(5.6 + 1.3 * fame + 0.3 * rng.normal(size=movies)) + 1.0)
    voted = 6.3 + 0.8 * seen + rng.normal(size=movies) * np.sqrt(0.03 + 2.0 / votes)
    budget = np.round(np.exp(16.6 + 0.6 * fame + 0.6 * rng.normal(size=movies)), -5)
    budget[rng.random(movies) < 0.25] = 0.0
    ages = np.round(cast.years * 365.25).astype(np.int64)
    table = pd.DataFrame(
        {
            "movieId": np.sort(rng.choice(10 * movies, movies, replace=False) + 1),
            "release_date": [datetime.date.fromordinal(NEWEST - int(age)).isoformat() for age in ages],
            "runtime": minutes,
            "budget": budget,
            "popularity": np.round(np.exp(2.6 + 0.9 * fame + 0.4 * rng.normal(size=movies)), 3),
            "vote_average": np.round(np.clip(voted, 1.0, 9.5), 1),
            "vote_count": votes,
            "original_language": rng.choice(LANGUAGES, movies, p=LANGUAGE_SHARES),
            "status": rng.choice(STATUSES, movies, p=STATUS_SHARES),
        }
    )
    quality = QUALITY_SPREAD * standardised(seen + 0.2 * luck)
    return table, quality, np.exp(0.8 * fame)


def capitalised(text: str) -> str:
    """Capitalise the first letter of a sentence."""
    return text[:1].upper() + text[1:]


def write_texts(chance: random.Random, genres: list[Genre], keywords: list[str], themes: list[Theme]) -> dict[str, str]:
    """Write one movie's overview and tagline.

    Parameters
    ----------
    chance : random.Random
        Source of randomness.
    genres : list of Genre
        At least one.
    keywords : list of str
        May be empty.
    themes : list of Theme
        At least one.

    Returns
    -------
    dict of str
        The keys are ``overview`` and ``tagline``.
    """
    lead = chance.choice(genres)
    side = chance.choice(genres)
    hero = chance.choice(lead.heroes)
    spare = [word for word in lead.keywords if word not in keywords]
    first, second, third = (keywords + chance.sample(spare, max(0, 3 - len(keywords))))[:3]
    mood, tone = chance.sample(lead.moods, 2)
    words = {
        "hero": hero,
        "other": chance.choice([name for name in side.heroes if name != hero]),
        "place": chance.choice(side.places),
        "goal": chance.choice(lead.goals),
        "first": first,
        "second": second,
        "third": third,
        "mood": mood,
        "tone": tone,
        "label": lead.label,
    }
    patterns = [chance.choice(OPENINGS), chance.choice(MIDDLES)]
    if len(keywords) > 2 and len(themes) == 1:
        patterns.append(chance.choice(EXTRAS))
    patterns += [chance.choice(theme.sentences) for theme in themes]
    if chance.random() < 0.7:
        patterns.append(chance.choice(CLOSINGS))
    overview = " ".join(capitalised(pattern.format(**words)) for pattern in patterns)
    tagline = ". ".join(capitalised(part) for part in chance.choice(TAGLINES).format(**words).split(". "))
    return {"overview": overview, "tagline": tagline}


def as_json(numbers: list[int], names: list[str]) -> str:
    """Format ids and names as a JSON list of the catalogue."""
    return json.dumps([{"id": number, "name": name} for number, name in zip(numbers, names, strict=True)])


def write_words(chance: random.Random, cast: Cast, languages: list[str]) -> pd.DataFrame:
    """Write all columns of text: titles, overviews, taglines and JSON lists.

    Parameters
    ----------
    chance : random.Random
        Source of randomness.
    cast : Cast
        As of `draw_cast`.
    languages : list of str
        Each movie's language, for its title.

    Returns
    -------
    pandas.DataFrame
        One row per movie.
    """
    vocabulary = [word for genre in GENRES for word in genre.keywords]
    rows = []
    for movie, language in enumerate(languages):
        genres = [GENRES[index] for index in np.flatnonzero(cast.genres[movie])]
        indexes = [int(index) for index in np.flatnonzero(cast.keywords[movie])]
        chance.shuffle(indexes)
        keywords = [vocabulary[index] for index in indexes]
        themes = [THEMES[index] for index in np.flatnonzero(cast.themes[movie])]
        houses = [int(cast.company[movie])]
        houses += [house for house in chance.sample(range(len(COMPANIES)), chance.randrange(3)) if house not in houses]
        row = {
            "title": (" " if language != "ja" else "").join(chance.choice(words) for words in TITLES[language]),
            "genres": as_json([genre.number for genre in genres], [genre.name for genre in genres]),
            "keywords": as_json([1000 + 7 * index for index in indexes], keywords),
            "production_companies": as_json([300 + house for house in houses], [COMPANIES[house] for house in houses]),
        }
        rows.append(row | write_texts(chance, genres, keywords, themes))
    return pd.DataFrame(rows)


def leave_gaps(rng: np.random.Generator, catalogue: pd.DataFrame) -> pd.DataFrame:
    """Empty some cells of every column but ``movieId``, at least one in each.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    catalogue : pandas.DataFrame
        One row per movie.

    Returns
    -------
    pandas.DataFrame
        The same columns, ordered as in `GAPS`, with gaps.
    """
    gapped = catalogue[["movieId", *GAPS]].copy()
    for column, share in GAPS.items():
        rows = rng.permutation(len(gapped))[: max(1, round(share * len(gapped)))]
        gapped.loc[rows, column] = np.nan
    return gapped


def draw_activity(rng: np.random.Generator, users: int, movies: int, ratings: int) -> Integers:
    """Draw the number of movies that each user rates; a few rate very many.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    users, movies, ratings : int
        Sizes; the numbers drawn add up to `ratings`.

    Returns
    -------
    numpy.ndarray of int, shape (users,)
        Ratings per user, from 15 (or the mean, if that is less) to three quarters of the movies.
    """
    most = max(1, 3 * movies // 4)
    if not users <= ratings <= users * most:
        raise ValueError(f"{users} users can rate {users} to {users * most} times, not {ratings} times")
    weights = rng.lognormal(0.0, 1.0, users)
    counts = np.full(users, min(LEAST_RATINGS, ratings // users, most), dtype=np.int64)
    while counts.sum() < ratings:
        open_weights = np.where(counts < most, weights, 0.0)
        counts += rng.multinomial(ratings - counts.sum(), open_weights / open_weights.sum())
        counts = np.minimum(counts, most)
    return counts


def draw_pairs(rng: np.random.Generator, counts: Integers, appeal: Floats) -> tuple[Integers, Integers]:
    """Draw who rates what, without repeats, in random order.

    Parameters
    ----------
    rng : numpy.random.Generator
        Source of randomness.
    counts : numpy.ndarray of int, shape (users,)
        Number of movies that each user rates.
    appeal : numpy.ndarray, shape (movies,)
        Weight of each movie.

    Returns
    -------
    user, movie : numpy.ndarray of int, shape (sum of counts,)
        Indices of the pairs' users and movies.
    """
    users = np.arange(len(counts))
    movies = len(appeal)
    keys = np.empty(0, dtype=np.int64)
    missing = counts
    flatness = 1.0
    while missing.any():
        # Repeats are dropped and drawn again, each time with less weight on appeal, so that this always ends soon.
        bounds = np.cumsum(appeal**flatness)
        drawn = np.searchsorted(bounds, rng.random(missing.sum()) * bounds[-1], side="right")
        keys = np.sort(np.concatenate([keys, np.repeat(users, missing) * movies + np.minimum(drawn, movies - 1)]))
        keys = keys[np.concatenate([[True], keys[1:] != keys[:-1]])]
        missing = counts - np.bincount(keys // movies, minlength=len(counts))
        flatness *= 0.8
    rng.shuffle(keys)
    return keys // movies, keys % movies


def rounded_moments(mean: Floats, spread: Floats) -> tuple[Floats, Floats]:
    """Compute the exact mean and variance of a rating after rounding and clipping.

    Parameters
    ----------
    mean, spread : numpy.ndarray, shape (rows,)
        Of the normal distribution of the rating before rounding, in stars.

    Returns
    -------
    expected : numpy.ndarray, shape (rows,)
        In stars.
    variance : numpy.ndarray, shape (rows,)
        In squared stars.
    """
    expected = np.full(len(mean), RUNGS[0])
    square = np.full(len(mean), RUNGS[0] ** 2)
    for lower, upper in zip(RUNGS[:-1], RUNGS[1:], strict=True):
        chance = ndtr((mean - (lower + upper) / 2.0) / spread)
        expected += (upper - lower) * chance
        square += (upper**2 - lower**2) * chance
    return expected, square - expected**2


def make(users: int, movies: int, ratings: int, seed: int, noise: float = 0.78) -> Synthetic:
    """Make synthetic data; the same arguments give the same data.

    Parameters
    ----------
    users : int
        Number of users who rate.
    movies : int
        Number of movies in the catalogue, at least 5; a fifth of them are test movies.
    ratings : int
        Number of ratings in train and test together; slightly fewer in very sparse data, as users without any in train
        have none in test either.
    seed : int
        Seed of every random choice.
    noise : float, default 0.78
        Standard deviation of a rating's noise before rounding, in stars. It differs from user to user; this is the root
        mean square over users.

    Returns
    -------
    Synthetic
        The tables and their noise floor.
    """
    streams = np.random.default_rng(seed).spawn(4)
    cast = draw_cast(streams[0], movies)
    latents = movie_latents(streams[0], cast)
    table, quality, appeal = draw_catalogue(streams[1], cast)
    words = write_words(random.Random(seed), cast, table["original_language"].tolist())
    catalogue = leave_gaps(streams[1], pd.concat([table, words], axis=1))

    user, movie = draw_pairs(streams[2], draw_activity(streams[2], users, movies, ratings), appeal)
    rng = streams[3]
    bias = CENTRE + USER_SPREAD * rng.normal(size=users)
    taste = TASTE_SPREADS * rng.normal(size=(users, len(TASTE_SPREADS)))
    care = np.exp(0.25 * rng.normal(size=users))
    spread = noise * (care / np.sqrt(np.mean(care**2)))[user]
    mean = bias[user] + quality[movie]
    for dimension in range(taste.shape[1]):
        mean += taste[user, dimension] * latents[movie, dimension]
    rating = np.clip(np.floor(2.0 * (mean + spread * rng.normal(size=len(user))) + 0.5) / 2.0, 1.0, 5.0)

    cold = np.zeros(movies, dtype=bool)
    cold[rng.permutation(movies)[: max(1, round(COLD_SHARE * movies))]] = True
    in_test = cold[movie]
    known = np.bincount(user[~in_test], minlength=users) > 0
    in_test_known = in_test & known[user]
    expected, variance = rounded_moments(mean[in_test_known], spread[in_test_known])
    numbers = catalogue["movieId"].to_numpy()
    rows = pd.DataFrame({"userId": user + 1, "rating": rating, "movieId": numbers[movie]})
    asked = rows[in_test_known].reset_index(drop=True)
    return Synthetic(
        train=rows[~in_test].reset_index(drop=True),
        test=asked[["userId", "movieId"]],
        truth=asked[["rating"]],
        movies=catalogue,
        noise_floor=float(variance.mean()),
        expected=expected,
    )


def make_labelled(movies: int, seed: int) -> pd.DataFrame:
    """Make a catalogue whose labels can be read off its overviews without error.

    Parameters
    ----------
    movies : int
        Number of movies.
    seed : int
        Seed of every random choice; the same arguments give the same catalogue.

    Returns
    -------
    pandas.DataFrame
        By ``movieId``: ``overview``; ``genres``, whose places it names, and ``keywords``, which it names, as lists;
        ``mood``, the genre of its last sentence; ``runtime``, 90 minutes and 20 more for each genre.
    """
    chance, rows = random.Random(seed), []
    for _ in range(movies):
        genres = chance.sample(GENRES[:LABELLED], chance.randint(1, 3))
        words = [chance.choice(genre.keywords) for genre in genres]
        last = chance.choice(GENRES[:LABELLED])
        sentences = [f"In {chance.choice(genre.places)} there are {word}." for genre, word in zip(genres, words)]
        sentences.append(f"A {chance.choice(last.moods)} {last.label}.")
        rows.append(
            {
                "overview": " ".join(sentences),
                "genres": as_json([genre.number for genre in genres], [genre.name for genre in genres]),
                "keywords": as_json(list(range(len(words))), words),
                "mood": last.name,
                "runtime": str(90 + 20 * len(genres)),
            }
        )
    return pd.DataFrame(rows, pd.Index([str(number) for number in range(movies)], name="movieId"))


def write(data: Synthetic, folder: Path) -> None:
    """Write the four CSV files that the service and `run.sh` read.

    Parameters
    ----------
    data : Synthetic
        What to write.
    folder : pathlib.Path
        Created if missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    catalogue = data.movies.astype({column: "Int64" for column in WHOLE_NUMBERS})
    files = {
        "df_train.csv": data.train,
        "df_test.csv": data.test,
        "df_test_ratings.csv": data.truth,
        "df_movies.csv": catalogue,
    }
    for name, frame in files.items():
        frame.to_csv(folder / name, index=False, lineterminator="\n", encoding="utf-8")


def summary(data: Synthetic) -> dict[str, float]:
    """Return sizes, and the test errors of the simplest predictions and of the best possible one.

    Parameters
    ----------
    data : Synthetic
        To summarise.

    Returns
    -------
    dict of float
        Counts, and mean squared errors in squared stars.
    """
    truth = data.truth["rating"].to_numpy()
    means = data.test["userId"].map(data.train.groupby("userId")["rating"].mean()).to_numpy()
    return {
        "train rows": len(data.train),
        "test rows": len(data.test),
        "users": data.train["userId"].nunique(),
        "train movies": data.train["movieId"].nunique(),
        "test movies": data.test["movieId"].nunique(),
        "global mean MSE": float(np.mean((truth - data.train["rating"].mean()) ** 2)),
        "user mean MSE": float(np.mean((truth - means) ** 2)),
        "noise floor MSE": data.noise_floor,
    }


def main() -> None:
    """Write data, by default the demo's, to the folder that the command names, and print a summary."""
    parser = argparse.ArgumentParser(description="Write the demo data.")
    parser.add_argument("folder", type=Path)
    for name, value in DEMO.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    options = vars(parser.parse_args())
    folder = options.pop("folder")
    data = make(**options)
    write(data, folder)
    for name, figure in summary(data).items():
        print(f"{name:<16} {figure:,.4f}" if name.endswith("MSE") else f"{name:<16} {figure:,.0f}")


if __name__ == "__main__":
    main()
