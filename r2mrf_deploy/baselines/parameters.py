"""What some baselines have learned: small files beside them, which `benchmarks/learn_baselines.py` makes."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "learned"
"""A file for each baseline that learns, NAME.npz, in half precision."""


@cache
def learned(name: str) -> dict[str, np.ndarray]:
    """The arrays of the baseline called `name`, by their names: float64, not to be changed."""
    with np.load(FOLDER / f"{name}.npz") as file:
        found = {key: file[key].astype(np.float64) for key in file.files}
    for values in found.values():
        values.flags.writeable = False
    return found
