"""Predict what a user will rate a movie that nobody has rated yet."""

import os
from multiprocessing import parent_process
from tempfile import gettempdir

# LightGBM's and torch's threads wait busily for each other. If that takes long, something else has the processor, and
# needs it to go on: let it, or two trainings side by side take a hundred times as long as one. Read by their OpenMP.
if "GOMP_SPINCOUNT" not in os.environ:
    os.environ["GOMP_SPINCOUNT"] = "1000"
if os.environ.get("CHALLENGE_LOG") == "json":
    # Bars would break its lines; read when tqdm is imported.
    os.environ["TQDM_DISABLE"] = "1"
if parent_process():
    # One of several workers: their counts are added up. prometheus_client looks for the folder when it is imported.
    counts = os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", f"{gettempdir()}/challenge-{os.getppid()}")
    os.makedirs(counts, exist_ok=True)

from challenge.api import app

__all__ = ["app"]
