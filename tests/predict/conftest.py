"""A network that computes brightness, and photographs whose brightness is known."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy.manifest import NEUTRAL, TensorSpec
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.runtimes.base import Arrays, Runner

Brightness = Callable[..., Predictor]


class BrightnessRunner(Runner):
    """The map is the mean of the colours. It counts the inferences that are under way."""

    runtime, device = "brightness", "numpy"

    def __init__(
        self, batch: int | str = "n", streams: int = 1, size: tuple[int | str, int | str] = ("h", "w")
    ) -> None:
        self.streams = streams
        self.inputs = (TensorSpec(name="image", dtype="uint8", shape=[batch, *size, 3], layout="NHWC"),)
        self.outputs = (TensorSpec(name="map", dtype="float32", shape=[batch, 1, "h", "w"], layout="NCHW"),)
        self.batches: list[int] = []
        self.under_way = self.most_under_way = 0
        self._lock = threading.Lock()

    def _run(self, arrays: Arrays) -> Arrays:
        with self._lock:
            self.batches.append(len(arrays["image"]))
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            return {"map": self.compute(arrays["image"])}
        finally:
            with self._lock:
                self.under_way -= 1

    def compute(self, image: np.ndarray) -> np.ndarray:
        return image.mean(3, dtype=np.float32)[:, None] / np.float32(255)


@pytest.fixture
def brightness() -> Brightness:
    """`brightness(batch="n", streams=1)`: a predictor whose map is the brightness of each pixel."""
    return lambda batch="n", streams=1: Predictor(BrightnessRunner(batch, streams), NEUTRAL)


def photograph(path: Path, level: int = 200, size: tuple[int, int] = (8, 6)) -> Path:
    """A file of one grey, of (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (level,) * 3).save(path)
    return path
