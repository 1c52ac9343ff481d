"""ONNX Runtime on a real GPU, through CUDA and TensorRT: the CPU's map, and every part of an inference timed apart."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy import environment, runtimes, sample_photographs
from r2mrf_deploy.images import resize
from r2mrf_deploy.runtimes import OpenOptions
from r2mrf_deploy.runtimes.base import now_ms

pytestmark = pytest.mark.gpu
TinyOnnx = Callable[..., Path]
IMAGE = {"image": resize(sample_photographs.sample("chelsea"), (96, 128))[None]}
# CUDA: FP32 sums in another order, as parity allows. TensorRT: TF32's operands of 11 bits, as for PyTorch's TF32.
TOLERANCES = {"onnxruntime-cuda": 1e-4, "onnxruntime-tensorrt": 1e-2}


@pytest.fixture(scope="session", autouse=True)  # before anything is exported
def device() -> None:
    if reason := environment.cuda_driver():
        pytest.skip(f"needs a CUDA device: {reason}")


@pytest.fixture(params=TOLERANCES)
def name(request: pytest.FixtureRequest) -> str:
    state = runtimes.get(request.param).availability()
    if not state.ok:
        pytest.skip(f"needs {request.param}: {state.reason}; {state.cure}")
    return request.param


@pytest.mark.parametrize("cuda_graph", [None, True])
def test_the_map_is_the_cpu_s(exported: Path, name: str, cuda_graph: bool | None) -> None:
    with runtimes.open(exported, "onnxruntime") as cpu:
        wanted = cpu.run(IMAGE)
    with runtimes.open(exported, name, options=OpenOptions(cuda_graph=cuda_graph)) as runner:
        for _ in range(4):  # a graph is captured after some
            found = runner.run(IMAGE)
            for output, value in wanted.items():
                allowed = TOLERANCES[name] * (1 if output == "map" else 10 * value.std())  # the others are logits
                np.testing.assert_allclose(found[output], value, atol=allowed)
        assert ("CUDA graph" in runner.device) == bool(cuda_graph)


def test_shapes_change_from_one_inference_to_the_next(tiny_onnx: TinyOnnx, name: str) -> None:
    model = tiny_onnx(dynamic=True)
    with runtimes.open(model, "onnxruntime") as cpu, runtimes.open(model, name) as runner:
        for seed, (n, h, w) in enumerate([(1, 64, 64), (2, 128, 96), (2, 128, 96), (1, 32, 32)]):
            image = {"image": np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), np.uint8)}
            np.testing.assert_allclose(runner.run(image)["map"], cpu.run(image)["map"], atol=TOLERANCES[name])


def test_timing_is_in_order_and_on_the_hosts_clock(tiny_onnx: TinyOnnx, name: str) -> None:
    image = {"image": np.zeros((1, 64, 64, 3), np.uint8)}
    with runtimes.open(tiny_onnx(), name) as runner:
        runner.run(image)
        for _ in range(5):
            before = now_ms()
            _, t = runner.run_timed(image)
            after = now_ms()
            # 0.2 ms for what lies between the base event and the host's reading of it
            assert before - 0.2 <= t.start_h2d < t.end_h2d <= t.start_compute < t.end_compute <= t.start_d2h < t.end_d2h
            assert t.end_d2h <= after + 0.2


@pytest.mark.parametrize("cuda_graph", [None, True])
def test_threads_run_beside_each_other(tiny_onnx: TinyOnnx, name: str, cuda_graph: bool | None) -> None:
    images = [{"image": np.random.default_rng(seed).integers(0, 256, (1, 64, 64, 3), np.uint8)} for seed in range(4)]
    wrong: list[int] = []
    with runtimes.open(tiny_onnx(), name, options=OpenOptions(cuda_graph=cuda_graph)) as runner:
        alone = [runner.run(image)["map"] for image in images]

        def work() -> None:
            for i in range(40):
                found = runner.run(images[i % 4])["map"]
                if not np.allclose(found, alone[i % 4], atol=TOLERANCES[name]):
                    wrong.append(i)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong


def test_engines_are_kept(tiny_onnx: TinyOnnx, name: str, tmp_path: Path) -> None:
    if name != "onnxruntime-tensorrt":
        pytest.skip("needs onnxruntime-tensorrt: CUDA keeps nothing")
    options = OpenOptions(runtime_cache=tmp_path / "engines")
    with runtimes.open(tiny_onnx(), name, options=options) as runner:
        runner.run({"image": np.zeros((1, 64, 64, 3), np.uint8)})
    assert list((tmp_path / "engines").glob("*.engine"))
