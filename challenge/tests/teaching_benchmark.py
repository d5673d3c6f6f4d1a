"""Measure what teaching an encoder is worth: Markdown tables of tasks, of parameters to train, and of rating errors.

Run ``python -m challenge.tests.teaching_benchmark tasks|policies|ratings DATA``; the folder holds ``df_movies.csv`` and
``df_train.csv``. Everything is validated on held-out movies, and only the ratings for training are used.
"""

import argparse
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.multiclass import OneVsRestClassifier
from threadpoolctl import threadpool_limits
from torch import Tensor, from_numpy
from transformers import AutoTokenizer

from challenge import teaching
from challenge.encoder import choose, encode
from challenge.model import fit_model
from challenge.tables import read_catalogue, read_pairs
from challenge.teaching import NONE, PLAN, SCORES, Plan, Task, read_labels, read_plan, teach, with_liked
from challenge.tests.conftest import ENCODER
from challenge.tests.make_encoder import TRAINING, make_model

Labels = list[Tensor]
SEED = 0
LIKED = 0.1
LORA = {"r": 8, "lora_alpha": 16, "target_modules": ["q_lin", "v_lin"]}
POLICIES: dict[str, dict[str, Any]] = {
    "heads only": {"trained": {0: "^heads"}},
    "a single head (genres)": {"trained": {0: "^heads.genres"}},
    "last layer": {"trained": {0: r"^heads|layer\.1\."}},
    "all but the embeddings": {"trained": {0: r"^heads|layer\."}},
    "everything": {"trained": {0: "."}},
    "staged: heads, layers, everything": {"trained": {0: "^heads", 1: r"^heads|layer\.", 2: "."}},
    "LoRA": {"trained": {0: "lora_|^heads"}, "lora": LORA},
}


class Watched(teaching.Unfreezing):
    """Sets what is trained, and records the seconds and loss of each epoch and the number of trained parameters."""

    seconds: list[float] = []
    losses: list[float] = []
    trained = 0

    def on_epoch_begin(self, arguments: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Start the clock, and count the trained parameters."""
        super().on_epoch_begin(arguments, state, control, model)
        if not round(state.epoch):
            Watched.seconds, Watched.losses = [], []
        Watched.trained = sum(part.numel() for part in model.parameters() if part.requires_grad)
        self.started = perf_counter()

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        """Stop the clock."""
        Watched.seconds.append(perf_counter() - self.started)

    def on_evaluate(self, *_: Any, metrics: dict[str, float], **__: Any) -> None:
        """Record the loss."""
        Watched.losses.append(metrics["eval_loss"])


def read(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Read a folder's catalogue and its ratings for training."""
    return read_catalogue(folder / "df_movies.csv"), read_pairs(folder / "df_train.csv", rated=True)


def plan_from(encoder: Path, epochs: int, **update: Any) -> Plan:
    """Return the default plan with the carried encoder's training options and with `liked` switched on."""
    plan = read_plan(PLAN)
    plan.tasks[2].weight = LIKED
    training = plan.training | TRAINING | {"num_train_epochs": epochs, "disable_tqdm": True}
    return plan.model_copy(update={"encoder": str(encoder), "layer_decay": 1.0, "training": training} | update)


def randomised(folder: Path) -> Path:
    """Write an encoder like the carried one, but with random weights."""
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    tokenizer.save_pretrained(folder)
    make_model(tokenizer.get_vocab(), SEED).save_pretrained(folder)
    return folder


def score(task: Task, true: NDArray[Any], logits: NDArray[Any]) -> float:
    """Score the logits of labelled rows."""
    return float(SCORES[task.kind](from_numpy(logits), from_numpy(true)))


def regress(wide: Any, true: NDArray[Any], rows: NDArray[Any], others: NDArray[Any]) -> NDArray[Any]:
    """Fit logistic regressions to the labels of some rows, and return the log odds of the others."""
    model = OneVsRestClassifier(LogisticRegression(C=10, max_iter=300)).fit(wide[rows], true[rows].astype(int))
    # A single label has two columns, the first for its absence.
    width = true.shape[1]
    odds = np.log(model.predict_proba(wide[others])[:, -width:].clip(1e-9, 1 - 1e-9))
    logits: NDArray[Any] = odds - np.log1p(-np.exp(odds))
    return logits


def of_words(task: Task, labels: Labels, texts: list[str], ids: list[list[int]]) -> tuple[float, float]:
    """Score the most frequent answer, and logistic regressions on tf-idf weights, on the plan's split."""
    taught, held_out = train_test_split(np.arange(len(texts)), test_size=0.1, random_state=SEED)
    if task.kind == "tokens":
        parts = [np.array(["", *map(str, row), ""]) for row in ids]
        texts = [f"this{a} before{b} after{c}" for row in parts for a, b, c in zip(row[1:], row, row[2:])]
        movie = np.repeat(np.arange(len(ids)), [len(row) for row in ids])
        taught, held_out = (np.flatnonzero(np.isin(movie, rows)) for rows in (taught, held_out))
    true = np.concatenate(labels)
    there = true[:, 0] != NONE
    taught, held_out = (rows[there[rows]] for rows in (taught, held_out))
    wide = TfidfVectorizer(sublinear_tf=True, min_df=2).fit([texts[row] for row in taught]).transform(texts)
    share = true[taught].mean(axis=0, keepdims=True)
    usual = np.repeat(share - (0.5 if task.kind == "tokens" else 0), len(held_out), axis=0)
    return score(task, true[held_out], usual), score(task, true[held_out], regress(wide, true, taught, held_out))


def tasks(data: Path, epochs: int, folder: Path) -> None:
    """Compare the most frequent answer, tf-idf, and encoders taught one task or all at once, from random weights."""
    catalogue, ratings = read(data)
    start = randomised(folder / "random")
    plan = plan_from(start, epochs)
    movies = with_liked(catalogue.dropna(subset="overview"), ratings)
    texts = movies["overview"].tolist()
    encoded = AutoTokenizer.from_pretrained(start)(texts, truncation=True, max_length=256, return_offsets_mapping=True)
    spans = encoded["offset_mapping"]
    counted = [of_words(task, read_labels(task, movies, spans), texts, encoded["input_ids"]) for task in plan.tasks]
    together = teach(catalogue, ratings, folder / "all", plan)
    losses = Watched.losses[:-1]
    print("| task | score | most frequent | tf-idf | alone | together |\n| --- | --- | --- | --- | --- | --- |")
    for task, words in zip(plan.tasks, counted):
        alone = teach(catalogue, ratings, folder / task.name, plan.model_copy(update={"tasks": [task]}))
        name = f"eval_{task.name}_score"
        print(
            f"| {task.name} | {task.kind} |", *(f"{x:.3f} |" for x in (*words, alone[name], together[name])), flush=True
        )
    print("\nCombined loss by epoch:", *(f"{loss:.3f}" for loss in losses))


def held_out_error(catalogue: pd.DataFrame, ratings: pd.DataFrame, hidden: Any, encoder: Path | None) -> float:
    """Return the mean squared error on the hidden movies' ratings, which neither encoder nor model has seen."""
    embeddings = vectors(catalogue, encoder)
    with threadpool_limits(limits=1, user_api="blas"):
        model = fit_model(ratings[~hidden].reset_index(drop=True), catalogue, embeddings, 0, str)
    predicted = model.predict(ratings[hidden])
    return float(np.mean(np.square(predicted - ratings.loc[hidden, "rating"])))


def vectors(catalogue: pd.DataFrame, encoder: Path | None) -> NDArray[np.float32]:
    """Return the embeddings of the overviews, or NaN without an encoder."""
    if encoder is None:
        return np.full((len(catalogue), 1), np.nan, np.float32)
    with tempfile.TemporaryDirectory() as cache:
        texts, chosen = catalogue["overview"].fillna("").tolist(), choose(str(encoder), 512, "fp32")
        return encode(texts, chosen, Path(cache) / "vectors", len(texts), dict)[0]


def hidden_movies(ratings: pd.DataFrame, fold: int) -> Any:
    """Return a mask of the ratings of a fold's movies."""
    movies = np.sort(ratings["movieId"].astype(str).unique())
    np.random.default_rng(SEED).shuffle(movies)
    return ratings["movieId"].isin(movies[fold::5])


def policies(data: Path, epochs: int, folder: Path) -> None:
    """Compare which parameters to train on half of the movies, starting from an encoder taught on the other half.

    The ratings of a fifth of the movies are hidden from every training; the errors are measured on them.
    """
    catalogue, ratings = read(data)
    hidden, start, new = hidden_movies(ratings, 0), folder / "start", catalogue.iloc[1::2]
    plan = plan_from(randomised(folder / "random"), 2 * epochs)
    teach(catalogue.iloc[::2], ratings[~hidden], start, plan.model_copy(update={"tasks": plan.tasks[:2]}))
    heading = "trained | parameters | share | s an epoch | GiB | genres | entities | liked | rating MSE"
    print(f"| {heading} |\n|{' --- |' * 9}")
    error = held_out_error(catalogue, ratings, hidden, start)
    print(f"| nothing | 0 | | | | | | | {error:.4f} |", flush=True)
    for name, update in POLICIES.items():
        # Resets the peak memory of this process.
        Path("/proc/self/clear_refs").write_text("5")
        report = teach(new, ratings[~hidden], folder / name, plan_from(start, epochs, **update))
        peak = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM"))
        total = sum(
            part.numel() for part in make_model(AutoTokenizer.from_pretrained(ENCODER).get_vocab(), 0).parameters()
        )
        scores = " | ".join(f"{report[f'eval_{task}_score']:.3f}" for task in ("genres", "entities", "liked"))
        cells = [name, f"{Watched.trained:,}", f"{Watched.trained / total:.1%}", f"{np.median(Watched.seconds):.0f}"]
        cells += [f"{int(peak.split()[1]) / 2**20:.2f}", scores]
        print(
            "|", " | ".join(cells), f"| {held_out_error(catalogue, ratings, hidden, folder / name):.4f} |", flush=True
        )


def errors(data: Path, epochs: int, folder: Path) -> None:
    """Compare rating errors on held-out movies without overviews and with several encoders, on the same folds.

    The first table has the means of five seeds of the model's own cross-validation: it may use all ratings, as its
    encoders have seen none. The second hides the ratings of each fold of movies from the model, and from the encoder
    that is taught `liked`.
    """
    catalogue, ratings = read(data)
    encoders = {"no overview": None, "random": randomised(folder / "random"), "carried": ENCODER}
    print("| encoder | cross-validated MSE |\n| --- | --- |")
    for name, encoder in encoders.items():
        with threadpool_limits(limits=1, user_api="blas"):
            embeddings = vectors(catalogue, encoder)
            reports = [fit_model(ratings, catalogue, embeddings, seed, str).report for seed in range(5)]
        mean = np.mean([report["cross-validated mse"]["model"] for report in reports])
        print(f"| {name} | {mean:.5f} |", flush=True)
    print("\n| fold | no overview | carried | taught `liked` as well |\n| --- | --- | --- | --- |")
    rows = []
    for fold in range(5):
        hidden = hidden_movies(ratings, fold)
        teach(catalogue, ratings[~hidden], folder / f"liked{fold}", plan_from(ENCODER, epochs))
        encoded_by = (None, ENCODER, folder / f"liked{fold}")
        rows.append([held_out_error(catalogue, ratings, hidden, encoder) for encoder in encoded_by])
        print(f"| {fold} |", *(f"{error:.4f} |" for error in rows[-1]), flush=True)
    print("| mean |", *(f"{error:.4f} |" for error in np.mean(rows, axis=0)))


def main() -> None:
    """Print the table that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", choices=["tasks", "policies", "ratings"])
    parser.add_argument("data", type=Path)
    parser.add_argument("--epochs", type=int, default=8)
    options = parser.parse_args()
    teaching.Unfreezing = Watched  # type: ignore[misc]
    with tempfile.TemporaryDirectory() as folder:
        {"tasks": tasks, "policies": policies, "ratings": errors}[options.table](
            options.data, options.epochs, Path(folder)
        )


if __name__ == "__main__":
    main()
