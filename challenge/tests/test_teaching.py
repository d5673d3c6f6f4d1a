"""Tests of teaching an encoder several tasks at once."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from sklearn.model_selection import train_test_split
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModel, AutoTokenizer, DataCollatorForLanguageModeling

from challenge import teaching
from challenge.encoder import Encoder, choose, encode
from challenge.settings import Settings
from challenge.tables import read_catalogue, read_pairs
from challenge.teaching import (
    NONE,
    PLAN,
    SCORES,
    MultiTaskEncoder,
    Plan,
    PlanError,
    Task,
    Unfreezing,
    collate,
    measure,
    read_labels,
    read_plan,
    teach,
)
from challenge.tests.conftest import DEMO, ENCODER, PROJECT
from challenge.tests.make_encoder import make_encoder
from challenge.tests.synthetic import make_labelled
from challenge.training import Service

TASKS = [
    Task(name="genres", kind="multi-label", columns=["genres"], weight=4),
    Task(name="entities", kind="tokens", columns=["keywords"], weight=2),
    Task(name="mood", kind="single-label", columns=["mood"], least=5),
    Task(name="runtime", kind="regression", columns=["runtime"]),
]
NOBODY = pd.DataFrame({"userId": [], "movieId": [], "rating": []})


def plan_of(encoder: Path, **update: Any) -> Plan:
    """Return a plan for the synthetic tasks; keyword arguments replace its defaults."""
    plan = read_plan(PLAN)
    training = plan.training | {"disable_tqdm": True, "learning_rate": 3e-3} | update.pop("training", {})
    return plan.model_copy(update={"encoder": str(encoder), "tasks": TASKS, "training": training} | update)


def write_plan(folder: Path, plan: Plan) -> None:
    """Write a plan as the file `plan.yaml`."""
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan.model_dump(mode="json")))


@pytest.fixture(scope="module")
def movies() -> pd.DataFrame:
    """Make a small labelled catalogue."""
    return make_labelled(movies=200, seed=3)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write an encoder with random weights whose vocabulary covers the labelled catalogues."""
    folder = tmp_path_factory.mktemp("tiny")
    make_encoder(folder, make_labelled(movies=500, seed=0)["overview"].tolist(), size=500)
    return folder


@pytest.fixture(scope="module")
def batch(movies: pd.DataFrame, tiny: Path) -> dict[str, Any]:
    """Collate a few texts of different lengths, with all their labels."""
    encoded = AutoTokenizer.from_pretrained(tiny)([*movies["overview"]], return_offsets_mapping=True)
    labels = {task.name: read_labels(task, movies, encoded["offset_mapping"]) for task in TASKS}
    rows = pd.DataFrame({"input_ids": encoded["input_ids"]} | labels)
    return collate([{str(name): cell for name, cell in row.items()} for row in rows.head(12).to_dict("records")])


def gradients(tiny: Path, batch: dict[str, Any], tasks: list[Task]) -> dict[str, bytes]:
    """Return the gradients of all parameters that have one, after one batch and from the same weights every time."""
    torch.manual_seed(0)
    outputs = {task.name: batch["labels"][task.name].shape[2] for task in TASKS}
    model = MultiTaskEncoder(AutoModel.from_pretrained(tiny), TASKS, outputs, None, 0).train()
    model.tasks = tasks
    torch.manual_seed(1)
    model(**batch)["loss"].backward()
    parts = model.named_parameters()
    return {name: part.grad.numpy().tobytes() for name, part in parts if part.grad is not None}


@pytest.mark.parametrize("silent", TASKS, ids=lambda task: task.name)
def test_silent_tasks_change_no_gradient(tiny: Path, batch: dict[str, Any], silent: Task) -> None:
    """A task of weight 0, one without labels and an absent one give the same gradients, bit for bit."""
    alone = gradients(tiny, batch, [task for task in TASKS if task != silent])
    weightless = [task.model_copy(update={"weight": 0.0}) if task == silent else task for task in TASKS]
    assert gradients(tiny, batch, weightless) == alone
    labels = batch["labels"] | {silent.name: torch.full_like(batch["labels"][silent.name], NONE)}
    assert gradients(tiny, batch | {"labels": labels}, TASKS) == alone
    assert alone != gradients(tiny, batch, TASKS)


def test_nothing_labelled(tiny: Path, batch: dict[str, Any]) -> None:
    """The loss of a batch without any label is 0 and can be backpropagated, and gives no gradient."""
    labels = {name: torch.full_like(label, NONE) for name, label in batch["labels"].items()}
    assert gradients(tiny, batch | {"labels": labels}, TASKS) == {}
    outputs = {name: label.shape[-1] for name, label in labels.items()}
    model = MultiTaskEncoder(AutoModel.from_pretrained(tiny), TASKS, outputs, None, masked=0.0)
    assert model(**batch | {"labels": labels})["loss"].item() == 0


def test_masked_words(tiny: Path, batch: dict[str, Any]) -> None:
    """Masked words are guessed in training only; neither padding nor the leading special token is masked."""
    mask = DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(tiny)).torch_mask_tokens
    hidden = mask(batch["input_ids"].clone())[1]
    assert 0.05 < (hidden != NONE).sum() / batch["attention_mask"].sum() < 0.3
    assert (batch["attention_mask"][hidden != NONE] == 1).all() and (hidden[:, 0] == NONE).all()
    model = MultiTaskEncoder(AutoModel.from_pretrained(tiny), [], {}, mask, masked=2.0)
    # Untrained guesses are no better than chance.
    assert model.train()(**batch)["loss"].item() == pytest.approx(2 * np.log(model.encoder.config.vocab_size), rel=0.1)
    assert model.eval()(**batch)["loss"].item() == 0


def test_guesses_of_masked_words(tiny: Path, batch: dict[str, Any]) -> None:
    """The encoder reads the masked text, and only masked words are guessed; weight 0 makes no head for them."""
    torch.manual_seed(0)
    ids, there = batch["input_ids"], batch["attention_mask"]
    seen, hidden = DataCollatorForLanguageModeling(AutoTokenizer.from_pretrained(tiny)).torch_mask_tokens(ids.clone())
    encoder = AutoModel.from_pretrained(tiny, dropout=0.0, attention_dropout=0.0)
    model = MultiTaskEncoder(encoder, [], {}, lambda _: (seen, hidden), masked=2.0).train()
    states = encoder(input_ids=seen, attention_mask=there).last_hidden_state
    logits = model.heads["masked"](states) @ encoder.embeddings.word_embeddings.weight.T
    surprise = -logits.log_softmax(2).gather(2, ids[..., None])[..., 0]
    torch.testing.assert_close(model(**batch)["loss"], 2 * surprise[hidden != NONE].mean())
    assert not MultiTaskEncoder(encoder, [], {}, None, masked=0.0).heads


def test_padding_changes_nothing(tiny: Path, batch: dict[str, Any]) -> None:
    """More padding changes no loss, no score and no logit of a labelled token."""
    padded = {name: torch.nn.functional.pad(batch[name], (0, 30)) for name in ("input_ids", "attention_mask")}
    entities = torch.nn.functional.pad(batch["labels"]["entities"], (0, 0, 0, 30), value=NONE)
    padded["labels"] = batch["labels"] | {"entities": entities}
    outputs = {task.name: batch["labels"][task.name].shape[2] for task in TASKS}
    torch.manual_seed(0)
    model = MultiTaskEncoder(AutoModel.from_pretrained(tiny), TASKS, outputs, None, 0).eval()
    with torch.inference_mode():
        plain, wide = model(**batch), model(**padded)
    torch.testing.assert_close(plain["loss"], wide["loss"])
    there, there_too = (labels[..., 0] != NONE for labels in (batch["labels"]["entities"], entities))
    assert 0 < there.sum() == there_too.sum() < batch["attention_mask"].sum()
    torch.testing.assert_close(plain["logits"]["entities"][there], wide["logits"]["entities"][there_too])
    answers = ((plain, batch), (wide, padded))
    scores = (measure(SCORES, "score", TASKS, answer["logits"], asked["labels"]) for answer, asked in answers)
    torch.testing.assert_close(*scores)


def test_labels(movies: pd.DataFrame) -> None:
    """Cells are read as labels: items, classes, standardised numbers, and the tokens within an item's name."""
    some = movies.copy()
    some.loc[some.index[0], ["genres", "mood", "runtime", "keywords"]] = np.nan
    some.loc[some.index[1], "mood"] = "Rare"
    some.loc[some.index[2], ["overview", "keywords"]] = [
        "Old Paris, a parish of PARIS Jr.",
        '["paris", "old paris", "a", "jr."]',
    ]
    spans: list[Any] = [[], [], [(0, 0), (0, 3), (4, 9), (11, 12), (13, 19), (23, 28), (29, 31)]]
    spans += [[(0, 0)]] * (len(some) - 3)
    genres, entities, mood, runtime = (read_labels(task, some, spans) for task in TASKS)
    names = sorted({item["name"].lower() for cell in some["genres"].dropna() for item in json.loads(cell)})
    assert genres[0].tolist() == [[NONE] * len(names)] and mood[0][0, 0] == mood[1][0, 0] == runtime[0][0, 0] == NONE
    for label, cell in zip(genres[1:], some["genres"][1:]):
        assert [names[place] for place in np.flatnonzero(label)] == sorted(
            item["name"].lower() for item in json.loads(cell)
        )
    assert mood[2].sum() == 1
    numbers = np.concatenate(runtime[1:])[:, 0]
    assert numbers.mean() == pytest.approx(0, abs=1e-4) and numbers.std() == pytest.approx(1, abs=1e-4)
    # "a" is too short to be looked for.
    assert entities[2][:, 0].tolist() == [NONE, 1, 1, 0, 0, 1, 1]


def test_scores() -> None:
    """Average precision counts all pairs of movie and item alike; F1 without true or predicted tokens is 0."""
    true = torch.tensor([[1.0, 0.0], [1.0, 0.0], [1.0, 1.0]])
    logits = torch.tensor([[4.0, 5.0], [3.0, 0.0], [2.0, 1.0]])
    # The true pairs have the ranks 2, 3, 4 and 5 of 6.
    assert SCORES["multi-label"](logits, true) == pytest.approx((1 / 2 + 2 / 3 + 3 / 4 + 4 / 5) / 4)
    assert SCORES["tokens"](-logits[:, :1], torch.zeros(3, 1)) == 0
    assert SCORES["single-label"](logits, true) == pytest.approx(2 / 3)


def test_what_the_catalogue_lacks(movies: pd.DataFrame) -> None:
    """A task whose column is missing, or that too few movies have labels for, is refused with a reason."""
    spans = [[(0, 0)]] * len(movies)
    with pytest.raises(ValueError, match="0 movies"):
        read_labels(Task(name="cast", kind="tokens", columns=["cast"]), movies, spans)
    with pytest.raises(ValueError, match="0 movies"):
        read_labels(Task(name="mood", kind="regression", columns=["mood"]), movies, spans)
    with pytest.raises(ValueError, match="200 movies .* fewer than 201"):
        read_labels(Task(name="titles", kind="multi-label", columns=["overview"], least=201), movies, spans)
    enough = Task(name="runtime", kind="regression", columns=["runtime"], least=200)
    assert len(read_labels(enough, movies, spans)) == 200


def test_a_value_is_all_of_a_cell(movies: pd.DataFrame) -> None:
    """A single label is the whole cell, line breaks included, and an empty cell has none."""
    moods: list[Any] = ["glad\nand more", "sad", "glad", None] * 50
    cells = movies.assign(mood=moods)
    labels = read_labels(Task(name="mood", kind="single-label", columns=["mood"]), cells, [[]] * len(cells))
    assert [label[0].tolist() for label in labels[:4]] == [[0, 1, 0], [0, 0, 1], [1, 0, 0], [NONE] * 3]


def test_columns_that_are_not_read(movies: pd.DataFrame) -> None:
    """A list or a value is read from the first column only, so a movie with just the second has no label."""
    cells = movies.assign(genres=["", '["Drama"]'] * 100)
    for kind in ("multi-label", "single-label", "regression"):
        column = "runtime" if kind == "regression" else "genres"
        task = Task(name="first", kind=kind, columns=[column, "overview"])
        labels = read_labels(task, cells.assign(runtime=["", "90"] * 100), [[]] * len(cells))
        assert [label.flatten()[0].item() == NONE for label in labels] == [True, False] * 100


def test_tokens_of_several_columns(movies: pd.DataFrame) -> None:
    """Tokens are looked for in all columns of their task, whichever of them a movie has."""
    cells = movies.assign(overview="Rome", keywords="", cast=["Rome", ""] * 100)
    task = Task(name="entities", kind="tokens", columns=["keywords", "cast"])
    labels = read_labels(task, cells, [[(0, 0), (0, 4)]] * len(cells))
    assert [label.flatten().tolist() for label in labels] == [[NONE, 1], [NONE, NONE]] * 100


def test_an_item_that_is_there_twice(movies: pd.DataFrame) -> None:
    """An item that a cell lists twice counts once."""
    labels = read_labels(TASKS[0], movies.assign(genres='["Drama", "Drama"]'), [[]] * len(movies))
    assert labels[0].tolist() == [[1.0]]


def test_liked() -> None:
    """A movie is liked if users on average rate it above their own means, not at them; unrated, it has no label."""
    rows = [("a", "1", 5), ("a", "2", 4), ("b", "1", 2), ("b", "2", 1), ("b", "3", 3), ("c", "4", 5)]
    ratings = pd.DataFrame(rows, columns=["userId", "movieId", "rating"]).astype({"movieId": "category"})
    catalogue = pd.DataFrame(index=pd.Index([*"12345"]))
    liked = teaching.with_liked(catalogue, ratings)["liked"]
    assert liked[:4].tolist() == ["True", "False", "True", "False"] and pd.isna(liked["5"])


@pytest.mark.parametrize(
    ("plan", "told"),
    [
        (PLAN.read_text("utf-8") + "\nepochs: 3", "epochs"),
        ("[1]", "list"),
        ("tasks: {", "line 1"),
        (PLAN.read_text("utf-8") + "\nheld_out: 2.5", "held_out"),
        (PLAN.read_text("utf-8") + "\nheld_out: 0", "held_out"),
        (PLAN.read_text("utf-8") + "\nmax_tokens: 1024", "max_tokens"),
        (PLAN.read_text("utf-8") + "\nmax_tokens: 7", "max_tokens"),
        (PLAN.read_text("utf-8") + "\ntrained: {0: (}", "trained.*regular expression"),
        (PLAN.read_text("utf-8") + "\ntrained: {}", "trained"),
        (PLAN.read_text("utf-8") + "\ntraining: {epochs: 3}", "epochs"),
        (PLAN.read_text("utf-8") + "\nlora: {rank: 8}", "rank"),
        (PLAN.read_text("utf-8") + "\nmasked: -1", "masked"),
        (PLAN.read_text("utf-8") + "\nlayer_decay: 0", "layer_decay"),
        (PLAN.read_text("utf-8") + "\npatience: 0", "patience"),
        (PLAN.read_text("utf-8").replace("weight: 1}", "weight: -1}"), "tasks.0.weight"),
        (PLAN.read_text("utf-8").replace("weight: 1}", "least: 0}"), "tasks.0.least"),
        (PLAN.read_text("utf-8").replace("name: genres", "name: a.b"), "tasks.0.name"),
        (PLAN.read_text("utf-8").replace("name: genres", "name: liked"), "tasks: the name 'liked' is taken"),
        (PLAN.read_text("utf-8").replace("name: genres", "name: masked"), "tasks: the name 'masked' is taken"),
        (PLAN.read_text("utf-8").replace("name: genres", "name: training"), "tasks: the name 'training' is taken"),
    ],
)
def test_bad_plan(tmp_path: Path, plan: str, told: str) -> None:
    """A plan that cannot be used is refused, and the error names the file and what is wrong."""
    (tmp_path / "plan.yaml").write_text(plan)
    with pytest.raises(PlanError, match=rf"(?s)plan\.yaml.*{told}"):
        read_plan(tmp_path / "plan.yaml")


def test_numbers_of_a_plan(tmp_path: Path) -> None:
    """A number without a point, such as 5e-5, which YAML reads as a text, is converted; other options stay the same."""
    options = {"learning_rate": "5e-5", "num_train_epochs": 3, "seed": 1, "eval_strategy": "epoch", "fp16": False}
    plan = yaml.safe_load(PLAN.read_text("utf-8")) | {"training": options, "lora": {"lora_dropout": "1e-1"}}
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(plan, sort_keys=False))
    read = read_plan(tmp_path / "plan.yaml")
    assert read.lora == {"lora_dropout": 0.1} and repr(read.training) == repr(options | {"learning_rate": 5e-05})


def test_plan_that_is_gone(tmp_path: Path) -> None:
    """A plan that was moved away or replaced by a folder is refused, and the error names it."""
    for path in (tmp_path, tmp_path / "gone.yaml"):
        with pytest.raises(PlanError, match=path.name):
            read_plan(path)


def test_command_that_cannot(tmp_path: Path) -> None:
    """The command ends with a message, not a traceback, if a table is missing or the encoder cannot be loaded."""
    (tmp_path / "movies.csv").write_text("movieId,overview\n1,A dog.\n")
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n1,1,5\n")
    for movies, ratings, told in [("no.csv", "ratings.csv", "no.csv"), ("movies.csv", "no.csv", "no.csv")]:
        with pytest.raises(SystemExit, match=f"^challenge.teaching: .*{told}.*$"):
            teaching.main(tmp_path / movies, tmp_path / ratings, tmp_path / "out")
    (tmp_path / "plan.yaml").write_text(yaml.safe_dump(yaml.safe_load(PLAN.read_text("utf-8")) | {"encoder": "."}))
    with pytest.raises(SystemExit, match="^challenge.teaching: the encoder"):
        teaching.main(tmp_path / "movies.csv", tmp_path / "ratings.csv", tmp_path / "out", tmp_path / "plan.yaml")


@pytest.mark.parametrize("masked", [0, 1])
def test_nothing_to_learn(
    movies: pd.DataFrame, tiny: Path, tmp_path: Path, masked: float, caplog: pytest.LogCaptureFixture
) -> None:
    """A plan without a task to learn is refused, even with masked words: they alone give no validation loss."""
    tasks = [TASKS[0].model_copy(update={"least": 999}), TASKS[1].model_copy(update={"weight": 0})]
    plan = read_plan(PLAN, encoder=str(tiny)).model_copy(update={"tasks": tasks, "masked": masked})
    ratings = pd.DataFrame({"userId": ["1"], "movieId": ["1"], "rating": [5.0]})
    with pytest.raises(PlanError, match="tasks: none .* 200 movies"):
        teach(movies, ratings, tmp_path, plan)
    assert [text[:27] for text in caplog.messages] == ["task 'genres' is left out: "]
    with pytest.raises(PlanError, match="tasks: none .* 0 movies with an overview"):
        teach(movies.assign(overview=None), ratings, tmp_path, plan_of(tiny))


@pytest.mark.parametrize(
    ("first", "epoch", "expected"),
    [
        (0, 0, {"heads"}),
        (0, 1.0000001, {"heads", "encoder.transformer.layer.1"}),
        (0, 5, {"heads", "encoder"}),
        (1, 0, {"heads"}),
        (2, 3, {"heads", "encoder"}),
    ],
)
@pytest.mark.parametrize("begin", ["on_train_begin", "on_epoch_begin"])
def test_unfreezing(tiny: Path, begin: str, first: int, epoch: float, expected: set[str]) -> None:
    """Each epoch, and a training that has none left, unfreezes what the pattern in force finds, and nothing else."""
    model = MultiTaskEncoder(AutoModel.from_pretrained(tiny), TASKS[:1], {"genres": 3}, None, 0)
    state = type("State", (), {"epoch": epoch})()
    patterns = {first: re.compile("^heads"), first + 1: re.compile(r"^heads|layer\.1\."), 3: re.compile(".")}
    getattr(Unfreezing(patterns), begin)(None, state, None, model)
    trained = {name for name, part in model.named_parameters() if part.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if name.startswith(tuple(expected))}


def test_rates_fall_with_depth(tiny: Path) -> None:
    """The heads learn at the full rate, each layer at a fraction of the rate above it, the embeddings slowest."""
    plan = plan_of(tiny, layer_decay=0.5)
    model = MultiTaskEncoder(AutoModel.from_pretrained(tiny), TASKS[:1], {"genres": 3}, None, 0)
    arguments = type("Arguments", (), {"learning_rate": 0.8, "weight_decay": 0.1})()
    groups = teaching.optimizer(model, plan, arguments).param_groups
    assert {group["weight_decay"] for group in groups} == {0.1}
    rates = {part: group["lr"] for group in groups for part in group["params"]}
    parts = dict(model.named_parameters())
    assert {*parts.values()} == {*rates}
    first, second = (f"encoder.transformer.layer.{layer}.attention.q_lin.weight" for layer in (0, 1))
    names = ["encoder.embeddings.word_embeddings.weight", first, second, "heads.genres.weight"]
    assert [rates[parts[name]] for name in names] == pytest.approx([0.1, 0.2, 0.4, 0.8])


def test_learns_from_nothing(tiny: Path, tmp_path: Path) -> None:
    """All kinds of tasks are learned together from random weights; the folder can be loaded as an encoder."""
    movies = make_labelled(movies=600, seed=1)
    training = {"num_train_epochs": 8, "per_device_train_batch_size": 8}
    figures = teach(movies, NOBODY, tmp_path, plan_of(tiny, training=training, layer_decay=1.0, held_out=0.15))
    assert min(figures[f"eval_{task.name}_score"] for task in TASKS) >= 0.95, figures
    assert not list(tmp_path.glob("training/checkpoint-*"))
    (runs,) = tmp_path.glob("training/runs/*")
    log = EventAccumulator(str(runs)).Reload()
    tags = {f"{split}/{task.name}_loss" for split in ("train", "eval") for task in TASKS}
    assert tags | {f"eval/{task.name}_score" for task in TASKS} < set(log.Tags()["scalars"])
    parts = np.sum(
        [[task.weight * point.value for point in log.Scalars(f"train/{task.name}_loss")] for task in TASKS], axis=0
    )
    whole = [point.value for point in log.Scalars("train/loss")]
    np.testing.assert_allclose(parts, whole, rtol=0.01)
    assert len(whole) == 8
    texts = movies["overview"].tolist()
    chosen = (choose(str(folder), 512, "fp32") for folder in (tiny, tmp_path))
    before, after = (encode(texts, encoder, tmp_path / "cache", 10_000, dict)[0] for encoder in chosen)
    assert before.shape == after.shape and not np.allclose(before, after, atol=0.01)


# transformers itself uses an attribute that it has deprecated.
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_lora(movies: pd.DataFrame, tiny: Path, tmp_path: Path) -> None:
    """Of the encoder only low-rank changes are learned; merging them into the weights keeps the vectors."""
    tokens = AutoTokenizer.from_pretrained(tiny)(movies["overview"].tolist()[:8], padding=True, return_tensors="pt")
    options = {"r": 4, "lora_alpha": 8, "target_modules": ["q_lin", "v_lin"]}
    model = get_peft_model(AutoModel.from_pretrained(tiny), LoraConfig(**options)).eval()
    with torch.inference_mode():
        for name, part in model.named_parameters():
            if "lora_B" in name:
                part.normal_(std=0.1)
        apart = model(**tokens).last_hidden_state
        together = model.merge_and_unload()(**tokens).last_hidden_state
    torch.testing.assert_close(apart, together, atol=1e-5, rtol=1e-4)
    plan = plan_of(tiny, lora=options, trained={0: "lora_|^heads"}, training={"num_train_epochs": 1})
    figures = teach(movies, NOBODY, tmp_path, plan)
    old, new = (AutoModel.from_pretrained(folder).state_dict() for folder in (tiny, tmp_path))
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed == {name for name in old if name.endswith(("q_lin.weight", "v_lin.weight"))}
    assert figures["trained_parameters"] < 0.1 * sum(part.numel() for part in old.values())


def test_killed_in_an_epoch(movies: pd.DataFrame, tiny: Path, tmp_path: Path) -> None:
    """A training killed in the middle of an epoch can be run again, and ends like an uninterrupted one."""
    plan = plan_of(tiny, training={"num_train_epochs": 3, "learning_rate": 1e-3})
    movies.to_csv(tmp_path / "movies.csv")
    pd.DataFrame({"userId": [1, 1], "movieId": [0, 1], "rating": [2, 4]}).to_csv(tmp_path / "ratings.csv")
    write_plan(tmp_path, plan)
    files = ["movies.csv", "ratings.csv", "killed", "--plan", "plan.yaml"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    killed = subprocess.Popen([sys.executable, "-m", "challenge.teaching", *files], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("killed/training/checkpoint-*/trainer_state.json")):
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    ratings = read_pairs(tmp_path / "ratings.csv", rated=True)
    catalogue = read_catalogue(tmp_path / "movies.csv")
    whole, resumed = (teach(catalogue, ratings, tmp_path / name, plan) for name in ("whole", "killed"))
    assert resumed["epoch"] == whole["epoch"] == 3
    assert resumed["eval_loss"] == pytest.approx(whole["eval_loss"], rel=0.02)


def test_goes_on_where_it_was(
    movies: pd.DataFrame, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interrupted training resumes at the epoch it was in; earlier epochs without a better loss still count."""
    plan, begun = plan_of(tiny, patience=2, training={"num_train_epochs": 5, "learning_rate": 0.0}), []
    whole, begin = teach(movies, NOBODY, tmp_path / "whole", plan), Unfreezing.on_epoch_begin

    def killed_once(self: Unfreezing, arguments: Any, state: Any, control: Any, model: Any, **more: Any) -> None:
        begin(self, arguments, state, control, model, **more)
        begun.append(round(state.epoch))
        assert begun != [0, 1, 2]

    monkeypatch.setattr(Unfreezing, "on_epoch_begin", killed_once)
    with pytest.raises(AssertionError):
        teach(movies, NOBODY, tmp_path / "killed", plan)
    assert teach(movies, NOBODY, tmp_path / "killed", plan)["epoch"] == whole["epoch"] == 3
    assert begun == [0, 1, 2, 2]


def test_what_is_read(movies: pd.DataFrame, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The plan sets how many tokens of an overview are read, and how many movies are held out."""
    parts: list[list[dict[str, Any]]] = []

    def watched(rows: Any, **how: Any) -> Any:
        parts.extend(train_test_split(rows, **how))
        return parts

    monkeypatch.setattr(teaching, "train_test_split", watched)
    some = movies.assign(overview=movies["overview"].where(movies.index != movies.index[0], "the dog " * 500))
    teach(some, NOBODY, tmp_path, plan_of(tiny, max_tokens=16, held_out=0.1, training={"max_steps": 1}))
    assert [len(part) for part in parts] == [180, 20]
    assert max(len(row[name]) for part in parts for row in part for name in ("input_ids", "entities")) == 16


def test_same_seed(movies: pd.DataFrame, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command prints the report, whose loss depends on the seed, not on what was drawn before."""
    movies.to_csv(tmp_path / "movies.csv")
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating\n1,1,5\n")
    losses: list[str] = []
    for run, seed in enumerate([0, 0, 1]):
        plan = plan_of(tiny, training={"max_steps": 2, "seed": seed})
        write_plan(tmp_path, plan)
        torch.manual_seed(run)
        teaching.main(*(tmp_path / name for name in ("movies.csv", "ratings.csv", str(run), "plan.yaml")))
        losses += re.findall(r"^eval_loss: (\S+)$", capsys.readouterr().out, re.MULTILINE)
    first, second, other = losses
    assert first == second != other


def test_without_a_bar(movies: pd.DataFrame, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a progress bar, as with a log of JSON, nothing is printed; TensorBoard still gets the losses."""
    teach(movies, NOBODY, tmp_path, plan_of(tiny, training={"max_steps": 2, "disable_tqdm": True}))
    assert capsys.readouterr().out == ""
    parts = [EventAccumulator(str(path)).Reload().Tags()["scalars"] for path in tmp_path.rglob("events.*")]
    assert "eval/genres_loss" in sum(parts, [])


def test_first_stage_of_a_training(tmp_path: Path) -> None:
    """With a plan set, the service first teaches its encoder, reports all tasks, and predicts with the result."""
    ratings = read_pairs(DEMO / "df_train.csv", rated=True).head(2_000)
    (tmp_path / "df_movies.csv").write_text((DEMO / "df_movies.csv").read_text("utf-8"), "utf-8")
    plan = read_plan(PLAN)
    plan.training.update({"max_steps": 2, "disable_tqdm": True})
    write_plan(tmp_path, plan)
    settings = Settings(
        CHALLENGE_CATALOGUE=tmp_path / "df_movies.csv",
        CHALLENGE_MODELS=tmp_path / "models",
        CHALLENGE_ENCODER=str(ENCODER),
    )
    service = Service(settings.model_copy(update={"teach": tmp_path / "plan.yaml"}))
    report = service.train(ratings)[1].result()
    assert {f"eval_{task.name}_score" for task in plan.tasks} <= set(report["teaching"])
    assert Path(report["encoder"]["name"]).parent == tmp_path / "models"
    pairs = ratings.head(5)
    predicted = service.serving().predict(pairs)
    assert np.isfinite(predicted).all()
    # A later service, whose settings name no plan and another encoder, reads a new catalogue by the model's own.
    with (tmp_path / "df_movies.csv").open("a", encoding="utf-8") as file:
        file.write("\n")
    cache = tmp_path / "models" / "embeddings.sqlite"
    cache.unlink()
    assert Service(settings).serving().predict(pairs).tolist() == predicted.tolist()
    overviews = read_catalogue(tmp_path / "df_movies.csv")["overview"]
    assert encode(overviews, Encoder(**report["encoder"]), cache, 10**6)[1] == 0
