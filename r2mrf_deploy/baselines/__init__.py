"""Focus maps of the papers before the networks, to compare trained networks with.

Each is one paper's measure of sharpness, implemented from the paper with NumPy, SciPy and scikit-image. Its module says
where it departs from the paper. `jnb`, `dbdf`, `ksfv` and `dhde` are learned, from CUHK's training photographs, and what
they have learned is in `learned/`; the others need no training. A flat photograph has nothing in focus: its map is 0
everywhere.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import numpy as np

from r2mrf_deploy.errors import RuntimeUnavailable, UsageError, did_you_mean
from r2mrf_deploy.sample_photographs import CURE

BASELINES = ("lbp", "svd", "hifst", "spectrum", "asvb", "jnb", "dbdf", "ss", "ksfv", "dhde")
"""Their names, which are also the names of their modules."""
LEARNED = ("jnb", "dbdf", "ksfv", "dhde")
"""Those that are learned, by `benchmarks/learn_baselines.py`."""


def get(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The baseline called `name`.

    Returns:
        A function from a photograph, uint8 [H, W, 3] RGB of any size, to a map, float32 [H, W] in 0..1, where 1 is in focus.
        It raises InputError on any other array.

    Raises:
        UsageError: there is no such baseline.
        RuntimeUnavailable: scikit-image, which brings SciPy, is not installed.
    """
    if name not in BASELINES:
        raise UsageError(f"no baseline {name!r}: {did_you_mean(name, BASELINES)}")
    if importlib.util.find_spec("skimage") is None:
        raise RuntimeUnavailable(f"the baselines need scikit-image, which is not installed: {CURE}")
    return importlib.import_module(f"{__name__}.{name}").focus
