"""Overviews in, vectors out, none of them encoded twice."""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

BATCH = 32
HUB_SECONDS = 5.0


class EncoderUnavailableError(RuntimeError):
    """The encoder's weights cannot be had."""


def encode(texts: Sequence[str], name: str, max_tokens: int, cache: Path) -> NDArray[np.float32]:
    """Encode texts by DistilBERT: the mean of the last hidden states of a text's tokens.

    Parameters
    ----------
    texts : sequence of str
        Empty ones are allowed.
    name : str
        Hub name or local folder of the encoder.
    max_tokens : int
        Tokens of a text that are read; the rest is cut off.
    cache : Path
        SQLite file of the embeddings known already; made when missing.

    Returns
    -------
    ndarray of shape (texts, dimensions)
        One embedding a text; NaN for an empty one.

    Raises
    ------
    EncoderUnavailableError
        If there is something to encode and the weights cannot be had.

    References
    ----------
    Sanh et al. 2019, https://arxiv.org/abs/1910.01108; masked mean: Reimers and Gurevych 2019,
    https://arxiv.org/abs/1908.10084
    """
    keys = {text: hashlib.sha256(f"{name}|{max_tokens}|{text}".encode()).digest() for text in texts if text}
    cache.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(cache, timeout=60)) as store:
        store.execute("PRAGMA journal_mode = WAL")
        store.execute("CREATE TABLE IF NOT EXISTS embeddings (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
        select = "SELECT vector FROM embeddings WHERE key = ?"
        rows = {text: store.execute(select, [key]).fetchone() for text, key in keys.items()}
        vectors = {text: np.frombuffer(row[0], np.float32) for text, row in rows.items() if row}
        for batch in forward([text for text in keys if text not in vectors], name, max_tokens):
            vectors |= batch
            added = [(keys[text], vector.tobytes()) for text, vector in batch.items()]
            # Another process may have encoded the same text meanwhile.
            store.executemany("INSERT OR IGNORE INTO embeddings VALUES (?, ?)", added)
            store.commit()
    unknown = np.full_like(next(iter(vectors.values()), np.empty(1, np.float32)), np.nan)
    return np.stack([vectors.get(text, unknown) for text in texts])


def forward(texts: list[str], name: str, max_tokens: int) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield batches of texts with their embeddings, texts of like length together, the longest first."""
    if not texts:
        return
    import torch

    tokenizer, model = load(name)
    texts = sorted(texts, key=len, reverse=True)
    for place in tqdm(range(0, len(texts), BATCH), "overviews", unit="batch"):
        batch = texts[place:][:BATCH]
        tokens = tokenizer(batch, padding=True, truncation=True, max_length=max_tokens, return_tensors="pt")
        with torch.inference_mode():
            states = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"].unsqueeze(-1)
        yield dict(zip(batch, ((states * mask).sum(1) / mask.sum(1)).numpy()))


def load(name: str) -> tuple[Any, Any]:
    """Return the tokenizer and the model; from the disk where they lie there, else from the hub."""
    # Slow to import, and not needed where every text is known.
    from huggingface_hub import HfApi
    from transformers import AutoModel, AutoTokenizer

    def read(**options: bool) -> tuple[Any, Any]:
        return AutoTokenizer.from_pretrained(name, **options), AutoModel.from_pretrained(name, **options)

    try:
        try:
            tokenizer, model = read(local_files_only=True)
        except OSError:
            if Path(name).is_dir():
                raise
            # The download itself waits for a silent hub for minutes; ask first whether it answers.
            HfApi().model_info(name, timeout=HUB_SECONDS)
            tokenizer, model = read()
        if len(tokenizer) != model.config.vocab_size:
            raise ValueError("its tokenizer is missing or of another model")
    except Exception as error:
        raise EncoderUnavailableError(
            f"the encoder '{name}' cannot be loaded: {error}; set CHALLENGE_ENCODER to a folder with its weights, or "
            "run 'hf download distilbert-base-uncased' where there is a network"
        ) from error
    return tokenizer, model
