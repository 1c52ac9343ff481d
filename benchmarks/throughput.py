"""Measures images per second with as many inferences in flight as pay, beside one after the other, and within `predict`.

    python benchmarks/throughput.py --json results/throughput.json
    python benchmarks/throughput.py r2mrf-lite.onnx r2mrf-lite-int8.onnx --runtime openvino --duration 10

For each model on each runtime, the two modes of `r2mrf bench --mode both` take turns. Then a folder of photographs goes
through `predict`, opened for throughput (as the command does by itself) and opened for latency, in turns as well: with
decoding, drawing and writing on the same cores. By default the models are the shipped `r2mrf-lite` and `r2mrf-edge`; INT8
artifacts are given by their files. Where the machine tells its power, images per second per watt are given too.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from tables import RUNTIMES, in_code, markdown

from r2mrf_deploy import environment, images, sample_photographs, weights
from r2mrf_deploy.bench.power import UNTOLD
from r2mrf_deploy.bench.protocol import Measurement, Protocol, bench_artifacts
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.options import ExportOptions
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.predict import Outputs, Sources, predict
from r2mrf_deploy.predictor import Predictor

SIZE = (427, 640)
NOISE = 3.0
"""Standard deviation, in levels of 255."""
HEAD = [
    "images per second",
    "in flight",
    "one by one",
    "throughput",
    "ratio",
    "latency",
    "`predict`, one by one",
    "`predict`",
    "ratio",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="artifacts (default: r2mrf-lite and r2mrf-edge, FP32)")
    parser.add_argument(
        "--runtime", action="append", help="time them on each of these (default: onnxruntime, openvino)"
    )
    parser.add_argument("--duration", type=float, default=3, help="seconds of each mode")
    parser.add_argument("--count", type=int, default=40, help="photographs in the folder")
    parser.add_argument("--turns", type=int, default=2, help="of the folder")
    parser.add_argument("--json", type=Path, help="write the results to this file, after every row")
    given = parser.parse_args()
    found: dict[str, Any] = {
        "machine": environment.describe(),
        "versions": environment.tool_versions("onnxruntime", "onnxruntime-gpu", "openvino", "numpy", "pillow"),
        "protocol": asdict(Protocol(duration=given.duration)),
        "photographs": {"count": given.count, "size": SIZE, "turns": given.turns},
        "rows": [],
    }
    print(markdown(HEAD, []))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photographs = list(made(folder / "photographs", given.count))
        for model in given.models or shipped(folder):
            for runtime in given.runtime or ["onnxruntime", "openvino"]:
                row = measured(model, runtime, photographs, folder / "out", given)
                found["rows"].append(row)
                print(line(row), flush=True)
                if given.json:
                    given.json.write_text(json.dumps(found, indent=2) + "\n")
    if not any(row["images_per_joule"]["throughput"] for row in found["rows"]):
        print(UNTOLD)


def shipped(folder: Path) -> list[Path]:
    """`r2mrf-lite`, which takes any size, and `r2mrf-edge` at its own."""
    edge = export_artifact(weights.checkpoint("r2mrf-edge"), folder / "r2mrf-edge.onnx", ExportOptions())
    return [weights.artifact("r2mrf-lite"), edge.artifact.path]


def made(folder: Path, count: int) -> Iterator[Path]:
    """JPEG files, each another sample photograph with noise like a camera's."""
    rng, sources = np.random.default_rng(0), sample_photographs.sharp()
    for number in range(count):
        photograph = images.resize(sources[number % len(sources)], SIZE)
        noisy = photograph + rng.normal(0, NOISE, SIZE).astype(np.float32)[:, :, None]
        yield write_atomically(folder / f"{number:04}.jpg", images.jpeg(noisy.clip(0, 255).astype(np.uint8)))


def measured(
    model: Path, runtime: str, photographs: Sequence[Path], output: Path, given: argparse.Namespace
) -> dict[str, Any]:
    """Images per second in both modes, alone and within `predict`."""
    done = bench_artifacts([model], [runtime], Protocol(duration=given.duration), mode="both")
    alone, together = done.measurements
    rates = pipelines(model, runtime, photographs, output, given.turns)
    ratio = statistics.median(b / a for a, b in zip(rates["latency"], rates["throughput"], strict=True))

    def both(name: str) -> dict[str, Any]:
        return {m.mode: getattr(m, name) for m in (alone, together)}

    return {
        "model": model.name, "runtime": runtime, "device": together.device, "requests": together.requests,
        "input": together.input, "images_per_second": both("images_per_second"), "ratio": together.speed_up,
        "ratio_range": together.speed_up_range, "differs": together.differs, "latency_ms": _latencies(alone, together),
        "watts": both("watts"), "images_per_joule": both("images_per_joule"),
        "predict": {"images_per_second": {k: statistics.median(v) for k, v in rates.items()}, "ratio": ratio, "all": rates},
    }  # fmt: skip


def _latencies(*measurements: Measurement) -> dict[str, Any]:
    return {m.mode: {"median": m.latency.median, **m.latency.percentiles} for m in measurements}


def pipelines(
    model: Path, runtime: str, photographs: Sequence[Path], output: Path, turns: int
) -> dict[str, list[float]]:
    """Photographs per second of `predict`, opened for one photograph and for many; the first turn warms up."""
    rates: dict[str, list[float]] = {"latency": [], "throughput": []}
    with Predictor.open(model, runtime) as single, Predictor.open(model, runtime, many=True) as many:
        for turn in range(turns + 1):
            for mode, predictor in (("latency", single), ("throughput", many)):
                start = time.perf_counter()
                sources = Sources([photographs[0].parent], output=output)
                done = list(predict(predictor, sources, output, Outputs(("map", "overlay"))))
                assert len(done) == len(photographs) and not any(each.error for each in done)
                if turn:
                    rates[mode].append(len(done) / (time.perf_counter() - start))
    return rates


def line(row: dict[str, Any]) -> str:
    return f"| {' | '.join(_cells(row))} |"


def table(found: dict[str, Any]) -> str:
    """Images per second in both modes, of the network alone and of `predict`."""
    return markdown(HEAD, map(_cells, found["rows"]))


def _cells(row: dict[str, Any]) -> list[str]:
    rate, ms, files = row["images_per_second"], row["latency_ms"], row["predict"]
    return [
        f"{in_code(row['model'])}, {RUNTIMES[row['runtime']]}",
        str(row["requests"]),
        f"{rate['latency']:.1f}",
        f"{rate['throughput']:.1f}",
        f"{row['ratio']:.2f}",
        f"{ms['latency']['median']:.0f} → {ms['throughput']['median']:.0f} ms",
        f"{files['images_per_second']['latency']:.1f}",
        f"{files['images_per_second']['throughput']:.1f}",
        f"{files['ratio']:.2f}",
    ]


if __name__ == "__main__":
    main()
