"""Overviews in, vectors out, none of them encoded twice."""

import hashlib
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

BATCH = 32
HUB_SECONDS = 5.0


class EncoderUnavailableError(RuntimeError):
    """The encoder's weights cannot be had."""


class Encoder:
    """DistilBERT as a sentence encoder: the mean of the last hidden states of a text's tokens.

    Parameters
    ----------
    name : str
        Hub name or local folder.
    max_tokens : int
        Tokens of a text that are read; the rest is cut off.
    cache : Path
        SQLite file of the vectors known already; made when missing.

    References
    ----------
    Sanh et al. 2019, https://arxiv.org/abs/1910.01108; masked mean: Reimers and Gurevych 2019,
    https://arxiv.org/abs/1908.10084
    """

    def __init__(self, name: str, max_tokens: int, cache: Path) -> None:
        self.name = name
        self.max_tokens = max_tokens
        self.cache = cache
        self._encoding = Lock()

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Encode texts.

        Parameters
        ----------
        texts : sequence of str
            Empty ones are allowed.

        Returns
        -------
        ndarray of shape (texts, dimensions)
            One vector a text; NaN for an empty one.

        Raises
        ------
        EncoderUnavailableError
            If there is something to encode and the weights cannot be had.
        """
        keys = {text: hashlib.sha256(f"{self.name}|{self.max_tokens}|{text}".encode()).digest() for text in texts}
        keys.pop("", None)
        self.cache.parent.mkdir(parents=True, exist_ok=True)
        # Two requests at once must not encode the same texts.
        with self._encoding, closing(sqlite3.connect(self.cache, timeout=60)) as cache:
            cache.execute("PRAGMA journal_mode = WAL")
            cache.execute("CREATE TABLE IF NOT EXISTS vectors (key BLOB PRIMARY KEY, vector BLOB) WITHOUT ROWID")
            select = "SELECT vector FROM vectors WHERE key = ?"
            rows = {text: cache.execute(select, [key]).fetchone() for text, key in keys.items()}
            vectors = {text: np.frombuffer(row[0], np.float32) for text, row in rows.items() if row}
            for batch in self._forward([text for text in keys if text not in vectors]):
                vectors |= batch
                added = [(keys[text], vector.tobytes()) for text, vector in batch.items()]
                cache.executemany("INSERT INTO vectors VALUES (?, ?)", added)
                cache.commit()
        unknown = np.full_like(next(iter(vectors.values()), np.empty(1, np.float32)), np.nan)
        return np.stack([vectors.get(text, unknown) for text in texts])

    def _forward(self, texts: list[str]) -> Iterator[dict[str, NDArray[np.float32]]]:
        """Yield batches of texts with their vectors, texts of like length together, the longest first."""
        if not texts:
            return
        import torch

        tokenizer, model = self._load()
        texts = sorted(texts, key=len, reverse=True)
        for place in tqdm(range(0, len(texts), BATCH), "overviews", unit="batch"):
            batch = texts[place:][:BATCH]
            tokens = tokenizer(batch, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt")
            with torch.inference_mode():
                states = model(**tokens).last_hidden_state
            mask = tokens["attention_mask"].unsqueeze(-1)
            yield dict(zip(batch, ((states * mask).sum(1) / mask.sum(1)).numpy()))

    def _load(self) -> tuple[Any, Any]:
        """Return the tokenizer and the model; from the disk where they lie there, else from the hub."""
        from huggingface_hub import HfApi
        from transformers import AutoModel, AutoTokenizer

        def load(**options: bool) -> tuple[Any, Any]:
            tokenizer = AutoTokenizer.from_pretrained(self.name, **options)
            model = AutoModel.from_pretrained(self.name, **options)
            if len(tokenizer) != model.config.vocab_size:
                raise ValueError("its tokenizer is missing or of another model")
            return tokenizer, model

        try:
            try:
                return load(local_files_only=True)
            except OSError:
                if Path(self.name).is_dir():
                    raise
                # The download itself waits for a hub for minutes; ask first whether it answers.
                HfApi().model_info(self.name, timeout=HUB_SECONDS)
                return load()
        except Exception as error:
            raise EncoderUnavailableError(
                f"the encoder '{self.name}' cannot be loaded: {error}; set CHALLENGE_ENCODER to a folder with its "
                "weights, or run 'hf download distilbert-base-uncased' where there is a network"
            ) from error
