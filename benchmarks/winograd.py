"""Measures what Winograd's minimal filtering gains in whole networks, in OpenVINO and in ONNX Runtime.

    python benchmarks/winograd.py --json results/winograd.json

Each network is traced and rewritten by the pipeline, and then once more with its wide 3x3 and 5x5 convolutions as minimal
filtering (graph/rewrites/winograd.py), which only OpenVINO's exporter does. Both graphs run in FP32 on the CPU, in turns in
one process; the ratios are those of neighbouring runs, with their quartiles. With `--cpu-time`, one thread runs and its CPU
time counts, which other load on the machine hardly changes. Peak memory is that of a separate process for each graph. The
logits' largest change is given over their standard deviation.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from rewrites import RUNTIMES, open_with, photograph
from tables import in_code, markdown

from r2mrf_deploy import environment
from r2mrf_deploy.bench.protocol import PAUSE
from r2mrf_deploy.export.openvino import WINOGRAD_CHANNELS, WINOGRAD_TILES

NETWORKS = ("r2mrf", "r2mrf-r50", "defusionnet")
FORMS = ("direct", "winograd")


def main() -> None:
    arguments = _arguments()
    threads = 1 if arguments.cpu_time else arguments.threads
    results: dict[str, Any] = {
        "machine": environment.describe() | {"threads": threads},
        "tools": environment.tool_versions(),
        "clock": "CPU time" if arguments.cpu_time else "wall time",
        "size": arguments.size,
        "channels": arguments.channels,
        "tiles": arguments.tiles,
        "networks": [],
    }
    for network in arguments.networks:
        row = measure(network, arguments, threads)
        results["networks"].append(row)
        _print(row)
        if arguments.json:
            arguments.json.parent.mkdir(parents=True, exist_ok=True)
            arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), metavar="PRESET")
    parser.add_argument("--runtimes", nargs="+", default=list(RUNTIMES), choices=RUNTIMES)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--channels", type=int, default=WINOGRAD_CHANNELS, help="the fewest, in and out")
    parser.add_argument("--tiles", type=int, default=WINOGRAD_TILES, help="the fewest of a convolution")
    parser.add_argument("--runs", type=int, default=11, help="inferences of each graph")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cpu-time", action="store_true", help="measure one thread's CPU time")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    return parser.parse_args()


def measure(network: str, arguments: argparse.Namespace, threads: int) -> dict[str, Any]:
    """Cost of both graphs of a network; in each runtime time, memory and agreement, unless the graphs are the same."""
    from r2mrf_deploy.graph import cost

    size = arguments.size
    graphs = dict(zip(FORMS, both(network, size, arguments.channels, arguments.tiles), strict=True))
    convolutions = [sum(node.op_type == "Conv" for node in graph.graph.node) for graph in graphs.values()]
    row: dict[str, Any] = {"network": network, "replaced": convolutions[0] - convolutions[1], "runtimes": {}}
    for form, graph in graphs.items():
        row[form] = {"multiply_adds": cost.multiply_adds(graph), "bytes": graph.ByteSize()}
    if not row["replaced"]:
        return row
    image = photograph(size)
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as folder:
        files = {form: Path(folder) / f"{form}.onnx" for form in FORMS}
        for form, graph in graphs.items():
            onnx.save(graph, files[form])
        for runtime in arguments.runtimes:
            row["runtimes"][runtime] = _side_by_side(runtime, files, image, arguments.runs, threads, clock)
    return row


def both(network: str, size: int, channels: int, tiles: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """The rewritten graph of a network with the weights of `r2mrf init`, without and with minimal filtering."""
    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.graph.rewrites import optimize
    from r2mrf_deploy.graph.rewrites.pipeline import rewrite_once
    from r2mrf_deploy.graph.rewrites.winograd import minimal_filtering
    from r2mrf_deploy.graph.trace import trace
    from r2mrf_deploy.networks.deployed import Deployed

    checkpoint = Checkpoint.init(network)
    model = optimize(trace(Deployed(checkpoint.module(), checkpoint.preprocess, logits=True), (size, size))).model
    return model, rewrite_once(model, partial(minimal_filtering, channels=channels, tiles=tiles))


def _side_by_side(
    runtime: str, files: dict[str, Path], image: np.ndarray, runs: int, threads: int, clock: Callable[[], float]
) -> dict[str, Any]:
    opened = {form: open_with(runtime, path, threads) for form, path in files.items()}
    logits = {form: run(image).astype(np.float64) for form, run in opened.items()}  # this also warms up
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for _ in range(runs):
        for form, run in opened.items():
            time.sleep(PAUSE)  # the threads of the last one wait actively for a while
            start = clock()
            run(image)
            times[form].append((clock() - start) * 1e3)
    opened.clear()
    spread = logits["direct"].std()
    if spread < 0.1:
        raise SystemExit("the logits are flat: their agreement would prove nothing")
    ratios = [w / d for d, w in zip(times["direct"], times["winograd"], strict=True)]
    return {
        "median_ms": {form: round(statistics.median(values), 1) for form, values in times.items()},
        "times_ms": {form: [round(value, 1) for value in values] for form, values in times.items()},
        "ratio_quartiles": [round(value, 3) for value in statistics.quantiles(ratios, n=4)],
        "peak_memory_mb": {form: _memory_in_a_process(runtime, path, image, threads) for form, path in files.items()},
        "largest_change": float(np.abs(logits["winograd"] - logits["direct"]).max() / spread),
    }


def _print(row: dict[str, Any]) -> None:
    direct, winograd = row["direct"], row["winograd"]
    print(
        f"{row['network']}: {row['replaced']} convolutions replaced, {direct['multiply_adds'] / 1e9:.1f} -> "
        f"{winograd['multiply_adds'] / 1e9:.1f} G multiply-adds, {direct['bytes'] / 1e6:.0f} -> "
        f"{winograd['bytes'] / 1e6:.0f} MB of graph"
    )
    for runtime, found in row["runtimes"].items():
        (before, after), memory = found["median_ms"].values(), found["peak_memory_mb"]
        low, middle, high = found["ratio_quartiles"]
        print(
            f"  {runtime:12}{before:8.1f} -> {after:.1f} ms, ratio {middle:.3f} ({low:.3f} to {high:.3f}), peak "
            f"{memory['direct']} -> {memory['winograd']} MB, logits change by {found['largest_change']:.1e} of their spread",
            flush=True,
        )


def _memory_in_a_process(runtime: str, path: Path, image: np.ndarray, threads: int) -> int:
    script = Path(__file__).with_name("rewrites.py")
    command = [sys.executable, str(script), "--memory-of", runtime, str(path), str(image.shape[1]), str(threads)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


_FILES = (("multiply_adds", 1e9, 1), ("bytes", 1e6, 0))
"""Of a graph, its unit and its digits."""


def table(found: dict[str, Any]) -> str:
    """Each network in OpenVINO, direct → by Winograd's filtering."""
    rows = []
    for row in found["networks"]:
        of, openvino = [row[form] for form in FORMS], row["runtimes"]["openvino"]
        operations, size = (
            " → ".join(f"{each[name] / unit:.{digits}f}" for each in of) for name, unit, digits in _FILES
        )
        ms = " → ".join(f"{each:.0f}" for each in openvino["median_ms"].values())
        peak = " → ".join(map(str, openvino["peak_memory_mb"].values()))
        low, middle, high = openvino["ratio_quartiles"]
        rows.append(
            [
                in_code(row["network"]),
                str(row["replaced"]),
                f"{operations} G",
                f"{ms} ms",
                f"{middle:.3f} ({low:.3f} to {high:.3f})",
                f"{peak} MB",
                f"{size} MB",
                f"{openvino['largest_change']:.1e}".replace("e-0", "e-"),
            ]
        )
    clock, moved = found["clock"], "logits change by"
    return markdown(["network", "replaced", "multiply-adds", clock, "ratio, quartiles", "peak", "file", moved], rows)


if __name__ == "__main__":
    main()
