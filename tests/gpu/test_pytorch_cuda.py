"""PyTorch on a real GPU: every variant gives the CPU's map through every change of shape, and times it in order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy import runtimes, sample_photographs
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.images import resize
from r2mrf_deploy.runtimes import OpenOptions, Runner
from r2mrf_deploy.runtimes.base import now_ms
from r2mrf_deploy.runtimes.pytorch.cuda import PyTorchCUDA, cuda_availability
from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner

pytestmark = pytest.mark.gpu
CAT = sample_photographs.sample("chelsea")
# FP32: sums in another order, as parity allows. TF32 and FP16 round operands to 11 bits; FP16 gave 3e-3 on a CPU, which
# adds in FP32 as tensor cores do, and that is allowed three times.
TOLERANCES = {"pytorch-cuda": 1e-4} | {
    f"pytorch-cuda-{name}": 1e-2 for name in ("tf32", "fp16", "channels-last", "compile", "graph")
}


@pytest.fixture(scope="session", autouse=True)  # before anything is exported
def device() -> None:
    state = cuda_availability()
    if not state.ok:
        pytest.skip(f"needs a CUDA device and a PyTorch for it: {state.reason}; {state.cure}")


@pytest.fixture(scope="module")
def reference(small: Path) -> PyTorchRunner:
    return PyTorchRunner(Checkpoint.load(small))


def picture(height: int = 96, width: int = 128) -> dict[str, np.ndarray]:
    return {"image": resize(CAT, (height, width))[None]}


def opened(file: Path, name: str, **options: bool | None) -> Runner:
    return runtimes.open(file, name, options=OpenOptions(**options))  # type: ignore[arg-type]


def test_every_variant_has_a_tolerance() -> None:
    assert set(TOLERANCES) == {n for n in runtimes.names() if isinstance(runtimes.get(n), PyTorchCUDA)}


@pytest.mark.parametrize("name", TOLERANCES)
def test_the_map_is_the_cpu_s_through_every_change_of_shape(small: Path, reference: PyTorchRunner, name: str) -> None:
    with opened(small, name) as runner:
        for size in ((96, 128), (96, 128), (117, 235), (96, 128)):
            wanted = reference.run(picture(*size))["map"]
            assert wanted.std() > 0.05
            for _ in range(3):  # the first one allocates, and is captured after
                np.testing.assert_allclose(runner.run(picture(*size))["map"], wanted, atol=TOLERANCES[name])
        assert ("CUDA graph" in runner.device) == (name == "pytorch-cuda-graph")
        assert "could not be captured" not in runner.device


@pytest.mark.parametrize("name", TOLERANCES)
def test_every_variant_can_be_a_cuda_graph(small: Path, reference: PyTorchRunner, name: str) -> None:
    with opened(small, name, cuda_graph=True, spin_wait=True) as runner:
        for size in ((96, 128), (64, 64)):
            found = runner.run(picture(*size))["map"]
            np.testing.assert_allclose(found, reference.run(picture(*size))["map"], atol=TOLERANCES[name])
        assert runner.device.endswith(", CUDA graph")


@pytest.mark.parametrize("cuda_graph", [None, True])
@pytest.mark.parametrize("name", TOLERANCES)
def test_a_graph_gives_the_cpu_s_outputs(
    exported: Path, converted: Callable[[str], Path], name: str, cuda_graph: bool | None
) -> None:
    runtime = runtimes.get(name)
    assert isinstance(runtime, PyTorchCUDA)
    with runtimes.open(exported, "onnxruntime") as cpu:
        wanted = cpu.run(picture())
    file = converted("fp16") if runtime.variant.half else exported
    with runtimes.open(file, name, options=OpenOptions(cuda_graph=cuda_graph)) as runner:
        for _ in range(3):
            found = runner.run(picture())
            for output, value in wanted.items():
                allowed = TOLERANCES[name] * (1 if output == "map" else 10 * value.std())  # the others are logits
                np.testing.assert_allclose(found[output], value, atol=allowed)
        assert ("CUDA graph" in runner.device) == bool(cuda_graph or runtime.variant.cuda_graph)
        assert "could not be captured" not in runner.device


@pytest.mark.parametrize("cuda_graph", [None, True])
def test_a_graph_of_free_sizes_gives_the_cpu_s_map(
    reference: PyTorchRunner, export: Callable[..., Path], cuda_graph: bool | None
) -> None:
    with opened(export(dynamic=True), "pytorch-cuda", cuda_graph=cuda_graph) as runner:
        for size in ((96, 128), (71, 97), (64, 66), (96, 128)):
            wanted = reference.run(picture(*size))["map"]
            for _ in range(2):
                np.testing.assert_allclose(runner.run(picture(*size))["map"], wanted, atol=TOLERANCES["pytorch-cuda"])


def test_tf32_is_on_where_it_is_asked_for_and_off_where_not(small: Path, reference: PyTorchRunner) -> None:
    import torch

    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs Ampere or later: TF32 is nothing before")
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    wanted = reference.run(picture())["map"]
    errors = {}
    for name in ("pytorch-cuda", "pytorch-cuda-tf32"):
        with opened(small, name) as runner:
            errors[name] = float(np.abs(runner.run(picture())["map"] - wanted).max())
    assert errors["pytorch-cuda-tf32"] > 10 * errors["pytorch-cuda"]
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


@pytest.mark.parametrize("name", ["pytorch-cuda", "pytorch-cuda-graph"])
def test_timing_is_in_order_and_on_the_hosts_clock(small: Path, name: str) -> None:
    with opened(small, name) as runner:
        runner.run(picture())
        for _ in range(5):
            before = now_ms()
            _, t = runner.run_timed(picture())
            after = now_ms()
            # 0.2 ms for what lies between the base event and the host's reading of it
            assert before - 0.2 <= t.start_h2d <= t.end_h2d <= t.start_compute < t.end_compute <= t.start_d2h
            assert t.start_d2h <= t.end_d2h <= after + 0.2
            assert before <= t.start_enqueue <= t.end_enqueue <= after


def test_two_in_flight_and_without_transfers(small: Path) -> None:
    with opened(small, "pytorch-cuda-graph") as runner:
        alone = [runner.run({"image": image})["map"] for image in (picture()["image"], 255 - picture()["image"])]
        waiting = [runner.submit({"image": image}) for image in (picture()["image"], 255 - picture()["image"])]
        for pending, wanted in zip(waiting, alone, strict=True):
            np.testing.assert_array_equal(pending()[0]["map"], wanted)
        outputs, timing = runner.submit(picture(), transfers=False)()
        assert outputs == {} and timing.compute > 0


@pytest.mark.parametrize("name", ["pytorch-cuda", "pytorch-cuda-graph"])
def test_threads_run_beside_each_other(small: Path, reference: PyTorchRunner, name: str) -> None:
    wanted = reference.run(picture())["map"]
    wrong: list[float] = []
    with opened(small, name) as runner:

        def work() -> None:
            for _ in range(20):
                error = float(np.abs(runner.run(picture())["map"] - wanted).max())
                if error > TOLERANCES[name]:
                    wrong.append(error)

        threads = [threading.Thread(target=work) for _ in range(3)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    assert not wrong
