"""Measures what reduced precision gains and costs: speed on the CPU, or the accuracy of a trained network.

    python benchmarks/precision.py --json results/precision.json
    python benchmarks/precision.py --accuracy-of ckpt.pth --data DIR --calibration DIR --json results/accuracy.json

Speed: PyTorch eager, the graph as traced, and the rewritten graph in FP32, BF16 and INT8, interleaved in one run by the
protocol of `r2mrf bench`. Accuracy: each artifact is scored like `r2mrf eval` does, on the images in `image/` and the
masks in `gt/` of `--data`, where white means sharp.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from tables import markdown

from r2mrf_deploy import environment, images, runtimes, sample_photographs
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.bench.protocol import Protocol, bench_artifacts
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.datasets import read_dataset
from r2mrf_deploy.evaluation import Method, evaluate
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.convert import convert_artifact
from r2mrf_deploy.export.options import ExportOptions, PrecisionOptions
from r2mrf_deploy.manifest import NEUTRAL
from r2mrf_deploy.predictor import Predictor

SIZE = (320, 320)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="r2mrf", help="preset to time")
    parser.add_argument("--duration", type=float, default=20, help="seconds for each candidate")
    parser.add_argument(
        "--accuracy-of", type=Path, help="a trained checkpoint: score its precisions instead of measuring speed"
    )
    parser.add_argument("--data", type=Path, help="folder with image/ and gt/")
    parser.add_argument("--calibration", type=Path, help="folder of photographs (default: those of scikit-image)")
    parser.add_argument("--max-drop", type=float, help="for INT8, like the option of `r2mrf convert`")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        calibration = given.calibration or _album(folder)
        if given.accuracy_of:
            if given.data is None:
                parser.error("--accuracy-of needs --data")
            results = accuracy(given.accuracy_of, given.data, calibration, given.max_drop, folder)
        else:
            results = speed(given.network, calibration, given.duration, folder)
    print(json.dumps(results, indent=2))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(results, indent=2) + "\n")


def speed(network: str, calibration: Path, duration: float, folder: Path) -> dict[str, Any]:
    checkpoint = Checkpoint.init(network).save(folder / f"{network}.pth")
    traced = export_artifact(checkpoint, folder / "traced.onnx", ExportOptions(SIZE, optimize=False)).path
    fp32 = export_artifact(checkpoint, folder / "fp32.onnx", ExportOptions(SIZE)).path
    low = [_reduced(fp32, kind, calibration, None) for kind in ("bf16", "int8")]
    protocol = Protocol(duration=duration, avg_runs=5)
    done = bench_artifacts(
        [checkpoint, traced, fp32, *low],
        ["pytorch", "onnxruntime", "openvino"],
        protocol,
        size=SIZE,
        progress=print,
    )
    rows = [
        {
            "artifact": m.name,
            "runtime": m.runtime,
            "device": m.device,
            "median_ms": round(m.latency.median, 2),
            "inferences": m.summary.inferences,
            "over_pytorch_eager": round(m.speed_up, 2),
            "range": [round(r, 2) for r in m.speed_up_range],
        }
        for m in done.measurements
    ]
    best = {
        kind: min(r["median_ms"] for r in rows if r["artifact"] == f"{kind}.onnx") for kind in ("fp32", "bf16", "int8")
    }
    return {
        "network": network,
        "size": SIZE,
        "rows": rows,
        "over_fp32_rewritten": {kind: round(best["fp32"] / ms, 2) for kind, ms in best.items()},
        "best_over_pytorch_eager": max(r["over_pytorch_eager"] for r in rows),
        "machine": done.machine,
        "tools": done.tools,
    }


def accuracy(checkpoint: Path, data: Path, calibration: Path, max_drop: float | None, folder: Path) -> dict[str, Any]:
    fp32 = export_artifact(checkpoint, folder / "fp32.onnx", ExportOptions(SIZE)).path
    scores: dict[str, Any] = {}
    for kind in ("fp32", "fp16", "bf16", "int8"):
        file = fp32 if kind == "fp32" else _reduced(fp32, kind, calibration, max_drop)
        artifact = Artifact.open(file)
        manifest = artifact.contract
        assert manifest is not None
        with runtimes.nearest(artifact.precision).open(artifact) as runner:
            found = _scored(Predictor(runner, manifest.preprocess or NEUTRAL), data)
            scores[kind] = found | {"runtime": runner.runtime, "emulated": runner.emulates}
        scores[kind]["kept"] = manifest.kept
    for found in scores.values():
        found["change"] = {k: round(found[k] - scores["fp32"][k], 4) for k in ("f_max", "mae")}
    return {"checkpoint": checkpoint.name, "size": SIZE, "scores": scores, "tools": environment.tool_versions()}


def _reduced(fp32: Path, kind: str, calibration: Path, max_drop: float | None) -> Path:
    options = PrecisionOptions(
        kind,  # type: ignore[arg-type]
        calibration if kind == "int8" else None,
        max_drop=max_drop if kind == "int8" else None,
    )
    target = fp32.with_name(f"{kind}.onnx")  # a failure is measured too
    return convert_artifact(fp32, target, options, allow_failed_parity=True, progress=print).path


def _album(folder: Path) -> Path:
    album = folder / "album"
    album.mkdir()
    for number, photograph in enumerate(sample_photographs.sharp()):
        (album / f"{number:02}.png").write_bytes(images.png(photograph))
    return album


def _scored(predictor: Predictor, data: Path) -> dict[str, Any]:
    method = Method(lambda image: {"map": predictor(image)}, predictor.runner.runtime)
    return evaluate([method], read_dataset(data, white="sharp"))[0].scores.to_dict()


def speed_table(found: dict[str, Any]) -> str:
    """Every artifact on every runtime, in the order in which they took turns."""
    forms = {
        "traced": "as traced, FP32",
        "fp32": "rewritten, FP32",
        "bf16": "rewritten, BF16",
        "int8": "rewritten, INT8",
    }
    rows = []
    for row in found["rows"]:
        title = forms.get(Path(row["artifact"]).stem, "PyTorch eager, FP32")
        rows.append([title, row["runtime"], f"{row['median_ms']:.1f} ms", f"{row['over_pytorch_eager']:.2f}"])
    return markdown(["", "runtime", "median", "speed-up over PyTorch eager"], rows, names=2)


if __name__ == "__main__":
    main()
