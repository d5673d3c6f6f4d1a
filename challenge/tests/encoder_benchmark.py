"""Compare routes by which this machine encodes overviews: how fast each is, and how far from the plain loop.

Run as ``python -m challenge.tests.encoder_benchmark [--catalogue CSV] [--encoder FOLDER] [--texts N] [--rounds N]``;
the default encoder is a full-size DistilBERT with random weights.
"""

import argparse
import re
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import nn
from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

from challenge.encoder import Encoder, choose, forward, load, native_precision
from challenge.settings import FIXED
from challenge.tests.conftest import DEMO, ENCODER

BATCH = 32
Route = Callable[[list[str]], NDArray[np.float32]]


def full_size(folder: Path) -> str:
    """Save a full-size DistilBERT with random weights and the carried encoder's vocabulary."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(ENCODER)
    tokenizer.save_pretrained(folder)
    DistilBertModel(DistilBertConfig(vocab_size=len(tokenizer))).save_pretrained(folder)
    return str(folder)


def loop(texts: list[str], encoder: Encoder, ordered: bool) -> NDArray[np.float32]:
    """Encode batches of equal size, in the given order or sorted by length."""
    tokenizer, model = load(encoder)
    order = sorted(range(len(texts)), key=lambda place: -len(texts[place])) if ordered else range(len(texts))
    vectors: dict[int, NDArray[np.float32]] = {}
    for batch in np.array_split(np.array(order), -(-len(texts) // BATCH)):
        padded = tokenizer([texts[place] for place in batch], padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            states = model(**padded.to(model.device)).last_hidden_state
        mask = padded["attention_mask"].unsqueeze(-1)
        vectors |= zip(batch.tolist(), ((states * mask).sum(1) / mask.sum(1)).cpu().numpy())
    return np.stack([vectors[place] for place in range(len(texts))])


def ours(texts: list[str], encoder: Encoder) -> NDArray[np.float32]:
    """Encode as the service does, without its cache."""
    vectors = {text: vector for batch in forward(texts, encoder) for text, vector in batch.items()}
    return np.stack([vectors[text] for text in texts])


def routes(name: str) -> Iterator[tuple[str, str, Route]]:
    """Yield the name, the precision and the function of each route available on this machine."""
    plain = choose(name, 512, "fp32")
    yield "plain loop", "fp32", partial(loop, encoder=plain, ordered=False)
    yield "sorted loop", "fp32", partial(loop, encoder=plain, ordered=True)
    try:
        other: Any = import_module("sentence_transformers").SentenceTransformer(name)
    except ImportError:
        pass
    else:
        yield "sentence-transformers", "fp32", other.encode
    for precision in dict.fromkeys(("fp32", "int8", native_precision())):
        yield f"ours, {precision}", precision, partial(ours, encoder=choose(name, 512, precision))


def peak_flops(precision: str) -> float:
    """Measure the operations per second of a large matrix product."""
    dtype = torch.int8 if precision == "int8" else getattr(torch, FIXED.dtypes[precision])
    left, right, best = torch.ones(2048, 768, dtype=dtype), torch.ones(768, 768, dtype=dtype), np.inf
    multiply = torch._int_mm if precision == "int8" else torch.matmul
    for _ in range(50):
        started = perf_counter()
        multiply(left, right)
        best = min(best, perf_counter() - started)
    return float(2 * 2048 * 768 * 768 / best)


def peak_memory() -> float:
    """Return the peak memory since the last call, in GiB (Linux only)."""
    peak = int(re.findall(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[0]) / 2**20
    Path("/proc/self/clear_refs").write_text("5")
    return peak


def cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[Any]:
    """Return the cosine of each pair of rows."""
    return np.asarray((one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1))


def measure(name: str, texts: list[str], rounds: int) -> pd.DataFrame:
    """Measure all routes in turn, for some rounds, and tabulate the results."""
    there, seconds, memory, vectors = list(routes(name)), pd.DataFrame(dtype=float), {}, {}
    for number in range(-1, rounds):
        for route, _, encode in there:
            peak_memory()
            started = perf_counter()
            # The round before the first only loads and warms up.
            vectors[route] = encode(texts if number >= 0 else texts[:BATCH])
            seconds.loc[number, route], memory[route] = perf_counter() - started, peak_memory()
    tokenizer, model = load(choose(name, 512, "fp32"))
    tokens = sum(map(len, tokenizer(texts, truncation=True, max_length=512)["input_ids"]))
    # One multiplication and one addition per token for each weight of the linear layers.
    operations = 2 * tokens * sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))
    rows = []
    for route, precision, _ in there:
        took, reference = seconds.loc[0:, route].median(), vectors["plain loop"]
        centred = cosines(vectors[route] - reference.mean(axis=0), reference - reference.mean(axis=0))
        row = {"route": route, "texts/s": len(texts) / took, "tokens/s": tokens / took}
        row |= {"x plain": seconds.loc[0:, "plain loop"].median() / took}
        row |= {"share of peak": operations / took / peak_flops(precision), "GiB": memory[route]}
        row |= {"worst cosine": cosines(vectors[route], reference).min(), "centred": centred.min()}
        rows.append(row | {"mean cosine": cosines(vectors[route], reference).mean()})
    return pd.DataFrame(rows).set_index("route")


def main() -> None:
    """Run the benchmark and print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--catalogue", type=Path, default=DEMO / "df_movies.csv")
    parser.add_argument("--encoder")
    parser.add_argument("--texts", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    overviews = pd.read_csv(options.catalogue, usecols=["overview"], dtype=str)["overview"].dropna().drop_duplicates()
    texts = overviews.sample(min(options.texts, len(overviews)), random_state=0).tolist()
    with TemporaryDirectory() as folder:
        table = measure(options.encoder or full_size(Path(folder)), texts, options.rounds)
    print(
        table.round(5).to_string(), f"\n{torch.get_num_threads()} threads, {torch.cpu.get_capabilities()['cpu_name']}"
    )


if __name__ == "__main__":
    main()
