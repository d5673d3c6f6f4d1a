"""Overviews in, vectors out, none of them encoded twice."""

import sqlite3
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from hashlib import file_digest, sha256
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from prometheus_client import Counter
from sklearn.metrics.pairwise import paired_cosine_distances
from tqdm import tqdm

from challenge.settings import FIXED, ChallengeError, logger

Encoded = tuple[np.typing.NDArray[np.float32], int]
Progress = Callable[..., Any]
# transformers imports its parts as they are used, and fails where two threads are the first to use one.
LOADING = Lock()
OVERVIEWS = Counter("challenge_overviews", "Overviews whose vectors were cached, or were not", ["source"])


class EncoderUnavailableError(ChallengeError):
    """The encoder's weights cannot be had."""


class Encoder(NamedTuple):
    """What makes the vector of a text what it is.

    Attributes
    ----------
    name : str
        Hub name or local folder of the encoder.
    max_tokens : int
        Tokens of a text that are read; the rest is cut off.
    precision : str
        ``fp32``, ``bf16``, ``fp16`` or ``int8``, see `quantize`.
    fingerprint : str
        Digest of the files' content, of the pooling, and of the above but for the name.
    """

    name: str
    max_tokens: int
    precision: str
    fingerprint: str


def choose(name: str, max_tokens: int, precision: str, texts: tuple[str, ...] = ()) -> Encoder:
    """Find an encoder's files and the best precision for this machine.

    Parameters
    ----------
    name : str
        Hub name or local folder.
    max_tokens : int
        Tokens of a text that are to be read.
    precision : str
        As of `Encoder`; ``auto`` is the fastest that the machine has natively.
    texts : tuple of str
        That are going to be encoded: if ``int8`` makes other vectors of the first ones, ``fp32`` is taken instead.

    Returns
    -------
    Encoder
        What `encode` takes.

    Raises
    ------
    EncoderUnavailableError
        If the files cannot be had.
    """
    precision = native_precision() if precision == "auto" else precision
    digest = sha256(f"mean|{max_tokens}|{precision}".encode())
    with folder_of(name) as folder:
        for path in sorted(path for pattern in FIXED.encoder_files for path in folder.glob(pattern)):
            with path.open("rb") as file:
                digest.update(path.name.encode() + file_digest(file, "blake2b").digest())
    encoder = Encoder(name, max_tokens, precision, digest.hexdigest())
    return proven(encoder, tuple(dict.fromkeys(texts))[: FIXED.probed]) if precision == "int8" and texts else encoder


def encode(texts: Collection[str], encoder: Encoder, cache: Path, most: int, progress: Progress = dict) -> Encoded:
    """Encode texts by DistilBERT: the mean of the last hidden states of a text's tokens.

    Parameters
    ----------
    texts : collection of str
        Gaps and empty ones are allowed.
    encoder : Encoder
        Of `choose`.
    cache : Path
        SQLite file of the vectors known already; made when missing, in a folder that is there, set aside when damaged.
    most : int
        Most vectors that it keeps; those that came first leave first.
    progress : callable
        Told at first and after each batch how many texts have a vector, ``done``, of how many, ``total``; by default
        nobody is.

    Returns
    -------
    vectors : ndarray of shape (texts, dimensions)
        One vector a text; NaN for a gap or an empty one.
    encoded : int
        Number of texts that were not in the cache.

    Raises
    ------
    EncoderUnavailableError
        If there is something to encode and the weights cannot be had or are not those that were chosen.

    References
    ----------
    Sanh et al. 2019, https://arxiv.org/abs/1910.01108; masked mean: Reimers and Gurevych 2019,
    https://arxiv.org/abs/1908.10084
    """
    try:
        return recall(texts, encoder, cache, most, progress)
    except sqlite3.DatabaseError as error:
        # Its subclasses are for all else: a full disk, a lock, a wrong query.
        if type(error) is not sqlite3.DatabaseError:
            raise
        logger.error("the cache %s is damaged (%s): it is set aside, and the overviews are encoded anew", cache, error)
        # There is no journal beside it: SQLite takes back what it holds before it reads anything, and after an error.
        # Another process may have done it just now.
        with suppress(FileNotFoundError):
            cache.replace(cache.with_name(f"damaged-{cache.name}"))
        return recall(texts, encoder, cache, most, progress)


def native_precision() -> str:
    """Ask the machine for the fastest precision that it does not have to emulate."""
    # Slow to import, and not needed by a server that knows all of its texts.
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    names = " ".join(name for name, there in torch.cpu.get_capabilities().items() if there is True)
    return next((precision for part, precision in FIXED.native.items() if part in names), "fp32")


@contextmanager
def folder_of(name: str) -> Iterator[Path]:
    """Lend the encoder's files, from the disk or else from the hub; tell the operator what to do if that goes wrong."""
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    try:
        if Path(name).is_dir():
            yield Path(name)
        elif isinstance(weights := try_to_load_from_cache(name, "model.safetensors"), str):
            yield Path(weights).parent
        else:
            # The download itself waits for a silent hub without end; ask first whether it answers.
            HfApi().model_info(name, timeout=5.0)
            yield Path(snapshot_download(name, allow_patterns=FIXED.encoder_files))
    except Exception as error:
        raise EncoderUnavailableError(f"the encoder '{name}' cannot be loaded: {error}; {FIXED.advice}") from error


# Three: the next training's may be another than the model's that serves, and may be compared with fp32.
@lru_cache(maxsize=3)
def load(encoder: Encoder) -> tuple[Any, Any]:
    """Return the tokenizer and the model; they stay in memory."""
    with LOADING, folder_of(encoder.name) as folder:
        from transformers import AutoModel, AutoTokenizer, utils

        tokenizer = AutoTokenizer.from_pretrained(folder)
        # What is to learn is freed by `teaching`.
        model = AutoModel.from_pretrained(folder, dtype=FIXED.dtypes[encoder.precision]).requires_grad_(False)
        # Not before they are read, lest they change in between.
        if choose(*encoder[:3]) != encoder:
            raise ValueError("it has changed since the training; train again")
        if len(tokenizer) != model.config.vocab_size:
            raise ValueError("its tokenizer is missing or of another model")
    device = "cuda" if utils.is_torch_cuda_available() else "cpu"
    return tokenizer, model.apply(quantize) if encoder.precision == "int8" else model.to(device)


def quantize(layer: Any) -> None:
    """Let a layer, if it is a linear one, multiply 8-bit integers; each token has its own scale, whatever its company.

    References
    ----------
    Dettmers et al. 2022, LLM.int8(), https://arxiv.org/abs/2208.07339, section 3.1 (vector-wise quantisation)
    """
    import torch

    def integers(rows: Any) -> tuple[Any, Any]:
        scale = rows.abs().amax(1, keepdim=True).clamp_min(1e-9) / 127
        return (rows / scale).round_().to(torch.int8), scale

    def multiply(states: Any) -> Any:
        rows, size = integers(states.flatten(0, -2))
        return torch.addcmul(layer.bias, torch._int_mm(rows, weight.T) * size, scale.T).unflatten(0, states.shape[:-1])

    if isinstance(layer, torch.nn.Linear):
        weight, scale = integers(layer.weight)
        layer.forward = multiply


@lru_cache(maxsize=1)
def proven(encoder: Encoder, texts: tuple[str, ...]) -> Encoder:
    """Return an encoder if texts, each another one, differ from their mean by it as in fp32; else its like in fp32."""
    encoders = encoder, choose(*encoder[:2], "fp32")
    both = [np.stack([vector for batch in forward([*texts], each) for vector in batch.values()]) for each in encoders]
    worst = 1 - paired_cosine_distances(*(vectors - both[1].mean(axis=0) for vectors in both)).max()
    logger.info("%s: worst cosine of %d overviews to fp32 %.4f", encoder.precision, len(texts), worst)
    return encoder if worst >= FIXED.faithful else encoders[1]


def forward(texts: list[str], encoder: Encoder) -> Iterator[dict[str, Any]]:
    """Yield batches of texts of one padded length with their vectors, the longest first."""
    tokenizer, model = load(encoder)
    tokens = pd.Series(tokenizer(texts, truncation=True, max_length=encoder.max_tokens)["input_ids"], texts)
    lengths = (-(-tokens.str.len() // FIXED.step) * FIXED.step).clip(upper=encoder.max_tokens)
    numbers = tokens.groupby(lengths).cumcount() * lengths // FIXED.budget[model.device.type]
    for (length, _), batch in reversed(list(tokens.groupby([lengths, numbers]))):
        padded = tokenizer.pad({"input_ids": [*batch]}, "max_length", length, return_tensors="pt").to(model.device)
        vectors = pool(model(**padded).last_hidden_state.float(), padded["attention_mask"])
        yield dict(zip(batch.index, vectors.cpu().numpy()))


def pool(states: Any, mask: Any) -> Any:
    """Average tokens' states of shape (texts, tokens, dimensions) over those that a mask does not hide."""
    return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def recall(texts: Collection[str], encoder: Encoder, cache: Path, most: int, progress: Progress) -> Encoded:
    """Do what `encode` does but for a damaged cache; what is encoded is kept batch by batch."""
    keys = {text: sha256(f"{encoder.fingerprint}|{text}".encode()).digest() for text in filter(pd.notna, texts) if text}
    with closing(sqlite3.connect(cache, timeout=60)) as file:
        file.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB UNIQUE, vector BLOB)")
        query = "SELECT vector FROM vectors WHERE key = ?"
        rows = ((text, row[0]) for text in keys for row in file.execute(query, [keys[text]]))
        # Each follows its digest, as SQLite does not see what a bad disk makes of it; a damaged one is encoded anew.
        vectors = {text: np.frombuffer(row[32:], "f4") for text, row in rows if sha256(row[32:]).digest() == row[:32]}
        unknown = [text for text in keys if text not in vectors]
        progress(done=len(vectors), total=len(keys))
        with tqdm(desc="overviews", unit="text", initial=len(vectors), total=len(keys)) as bar:
            # The weights are not needed where all is known.
            for batch in forward(unknown, encoder) if unknown else []:
                # Another process may have encoded the same text meanwhile, or the one that is there is damaged.
                added = [(keys[text], sha256(vector).digest() + vector.tobytes()) for text, vector in batch.items()]
                with file:
                    file.executemany("INSERT INTO vectors VALUES (?1, ?2) ON CONFLICT DO UPDATE SET vector = ?2", added)
                    file.execute("DELETE FROM vectors WHERE rowid <= (SELECT max(rowid) FROM vectors) - ?", [most])
                vectors |= batch
                bar.update(len(batch))
                progress(done=len(vectors), total=len(keys))
    OVERVIEWS.labels("cached").inc(len(keys) - len(unknown))
    OVERVIEWS.labels("encoded").inc(len(unknown))
    empty = np.full_like(next(iter(vectors.values()), np.empty(1, np.float32)), np.nan)
    return np.stack([vectors.get(text, empty) for text in texts]), len(unknown)
