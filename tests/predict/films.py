"""Films for tests, and what is in them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from r2mrf_deploy.predict.film import Film, film
from r2mrf_deploy.predictor import Predictor

av = pytest.importorskip("av")

brightness = cast(Predictor, lambda image: image.mean(2, dtype=np.float32) / np.float32(255))
TICK = Fraction(1, 12_800)
SIZE = (48, 64)
CODEC = 4
"""Levels of 255 by which x264 at this quality, and the conversion to 219 levels, may change a smooth frame."""


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Grey, brighter from frame to frame, with a white bar above and a black one at the left: turned or mirrored, it looks
    different."""
    image = np.full((*size, 3), 60 + 8 * number % 120, np.uint8)
    image[:, : size[1] // 4] = 0
    image[: size[0] // 4] = 255
    return image


def write(
    path: Any,
    frames: Iterable[np.ndarray],
    *,
    ticks: Sequence[int] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rotate: int | None = None,
    aspect: Fraction | None = None,
    real_time: bool = False,
    **how: Any,
) -> None:
    """Write frames, 25 in a second or at these times, to a path or an open file."""
    start = time.monotonic()
    with av.open(str(path) if isinstance(path, Path) else path, "w", **how) as container:
        stream = container.add_stream(codec, rate=25)
        unit = TICK if codec != "mpeg4" else Fraction(1, 25)
        for number, frame in enumerate(frames):
            if not number:
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = pixels
                stream.codec_context.time_base = unit
                if codec == "libx264":
                    stream.options = {"crf": "8", "preset": "ultrafast", "tune": "zerolatency", "g": "5"}
                if codec == "libx265":
                    stream.options = {"x265-params": "log-level=none"}
                if rotate is not None:
                    stream.set_display_rotation(rotate)
                if aspect:
                    stream.codec_context.sample_aspect_ratio = aspect
            if real_time and (early := start + number / 25 - time.monotonic()) > 0:
                time.sleep(early)
            ready = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)
            ready.pts = ticks[number] if ticks else number * int(Fraction(1, 25) / unit)
            ready.time_base = unit
            container.mux(stream.encode(ready))
        container.mux(stream.encode(None))


def clip(folder: Path, count: int = 12, name: str = "clip.mp4", **how: Any) -> Path:
    write(folder / name, map(picture, range(count)), **how)
    return folder / name


def read(path: Path) -> tuple[list[Any], Fraction]:
    """A film's frames and its average rate."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0)), container.streams.video[0].average_rate


def unopened() -> tuple[Any, Any]:
    """What stands for a container and its stream of 25 frames in a second."""
    rate = Fraction(25)
    return SimpleNamespace(start_time=None), SimpleNamespace(time_base=1 / rate, average_rate=rate, start_time=None)


def rgb(path: Path) -> list[np.ndarray]:
    return [frame.to_ndarray(format="rgb24") for frame in read(path)[0]]


def times(path: Path) -> list[Fraction]:
    return [frame.pts * frame.time_base for frame in read(path)[0]]


def rows(found: Film) -> list[dict[str, Any]]:
    return [json.loads(row) for row in found.outputs["scores"].read_text().splitlines()]


def run(source: Path | str, folder: Path, predictor: Any = brightness, **options: Any) -> Film:
    return film(predictor, str(source), folder / "out", "a", **{"save": ("map", "overlay", "scores"), **options})


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("out/*"))
