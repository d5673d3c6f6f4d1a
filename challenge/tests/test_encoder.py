"""Tests of the vectors of texts."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from challenge.encoder import EncoderUnavailableError, encode
from challenge.tests.conftest import ENCODER

WORDS = "a retired pilot crosses the frozen sea while two sisters open a café where nobody comes".split()
LENGTHS = [1 + place * 7 % 11 for place in range(len(WORDS))]
TEXTS = [" ".join([*(WORDS * 2)[:length], str(number)]) for number, length in enumerate(LENGTHS * 3)]


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Name a cache in a folder that is not there yet."""
    return tmp_path / "new" / "vectors.sqlite"


def test_mean_of_last_states(cache: Path) -> None:
    """Each text, in its place, has the mean of its own tokens' last hidden states."""
    tokenizer, model = AutoTokenizer.from_pretrained(ENCODER), AutoModel.from_pretrained(ENCODER).eval()
    with torch.inference_mode():
        # One by one there is no padding, so nothing to mask.
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS]
    vectors = encode(TEXTS, str(ENCODER), 512, cache)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [state.mean(0).numpy() for state in states], atol=1e-5)


def test_company_changes_nothing(cache: Path) -> None:
    """A text has the same vector alone as beside longer ones, and a repeated text has one vector."""
    together = encode([*TEXTS, "sea " * 300, TEXTS[0]], str(ENCODER), 512, cache.with_name("other"))
    np.testing.assert_allclose(encode(TEXTS[:1], str(ENCODER), 512, cache), together[:1], atol=1e-5)
    np.testing.assert_array_equal(together[0], together[-1])


def test_empty_texts(cache: Path) -> None:
    """An empty text has no vector, and where all are empty no weights are needed."""
    vectors = encode(["", TEXTS[0], ""], str(ENCODER), 512, cache)
    assert np.isnan(vectors).all(axis=1).tolist() == [True, False, True]
    assert np.isfinite(vectors[1]).all()
    nothing = encode(["", ""], "no/such-encoder", 512, cache)
    assert len(nothing) == 2 and np.isnan(nothing).all()


def test_truncates(cache: Path) -> None:
    """Tokens past the setting are not read, and the cache tells settings apart."""
    texts = ["the sea the sea the sea pilot", "the sea the sea the sea sisters"]
    short, long = (encode(texts, str(ENCODER), tokens, cache) for tokens in (8, 512))
    # Two of the eight are the marks of begin and end.
    np.testing.assert_allclose(short[0], short[1], atol=1e-6)
    assert np.abs(long[0] - long[1]).max() > 0.01
    assert np.isfinite(encode(["sea " * 2_000], str(ENCODER), 512, cache)).all()


def test_nothing_is_encoded_twice(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known texts need no weights, in whatever order they come; a new one does."""
    vectors = encode(TEXTS, str(ENCODER), 512, cache)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("the weights were touched")

    monkeypatch.setattr(AutoModel, "from_pretrained", refuse)
    np.testing.assert_array_equal(encode(TEXTS[::-1], str(ENCODER), 512, cache), vectors[::-1])
    with pytest.raises(EncoderUnavailableError, match="touched"):
        encode([*TEXTS, "something new"], str(ENCODER), 512, cache)


@pytest.mark.parametrize("lacks", ["folder", "weights", "tokenizer", "half the weights", "network"])
def test_unavailable(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    """Without the weights the error names the setting, and leaves no vectors behind."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    name = "no/such-encoder" if lacks == "network" else str(tmp_path / "encoder")
    if lacks not in ("folder", "network"):
        shutil.copytree(ENCODER, name)
    if lacks == "weights":
        (tmp_path / "encoder" / "model.safetensors").unlink()
    if lacks == "tokenizer":
        (tmp_path / "encoder" / "tokenizer.json").unlink()
    if lacks == "half the weights":
        (tmp_path / "encoder" / "model.safetensors").write_bytes((ENCODER / "model.safetensors").read_bytes()[:999_999])
    for _ in range(2):
        with pytest.raises(EncoderUnavailableError, match="CHALLENGE_ENCODER") as caught:
            encode(TEXTS[:2], name, 512, cache)
        assert name in str(caught.value)
