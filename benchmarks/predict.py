"""Measures where the time of `r2mrf predict` goes on a large photograph: reading, inference, drawing, packing.

    python benchmarks/predict.py --json results/predict.json
    python benchmarks/predict.py my.jpg --model ckpt.onnx

The parts take turns in one process, so that other load on the machine affects all of them alike. Overlays and maps are drawn
and packed in each way that `predict` offers, and also at the photograph's own size. By default the photograph is one of
scikit-image's, enlarged to 24 megapixels, with noise like a camera's.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import environment, images, sample_photographs, weights
from r2mrf_deploy.predictor import Predictor

SIZE = (4000, 6000)
NOISE = 3.0
"""Standard deviation, in levels of 255."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photograph", nargs="?", type=Path, help="a photograph (default: one of 24 megapixels is made)")
    parser.add_argument("--model", type=Path, help="an artifact or a checkpoint (default: the shipped artifact)")
    parser.add_argument("--turns", type=int, default=7, help="turns of each part")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        Predictor.open(given.model or weights.artifact(weights.DEFAULT)) as predictor,
    ):
        found = measured(given.photograph or made(Path(folder)), predictor, given.turns)
    print("| part | median | bytes |\n|---|---:|---:|")
    for part in found["parts"]:
        print(f"| {part['name']} | {part['ms']:.0f} ms | {part['bytes'] or '-'} |")
    if given.json:
        given.json.write_text(json.dumps({"machine": environment.describe()} | found, indent=2) + "\n")


def made(folder: Path) -> Path:
    """A JPEG file of `SIZE`."""
    photograph = images.resize(sample_photographs.sample("chelsea"), SIZE)
    noise = np.random.default_rng(0).normal(0, NOISE, photograph.shape).astype(np.float32)
    file = folder / "photograph.jpg"
    file.write_bytes(images.jpeg((photograph + noise).clip(0, 255).astype(np.uint8)))
    return file


def measured(photograph: Path, predictor: Predictor, turns: int) -> dict[str, Any]:
    """The parts of `predict` and their medians, in milliseconds."""
    image = images.read(photograph)
    focus = predictor(image)
    level = images.grey(focus)
    side, longest = images.OVERLAY_SIDE, max(focus.shape)
    whole, drawn = images.overlay(image, focus, longest), images.overlay(image, focus)
    parts: dict[str, Callable[[], Any]] = {
        "read the photograph": lambda: images.read(photograph),
        "compute its map": lambda: predictor(image),
        "turn the map into bytes": lambda: images.grey(focus),
        "pack the map as PNG": lambda: images.png(level),
        f"draw the overlay, at most {side} pixels": lambda: images.overlay(image, focus),
        "pack it as PNG": lambda: images.png(drawn),
        "pack it as JPEG": lambda: images.jpeg(drawn),
        "draw the overlay at the photograph's size": lambda: images.overlay(image, focus, longest),
        "pack that as PNG": lambda: images.png(whole),
        "pack that as JPEG": lambda: images.jpeg(whole),
    }
    times: dict[str, list[float]] = {name: [] for name in parts}
    sizes: dict[str, int | None] = {}
    for _ in range(turns):
        for name, part in parts.items():
            start = time.perf_counter()
            result = part()
            times[name].append(1e3 * (time.perf_counter() - start))
            sizes[name] = len(result) if isinstance(result, bytes) else None
    rows = [{"name": name, "ms": statistics.median(times[name]), "bytes": sizes[name]} for name in parts]
    return {"size": image.shape[:2], "runtime": predictor.runner.runtime, "turns": turns, "parts": rows}


if __name__ == "__main__":
    main()
