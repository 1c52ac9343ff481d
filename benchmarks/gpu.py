"""The GPU at hand, every way there is of running `r2mrf` on it, side by side: results/gpu-NAME.json and .md.

    python benchmarks/gpu.py

PyTorch eager (FP32, TF32, FP16, channels last), compiled, as a CUDA graph; AOTInductor; ONNX Runtime's CUDA and TensorRT
providers; TensorRT or TensorRT-RTX. ONNX graphs as traced and rewritten, in FP32 and FP16; 320×320 and 640×427, batch 1,
copies included, by the benchmark's own protocol. What cannot run is listed with the reason.
"""

from __future__ import annotations

import argparse
import json
import re
import tempfile
from pathlib import Path
from typing import Any

from r2mrf_deploy import environment, runtimes
from r2mrf_deploy.bench.protocol import Bench, Protocol, bench_artifacts
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import R2mrfError
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.convert import convert_artifact
from r2mrf_deploy.export.options import ExportOptions, FormatOptions, PrecisionOptions
from r2mrf_deploy.report import tables

SIZES = ((320, 320), (427, 640))
RUNTIMES = (
    *("pytorch-cuda", "pytorch-cuda-tf32", "pytorch-cuda-fp16", "pytorch-cuda-channels-last", "pytorch-cuda-compile"),
    *("pytorch-cuda-graph", "aotinductor", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"),
)
RESULTS = Path(__file__).with_name("results")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="r2mrf")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the JSON and the table")
    given = parser.parse_args()
    if reason := environment.cuda_driver():
        raise SystemExit(f"there is no GPU to measure: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        found = {f"{h}x{w}": measure(given.network, (h, w), Path(folder) / f"{h}x{w}") for h, w in SIZES}
    stem = "gpu-" + re.sub(r"\W+", "-", str(environment.gpu().get("gpu", "unknown"))).strip("-").lower()
    given.output.mkdir(parents=True, exist_ok=True)
    content = {size: bench.to_dict() | {"not_made": missing} for size, (bench, missing) in found.items()}
    (given.output / f"{stem}.json").write_text(json.dumps(content, indent=2, default=str) + "\n")
    (given.output / f"{stem}.md").write_text("\n".join(_page(size, *pair) for size, pair in found.items()))
    print((given.output / f"{stem}.md").read_text())


def measure(network: str, size: tuple[int, int], folder: Path) -> tuple[Bench, list[str]]:
    """Make every artifact that can be made here, and time all of them on all runtimes."""
    folder.mkdir(parents=True)
    checkpoint = Checkpoint.init(network).save(folder / f"{network}.pth")
    artifacts, missing = [checkpoint], list[str]()

    def attempt(what: str, make: Any) -> None:
        try:
            artifacts.append(make().path)
        except R2mrfError as e:
            missing.append(f"{what}: {e}")

    for name, optimize in (("traced", False), ("rewritten", True)):
        onnx = export_artifact(checkpoint, folder / f"{name}.onnx", ExportOptions(size, optimize=optimize)).path
        half = convert_artifact(onnx, folder / f"{name}-fp16.onnx", PrecisionOptions("fp16")).path
        artifacts += [onnx, half]
        for graph in (onnx, half):
            attempt(f"{graph.stem}.plan", lambda graph=graph: build_artifact(graph))
    attempt(
        "aotinductor",
        lambda: export_artifact(
            checkpoint, folder / "aotinductor.pt2", ExportOptions(size, format=FormatOptions(device="cuda"))
        ),
    )
    able = {r.name for a in artifacts for r in runtimes.suitable(a)}
    runtime_names = [r for r in RUNTIMES if r in able]
    return bench_artifacts(artifacts, runtime_names, Protocol(), size=size, progress=print), missing


def _page(size: str, bench: Bench, missing: list[str]) -> str:
    table = tables.markdown(tables.bench_table(bench.measurements))
    notes = [*tables.bench_lines(bench.measurements), *missing]
    notes += [f"{name} was not run: {why}" for name, why in bench.skipped]
    return (
        "\n".join([f"# {size}\n", tables.where(bench.machine, bench.tools) + "\n", table, *(f"- {n}" for n in notes)])
        + "\n"
    )


if __name__ == "__main__":
    main()
