"""Measures time and peak memory of traced and rewritten networks side by side: what the exact rewrites gain.

    python benchmarks/rewrites.py --json results/rewrites.json --plot rewrites.png

Each network is traced from PyTorch and rewritten. ONNX Runtime and OpenVINO run both graphs in FP32 on the CPU. Times
are medians of inferences that alternate between the two graphs in one process, so that other load on the machine
affects both. Peak memory is that of a separate process for each graph. The first network is measured at all sizes, the
others only at the first.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tables import in_code, markdown

from r2mrf_deploy import environment, images, sample_photographs
from r2mrf_deploy.bench.protocol import PAUSE

Run = Callable[[np.ndarray], np.ndarray]
NETWORKS = ("r2mrf", "r2mrf-r50", "r2mrf:share=false")
GROWTH = (320, 640, 1280)
RUNTIMES = ("onnxruntime", "openvino")
FORMS = ("traced", "rewritten")


def main() -> None:
    arguments = _arguments()
    if arguments.memory_of:
        print(_peak_memory(*arguments.memory_of))
        return
    if arguments.plot:
        _matplotlib()  # fail before the long work, not after it
    results: dict[str, Any] = {
        "machine": environment.describe() | {"threads": arguments.threads},
        "tools": environment.tool_versions(),
        "networks": [],
        "growth": [],
    }
    for i, network in enumerate(arguments.networks):
        for size in arguments.sizes if i == 0 else arguments.sizes[:1]:
            row = measure(network, size, arguments.runs, arguments.threads)
            results["growth"] += [row] if i == 0 else []
            results["networks"] += [row] if size == arguments.sizes[0] else []
            _print(row)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    if arguments.plot:
        plot(results["growth"], arguments.plot)


def measure(network: str, size: int, runs: int, threads: int) -> dict[str, Any]:
    """Cost, time, memory and agreement of the two graphs of a network at one size."""
    import onnx

    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.graph import cost
    from r2mrf_deploy.graph.rewrites import optimize
    from r2mrf_deploy.graph.trace import trace
    from r2mrf_deploy.networks.deployed import Deployed
    from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner

    image = photograph(size)
    checkpoint = Checkpoint.init(*parsed(network))  # with weights that give an informative map
    model = trace(Deployed(checkpoint.module(), checkpoint.preprocess, logits=True), (size, size))
    reference = PyTorchRunner(checkpoint, logits=True).run({"image": image})["logits"]
    start = time.perf_counter()
    rewritten = optimize(model)
    seconds = time.perf_counter() - start
    row: dict[str, Any] = {"network": network, "size": size, "seconds_to_rewrite": round(seconds, 2)}
    row["rewrites"] = [record.model_dump() for record in rewritten.records]
    with tempfile.TemporaryDirectory() as folder:
        files = {form: Path(folder) / f"{form}.onnx" for form in FORMS}
        for form, graph in zip(FORMS, (model, rewritten.model), strict=True):
            onnx.save(graph, files[form])
            counted = cost.cost(graph)
            row[form] = {
                "multiply_adds": counted.multiply_adds,
                "bytes": counted.bytes,
                "peak_activation_bytes": counted.peak_activation_bytes,
                "nodes": len(graph.graph.node),
            }
        row["runtimes"] = {name: _side_by_side(name, files, image, reference, runs, threads) for name in RUNTIMES}
    return row


def _side_by_side(
    runtime: str, files: dict[str, Path], image: np.ndarray, reference: np.ndarray, runs: int, threads: int
) -> dict[str, Any]:
    sessions = {form: open_with(runtime, path, threads) for form, path in files.items()}
    outputs = {form: run(image) for form, run in sessions.items()}  # this also warms up
    times = in_turns(sessions, image, runs)
    sessions.clear()
    medians = {form: statistics.median(values) for form, values in times.items()}
    memory = {form: _memory_in_a_process(runtime, path, image.shape[1], threads) for form, path in files.items()}
    spread = float(reference.std())
    if spread < 0.1:
        raise SystemExit("the logits are flat: their agreement would prove nothing")
    return {
        "median_ms": {form: round(value, 1) for form, value in medians.items()},
        "times_ms": {form: [round(value, 1) for value in values] for form, values in times.items()},
        "speedup": round(medians["traced"] / medians["rewritten"], 3),
        "peak_memory_mb": memory,
        "largest_difference": float(np.abs(outputs["rewritten"] - outputs["traced"]).max() / spread),
        "difference_to_pytorch": {form: _difference(output, reference) for form, output in outputs.items()},
    }


def in_turns(functions: dict[str, Run], image: np.ndarray, runs: int) -> dict[str, list[float]]:
    """Milliseconds of `runs` calls of each function, in turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(runs):
        for name, run in functions.items():
            time.sleep(PAUSE)  # the threads of the last one wait actively for a while
            start = time.perf_counter()
            run(image)
            times[name].append((time.perf_counter() - start) * 1e3)
    return times


def _difference(output: np.ndarray, reference: np.ndarray) -> dict[str, float]:
    """The largest difference and the root mean square, divided by the reference's standard deviation."""
    off = (output - reference).astype(np.float64) / reference.std()
    return {"max": float(np.abs(off).max()), "rms": float(np.sqrt(np.mean(off**2)))}


def open_with(runtime: str, path: Path, threads: int) -> Run:
    """Open an ONNX file as a function from an image to logits."""
    if runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda image: session.run(["logits"], {"image": image})[0]
    import openvino

    settings = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(str(path), "CPU", settings)
    request = compiled.create_infer_request()
    return lambda image: np.array(request.infer({"image": image})["logits"])


def _memory_in_a_process(runtime: str, path: Path, size: int, threads: int) -> int:
    command = [sys.executable, __file__, "--memory-of", runtime, str(path), str(size), str(threads)]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def _peak_memory(runtime: str, path: str, size: str, threads: str) -> int:
    """Open a graph and run it twice. Returns the peak memory of this process in MB of 10⁶ bytes."""
    run = open_with(runtime, Path(path), int(threads))
    image = np.zeros((1, int(size), int(size), 3), np.uint8)
    run(image)
    run(image)
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, getrusage gives the parent's peak if that was higher
        kibibytes = next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return kibibytes * 1024 // 1_000_000
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1_000_000  # macOS counts bytes


def photograph(size: int) -> np.ndarray:
    """A photograph, uint8 [1, size, size, 3]."""
    return images.resize(sample_photographs.sample("astronaut"), (size, size))[None]


def parsed(network: str) -> tuple[str, dict[str, str]]:
    """Split a network, such as `r2mrf:share=false,steps=3`, into its preset and settings."""
    preset, _, settings = network.partition(":")
    return preset, dict(setting.split("=") for setting in settings.split(",") if setting)


def plot(growth: list[dict[str, Any]], path: Path) -> None:
    """Plot time and peak memory of both graphs against the number of pixels, for each runtime."""
    pyplot = _matplotlib()
    from matplotlib.ticker import LogLocator

    figure, axes = pyplot.subplots(2, len(RUNTIMES), figsize=(9, 7), sharex=True)
    pixels = [row["size"] ** 2 / 1e6 for row in growth]
    for column, runtime in enumerate(RUNTIMES):
        for form in FORMS:
            seconds = [row["runtimes"][runtime]["median_ms"][form] / 1e3 for row in growth]
            gigabytes = [row["runtimes"][runtime]["peak_memory_mb"][form] / 1e3 for row in growth]
            axes[0][column].plot(pixels, seconds, "o-", label=form)
            axes[1][column].plot(pixels, gigabytes, "o-", label=form)
        axes[0][column].set_title(runtime)
        axes[1][column].set_xlabel("pixels")
    for axis, label in ((axes[0][0], "seconds for one image"), (axes[1][0], "peak memory, GB")):
        axis.set_ylabel(label)
    axes[0][0].legend()
    for axis in axes.flat:
        axis.set(xscale="log", yscale="log")
        axis.set_xticks(pixels, [f"{row['size']}×{row['size']}" for row in growth])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    figure.suptitle(f"{growth[0]['network']}, FP32, CPU")
    figure.tight_layout()
    figure.savefig(path, dpi=150)


def _matplotlib() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise SystemExit("--plot needs matplotlib: pip install matplotlib") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _print(row: dict[str, Any]) -> None:
    before, after = (row[form]["multiply_adds"] / 1e9 for form in FORMS)
    print(f"{row['network']} at {row['size']}×{row['size']}: {before:.1f} -> {after:.1f} G multiply-adds")
    for runtime, result in row["runtimes"].items():
        time_ms, memory = result["median_ms"], result["peak_memory_mb"]
        print(
            f"  {runtime:12} {time_ms['traced']:9.1f} -> {time_ms['rewritten']:9.1f} ms ({result['speedup']:.2f}×)  "
            f"{memory['traced']:6} -> {memory['rewritten']:6} MB  difference {result['largest_difference']:.1e}"
        )
        for form, off in result["difference_to_pytorch"].items():
            print(f"  {'':12} {form}: {off['max']:.1e} from PyTorch at most, {off['rms']:.1e} root mean square")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="presets; settings follow a colon")
    sizes = "height and width in pixels; networks after the first use only the first size"
    parser.add_argument("--sizes", type=int, nargs="+", default=GROWTH, help=sizes)
    parser.add_argument("--runs", type=int, default=10, help="timed inferences of each graph")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--memory-of", nargs=4, help=argparse.SUPPRESS)
    return parser.parse_args()


def table(found: dict[str, Any]) -> str:
    """Multiply-adds, and the time and the peak memory in each runtime."""
    rows = []
    for row in found["networks"]:
        before, after = (row[form]["multiply_adds"] / 1e9 for form in FORMS)
        cells = [in_code(row["network"]), f"{before:.1f} → {after:.1f} G"]
        for runtime in RUNTIMES:
            ms, mb = (row["runtimes"][runtime][name] for name in ("median_ms", "peak_memory_mb"))
            cells.append(f"{ms['traced']:.0f} → {ms['rewritten']:.0f} ms, {row['runtimes'][runtime]['speedup']:.2f}×")
            cells.append(f"{mb['traced']} → {mb['rewritten']} MB")
        rows.append(cells)
    return markdown(["network", "multiply-adds", "ONNX Runtime", "peak", "OpenVINO", "peak"], rows)


def growth_table(found: dict[str, Any]) -> str:
    """The first network at each size."""
    rows = []
    for row in found["growth"]:
        cells = [f"{row['size']}×{row['size']}"]
        for runtime in RUNTIMES:
            ms, mb = (row["runtimes"][runtime][name] for name in ("median_ms", "peak_memory_mb"))
            seconds = (f"{ms[form] / 1000:.2f}" for form in FORMS)
            cells.append(f"{' → '.join(seconds)} s, {row['runtimes'][runtime]['speedup']:.2f}×")
            cells.append(f"{' → '.join(f'{mb[form] / 1000:.2f}' for form in FORMS)} GB")
        rows.append(cells)
    return markdown(["pixels", "ONNX Runtime", "peak", "OpenVINO", "peak"], rows)


def exactness_table(found: dict[str, Any]) -> str:
    """The difference of the first network's logits from PyTorch's: the largest, then the root mean square."""
    runtimes = [found["networks"][0]["runtimes"][runtime] for runtime in RUNTIMES]
    rows = []
    for form in FORMS:
        off = [runtime["difference_to_pytorch"][form] for runtime in runtimes]
        rows.append([form, *(f"{each['max']:.1e}, {each['rms']:.1e}".replace("e-0", "e-") for each in off)])
    between = [f"{runtime['largest_difference']:.1e} at most".replace("e-0", "e-") for runtime in runtimes]
    return markdown(["", "ONNX Runtime", "OpenVINO"], [*rows, ["rewritten against traced", *between]])


if __name__ == "__main__":
    main()
