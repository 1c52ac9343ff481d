"""The mission: under 0.1 s an image on cards of the GTX 1080 Ti's class, transfers included, on every runtime of a GPU."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from r2mrf_deploy import budget, environment, gpus, runtimes
from r2mrf_deploy.bench.protocol import Protocol, bench_artifacts
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import R2mrfError
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.convert import convert_artifact
from r2mrf_deploy.export.options import ExportOptions, FormatOptions, PrecisionOptions
from r2mrf_deploy.graph import files
from r2mrf_deploy.parity.artifacts import compare_artifacts
from r2mrf_deploy.runtimes.cuda import bindings

pytestmark = pytest.mark.gpu
SIZES = [(320, 320), (427, 640)]
LIMIT_MS = 100.0
SLACK = 0.5
"""A card of another class reaches another share of its roof: the scaled bound is held to twice its value."""


RUNS = (
    *("pytorch-cuda", "pytorch-cuda-tf32", "pytorch-cuda-fp16", "pytorch-cuda-channels-last", "pytorch-cuda-compile"),
    *("pytorch-cuda-graph", "aotinductor", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"),
)
EAGER = ("pytorch-cuda", "pytorch-cuda-tf32", "pytorch-cuda-fp16", "pytorch-cuda-channels-last")
"""The host enqueues these, kernel by kernel: on an H100 that took 22 to 29 ms at 320×320 where the device needed 7 to 21."""
# What these compute in, where the artifact is FP32: FP16 by their name, TF32 where the library takes it unless told not to.
# An untrained network passes rounding on more than a trained one, so agreement is asked of the average.
LOOSE = {name: 0.03 for name in RUNS if name not in ("pytorch-cuda", "aotinductor", "onnxruntime-cuda")}
EXACT = 1e-4


@pytest.fixture(scope="module", autouse=True)
def device() -> bindings.Device:
    if reason := environment.cuda_driver():
        pytest.skip(f"needs a CUDA device: {reason}")
    return bindings.device()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("latency")


@pytest.fixture(scope="module")
def artifact(folder: Path):  # type: ignore[no-untyped-def]
    """The artifact that a runtime opens, of the paper's network at a size."""

    @cache
    def make(suffix: str, size: tuple[int, int]) -> Path:
        checkpoint = folder / "r2mrf.pth"
        if not checkpoint.exists():
            Checkpoint.init("r2mrf").save(checkpoint)
        if suffix == ".pth":
            return checkpoint
        path = folder / f"{size[0]}x{size[1]}{suffix}"
        if suffix == ".pt2":
            return export_artifact(checkpoint, path, ExportOptions(size, format=FormatOptions(device="cuda"))).path
        if suffix == ".traced.onnx":
            return export_artifact(checkpoint, path, ExportOptions(size, optimize=False)).path
        if suffix == ".fp16.onnx":  # untrained weights may fail its own parity
            half = PrecisionOptions("fp16")
            return convert_artifact(make(".onnx", size), path, half, allow_failed_parity=True).path
        if suffix == ".plan":
            return build_artifact(make(".onnx", size), path).path
        return export_artifact(checkpoint, path, ExportOptions(size)).path

    return make


@pytest.mark.parametrize("size", SIZES, ids=lambda s: f"{s[0]}x{s[1]}")
@pytest.mark.parametrize(
    ("name", "suffix"),
    [*((name, runtimes.get(name).suffixes[0]) for name in RUNS), ("pytorch-cuda-graph", ".fp16.onnx")],
)
def test_a_runtime_agrees_and_is_under_a_tenth_of_a_second(  # type: ignore[no-untyped-def]
    artifact, device: bindings.Device, name: str, suffix: str, size: tuple[int, int]
) -> None:
    runtime = runtimes.get(name)
    state = runtime.availability()
    if not state.ok:
        pytest.skip(f"needs {runtime.title}: {state.reason}; {state.cure}")
    try:
        file = artifact(suffix, size)
    except R2mrfError as e:
        pytest.skip(f"no artifact for {runtime.title} on this GPU: {e}")
    (parity,) = compare_artifacts(artifact(".pth", size), [file], runtime=name)
    assert parity.reference_spread > 0.02
    assert parity.map.mean < LOOSE.get(name, EXACT), parity.reason
    (measured,) = bench_artifacts([file], [name], Protocol(), size=size).measurements
    assert measured.latency.median < LIMIT_MS
    gpu = gpus.of_device(device.name, device.compute_capability)
    if name in EAGER or gpu is None:
        return
    # By the FP32 roof of both cards, whatever is computed in: an image does not fill the tensor cores of a large card (an
    # H100 reached 7 % of its FP16 roof, and 17 % of its FP32 roof), but no lower precision may be slower than FP32 may be.
    graph = budget.Graph.of("r2mrf", files.read(artifact(".traced.onnx", size)))
    here, there = (budget.predict(graph, budget.Roof.of(g, tf32=False)) for g in (gpu, gpus.get("gtx1080ti")))
    if here.roof < there.roof:
        assert measured.latency.median < budget.scaled(LIMIT_MS, there, here, SLACK)
