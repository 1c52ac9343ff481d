"""The photographs that scikit-image ships in its wheel: samples for the demo, for parity and for training.

They are read from the installed package, without importing scikit-image. Nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from PIL import Image

from r2mrf_deploy import environment
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError, did_you_mean

CURE = environment.installs("skimage")
DEMO = "chelsea"
"""The demo's photograph: a sharp cat in front of a defocused room. It is never used for training."""


_REDUCTIONS = {
    "astronaut": 2, "brick": 1, "camera": 1, "chelsea": 0, "coffee": 1, "coins": 1, "grass": 1, "gravel": 1,
    "hubble_deep_field": 2, "ihc": 2, "moon": 0, "motorcycle_left": 1, "motorcycle_right": 1, "retina": 3, "rocket": 1,
}  # fmt: skip
"""The factor by which each photograph is reduced so that its detail is sharp to the pixel. 0 means that it is not used for
training, because parts of it are out of focus or it has too little detail."""


def names() -> tuple[str, ...]:
    """The names of the photographs."""
    return tuple(_REDUCTIONS)


def sample(name: str) -> np.ndarray:
    """A photograph, uint8 [H, W, 3]. Greyscale photographs have three equal channels.

    Raises:
        UsageError: there is no such photograph.
        RuntimeUnavailable: scikit-image is not installed, or its version does not ship the photograph.
    """
    return np.array(_open(name))


def sharp() -> list[np.ndarray]:
    """The photographs for training, each uint8 [H, W, 3], reduced until it is sharp to the pixel. `DEMO` is not among them.

    Raises:
        RuntimeUnavailable: as for `sample`.
    """
    return [np.array(_open(name).reduce(reduction)) for name, reduction in _REDUCTIONS.items() if reduction]


def _open(name: str) -> Image.Image:
    if name not in _REDUCTIONS:
        raise UsageError(f"no sample photograph {name!r}: {did_you_mean(name, _REDUCTIONS)}")
    path = next(_folder().glob(f"{name}.*"), None)  # .png or .jpg
    if path is None:
        raise RuntimeUnavailable(f"this scikit-image does not ship {name}: {CURE} installs one that does")
    with Image.open(path) as image:
        return image.convert("RGB")


def _folder() -> Path:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise RuntimeUnavailable(f"the sample photographs come with scikit-image, which is not installed: {CURE}")
    return Path(spec.origin).parent / "data"
