"""The C++ library and Python side by side on one artifact: latency, and the memory that a process of each needs at most.

    make cpp
    python benchmarks/cpp.py --json results/cpp.json

Latency: one process holds both and they take turns, inference by inference, so that what else the machine does meets both
alike. Memory: `r2mrf-infer --bench` and a Python process that makes as many maps, each by itself.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import machine
from r2mrf_deploy.predict import Predictor

SIZE = (320, 320)
PREFIX = Path(__file__).parents[1] / "out" / "cpp"
WARM_UP = 5
"""Pairs of inferences that are not counted; and how many a process makes whose memory is asked for."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="an ONNX artifact; by default `--network` at 320x320 is exported")
    parser.add_argument("--network", default="r2mrf-edge")
    parser.add_argument("--duration", type=float, default=30, help="seconds of taking turns")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--memory-of-python", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of_python:
        print(f"Peak memory: {memory_of_python(given.artifact)} MiB")
        return
    with tempfile.TemporaryDirectory() as folder:
        found = measure(given.artifact or export(given.network, Path(folder)), given.duration)
    text = json.dumps(found, indent=2) + "\n"
    if given.json:
        given.json.write_text(text)
    print(text)


def export(network: str, folder: Path) -> Path:
    from r2mrf_deploy.checkpoint import (
        Checkpoint,
    )  # not above: with PyTorch, Python's process would need far more memory
    from r2mrf_deploy.export import ExportOptions, to_onnx

    checkpoint = Checkpoint.init(network).save(folder / f"{network}.pth")
    return to_onnx(checkpoint, options=ExportOptions(size=SIZE)).path


def measure(artifact: Path, duration: float) -> dict[str, Any]:
    options = ["--bench", "--duration", "0", "--warmUp", "0", "--iterations", str(WARM_UP)]
    cpp = {"peak_memory_mib": _peak([PREFIX / "bin" / "r2mrf-infer", artifact, *options])}
    python = {"peak_memory_mib": _peak([sys.executable, __file__, "--memory-of-python", "--artifact", artifact])}
    with Predictor.open(artifact, "openvino") as predictor, Engine(artifact) as engine:
        image = random_image(predictor)
        arrays = {predictor.runner.inputs[0].name: image[None]}
        contestants = {
            "cpp_inference_ms": lambda: engine.run(image).compute,
            "python_inference_ms": lambda: _timed(lambda: predictor.runner.run(arrays)),
            "cpp_map_ms": lambda: _timed(lambda: engine.run(image)),
            "python_map_ms": lambda: _timed(lambda: predictor(image)),
        }
        times = take_turns(contestants, duration)
    medians = {name: statistics.median(own) for name, own in times.items()}
    cpp |= {"inference_ms": medians["cpp_inference_ms"], "map_ms": medians["cpp_map_ms"]}
    python |= {"inference_ms": medians["python_inference_ms"], "map_ms": medians["python_map_ms"]}
    return {
        "artifact": artifact.name,
        "turns": len(times["cpp_map_ms"]),
        "cpp_over_python": {name: cpp[name] / python[name] for name in cpp},
        "cpp": cpp,
        "python": python,
        "every_ms": {name: [round(ms, 2) for ms in own] for name, own in times.items()},
        "machine": machine.describe(),
        "tools": machine.tool_versions("openvino", "pillow", "numpy"),
    }


def take_turns(contestants: dict[str, Callable[[], float]], duration: float) -> dict[str, list[float]]:
    """What each said of its turns, for `duration` seconds; who is first changes from round to round."""
    times: dict[str, list[float]] = {name: [] for name in contestants}
    order = list(contestants)
    end = time.perf_counter() + duration
    while time.perf_counter() < end:
        for name in order:
            times[name].append(contestants[name]())
        order = [*order[1:], order[0]]
    return {name: own[WARM_UP:] for name, own in times.items()}


def random_image(predictor: Predictor) -> np.ndarray:
    """uint8 [H, W, 3] at the network's size, so that nothing is resized."""
    height, width = (int(d) for d in predictor.runner.inputs[0].shape[1:3])
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


class Times(ctypes.Structure):
    """r2mrf_times: milliseconds."""

    _fields_ = [(name, ctypes.c_double) for name in ("prepare", "enqueue", "h2d", "compute", "d2h", "finish")]


class Engine:
    """An artifact opened by the C++ library."""

    def __init__(self, artifact: Path) -> None:
        self._library = ctypes.CDLL(str(PREFIX / "lib" / "libr2mrf.so"))
        self._library.r2mrf_last_error.restype = ctypes.c_char_p
        self._handle = ctypes.c_void_p()
        self._check(self._library.r2mrf_open(str(artifact).encode(), ctypes.c_uint32(0), ctypes.byref(self._handle)))

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.r2mrf_close(self._handle)

    def run(self, image: np.ndarray) -> Times:
        height, width = image.shape[:2]
        focus = np.empty((height, width), np.float32)
        self._check(
            self._library.r2mrf_run_f32(
                *(self._handle, ctypes.c_void_p(image.ctypes.data), ctypes.c_uint32(width), ctypes.c_uint32(height)),
                *(ctypes.c_size_t(image.strides[0]), ctypes.c_int32(0)),
                *(ctypes.c_void_p(focus.ctypes.data), ctypes.c_size_t(focus.strides[0])),
            )
        )
        times = Times()
        self._check(self._library.r2mrf_last_times(ctypes.byref(times)))
        return times

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(self._library.r2mrf_last_error().decode())


def memory_of_python(artifact: Path) -> float:
    """MiB that this process had at most, once it has made a few maps."""
    with Predictor.open(artifact, "openvino") as predictor:
        image = random_image(predictor)
        for _ in range(WARM_UP):
            predictor(image)
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024


def _peak(command: list[Any]) -> float:
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = re.search(r"^Peak memory: (\S+) MiB", said, re.MULTILINE)
    assert found, said
    return float(found[1])


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return (time.perf_counter() - start) * 1e3


if __name__ == "__main__":
    main()
