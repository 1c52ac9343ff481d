"""PyTorch's execution context on host memory, and PyTorch's process-wide switches, which must be as they were after."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from host_torch import HostTorch

from r2mrf_deploy.errors import ArtifactError, InputError
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.runtimes.base import OpenOptions, now_ms
from r2mrf_deploy.runtimes.cuda.bindings import CudaError, Device
from r2mrf_deploy.runtimes.pytorch.execution_context import TorchRunner, precision

INPUT = TensorSpec(name="image", dtype="uint8", shape=["n", "h", "w", 3], layout="NHWC")
OUTPUT = TensorSpec(name="map", dtype="float32", shape=["n", 1, "h", "w"], layout="NCHW")
SIZES = [(1, 8, 8), (2, 32, 16), (1, 8, 8), (1, 4, 4)]


def mean(image: torch.Tensor) -> tuple[torch.Tensor]:
    return (image.float().mean(-1)[:, None],)


def runner(cuda: HostTorch, program: Callable[..., Any] = mean, graph: bool = False) -> TorchRunner:
    return TorchRunner(
        cuda,  # type: ignore[arg-type]
        program,
        (INPUT,),
        (OUTPUT,),
        runtime="fake",
        form="eager",
        tf32=False,
        cuda_graph=graph,
        options=OpenOptions(),
    )


def picture(seed: int, n: int = 1, h: int = 8, w: int = 8) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(seed).integers(0, 256, (n, h, w, 3), np.uint8)}


def expected(arrays: dict[str, np.ndarray]) -> np.ndarray:
    return mean(torch.from_numpy(arrays["image"]))[0].numpy()


@pytest.mark.parametrize("graph", [True, False])
def test_results_are_right_through_every_change_of_shape(graph: bool) -> None:
    cuda = HostTorch()
    with runner(cuda, graph=graph) as job:
        for seed, size in enumerate(SIZES):
            for again in range(3):
                arrays = picture(10 * seed + again, *size)
                np.testing.assert_array_equal(job.run(arrays)["map"], expected(arrays))
    assert cuda.captures == (len(SIZES) if graph else 0)  # once for each change, never for the same shape
    assert cuda.live == {} and cuda.held == 0


@pytest.mark.parametrize(
    ("asked", "capability", "rounds"), [(True, "8.6", True), (True, "7.5", False), (False, "9.0", False)]
)
def test_a_runner_says_whether_it_rounds_to_tf32(
    monkeypatch: pytest.MonkeyPatch, asked: bool, capability: str, rounds: bool
) -> None:
    monkeypatch.setattr(HostTorch, "device", lambda self: Device("a card", capability))
    host: Any = HostTorch()
    about = {"runtime": "fake", "form": "eager", "options": OpenOptions()}
    assert TorchRunner(host, mean, (INPUT,), (OUTPUT,), tf32=asked, **about).tf32 == rounds


def test_two_inferences_are_in_flight_and_keep_their_own_results() -> None:
    with runner(HostTorch()) as job:
        assert job.in_flight == 2 and job.on_gpu
        first, second = picture(1), picture(2)
        waiting = [job.submit(first), job.submit(second)]
        with pytest.raises(RuntimeError, match="2 inferences are in flight"):
            job.submit(first)
        for pending, arrays in zip(waiting, (first, second), strict=True):
            np.testing.assert_array_equal(pending()[0]["map"], expected(arrays))


def test_timing_is_in_order_and_on_the_hosts_clock() -> None:
    with runner(HostTorch()) as job:
        job.run(picture(0))
        before = now_ms()
        _, t = job.run_timed(picture(1))
        after = now_ms()
        # 1 ms: how well the device's clock is put on the host's where the machine is busy
        ends = [before, t.start_h2d, t.end_h2d, t.start_compute, t.end_compute, t.start_d2h, t.end_d2h, after]
        assert all(a <= b + 1 for a, b in itertools.pairwise(ends)), ends
        assert before <= t.start_enqueue <= t.end_enqueue <= after


def test_the_device_says_whether_a_graph_was_captured() -> None:
    cuda = HostTorch()
    with runner(cuda, graph=True) as job:
        job.run(picture(1))
        assert job.device == "fake GPU, eager, CUDA graph"
        cuda.capturable = False
        arrays = picture(2, 1, 4, 4)
        np.testing.assert_array_equal(job.run(arrays)["map"], expected(arrays))
        assert job.device == "fake GPU, eager, without a CUDA graph: it could not be captured"
    with runner(HostTorch()) as job:
        job.run(picture(1))
        assert job.device == "fake GPU, eager"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB\nmore", r"out of memory.*: free device memory, or use a smaller"),
        ("CUDA error: an illegal memory access\nCompile with", r"PyTorch failed on the device: CUDA error: an illegal"),
    ],
)
def test_errors_of_the_device_are_one_line_with_a_cure(said: str, message: str) -> None:
    def fails(image: torch.Tensor) -> tuple[torch.Tensor]:
        raise RuntimeError(said)

    with runner(HostTorch(), fails) as job, pytest.raises(CudaError, match=message) as error:
        job.run(picture(1))
    assert "\n" not in str(error.value)


def test_a_program_may_refuse_a_shape_and_goes_on() -> None:
    def picky(image: torch.Tensor) -> tuple[torch.Tensor]:
        if image.shape[1] > 16:
            raise InputError("too large")
        return mean(image)

    with runner(HostTorch(), picky) as job:
        job.run(picture(1))
        with pytest.raises(InputError, match="too large"):
            job.run(picture(1, 1, 32, 8))
        np.testing.assert_array_equal(job.run(picture(2))["map"], expected(picture(2)))
    with pytest.raises(ArtifactError, match="closed"):
        job.run(picture(1))


by_operator = pytest.mark.skipif(not hasattr(torch.backends.cudnn, "conv"), reason="needs PyTorch 2.9")


def switches() -> list[Any]:
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    legacy = [cudnn.allow_tf32, matmul.allow_tf32, torch.get_float32_matmul_precision(), cudnn.benchmark]
    return [cudnn.conv.fp32_precision, matmul.fp32_precision, *legacy]


@pytest.fixture(params=["untouched", "high", "no TF32"])
def users_choice(request: pytest.FixtureRequest) -> Any:
    """What a user may have set before, by the older interface."""
    if request.param == "high":
        torch.set_float32_matmul_precision("high")
    elif request.param == "no TF32":
        torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = True


@by_operator
@pytest.mark.parametrize(("tf32", "name"), [(True, "tf32"), (False, "ieee")])
def test_precision_holds_inside_and_is_put_back(users_choice: None, tf32: bool, name: str) -> None:
    before = switches()
    with contextlib.suppress(ZeroDivisionError), precision(tf32):
        assert torch.backends.cudnn.conv.fp32_precision == name
        assert torch.backends.cuda.matmul.fp32_precision == name
        assert torch.backends.cudnn.benchmark
        raise ZeroDivisionError
    assert switches() == before
    with precision(None):
        assert switches()[:2] == before[:2]
    assert switches() == before


@by_operator
def test_precision_of_one_thread_is_not_anothers() -> None:
    seen: list[str] = []

    def other() -> None:
        with precision(True):
            seen.append(torch.backends.cudnn.conv.fp32_precision)

    with precision(False):
        thread = threading.Thread(target=other)
        thread.start()
        thread.join(0.1)
        assert torch.backends.cudnn.conv.fp32_precision == "ieee" and not seen
    thread.join()
    assert seen == ["tf32"]
