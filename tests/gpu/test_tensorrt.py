"""Plans on a real GPU: the same map as ONNX Runtime on the CPU, through every way of running them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy import gpus
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import InputError
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.manifest import Manifest
from r2mrf_deploy.runtimes.base import OpenOptions, now_ms
from r2mrf_deploy.runtimes.cuda import bindings
from r2mrf_deploy.runtimes.tensorrt import api
from r2mrf_deploy.runtimes.tensorrt.options import BuildOptions
from r2mrf_deploy.runtimes.tensorrt.runner import TensorRT, TensorRTRunner

pytestmark = pytest.mark.gpu
TinyOnnx = Callable[..., Path]


@pytest.fixture(autouse=True)
def device() -> bindings.Device:
    """The GPU, where there is one that the installed TensorRT runs on."""
    installed = api.installed()
    if not installed:
        pytest.skip("needs TensorRT: pip install tensorrt, or tensorrt-rtx for Turing, Ampere, Ada and RTX Blackwell")
    try:
        found = bindings.device()
    except bindings.CudaError as e:
        pytest.skip(f"needs a CUDA device: {e}")
    if "tensorrt" not in installed and found.compute_capability not in gpus.RTX_COMPUTE_CAPABILITIES:
        pytest.skip(f"needs the package tensorrt: TensorRT-RTX does not support {found.compute_capability}")
    return found


def opened(plan: Path, options: OpenOptions | None = None) -> TensorRTRunner:
    runner = TensorRT().open(Artifact.open(plan), options)
    assert isinstance(runner, TensorRTRunner)
    return runner


def picture(seed: int, n: int = 1, h: int = 64, w: int = 64) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), np.uint8)}


def reference(model: Path) -> Callable[[dict[str, np.ndarray]], np.ndarray]:
    ort = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    return lambda arrays: session.run(None, arrays)[0]


@pytest.mark.parametrize(
    # FP32 sums of 72 terms in another order; TF32 and FP16 round operands to 11 bits, after which a sum of 72 terms of
    # about 1 is out by some 1e-3, and the sigmoid divides that by four
    ("precision", "no_tf32", "tolerance"),
    [("fp32", True, 1e-5), ("fp32", False, 2e-3), ("fp16", False, 4e-3)],
)
def test_the_map_is_the_same(tiny_onnx: TinyOnnx, precision: str, no_tf32: bool, tolerance: float) -> None:
    expected = reference(tiny_onnx("reference"))
    model, options = tiny_onnx(precision=precision), BuildOptions(no_tf32=no_tf32)
    plan = build_artifact(model, options=options, allow_failed_parity=precision == "fp16").path  # random weights
    with opened(plan) as runner:
        for seed in range(3):
            found = runner.run(picture(seed))["map"]
            assert expected(picture(seed)).std() > 0.02  # informative
            np.testing.assert_allclose(found, expected(picture(seed)), atol=tolerance)


@pytest.mark.parametrize("buffers", ["cuda-python", "pycuda"])
@pytest.mark.parametrize("cuda_graph", [True, False])
def test_shapes_change_from_one_inference_to_the_next(
    tiny_onnx: TinyOnnx, buffers: bindings.Buffers, cuda_graph: bool
) -> None:
    try:
        bindings.provider(buffers)
    except bindings.CudaError as e:
        pytest.skip(f"needs {buffers}: {e}")
    model = tiny_onnx(dynamic=True)
    expected = reference(model)
    plan = build_artifact(model, options=BuildOptions(no_tf32=True)).path
    with opened(plan, OpenOptions(buffers=buffers, cuda_graph=cuda_graph)) as runner:
        for seed, size in enumerate([(1, 64, 64), (2, 128, 96), (2, 128, 96), (1, 32, 32), (1, 64, 64)]):
            arrays = picture(seed, *size)
            np.testing.assert_allclose(runner.run(arrays)["map"], expected(arrays), atol=1e-5)
        with pytest.raises(InputError, match="outside the plan's profile"):
            runner.run(picture(0, 1, 256, 256))
        np.testing.assert_allclose(runner.run(picture(9))["map"], expected(picture(9)), atol=1e-5)


def test_threads_run_beside_each_other(tiny_onnx: TinyOnnx) -> None:
    plan = build_artifact(tiny_onnx()).path
    with opened(plan) as runner:
        alone = {seed: runner.run(picture(seed))["map"] for seed in range(8)}
        wrong: list[int] = []

        def work(first: int) -> None:
            for i in range(50):
                seed = (first + i) % 8
                if not np.array_equal(runner.run(picture(seed))["map"], alone[seed]):
                    wrong.append(seed)

        threads = [threading.Thread(target=work, args=(t,)) for t in range(4)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong


def test_timing_is_in_order_and_on_the_hosts_clock(tiny_onnx: TinyOnnx) -> None:
    with opened(build_artifact(tiny_onnx()).path) as runner:
        for seed in range(5):
            before = now_ms()
            _, t = runner.run_timed(picture(seed))
            after = now_ms()
            # 0.2 ms for what lies between the base event and the host's reading of it
            assert before - 0.2 <= t.start_h2d <= t.end_h2d <= t.start_compute < t.end_compute <= t.start_d2h
            assert t.start_d2h <= t.end_d2h <= after + 0.2
            assert before <= t.start_enqueue <= t.end_enqueue <= after


def test_the_runtime_cache_is_kept(tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    plan = build_artifact(tiny_onnx()).path
    if (target := Manifest.read(Manifest.path_for(plan)).target) is None or target.runtime != "tensorrt_rtx":
        pytest.skip("needs TensorRT-RTX: TensorRT compiles when it builds")
    options = OpenOptions(runtime_cache=tmp_path / "jit.cache")
    maps = []
    for _ in range(2):
        with opened(plan, options) as runner:
            maps.append(runner.run(picture(1))["map"])
        assert (tmp_path / "jit.cache").stat().st_size > 0
    np.testing.assert_array_equal(*maps)


def test_the_precision_is_read_back(tiny_onnx: TinyOnnx) -> None:
    options = BuildOptions(profiling_verbosity="detailed")
    built = build_artifact(tiny_onnx(precision="fp16"), options=options, allow_failed_parity=True)  # random weights
    assert built.manifest.target is not None
    assert not built.manifest.target.built_without_gpu
    assert "fp16" in built.manifest.target.achieved_precision
