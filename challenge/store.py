"""The trained model on disk: there as a whole or not at all."""

import json
import os
from pathlib import Path

import numpy as np

from challenge.model import RatingModel

FILE = "model.npz"
REPORT = "report"


def save(model: RatingModel, folder: Path) -> None:
    """Write a model; until that is done the earlier one stays.

    Parameters
    ----------
    model : RatingModel
        A fitted one.
    folder : Path
        Where it goes; made when missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{FILE}.part").open("wb") as file:
        np.savez(file, allow_pickle=False, **model.arrays_, **{REPORT: np.array(json.dumps(model.report_))})
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, folder / FILE)


def load(folder: Path) -> RatingModel | None:
    """Read the model that was saved last.

    Parameters
    ----------
    folder : Path
        Where it was saved.

    Returns
    -------
    RatingModel or None
        None where there is none yet.
    """
    if not (folder / FILE).exists():
        return None
    with np.load(folder / FILE, allow_pickle=False) as file:
        arrays = dict(file)
    return RatingModel.from_arrays(arrays, json.loads(str(arrays.pop(REPORT))))
