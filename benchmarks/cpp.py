"""Compares the C++ library with Python on one artifact: latency, and the peak memory of a process.

    make cpp
    python benchmarks/cpp.py --json results/cpp.json

Latency is the whole time from a photograph's bytes to its map, at the network's size. Both sides take turns in one
process, so that other load on the machine affects both. Memory is that of separate processes that run in turns on the
same file: `r2mrf-infer --bench`, and a Python program that computes as many maps.
"""

from __future__ import annotations

import argparse
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

from r2mrf_deploy import environment
from r2mrf_deploy.predictor import Predictor

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "engines" / "cpp" / "examples"))
import embed_ctypes  # noqa: E402

SIZE = (320, 320)
PREFIX = ROOT / "out" / "cpp"
WARM_UP = 5
"""Turns that are not counted, and also the number of maps that a process computes before its memory is measured."""
LEAST_TURNS = 10
"""Turns that are counted at least, however short the duration."""
RESAMPLES = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="an ONNX artifact (default: export --network at 320x320)")
    parser.add_argument("--network", default="r2mrf-edge")
    parser.add_argument("--precision", choices=["fp32", "fp16", "bf16", "int8"], default="fp32", help="to export in")
    parser.add_argument("--duration", type=float, default=30, help="seconds to measure latency")
    parser.add_argument("--processes", type=int, default=5, help="processes of each kind to measure memory")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--memory-of-python", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.memory_of_python:
        print(f"Peak memory: {memory_of_python(given.artifact)} MiB")
        return
    with tempfile.TemporaryDirectory() as folder:
        artifact = given.artifact or export(given.network, given.precision, Path(folder))
        found = measure(artifact, given.duration, given.processes)
    text = json.dumps(found, indent=2) + "\n"
    if given.json:
        given.json.write_text(text)
    print(text)


def export(network: str, precision: str, folder: Path) -> Path:
    # Not imported above: with PyTorch, the Python process would need far more memory.
    from r2mrf_deploy import images, sample_photographs
    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.export.chain import export_artifact
    from r2mrf_deploy.export.convert import convert_artifact
    from r2mrf_deploy.export.options import ExportOptions, PrecisionOptions

    checkpoint = Checkpoint.init(network).save(folder / f"{network}.pth")
    fp32 = export_artifact(checkpoint, options=ExportOptions(size=SIZE)).path
    if precision == "fp32":
        return fp32
    album = folder / "album"
    album.mkdir()
    for number, photograph in enumerate(sample_photographs.sharp()):
        (album / f"{number:02}.png").write_bytes(images.png(photograph))
    options = PrecisionOptions(precision, album if precision == "int8" else None)  # type: ignore[arg-type]
    return convert_artifact(fp32, folder / f"{network}-{precision}.onnx", options, allow_failed_parity=True).path


def measure(artifact: Path, duration: float, processes: int) -> dict[str, Any]:
    options = ["--bench", "--duration", "0", "--warmUp", "0", "--iterations", str(WARM_UP)]
    memory: dict[str, list[float]] = {"cpp": [], "python": []}
    for _ in range(processes):
        memory["cpp"].append(_peak([PREFIX / "bin" / "r2mrf-infer", artifact, *options]))
        memory["python"].append(_peak([sys.executable, __file__, "--memory-of-python", "--artifact", artifact]))
    engine = embed_ctypes.Engine(embed_ctypes.load(str(PREFIX / "lib" / "libr2mrf.so")), str(artifact))
    with Predictor.open(artifact, "openvino") as predictor:
        image = random_image(predictor)
        times = take_turns({"cpp": lambda: engine(image), "python": lambda: predictor(image)}, duration)
    engine.close()
    return {
        "artifact": artifact.name,
        "turns": len(times["cpp"]),
        "map_ms": {side: statistics.median(own) for side, own in times.items()},
        "peak_memory_mib": {side: statistics.median(own) for side, own in memory.items()},
        "cpp_over_python": {
            "map_ms": ratio(times["cpp"], times["python"]),
            "peak_memory_mib": ratio(memory["cpp"], memory["python"]),
        },
        "every_map_ms": {side: [round(ms, 2) for ms in own] for side, own in times.items()},
        "every_peak_memory_mib": memory,
        "machine": environment.describe(),
        "tools": environment.tool_versions("openvino", "pillow", "numpy"),
    }


def take_turns(candidates: dict[str, Callable[[], object]], duration: float) -> dict[str, list[float]]:
    """Milliseconds of each turn, for `duration` seconds and at least `LEAST_TURNS` turns. The order rotates."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    order, turns = list(candidates), 0
    end = time.perf_counter() + duration
    while time.perf_counter() < end or turns < WARM_UP + LEAST_TURNS:
        for name in order:
            start = time.perf_counter()
            candidates[name]()
            times[name].append((time.perf_counter() - start) * 1e3)
        order, turns = [*order[1:], order[0]], turns + 1
    return {name: own[WARM_UP:] for name, own in times.items()}


def ratio(ours: list[float], theirs: list[float]) -> dict[str, Any]:
    """The ratio of the medians of paired values, and the interval of 95 % of the ratios of resampled pairs."""
    drawn = np.random.default_rng(0).integers(0, len(ours), (RESAMPLES, len(ours)))
    ratios = np.median(np.array(ours)[drawn], axis=1) / np.median(np.array(theirs)[drawn], axis=1)
    low, high = np.percentile(ratios, (2.5, 97.5))
    return {"ratio": statistics.median(ours) / statistics.median(theirs), "interval": [float(low), float(high)]}


def random_image(predictor: Predictor) -> np.ndarray:
    """An image, uint8 [H, W, 3], of the network's size, so that nothing is resized."""
    height, width = (int(d) for d in predictor.runner.inputs[0].shape[1:3])
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def memory_of_python(artifact: Path) -> float:
    """Peak memory of this process in MiB after it has computed a few maps."""
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


if __name__ == "__main__":
    main()
