"""Predict what a user will rate a movie that nobody has rated yet."""

import os
from multiprocessing import parent_process
from tempfile import gettempdir

if parent_process():
    # One of several workers: their counts are added up. prometheus_client looks for the folder when it is imported.
    counts = os.environ.setdefault("PROMETHEUS_MULTIPROC_DIR", f"{gettempdir()}/challenge-{os.getppid()}")
    os.makedirs(counts, exist_ok=True)

from challenge.api import app

__all__ = ["app"]
