"""TensorRT's runners and contexts on a device that fails (`fake_stage`): everything is given back and said, whatever is
used up or lost and whenever that is.
"""

from __future__ import annotations

import threading

import pytest
from fake_stage import LARGER, SIZES, Stage, assert_map, picture, with_and_without_graphs, with_both_drivers, within
from fake_tensorrt import PLAN, FakeTensorRT

from r2mrf_deploy.errors import RuntimeUnavailable
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.runtimes.base import OpenOptions
from r2mrf_deploy.runtimes.cuda.bindings import CudaError
from r2mrf_deploy.runtimes.tensorrt.api import Messages
from r2mrf_deploy.runtimes.tensorrt.execution_context import TensorRTContext

INPUT = TensorSpec(name="image", dtype="uint8", shape=["n", "h", "w", 3], layout="NHWC")
OUTPUT = TensorSpec(name="map", dtype="float32", shape=["n", 1, "h", "w"], layout="NCHW")


# ---- out of memory


@pytest.mark.parametrize(("call", "allocations"), [("cudaMalloc", 2), ("cudaHostAlloc", 4)])
def test_out_of_memory_in_a_resize_is_said_and_the_next_call_works(stage: Stage, call: str, allocations: int) -> None:
    """Wherever in the resize it is: an input and an output, each on the device and twice on the host."""
    for after in range(allocations):
        for then in [(1, 8, 8), LARGER]:
            stage.device()
            with stage.runner() as runner:
                runner.run(picture(0))
                before = stage.rt.calls[call]
                stage.rt.fail(call, 2, after=after)
                with pytest.raises(
                    CudaError, match=r"CUDA error 2 \(out of memory\): free device memory, or use a smaller"
                ):
                    runner.run(picture(1, LARGER))
                assert stage.rt.calls[call] == before + after + 1
                for size in (then, LARGER):
                    waits = [runner.submit(picture(seed, size)) for seed in (2, 3)]  # there is room for both
                    for seed, wait in zip((2, 3), waits, strict=True):
                        assert_map(wait()[0], picture(seed, size))
            assert stage.leaks() == {}, after


def test_a_device_that_is_full_takes_what_fits(stage: Stage) -> None:
    stage.device(device_bytes=8192)
    with stage.runner() as runner:
        runner.run(picture(0))
        for seed in range(3):
            with pytest.raises(CudaError, match=r"CUDA error 2 "):
                runner.run(picture(seed, (2, 64, 64)))
            assert_map(runner.run(picture(seed)), picture(seed))
    assert stage.leaks() == {}


@pytest.mark.parametrize(("call", "count"), [("cudaStreamCreateWithFlags", 1), ("cudaEventCreateWithFlags", 9)])
def test_a_context_that_cannot_be_made_leaks_nothing(stage: Stage, call: str, count: int) -> None:
    for after in range(count):
        with stage.runner() as runner:
            stage.rt.fail(call, 2, after=after)
            with pytest.raises(CudaError, match=r"CUDA error 2 "):
                runner.run(picture(1))
            assert_map(runner.run(picture(1)), picture(1))
        assert stage.leaks() == {}, after


# ---- waits that fail


def test_a_failing_wait_frees_its_slot(stage: Stage) -> None:
    with stage.runner() as runner:
        runner.run(picture(0))
        stage.rt.fail("cudaEventSynchronize", 999, times=3)
        for seed in range(3):  # one more than there are slots
            with pytest.raises(CudaError, match=r"CUDA error 999 \(unknown error\): "):
                runner.run(picture(seed))
        for seed in range(4):
            assert_map(runner.run(picture(seed)), picture(seed))
    assert stage.leaks() == {}


def test_a_failing_wait_leaves_the_other_in_flight_alone(stage: Stage) -> None:
    with stage.runner() as runner:
        runner.run(picture(0))
        first, second = runner.submit(picture(1)), runner.submit(picture(2))
        stage.rt.fail("cudaEventSynchronize", 999)
        with pytest.raises(CudaError, match="999"):
            first()
        third = runner.submit(picture(3))
        assert_map(second()[0], picture(2))
        assert_map(third()[0], picture(3))


@with_and_without_graphs
@with_both_drivers
def test_after_a_failing_wait_another_shape_may_come(stage: Stage, graph: bool | None, frees_wait: bool) -> None:
    stage.device(frees_wait=frees_wait)
    with stage.runner(OpenOptions(cuda_graph=graph)) as runner:
        runner.run(picture(0))
        stage.rt.fail("cudaEventSynchronize", 999)
        with pytest.raises(CudaError, match="999"):
            runner.run(picture(1))
        assert_map(runner.run(picture(2, LARGER)), picture(2, LARGER))
    assert stage.leaks() == {}


# ---- a device that is lost


@pytest.mark.parametrize("code", [700, 719])
def test_a_lost_device_is_named_with_its_cure(stage: Stage, code: int) -> None:
    """CUDA's documentation of both: "the process must be terminated and relaunched"."""
    runner = stage.runner()
    runner.run(picture(0))
    stage.rt.lose(code)
    with pytest.raises(CudaError, match=rf"^CUDA error {code} \(.+\): .*open the artifact again in a new process"):
        runner.run(picture(1))


@pytest.mark.parametrize("after", [0, 1, 5])
@with_and_without_graphs
def test_closing_does_not_hide_that_the_device_was_lost(stage: Stage, after: int, graph: bool | None) -> None:
    """`after` 0 is the first inference, 1 may be the first launch of its graph."""
    raised: list[CudaError] = []

    def use() -> None:
        with stage.runner(OpenOptions(cuda_graph=graph)) as runner:
            stage.rt.lose(700, after)
            try:
                for seed in range(10):
                    assert_map(runner.run(picture(seed)), picture(seed))
            except CudaError as e:
                raised.append(e)
                raise

    (error,) = within(10, use)
    assert raised == [error] and "CUDA error 700" in str(error)


def test_a_lost_device_is_said_again_to_whoever_tries(stage: Stage) -> None:
    runner = stage.runner()
    runner.run(picture(0))
    stage.rt.lose(700)
    for seed in range(4):  # more often than there are slots
        with pytest.raises(CudaError, match=r"CUDA error 700 .*new process"):
            runner.run(picture(seed))
        with pytest.raises(CudaError, match=r"CUDA error 700 .*new process"):
            runner.run(picture(seed, LARGER))
    assert within(10, runner.close) == []


def test_a_device_that_is_lost_with_two_in_flight_tells_both(stage: Stage) -> None:
    runner = stage.runner()
    runner.run(picture(0))
    waits = [runner.submit(picture(1)), runner.submit(picture(2))]
    stage.rt.lose(719)
    for wait in waits:
        with pytest.raises(CudaError, match=r"CUDA error 719 "):
            wait()
    assert within(10, runner.close) == []


def test_a_lost_device_ends_all_threads(stage: Stage) -> None:
    runner = stage.runner()
    together = threading.Barrier(4, action=lambda: stage.rt.lose(700, after=20))

    def work(first: int) -> None:
        runner.run(picture(first))
        together.wait(10)
        for seed in range(first, first + 100):
            assert_map(runner.run(picture(seed)), picture(seed))

    raised = within(30, *(lambda first=100 * t: work(first) for t in range(4)))
    assert len(raised) == 4
    assert all(isinstance(e, RuntimeUnavailable) for e in raised), raised  # CUDA's word for it, or TensorRT's
    assert any(isinstance(e, CudaError) for e in raised)
    assert within(10, runner.close) == []


# ---- closing


@with_and_without_graphs
@with_both_drivers
def test_closing_with_work_in_flight_touches_nothing_that_is_gone(
    stage: Stage, graph: bool | None, frees_wait: bool
) -> None:
    stage.device(frees_wait=frees_wait)
    runner = stage.runner(OpenOptions(cuda_graph=graph))
    runner.run(picture(0))
    runner.submit(picture(1))
    runner.submit(picture(2))
    runner.close()
    del runner
    assert stage.leaks() == {}


def test_closing_twice_is_closing_once(stage: Stage) -> None:
    runner = stage.runner()
    runner.run(picture(0))
    runner.close()
    runner.close()
    assert stage.leaks() == {}


def test_a_context_stands_alone(stage: Stage) -> None:
    """Without a runner: what it takes from TensorRT it lets go of."""
    trt = FakeTensorRT(stage.rt)
    engine = trt.Runtime(trt.Logger()).deserialize_cuda_engine(PLAN)
    assert engine is not None
    context = TensorRTContext(
        stage.cuda, engine.create_execution_context(), [INPUT], [OUTPUT], Messages(), cuda_graph=True, spin_wait=True
    )
    for seed, size in enumerate(SIZES):
        assert_map(context.run(picture(seed, size)), picture(seed, size))
        assert context.uses_graph
    context.close()
    del engine
    assert stage.leaks() == {}
