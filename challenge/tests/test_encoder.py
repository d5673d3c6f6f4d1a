"""Tests of encoding texts and of caching their vectors."""

import json
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from prometheus_client import REGISTRY
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer

from challenge.encoder import Encoder, EncoderUnavailableError, choose, encode, load
from challenge.settings import FIXED
from challenge.tests.conftest import ENCODER, PROJECT
from challenge.tests.encoder_benchmark import cosines

WORDS = "a retired pilot crosses the frozen sea while two sisters open a café where nobody comes".split()
LENGTHS = [1 + place * 7 % 11 for place in range(len(WORDS))]
TEXTS = [" ".join([*(WORDS * 2)[:length], str(number)]) for number, length in enumerate(LENGTHS * 3)]
MINI = choose(str(ENCODER), 512, "fp32")
# Encodes the given texts one by one, and kills itself halfway.
DIES = """
import os, sys, pathlib
from challenge import encoder
encoder.FIXED.batch_tokens["cpu"] = 1
def progress(done, total):
    if done == total // 2:
        os.kill(os.getpid(), 9)
encoder.encode(sys.argv[3:], encoder.choose(sys.argv[1], 512, "fp32"), pathlib.Path(sys.argv[2]), 1000, progress)
"""

# Two threads are the first to load weights, as a training and the upload of another catalogue may be after a restart.
# The first import takes a second: one that overlaps it fails here every time, not just now and then.
BOTH = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
import transformers
from challenge.encoder import choose, load
part, alone, start = type(transformers).__getattr__, threading.RLock(), threading.Barrier(2)
def take(module, name):
    if not alone.acquire(blocking=False):
        raise ImportError("two at a time")
    try:
        return part(module, name)
    finally:
        alone.release()
type(transformers).__getattr__ = take
def first(precision):
    encoder = choose(sys.argv[1], 512, precision)
    start.wait()
    load(encoder)
with ThreadPoolExecutor(2) as threads:
    list(threads.map(first, ("fp32", "bf16")))
"""


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Return the path of a cache that does not exist yet."""
    return tmp_path / "vectors.sqlite"


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each text a batch of its own, so that progress is reported after each."""
    monkeypatch.setitem(FIXED.batch_tokens, "cpu", 1)


def vectors_of(texts: list[str], cache: Path, encoder: Encoder = MINI, limit: int = 1000) -> NDArray[np.float32]:
    """Return the vectors of texts, by default from the small encoder."""
    return encode(texts, encoder, cache, limit, lambda done, total: None)[0]


def steps(texts: list[str], cache: Path, limit: int = 1000) -> list[tuple[int, int]]:
    """Encode, and return the progress reported after the initial call, which counts the cached texts."""
    told: list[tuple[int, int]] = []
    _, encoded = encode(texts, MINI, cache, limit, lambda done, total: told.append((done, total)))
    assert encoded == told[-1][0] - told[0][0]
    return told[1:]


def test_mean_of_last_states(cache: Path) -> None:
    """Each text's vector, in order, is the mean of its own tokens' last hidden states."""
    tokenizer, model = AutoTokenizer.from_pretrained(ENCODER), AutoModel.from_pretrained(ENCODER).eval()
    with torch.inference_mode():
        # One by one there is no padding, so nothing to mask.
        states = [model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0] for text in TEXTS]
    vectors = vectors_of(TEXTS, cache)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, [state.mean(0).numpy() for state in states], atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
def test_company_changes_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """A vector does not depend on the rest of its batch, and repeats of a text get the same one."""
    encoder = choose(str(ENCODER), 512, precision)
    alone = [vectors_of([text], cache, encoder)[0] for text in TEXTS]
    for number in range(20):
        random = np.random.default_rng(number)
        monkeypatch.setitem(FIXED.batch_tokens, "cpu", int(random.integers(10, 1000)))
        company = ["sea " * int(length) for length in random.integers(1, 300, size=5)]
        vectors = vectors_of([*TEXTS, *company, TEXTS[0]], cache.with_name(str(number)), encoder)
        np.testing.assert_allclose(vectors[: len(TEXTS)], alone, atol=1e-5)
        np.testing.assert_array_equal(vectors[0], vectors[-1])


def test_empty_texts(cache: Path) -> None:
    """Empty texts and gaps get NaN for a vector, and if all texts are empty, no weights are needed."""
    gaps: list[Any] = [np.nan, None]
    vectors = vectors_of(["", TEXTS[0], *gaps], cache)
    assert np.isnan(vectors).all(axis=1).tolist() == [True, False, True, True]
    assert np.isfinite(vectors[1]).all()
    nothing = vectors_of(["", ""], cache, Encoder("no/such-encoder", 512, "fp32", "none"))
    assert len(nothing) == 2 and np.isnan(nothing).all()


def test_truncates(cache: Path) -> None:
    """Tokens beyond `max_tokens` are not read, and the cache tells its values apart."""
    texts = ["the sea the sea the sea pilot", "the sea the sea the sea sisters"]
    short, long = (vectors_of(texts, cache, choose(str(ENCODER), tokens, "fp32")) for tokens in (8, 512))
    # Two of the eight are [CLS] and [SEP].
    np.testing.assert_allclose(short[0], short[1], atol=1e-6)
    assert np.abs(long[0] - long[1]).max() > 0.01
    assert np.isfinite(vectors_of(["sea " * 2_000], cache)).all()


@pytest.mark.parametrize("precision", ["bf16", "fp16", "int8"])
def test_less_precision(cache: Path, precision: str) -> None:
    """Lower precision gives nearly the same vectors, which the cache keeps apart."""
    exact, rough = vectors_of(TEXTS, cache), vectors_of(TEXTS, cache, choose(str(ENCODER), 512, precision))
    assert rough.dtype == np.float32
    assert 0 < np.abs(rough - exact).max()
    assert cosines(rough, exact).min() > 0.999
    assert cosines(rough - exact.mean(axis=0), exact - exact.mean(axis=0)).min() > 0.998


@pytest.mark.parametrize("precision", ["auto", "int8"])
def test_integers_prove_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """Integers are used if they tell texts apart as fp32 does, and fp32 itself if outlier weights prevent that."""
    monkeypatch.setattr("challenge.encoder.native_precision", lambda: "int8")
    assert choose(str(ENCODER), 512, precision, tuple(TEXTS)).precision == "int8"
    model = AutoModel.from_pretrained(ENCODER)
    with torch.no_grad():
        for layer in model.transformer.layer:
            layer.ffn.lin1.weight[:, 0] += 300
    shutil.copytree(ENCODER, tmp_path / "outlier")
    model.save_pretrained(tmp_path / "outlier")
    encoder = choose(str(tmp_path / "outlier"), 512, precision, tuple(TEXTS))
    assert encoder == choose(str(tmp_path / "outlier"), 512, "fp32")


def test_integers_beside_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Integers, which run on the CPU, prove themselves also if fp32 is batched otherwise, as on a GPU."""

    class Sizes(dict[str, int]):
        left = [64]

        def __getitem__(self, _: str) -> int:
            return self.left.pop() if self.left else 65536

    monkeypatch.setattr(FIXED, "batch_tokens", Sizes())
    texts = tuple(f"{word} {number} in the frozen sea" for number, word in enumerate(WORDS))
    assert choose(str(ENCODER), 512, "int8", texts).precision == "int8"


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_only_integers_prove_themselves(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    """A precision other than int8 is used unchecked, without the weights, as all overviews may be cached."""
    monkeypatch.setattr("challenge.encoder.load", lambda _: (_ for _ in ()).throw(OSError("the weights were touched")))
    assert choose(str(ENCODER), 512, precision, tuple(TEXTS)).precision == precision


def test_few_texts_to_prove_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated texts count once in the check, in whatever batches; one text alone proves nothing."""
    monkeypatch.setitem(FIXED.batch_tokens, "cpu", 16)
    assert choose(str(ENCODER), 512, "int8", tuple(TEXTS[:6] * 9)).precision == "int8"
    assert choose(str(ENCODER), 512, "int8", tuple(TEXTS[:1] * 9)).precision == "fp32"


def test_as_long_as_the_model_reads(cache: Path, tmp_path: Path) -> None:
    """Texts are not padded beyond the model's last position."""
    tokenizer, config = AutoTokenizer.from_pretrained(ENCODER), AutoConfig.from_pretrained(ENCODER)
    config.max_position_embeddings = 30
    tokenizer.save_pretrained(tmp_path)
    AutoModel.from_config(config).save_pretrained(tmp_path)
    assert np.isfinite(vectors_of(["sea " * 99], cache, choose(str(tmp_path), 30, "fp32"))).all()


@pytest.mark.parametrize(
    "has, precision",
    [
        ({"avx512_bf16"}, "bf16"),
        ({"amx_bf16"}, "bf16"),
        ({"avx512_vnni"}, "int8"),
        ({"avx512_vnni", "avx512_bf16"}, "bf16"),
        ({"avx512_f"}, "fp32"),
        ({"cuda", "avx512_bf16"}, "fp16"),
        ({"cuda", "cuda_bf16"}, "bf16"),
    ],
)
def test_fastest_precision(monkeypatch: pytest.MonkeyPatch, has: set[str], precision: str) -> None:
    """`auto` chooses what the machine computes natively: bf16 before int8, a GPU before the CPU, or else fp32."""
    capabilities: dict[str, Any] = {"avx512_vnni": False, "avx512_bf16": False, "cpu_name": "any"}
    capabilities |= dict.fromkeys(has, True)
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: capabilities)
    monkeypatch.setattr("torch.cuda.is_available", lambda: "cuda" in has)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: "cuda_bf16" in has)
    assert choose(str(ENCODER), 512, "auto").precision == precision


def test_fingerprint(tmp_path: Path) -> None:
    """The fingerprint depends on weights, `max_tokens` and precision, but not on the path or a README."""
    copy = shutil.copytree(ENCODER, tmp_path / "copy")
    same = choose(str(copy), 512, "fp32")
    assert same.fingerprint == MINI.fingerprint
    (copy / "README.md").write_text("notes")
    assert choose(str(copy), 512, "fp32") == same
    others = {choose(str(copy), *other).fingerprint for other in ((512, "bf16"), (256, "fp32"))}
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    assert len(others | {same.fingerprint, choose(str(copy), 512, "fp32").fingerprint}) == 4


def test_other_weights_than_chosen(cache: Path, tmp_path: Path) -> None:
    """Cached texts need no weights; a new one is refused if the files have changed since `choose`."""
    copy = shutil.copytree(ENCODER, tmp_path / "copy")
    encoder = choose(str(copy), 512, "fp32")
    vectors = vectors_of(TEXTS, cache, encoder)
    load.cache_clear()
    (copy / "config.json").write_text((copy / "config.json").read_text() + "\n")
    np.testing.assert_array_equal(vectors_of(TEXTS, cache, encoder), vectors)
    with pytest.raises(EncoderUnavailableError, match="changed"):
        vectors_of(["something new"], cache, encoder)


@pytest.mark.usefixtures("one_by_one")
def test_nothing_is_encoded_twice(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only new texts are encoded; cached ones need no weights, in any order; a metric counts both."""

    def counted() -> list[float]:
        return [
            REGISTRY.get_sample_value("challenge_overviews_total", {"source": source}) or 0
            for source in ("cached", "encoded")
        ]

    assert steps(TEXTS, cache) == [(done + 1, len(TEXTS)) for done in range(len(TEXTS))]
    before = counted()
    assert steps([*TEXTS, "", "new", "new", "newer"], cache) == [(len(TEXTS) + more, len(TEXTS) + 2) for more in (1, 2)]
    assert [after - count for after, count in zip(counted(), before)] == [len(TEXTS), 2]
    vectors = vectors_of(TEXTS, cache)

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("the weights were touched")

    load.cache_clear()
    monkeypatch.setattr(AutoModel, "from_pretrained", refuse)
    np.testing.assert_array_equal(vectors_of(TEXTS[::-1], cache), vectors[::-1])
    with pytest.raises(EncoderUnavailableError, match="touched"):
        vectors_of([*TEXTS, "newest"], cache)


@pytest.mark.parametrize("form", ["text", "json"])
def test_bars(cache: Path, form: str) -> None:
    """A log of text has a progress bar, but not one of JSON, whose lines it would break."""
    program = f"from challenge.tests.test_encoder import *; vectors_of(TEXTS, Path({str(cache)!r}))"
    environment = os.environ | {"CHALLENGE_LOG": form, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=PROJECT, env=environment, check=True, capture_output=True, text=True)
    assert ("overviews" in done.stderr) == (form == "text") and ("%" in done.stderr) == (form == "text")


def test_two_load_at_once() -> None:
    """Two threads may be the first to load the weights at the same time."""
    subprocess.run([sys.executable, "-c", BOTH, str(ENCODER)], cwd=PROJECT, check=True)


def test_json_log(tmp_path: Path) -> None:
    """With a log of JSON, what transformers says of unused weights, such as the default encoder's, is JSON, too."""
    AutoModelForMaskedLM.from_pretrained(ENCODER).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(ENCODER).save_pretrained(tmp_path)
    program = "import sys, challenge; from challenge.encoder import *; load(choose(sys.argv[1], 8, 'fp32'))"
    command = [sys.executable, "-c", program, str(tmp_path)]
    environment = os.environ | {"CHALLENGE_LOG": "json"}
    told = subprocess.run(
        command, cwd=PROJECT, env=environment, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    lines = [json.loads(line) for line in told.stdout.splitlines()]
    assert [line["name"] for line in lines] == ["transformers.modeling_utils"]
    assert "vocab_projector" in lines[0]["message"]


@pytest.mark.usefixtures("one_by_one")
def test_goes_on_after_a_kill(cache: Path) -> None:
    """Texts that were encoded before a kill are not encoded again."""
    texts = sorted(TEXTS)
    died = subprocess.run([sys.executable, "-c", DIES, str(ENCODER), cache, *texts], stderr=subprocess.PIPE)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert len(steps(texts, cache)) == len(texts) - len(texts) // 2


@pytest.mark.usefixtures("one_by_one")
def test_keeps_the_newest(cache: Path) -> None:
    """A call may encode more texts than the limit, but the cache keeps only as many vectors, the newest."""
    assert len(steps(TEXTS, cache, limit=20)) == len(TEXTS)
    with closing(sqlite3.connect(cache)) as store:
        assert store.execute("SELECT count(*) FROM vectors").fetchone() == (20,)
    assert len(steps(TEXTS, cache)) == len(TEXTS) - 20
    newer = [f"{text} again" for text in TEXTS if text]
    steps(newer, cache, limit=len(newer))
    assert not steps(newer, cache) and len(steps(TEXTS, cache)) == len(TEXTS)


@pytest.mark.usefixtures("one_by_one")
def test_many_fill_one_cache(cache: Path) -> None:
    """Concurrent writers do not disturb each other, and no vector is lost."""
    with ThreadPoolExecutor(4) as pool:
        orders = [list(np.random.default_rng(number).permutation(TEXTS)) for number in range(4)]
        answers = list(pool.map(lambda texts: dict(zip(texts, vectors_of(texts, cache))), orders))
    assert not steps(TEXTS, cache)
    with closing(sqlite3.connect(cache)) as store:
        assert store.execute("SELECT count(*) FROM vectors").fetchone() == (len(TEXTS),)
    for text, vector in zip(TEXTS, vectors_of(TEXTS, cache)):
        for answer in answers:
            np.testing.assert_allclose(answer[text], vector, atol=1e-5)


@pytest.mark.parametrize("damage", ["no database", "overwritten"])
def test_damaged_cache(cache: Path, caplog: pytest.LogCaptureFixture, damage: str) -> None:
    """A damaged cache is logged by its path, set aside and rebuilt."""
    vectors = vectors_of(TEXTS, cache)
    content = bytearray(cache.read_bytes())
    # The first page holds the schema, the others the data.
    start = 0 if damage == "no database" else 4096
    content[start:] = b"x" * 20_000
    cache.write_bytes(content)
    np.testing.assert_allclose(vectors_of(TEXTS, cache), vectors, atol=1e-6)
    assert str(cache) in caplog.text and "damaged" in caplog.text
    assert cache.with_name(f"damaged-{cache.name}").read_bytes() == content
    assert not steps(TEXTS, cache)


@pytest.mark.usefixtures("one_by_one")
def test_damaged_vector(cache: Path) -> None:
    """A vector whose stored numbers changed, unnoticed by SQLite, is encoded anew, once, and no other is."""
    vectors = vectors_of(TEXTS, cache)
    content = cache.read_bytes()
    numbers = vectors[3, 4:8].tobytes()
    assert content.count(numbers) == 1
    cache.write_bytes(content.replace(numbers, np.full(4, 1e30, np.float32).tobytes()))
    assert len(steps(TEXTS, cache)) == 1
    np.testing.assert_allclose(vectors_of(TEXTS, cache), vectors, atol=1e-6)
    assert not steps(TEXTS, cache)


def test_set_aside_by_another(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A damaged cache that another process has just set aside is still rebuilt."""
    cache.write_bytes(b"x" * 20_000)
    monkeypatch.setattr("challenge.encoder.logger.error", lambda *_: cache.rename(cache.with_name("aside")))
    assert np.isfinite(vectors_of(TEXTS, cache)).all()
    assert sorted(path.name for path in cache.parent.iterdir()) == ["aside", cache.name]


def test_full_disk_is_not_damage(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is not taken for damage: the cache stays in place, and the error is raised."""
    vectors_of(TEXTS[:1], cache)
    error = sqlite3.OperationalError("database or disk is full")

    def refuse(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr("challenge.encoder.forward", refuse)
    with pytest.raises(sqlite3.OperationalError, match="full"):
        vectors_of(TEXTS, cache)
    assert [path.name for path in cache.parent.iterdir() if path.name.startswith("damaged")] == []


def test_downloaded(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that was downloaded once is loaded without a network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--some--encoder"
    shutil.copytree(ENCODER, folder / "snapshots" / "1")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1")
    encoder = choose("some/encoder", 512, "fp32")
    assert encoder.fingerprint == MINI.fingerprint
    np.testing.assert_array_equal(vectors_of(TEXTS, cache, encoder), vectors_of(TEXTS, cache.with_name("other")))


@pytest.mark.parametrize("lacks", ["folder", "weights", "tokenizer", "half the weights", "network"])
def test_unavailable(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacks: str) -> None:
    """If an encoder cannot be loaded, the error names it and the setting, and no vectors are cached."""
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
        with pytest.raises(EncoderUnavailableError, match="CHALLENGE_ENCODER .*plan.s encoder") as caught:
            vectors_of(TEXTS[:2], cache, choose(name, 512, "fp32"))
        assert name in str(caught.value)


def test_silent_hub(tmp_path: Path) -> None:
    """If the hub accepts the connection but never answers, the wait ends in an error."""
    with socket.create_server(("127.0.0.1", 0)) as hub:
        away = {"HF_ENDPOINT": f"http://127.0.0.1:{hub.getsockname()[1]}", "HF_HOME": str(tmp_path), "no_proxy": "*"}
        away["HF_HUB_OFFLINE"] = "0"
        command = [sys.executable, "-c", "from challenge.encoder import choose; choose('no/such-encoder', 512, 'fp32')"]
        # The download itself would wait forever.
        told = subprocess.run(command, cwd=PROJECT, env=os.environ | away, stderr=subprocess.PIPE, timeout=60)
        # It was asked.
        hub.settimeout(0)
        hub.accept()[0].close()
    assert b"EncoderUnavailableError: the encoder 'no/such-encoder' cannot be loaded: " in told.stderr
