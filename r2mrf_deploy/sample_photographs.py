"""The photographs that scikit-image ships inside its wheel: samples for the demo, for parity and for training.

They are read from the installed package: nothing is downloaded, and scikit-image itself is not imported.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from r2mrf_deploy.errors import RuntimeUnavailable, UsageError, did_you_mean

CURE = 'pip install "r2mrf-deploy[export]"'
DEMO = "chelsea"
"""The demo's photograph: a sharp cat before a defocused room. Never trained on."""


@dataclass(frozen=True)
class _Photograph:
    file: str
    reduction: int = 0
    """How much to reduce it so that it is sharp to the pixel wherever it has detail; 0: parts of it are out of focus, or it
    has too little detail, so it is not used for training."""


_TABLE = {
    "astronaut": _Photograph("astronaut.png", 2),
    "brick": _Photograph("brick.png", 1),
    "camera": _Photograph("camera.png", 1),
    "chelsea": _Photograph("chelsea.png"),
    "coffee": _Photograph("coffee.png", 1),
    "coins": _Photograph("coins.png", 1),
    "grass": _Photograph("grass.png", 1),
    "gravel": _Photograph("gravel.png", 1),
    "hubble_deep_field": _Photograph("hubble_deep_field.jpg", 2),
    "ihc": _Photograph("ihc.png", 2),
    "moon": _Photograph("moon.png"),
    "motorcycle_left": _Photograph("motorcycle_left.png", 1),
    "motorcycle_right": _Photograph("motorcycle_right.png", 1),
    "retina": _Photograph("retina.jpg", 3),
    "rocket": _Photograph("rocket.jpg", 1),
}


def names() -> tuple[str, ...]:
    """The photographs there are."""
    return tuple(_TABLE)


def sample(name: str) -> np.ndarray:
    """A photograph, uint8 [H, W, 3]; a grey one has three equal channels.

    Raises:
        UsageError: there is no such photograph.
        RuntimeUnavailable: scikit-image is not installed, or this version of it does not ship the file.
    """
    return np.array(_open(name))


def sharp() -> list[np.ndarray]:
    """The photographs to learn from, each uint8 [H, W, 3], reduced until it is sharp to the pixel; `DEMO` is not one.

    Raises:
        RuntimeUnavailable: as for `sample`.
    """
    return [np.array(_open(name).reduce(entry.reduction)) for name, entry in _TABLE.items() if entry.reduction]


def _open(name: str) -> Image.Image:
    if name not in _TABLE:
        raise UsageError(f"no sample photograph {name!r}: {did_you_mean(name, _TABLE)}")
    path = _folder() / _TABLE[name].file
    if not path.is_file():
        raise RuntimeUnavailable(f"this scikit-image does not ship {path.name}: {CURE} installs one that does")
    with Image.open(path) as image:
        return image.convert("RGB")


def _folder() -> Path:
    spec = importlib.util.find_spec("skimage")
    if spec is None or spec.origin is None:
        raise RuntimeUnavailable(f"the sample photographs come with scikit-image, which is not installed: {CURE}")
    return Path(spec.origin).parent / "data"
