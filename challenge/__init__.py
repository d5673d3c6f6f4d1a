"""Predict what a user will rate a movie that nobody has rated yet."""

import os
from multiprocessing import parent_process
from tempfile import gettempdir

# The OpenMP threads of LightGBM and torch spin while they wait for each other. On a busy machine that starves the very
# thread they wait for: two trainings side by side took a hundred times as long as one. So spin briefly, then sleep.
if "GOMP_SPINCOUNT" not in os.environ:
    os.environ["GOMP_SPINCOUNT"] = "1000"
if os.environ.get("CHALLENGE_LOG") == "json":
    # Progress bars and plain text would break up the JSON lines. The libraries read these when they are imported.
    os.environ |= {"TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_VERBOSITY": "error"}
if parent_process():
    # One of several workers, whose metrics are added up. prometheus_client reads this when it is imported.
    counts = os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", f"{gettempdir()}/challenge-{os.getppid()}")
    os.makedirs(counts, exist_ok=True)

from challenge.api import app

__all__ = ["app"]
