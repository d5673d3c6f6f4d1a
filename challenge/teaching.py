"""Teach an encoder the catalogue: several tasks at once, each with a small head on one shared DistilBERT.

Run ``python -m challenge.teaching CATALOGUE RATINGS FOLDER``, then set `CHALLENGE_ENCODER` to the folder. The plan,
`teaching.yaml`, says what is taught and how; `teaching.md` says what to train when.
"""

import re
import shutil
from pathlib import Path
from typing import Annotated, Any, Literal

import pandas as pd
import torch
import transformers
import typer
import yaml
from peft import LoraConfig, get_peft_model
from pydantic import BaseModel, Field, StrictBool, StrictInt
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.metrics import average_precision_score, f1_score, r2_score
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from challenge.encoder import choose, load, pool
from challenge.features import as_numbers, rescale, tokens
from challenge.settings import FIXED, ChallengeError, logger
from challenge.tables import read_catalogue, read_pairs

PLAN = Path(__file__).with_suffix(".yaml")
# The labels in a cell: the items of its list, or all of it as one value; none in an empty cell.
ITEMS = {"multi-label": tokens, "single-label": re.compile(".+", re.DOTALL).findall}
# YAML reads 5e-5 as a string.
Options = dict[str, Annotated[StrictBool | StrictInt | float | Any, Field(union_mode="left_to_right")]]
# Stands where there is no label.
NONE = -100.0
BINARY, CHOICE = nn.functional.binary_cross_entropy_with_logits, nn.functional.cross_entropy
LOSSES = {"multi-label": BINARY, "single-label": CHOICE, "regression": nn.functional.mse_loss, "tokens": BINARY}
# Average precision over all pairs of a movie and an item needs no threshold: it can tell rankings apart even while no
# probability exceeds one half.
SCORES = {
    "multi-label": lambda logits, true: average_precision_score(true, logits, average="micro"),
    "single-label": lambda logits, true: (true.argmax(1) == logits.argmax(1)).float().mean(),
    "regression": lambda logits, true: r2_score(true, logits),
    "tokens": lambda logits, true: f1_score(true, logits > 0, zero_division=0),
}


class PlanError(ChallengeError):
    """A plan that cannot be used; the message names the setting."""


class Task(BaseModel, extra="forbid"):
    """A task to learn.

    Attributes
    ----------
    name : str
        Of the task and its head, one word; no two have the same.
    kind : str
        ``multi-label``: the items of a movie's list; ``single-label``: its value; ``regression``: its number,
        standardised; ``tokens``: the tokens of its overview that belong to one of its items (distant labels, Mintz et
        al. 2009, https://aclanthology.org/P09-1113).
    columns : list of str
        Of the catalogue, or ``liked``, see `with_liked`. Only ``tokens`` reads more than the first.
    weight : float
        Of its loss in the sum.
    least : int
        Minimum number of movies with an item or a value for it to be learned, and with any label for the task to be.
    """

    name: str = Field(pattern=r"^\w+$")
    kind: Literal["multi-label", "single-label", "regression", "tokens"]
    columns: list[str]
    weight: float = Field(1, ge=0)
    least: int = Field(20, ge=1)


class Plan(BaseModel, extra="forbid"):
    """What is taught, and how.

    Attributes
    ----------
    encoder : str
        Hub name or local folder of the DistilBERT to start from.
    max_tokens : int
        Tokens of an overview that are read, 8 to 512.
    tasks : list of Task
        To learn.
    masked : float
        Weight of masked-language modelling as one more task (Devlin et al. 2019, https://arxiv.org/abs/1810.04805).
    trained : dict of int to Pattern
        By the epoch from which it holds, a regular expression that matches in the names of the parameters to train; the
        first one holds before its epoch, too.
    layer_decay : float
        Learning rate of each layer as a fraction of that of the layer above (Howard and Ruder 2018,
        https://arxiv.org/abs/1801.06146).
    lora : dict or None
        Options of `peft.LoraConfig`, to learn low-rank changes (Hu et al. 2021, https://arxiv.org/abs/2106.09685).
    held_out : float
        Share of the movies that are held out for validation.
    patience : int
        Epochs without a lower validation loss after which training stops.
    training : dict
        Options of `transformers.TrainingArguments`.
    """

    encoder: str
    max_tokens: int = Field(ge=8, le=512)
    tasks: list[Task]
    masked: float = Field(ge=0)
    trained: dict[int, re.Pattern[str]] = Field(min_length=1)
    layer_decay: float = Field(gt=0)
    lora: Options | None
    held_out: float = Field(gt=0, lt=1)
    patience: int = Field(ge=1)
    training: Options


class MultiTaskEncoder(nn.Module):  # type: ignore[misc]
    """A sentence encoder with one linear head per task, all in one forward pass.

    Parameters
    ----------
    encoder : PreTrainedModel
        Shared by all tasks.
    tasks : list of Task
        To learn.
    outputs : dict of str to int
        Size of each task's output, for a text or for each token.
    hide : callable
        Masks some of the given tokens, and returns them with the tokens to guess, `NONE` elsewhere.
    masked : float
        Weight of guessing the masked tokens, by a head of their own.

    Attributes
    ----------
    losses : list of dict of str to float
        Each task's loss on each training batch since the last log.
    """

    def __init__(self, encoder: Any, tasks: list[Task], outputs: dict[str, int], hide: Any, masked: float) -> None:
        super().__init__()
        self.encoder, self.tasks, self.hide = encoder, tasks, hide
        self.weights = {f"{task.name}_loss": task.weight for task in tasks} | {"masked_loss": masked}
        heads = {"masked": encoder.config.hidden_size} | outputs if masked else outputs
        self.heads = nn.ModuleDict({name: nn.Linear(encoder.config.hidden_size, size) for name, size in heads.items()})
        self.losses: list[dict[str, float]] = []

    def forward(self, input_ids: Tensor, attention_mask: Tensor, labels: dict[str, Tensor]) -> dict[str, Any]:
        """Return all tasks' logits and their loss.

        Parameters
        ----------
        input_ids, attention_mask : Tensor of shape (texts, tokens)
            Of the tokenizer.
        labels : dict of str to Tensor of shape (texts, tokens or 1, outputs)
            By task; `NONE` where there is no label.

        Returns
        -------
        dict
            ``logits`` by task, in the labels' shapes, and ``loss``, the weighted sum of the tasks' mean losses; a task
            of weight 0 or without any label is left out.
        """
        guessing = self.training and self.weights["masked_loss"] > 0
        # transformers' masking mixes devices, so it works on the CPU only.
        seen, hidden = self.hide(input_ids.to("cpu", copy=True)) if guessing else (input_ids, input_ids)
        states = self.encoder(input_ids=seen.to(input_ids.device), attention_mask=attention_mask).last_hidden_state
        pooled = pool(states, attention_mask).unsqueeze(1)
        logits = {task.name: self.heads[task.name](states if task.kind == "tokens" else pooled) for task in self.tasks}
        losses = measure(LOSSES, "loss", [task for task in self.tasks if task.weight], logits, labels)
        if guessing:
            # Words are guessed by their own embeddings, as in pretraining. Not in evaluation, where tasks are scored on
            # unmasked texts.
            guesses = self.heads["masked"](states[hidden != NONE]) @ self.encoder.get_input_embeddings().weight.T
            losses["masked_loss"] = CHOICE(guesses, hidden[hidden != NONE].to(guesses.device))
        if self.training:
            self.losses.append({name: loss.item() for name, loss in losses.items()})
        # Keeps the loss differentiable in a batch without labels.
        nothing = torch.zeros((), device=states.device, requires_grad=True)
        return {"loss": sum((self.weights[name] * loss for name, loss in losses.items()), nothing), "logits": logits}

    def scores(self, prediction: Any) -> dict[str, float]:
        """Return each task's loss and score on the movies held out."""
        parts = torch.utils.data.default_convert([*prediction])
        return measure(LOSSES, "loss", self.tasks, *parts) | measure(SCORES, "score", self.tasks, *parts)


class Teacher(transformers.Trainer):  # type: ignore[misc]
    """A trainer that also logs each task's mean loss since the last log."""

    def log(self, logs: dict[str, float], *times: float | None) -> None:
        """Add the tasks' mean losses to the trainer's log."""
        losses, self.model.losses = self.model.losses, []
        # In place, as the trainer goes on using this very dictionary.
        logs.update(pd.DataFrame(losses).mean())
        super().log(logs, *times)


def optimizer(model: MultiTaskEncoder, plan: Plan, arguments: Any) -> torch.optim.Optimizer:
    """Make an optimiser whose learning rates fall from the heads down to the embeddings."""
    parts = [model.heads, *reversed(model.encoder.transformer.layer), model.encoder.embeddings]
    rates = [arguments.learning_rate * plan.layer_decay**depth for depth in range(len(parts))]
    groups = [{"params": part.parameters(), "lr": rate} for part, rate in zip(parts, rates)]
    return torch.optim.AdamW(groups, weight_decay=arguments.weight_decay, fused=True)


class Unfreezing(transformers.TrainerCallback):  # type: ignore[misc]
    """Sets which parameters are trained as each epoch begins.

    Parameters
    ----------
    patterns : dict of int to Pattern
        As `Plan.trained`.
    """

    def __init__(self, patterns: dict[int, re.Pattern[str]]) -> None:
        self.patterns = {0: patterns[min(patterns)]} | patterns

    def on_epoch_begin(self, arguments: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        """Unfreeze what the epoch's pattern finds, and freeze the rest."""
        pattern = self.patterns[max(epoch for epoch in self.patterns if epoch <= round(state.epoch))]
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(re.search(pattern, name) is not None)

    # Also for a resumed training that has no epoch left.
    on_train_begin = on_epoch_begin


def measure(how: dict[str, Any], what: str, tasks: list[Task], logits: Any, labels: Any) -> dict[str, Any]:
    """Measure the tasks by the `LOSSES` or `SCORES` of their kinds; a task without any label is left out.

    Parameters
    ----------
    how : dict of str to callable
        By kind, a function of logits and labels.
    what : str
        Name of a figure, after its task's.
    tasks : list of Task
        To measure.
    logits, labels : dict of str to Tensor
        By task, of the same shapes.

    Returns
    -------
    dict
        The figures, by ``<task>_<what>``.
    """
    figures = {}
    for task in tasks:
        there = labels[task.name][..., 0] != NONE
        if there.any():
            figures[f"{task.name}_{what}"] = how[task.kind](logits[task.name][there], labels[task.name][there])
    return figures


def with_liked(catalogue: pd.DataFrame, ratings: pd.DataFrame) -> pd.DataFrame:
    """Add a column that says whether movies are liked.

    Parameters
    ----------
    catalogue : DataFrame of shape (movies, columns)
        By movie id.
    ratings : DataFrame of shape (ratings, 3)
        Those to learn from, and no others.

    Returns
    -------
    DataFrame of shape (movies, columns + 1)
        ``liked`` is ``True`` where a movie's ratings are on average above their users' means, else ``False``, and empty
        where there is no rating. Shrinking that average towards 0 would not change its sign.
    """
    away = ratings["rating"] - ratings.groupby("userId")["rating"].transform("mean")
    return catalogue.assign(liked=(away.groupby(ratings["movieId"].astype(str)).mean() > 0).astype(str))


def mark(items: list[str], text: str, spans: list[tuple[int, int]]) -> list[list[float]]:
    """Mark the tokens of a text that belong to an item; special tokens, whose spans are empty, get no label."""
    # Most items are nowhere in the text; a search for whole words is slower than this first check.
    names = [FIXED.named % re.escape(item) for item in items if len(item) >= FIXED.shortest and item in text.lower()]
    inside = {place for name in names for match in re.finditer(name, text) for place in range(*match.span())}
    return [[start in inside if start < end else NONE] for start, end in spans]


def read_labels(task: Task, movies: pd.DataFrame, spans: list[Any]) -> list[Tensor]:
    """Read a task's labels.

    Parameters
    ----------
    task : Task
        To learn.
    movies : DataFrame of shape (movies, columns)
        Cells as text, ``overview`` among them.
    spans : list of list of (int, int)
        Start and end of each token in each movie's overview.

    Returns
    -------
    list of Tensor of shape (tokens or 1, outputs)
        One per movie; `NONE` where there is no label.

    Raises
    ------
    ValueError
        If too few movies have a label.
    """
    # A column that is not read gives no label.
    cells = movies.reindex(columns=task.columns[: None if task.kind == "tokens" else 1], fill_value="").fillna("")
    if task.kind == "regression":
        # A cell that is no number gives no label.
        cells = pd.DataFrame(rescale(as_numbers(cells.iloc[:, 0]), 1))
    there = (cells.notna() & (cells != "")).any(axis=1).to_numpy()
    if there.sum() < task.least:
        raise ValueError(f"{there.sum()} movies have something in {task.columns}, fewer than {task.least}")
    if task.kind == "regression":
        read = StandardScaler().fit_transform(cells)[:, None]
    elif task.kind == "tokens":
        read = list(map(mark, cells.map(tokens).sum(axis=1), movies["overview"], spans))
    else:
        items = CountVectorizer(analyzer=ITEMS[task.kind], binary=True, min_df=task.least)
        read = items.fit_transform(cells.iloc[:, 0]).toarray()[:, None]
        # A list without a frequent item is a label, none of them; a rare single value is no label.
        there = there & (read.any(axis=(1, 2)) | (task.kind == "multi-label"))
    return [torch.where(told, torch.as_tensor(label), NONE).float() for told, label in zip(torch.tensor(there), read)]


def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Pad texts to the longest, and labels with `NONE`."""
    parts = {key: [torch.as_tensor(row[key]) for row in rows] for key in rows[0]}
    batch = {key: nn.utils.rnn.pad_sequence(part, batch_first=True, padding_value=NONE) for key, part in parts.items()}
    ids = batch.pop("input_ids")
    return {"input_ids": ids.clamp(min=0), "attention_mask": (ids != NONE).long(), "labels": batch}


def teach(catalogue: pd.DataFrame, ratings: pd.DataFrame, folder: Path, plan: Plan) -> dict[str, float]:
    """Fine-tune an encoder; an interrupted training resumes from the end of its last epoch.

    Parameters
    ----------
    catalogue : DataFrame of shape (movies, columns)
        As from `tables.read_catalogue`.
    ratings : DataFrame of shape (ratings, 3)
        As from `tables.read_pairs`; those to learn from, and no others.
    folder : Path
        For the encoder, TensorBoard's ``training/runs`` and, until it is done, ``training/checkpoint-*``.
    plan : Plan
        What is taught, and how.

    Returns
    -------
    dict
        By the best epoch, the loss and each task's loss and score on the movies held out; and the number of parameters
        trained in the last epoch.

    Raises
    ------
    EncoderUnavailableError
        If the weights to start from cannot be loaded.
    PlanError
        If no task with a weight has enough labels.
    """
    arguments = transformers.TrainingArguments(str(folder / "training"), **plan.training)
    transformers.set_seed(arguments.seed)
    # Past the cache: predictions may be using the encoder in memory, which must not change.
    tokenizer, encoder = load.__wrapped__(choose(plan.encoder, plan.max_tokens, "fp32"))
    # Saved now, as after use it would keep the length that it truncates to.
    tokenizer.save_pretrained(folder)
    encoder = get_peft_model(encoder, LoraConfig(**plan.lora)) if plan.lora else encoder
    # In this order: if no movie were left, pandas would take the ratings' movies instead.
    movies = with_liked(catalogue, ratings).dropna(subset="overview")
    # Tokenizers refuse an empty list.
    texts = [*movies["overview"]] or [""]
    encoded = tokenizer(texts, truncation=True, max_length=plan.max_tokens, return_offsets_mapping=True)
    rows = pd.DataFrame({"input_ids": encoded["input_ids"]})
    for task in plan.tasks:
        try:
            rows[task.name] = read_labels(task, movies, encoded["offset_mapping"])
        except ValueError as error:
            logger.warning("task '%s' is left out: %s", task.name, error)
    tasks = [task for task in plan.tasks if task.name in rows]
    # Masked words alone give no validation loss, so the first epoch would count as the best.
    if not any(task.weight for task in tasks):
        raise PlanError(f"tasks: none with a weight can be learned from {len(movies)} movies with an overview")
    taught, held_out = train_test_split(rows.to_dict("records"), test_size=plan.held_out, random_state=arguments.seed)
    hide = transformers.DataCollatorForLanguageModeling(tokenizer).torch_mask_tokens
    outputs = {task.name: rows[task.name][0].shape[1] for task in tasks}
    model = MultiTaskEncoder(encoder, tasks, outputs, hide, plan.masked)
    callbacks = [Unfreezing(plan.trained), transformers.EarlyStoppingCallback(plan.patience)]
    trainer = Teacher(model, arguments, collate, taught, held_out, compute_metrics=model.scores, callbacks=callbacks)
    trainer.optimizer = optimizer(model, plan, arguments)
    # Instead of a bar, it would print plain text between the lines of a log of JSON.
    trainer.remove_callback(transformers.PrinterCallback)
    # The state is written last: a checkpoint that has one is complete.
    whole = sorted(folder.glob("training/checkpoint-*/trainer_state.json"), key=lambda path: path.stat().st_mtime)
    trainer.train(resume_from_checkpoint=str(whole[-1].parent) if whole else None)
    figures = {**trainer.evaluate(), "trained_parameters": trainer.get_num_trainable_parameters()}
    (encoder.merge_and_unload() if plan.lora else encoder).save_pretrained(folder)
    for checkpoint in folder.glob("training/checkpoint-*"):
        shutil.rmtree(checkpoint)
    return figures


def read_plan(path: Path, **changes: str) -> Plan:
    """Read a YAML plan, with some values replaced; a `PlanError` names what is wrong."""
    try:
        plan = Plan(**yaml.safe_load(path.read_text("utf-8")) | changes)
        # The libraries check their own options.
        transformers.TrainingArguments("", **plan.training)
        LoraConfig(**plan.lora or {})
        # Heads and labels are kept by name beside these.
        names = pd.Series([*dir(nn.ModuleDict()), "input_ids", "masked", *(task.name for task in plan.tasks)])
        if not names.is_unique:
            raise ValueError(f"tasks: the name '{names[names.duplicated()].iloc[0]}' is taken")
        return plan
    except (OSError, TypeError, ValueError, yaml.YAMLError) as error:
        raise PlanError(f"{path}: {error}") from error


def main(catalogue: Path, ratings: Path, folder: Path, plan: Path = PLAN) -> None:
    """Fine-tune an encoder on the CSVs of a CATALOGUE and of RATINGS by a YAML plan; write it to FOLDER."""
    try:
        report = teach(read_catalogue(catalogue), read_pairs(ratings, rated=True), folder, read_plan(plan))
    except (ChallengeError, OSError) as error:
        raise SystemExit(f"challenge.teaching: {error}") from error
    print(yaml.safe_dump(report))


if __name__ == "__main__":
    typer.run(main)
