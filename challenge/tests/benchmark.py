"""How training time and memory grow with the ratings; users and movies grow with their square root."""

import argparse
import json
import resource
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from challenge.model import fit_model
from challenge.tables import read_catalogue, read_pairs
from challenge.tests.synthetic import make, write

SIZES = (100_000, 1_000_000, 10_000_000)


def measure(folder: Path) -> None:
    """Train on a folder's ratings and random embeddings, predict a million rows; print seconds and GiB."""
    clock = {"read": perf_counter()}

    def enter(stage: str) -> None:
        clock[stage] = perf_counter()

    ratings = read_pairs(folder / "df_train.csv", rated=True)
    catalogue = read_catalogue(folder / "df_movies.csv")
    embeddings = np.random.default_rng(0).normal(size=(len(catalogue), 768)).astype(np.float32)
    with threadpool_limits(limits=1, user_api="blas"):
        model = fit_model(ratings, catalogue, embeddings, 0, enter)
    enter("sample")
    pairs = ratings[["userId", "movieId"]].sample(1_000_000, replace=True, random_state=0)
    enter("predict 1 M")
    model.predict(pairs)
    enter("end")
    seconds = {stage: end - start for (stage, start), end in zip(clock.items(), list(clock.values())[1:])}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps({"rows": len(ratings), "GiB": peak} | seconds), flush=True)


def main() -> None:
    """Measure each size in its own process, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("ratings", type=int, nargs="*", default=SIZES)
    rows = []
    for size in parser.parse_args().ratings:
        with TemporaryDirectory() as folder:
            side = (size / 100_000) ** 0.5
            write(make(int(2_000 * side), int(1_250 * side), int(size * 1.25), 7), Path(folder))
            code = "import sys, pathlib, challenge.tests.benchmark as b; b.measure(pathlib.Path(sys.argv[1]))"
            output = subprocess.run([sys.executable, "-c", code, folder], stdout=subprocess.PIPE, check=True).stdout
        rows.append(json.loads(output.splitlines()[-1]))
    print(pd.DataFrame(rows).round(2).to_string(index=False))


if __name__ == "__main__":
    main()
