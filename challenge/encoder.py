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
# transformers imports its submodules lazily, which fails if two threads are the first to import one.
LOADING = Lock()
OVERVIEWS = Counter("challenge_overviews", "Overviews by where their vectors came from", ["source"])


class EncoderUnavailableError(ChallengeError):
    """The encoder's weights cannot be loaded."""


class Encoder(NamedTuple):
    """Everything that determines the vector of a text.

    Attributes
    ----------
    name : str
        Hub name or local folder of the encoder.
    max_tokens : int
        Tokens of a text that are read; the rest is cut off.
    precision : str
        ``fp32``, ``bf16``, ``fp16`` or ``int8``, see `quantize`.
    fingerprint : str
        Digest of the files, the pooling, ``max_tokens`` and ``precision``.
    """

    name: str
    max_tokens: int
    precision: str
    fingerprint: str


def choose(name: str, max_tokens: int, precision: str, texts: tuple[str, ...] = ()) -> Encoder:
    """Fingerprint an encoder and choose its precision.

    Parameters
    ----------
    name : str
        Hub name or local folder.
    max_tokens : int
        As in `Encoder`.
    precision : str
        As in `Encoder`, or ``auto`` for the fastest that this machine computes natively.
    texts : tuple of str
        What will be encoded. If ``int8`` distorts the vectors of the first ones, ``fp32`` is chosen instead.

    Returns
    -------
    Encoder
        For `encode`.

    Raises
    ------
    EncoderUnavailableError
        If the files cannot be found or downloaded.
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
    """Encode texts with DistilBERT: the masked mean of the last hidden states.

    Parameters
    ----------
    texts : collection of str
        Gaps and empty texts are allowed.
    encoder : Encoder
        Of `choose`.
    cache : Path
        SQLite file of known vectors, in an existing folder; created if missing, set aside if damaged.
    most : int
        Maximum number of vectors that it keeps; those that came first leave first.
    progress : callable
        Called at the start and after each batch: ``done`` of ``total`` texts have a vector, each text counted once.

    Returns
    -------
    vectors : ndarray of shape (texts, dimensions)
        One vector per text; NaN for a gap or an empty text.
    encoded : int
        Number of texts that were not in the cache.

    Raises
    ------
    EncoderUnavailableError
        If there is something to encode, and the weights cannot be loaded or are no longer those of ``encoder``.

    References
    ----------
    Sanh et al. 2019, https://arxiv.org/abs/1910.01108; masked mean: Reimers and Gurevych 2019,
    https://arxiv.org/abs/1908.10084
    """
    try:
        return recall(texts, encoder, cache, most, progress)
    except sqlite3.DatabaseError as error:
        # Subclasses mean something else: a full disk, a lock, a wrong query.
        if type(error) is not sqlite3.DatabaseError:
            raise
        logger.error("the cache %s is damaged (%s): it is set aside, and the overviews are encoded anew", cache, error)
        # No journal is left behind: SQLite rolls back before it reads, and after an error. Another process may have
        # moved the file first.
        with suppress(FileNotFoundError):
            cache.replace(cache.with_name(f"damaged-{cache.name}"))
        return recall(texts, encoder, cache, most, progress)


def native_precision() -> str:
    """Return the fastest precision that this machine need not emulate."""
    # Slow to import, and not needed by a server whose texts are all cached.
    import torch

    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    names = " ".join(name for name, there in torch.cpu.get_capabilities().items() if there is True)
    return next((precision for part, precision in FIXED.native.items() if part in names), "fp32")


@contextmanager
def folder_of(name: str) -> Iterator[Path]:
    """Yield an encoder's folder, from the disk or else from the hub; errors in the block are re-raised with advice."""
    from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

    try:
        if Path(name).is_dir():
            yield Path(name)
        elif isinstance(weights := try_to_load_from_cache(name, "model.safetensors"), str):
            yield Path(weights).parent
        else:
            # Ask first: the download itself would wait forever for a hub that does not answer.
            HfApi().model_info(name, timeout=5.0)
            yield Path(snapshot_download(name, allow_patterns=FIXED.encoder_files))
    except Exception as error:
        raise EncoderUnavailableError(f"the encoder '{name}' cannot be loaded: {error}; {FIXED.advice}") from error


# Three: the one that serves, the next training's if it differs, and the fp32 that int8 is compared with.
@lru_cache(maxsize=3)
def load(encoder: Encoder) -> tuple[Any, Any]:
    """Load the tokenizer and the model, and keep them in memory."""
    with LOADING, folder_of(encoder.name) as folder:
        from transformers import AutoModel, AutoTokenizer, utils

        tokenizer = AutoTokenizer.from_pretrained(folder)
        # `teaching` unfreezes what it trains.
        model = AutoModel.from_pretrained(folder, dtype=FIXED.dtypes[encoder.precision]).requires_grad_(False)
        # Checked after reading, lest the files change in between.
        if choose(*encoder[:3]) != encoder:
            raise ValueError("it has changed since the training; train again")
        if len(tokenizer) != model.config.vocab_size:
            raise ValueError("its tokenizer is missing or of another model")
    device = "cuda" if utils.is_torch_cuda_available() else "cpu"
    return tokenizer, model.apply(quantize) if encoder.precision == "int8" else model.to(device)


def quantize(layer: Any) -> None:
    """Make a layer, if it is linear, multiply 8-bit integers; each token has its own scale, whatever its batch.

    References
    ----------
    Dettmers et al. 2022, LLM.int8(), https://arxiv.org/abs/2208.07339, section 3.1 (vector-wise quantisation)
    """
    import torch

    def integers(rows: Any) -> tuple[Any, Any]:
        scale = torch.maximum(rows.amax(1, keepdim=True), -rows.amin(1, keepdim=True)).clamp_min(1e-9) / 127
        return (rows / scale).round_().to(torch.int8), scale

    def multiply(states: Any) -> Any:
        rows, size = integers(states.flatten(0, -2))
        # In place: more fresh memory for products of this size would cost a sixth of the time.
        return torch._int_mm(rows, weight).float().mul_(size).mul_(scale).add_(layer.bias).view(*states.shape[:-1], -1)

    if isinstance(layer, torch.nn.Linear):
        weight, scale = (part.T for part in integers(layer.weight))
        layer.forward = multiply


@lru_cache(maxsize=1)
def proven(encoder: Encoder, texts: tuple[str, ...]) -> Encoder:
    """Return the encoder if its centred vectors of distinct texts are close to fp32's, else the same in fp32."""
    encoders = encoder, choose(*encoder[:2], "fp32")
    # One by one: in what order batches come depends on the device, and fp32 may run on another than int8.
    both = [np.stack([batch[text] for text in texts for batch in forward([text], each)]) for each in encoders]
    worst = 1 - paired_cosine_distances(*(vectors - both[1].mean(axis=0) for vectors in both)).max()
    logger.info("%s: worst cosine of %d overviews to fp32 %.4f", encoder.precision, len(texts), worst)
    return encoder if worst >= FIXED.least_cosine else encoders[1]


def forward(texts: list[str], encoder: Encoder) -> Iterator[dict[str, Any]]:
    """Yield batches of texts of the same padded length, the longest first, each text with its vector."""
    tokenizer, model = load(encoder)
    tokens = pd.Series(tokenizer(texts, truncation=True, max_length=encoder.max_tokens)["input_ids"], texts)
    lengths = (-(-tokens.str.len() // FIXED.step) * FIXED.step).clip(upper=encoder.max_tokens)
    numbers = tokens.groupby(lengths).cumcount() * lengths // FIXED.batch_tokens[model.device.type]
    for (length, _), batch in reversed(list(tokens.groupby([lengths, numbers]))):
        padded = tokenizer.pad({"input_ids": [*batch]}, "max_length", length, return_tensors="pt").to(model.device)
        vectors = pool(model(**padded).last_hidden_state.float(), padded["attention_mask"])
        yield dict(zip(batch.index, vectors.cpu().numpy()))


def pool(states: Any, mask: Any) -> Any:
    """Average states of shape (texts, tokens, dimensions) over the tokens that are not masked."""
    return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def recall(texts: Collection[str], encoder: Encoder, cache: Path, most: int, progress: Progress) -> Encoded:
    """Do the work of `encode`, but for a damaged cache; each batch is committed at once."""
    keys = {text: sha256(f"{encoder.fingerprint}|{text}".encode()).digest() for text in filter(pd.notna, texts) if text}
    with closing(sqlite3.connect(cache, timeout=60)) as file:
        file.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB UNIQUE, vector BLOB)")
        query = "SELECT vector FROM vectors WHERE key = ?"
        rows = ((text, row[0]) for text in keys for row in file.execute(query, [keys[text]]))
        # Each vector is stored after its digest, as SQLite does not notice bit rot; a damaged one is encoded anew.
        vectors = {text: np.frombuffer(row[32:], "f4") for text, row in rows if sha256(row[32:]).digest() == row[:32]}
        unknown = [text for text in keys if text not in vectors]
        progress(done=len(vectors), total=len(keys))
        with tqdm(desc="overviews", unit="text", initial=len(vectors), total=len(keys)) as bar:
            # Without unknown texts the weights are not needed.
            for batch in forward(unknown, encoder) if unknown else []:
                # The text may be there already: encoded by another process meanwhile, or damaged.
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
