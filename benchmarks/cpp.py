"""The C++ library and Python side by side on one artifact: latency, and the memory that each process needs at most.

    make cpp
    python benchmarks/cpp.py --json results/cpp.json

`r2mrf-infer --bench` and Python's runner take turns of a few seconds, a process each time, so that what else the machine
does meets both. A turn's figure is its median inference; a contestant's is the median over its turns.
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
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import machine
from r2mrf_deploy.predict import Predictor

SIZE = (320, 320)
INFER = Path(__file__).parents[1] / "out" / "cpp" / "bin" / "r2mrf-infer"
WARM_UP = 0.5
"""Seconds before each turn's first timed inference."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--artifact", type=Path, help="an ONNX artifact; by default `--network` at 320x320 is exported")
    parser.add_argument("--network", default="r2mrf-edge")
    parser.add_argument("--turns", type=int, default=6, help="of each contestant")
    parser.add_argument("--duration", type=float, default=3, help="seconds of a turn")
    parser.add_argument("--json", type=Path, help="where the figures go")
    parser.add_argument("--python-turn", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.python_turn:
        print(json.dumps(python_turn(given.artifact, given.duration)))
        return
    with tempfile.TemporaryDirectory() as folder:
        artifact = given.artifact or export(given.network, Path(folder))
        found = measure(artifact, given.turns, given.duration)
    text = json.dumps(found, indent=2) + "\n"
    if given.json:
        given.json.write_text(text)
    print(text)


def export(network: str, folder: Path) -> Path:
    from r2mrf_deploy.checkpoint import Checkpoint  # not above: with PyTorch, Python's turns would need far more memory
    from r2mrf_deploy.export import ExportOptions, to_onnx

    checkpoint = Checkpoint.init(network).save(folder / f"{network}.pth")
    return to_onnx(checkpoint, options=ExportOptions(size=SIZE)).path


def measure(artifact: Path, turns: int, duration: float) -> dict[str, Any]:
    python = [sys.executable, __file__, "--python-turn", "--artifact", artifact, "--duration", str(duration)]
    taken: dict[str, list[dict[str, float]]] = {"cpp": [], "python": []}
    for turn in range(turns):
        for who in ("cpp", "python") if turn % 2 == 0 else ("python", "cpp"):
            taken[who].append(cpp_turn(artifact, duration) if who == "cpp" else json.loads(_output(python)))
    figures = {
        who: {
            "latency_ms": statistics.median(t["latency_ms"] for t in own),
            "whole_ms": statistics.median(t["whole_ms"] for t in own),
            "peak_memory_mib": max(t["peak_memory_mib"] for t in own),
            "inferences": sum(t["inferences"] for t in own),
            "turns": own,
        }
        for who, own in taken.items()
    }
    cpp, py = figures["cpp"], figures["python"]
    return {
        "artifact": artifact.name,
        "seconds_a_turn": duration,
        "cpp_over_python": {k: cpp[k] / py[k] for k in ("latency_ms", "whole_ms", "peak_memory_mib")},
        **figures,
        "machine": machine.describe(),
        "tools": machine.tool_versions("openvino", "pillow", "numpy"),
    }


def cpp_turn(artifact: Path, duration: float) -> dict[str, float]:
    options = ["--bench", "--duration", str(duration), "--warmUp", str(WARM_UP * 1e3)]
    said = _output([INFER, artifact, *options])

    def median(name: str) -> float:
        found = re.search(rf"^{name}: .*?median = (\S+) ms", said, re.MULTILINE)
        assert found, said
        return float(found[1])

    count, peak = re.search(r"^(\d+) inferences", said, re.MULTILINE), re.search(r"Peak memory: (\S+) MiB", said)
    assert count and peak, said
    whole = median("Prepare Time") + median("Latency") + median("Finish Time")
    return {
        "latency_ms": median("Latency"),
        "whole_ms": whole,
        "peak_memory_mib": float(peak[1]),
        "inferences": int(count[1]),
    }


def python_turn(artifact: Path, duration: float) -> dict[str, float]:
    """The same from Python: the runner alone, then whole predictions of an image of the network's size."""
    with Predictor.open(artifact, "openvino") as predictor:
        spec = predictor.runner.inputs[0]
        height, width = (int(d) for d in spec.shape[1:3])
        image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        arrays = {spec.name: image[None]}
        _timed(lambda: predictor.runner.run(arrays), WARM_UP)
        latency = _timed(lambda: predictor.runner.run(arrays), duration / 2)
        whole = _timed(lambda: predictor(image), duration / 2)
    status = Path("/proc/self/status").read_text()
    return {
        "latency_ms": statistics.median(latency),
        "whole_ms": statistics.median(whole),
        "peak_memory_mib": int(status.partition("VmHWM:")[2].split()[0]) / 1024,
        "inferences": len(latency) + len(whole),
    }


def _timed(work: Any, duration: float) -> list[float]:
    """Milliseconds of each call, for `duration` seconds and at least ten calls."""
    found: list[float] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < duration or len(found) < 10:
        start = time.perf_counter()
        work()
        found.append((time.perf_counter() - start) * 1e3)
    return found


def _output(command: list[Any]) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


if __name__ == "__main__":
    main()
