"""TensorRT's contexts and runners, and the benchmark, on a driver and a TensorRT that are not there (`fake_cuda_runtime`,
`fake_tensorrt`): everything is right, given back, and said, whatever is refused or lost and whenever that is.

The device here is as late as CUDA allows. Where a test has `frees_wait`, the driver does (True) or does not (False) wait for
the device before it frees memory; CUDA says that it may.
"""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_cuda_runtime import FakeCudaRuntime
from fake_tensorrt import LAYERS, PLAN, FakeTensorRT, mean

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.bench.protocol import Candidate, Protocol, measure
from r2mrf_deploy.errors import InputError, R2mrfError, RuntimeUnavailable
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.runtimes.base import OpenOptions, Timing
from r2mrf_deploy.runtimes.cuda.bindings import CudaError, CudaPython
from r2mrf_deploy.runtimes.tensorrt.api import Library, Messages
from r2mrf_deploy.runtimes.tensorrt.execution_context import TensorRTContext
from r2mrf_deploy.runtimes.tensorrt.runner import TensorRTRunner

INPUT = TensorSpec(name="image", dtype="uint8", shape=["n", "h", "w", 3], layout="NHWC")
OUTPUT = TensorSpec(name="map", dtype="float32", shape=["n", 1, "h", "w"], layout="NCHW")
SIZES = [(1, 8, 8), (2, 32, 16), (1, 8, 8), (1, 4, 4), (2, 32, 16), (2, 32, 32)]
LARGER = (2, 32, 32)
Arrays = dict[str, np.ndarray]


def picture(seed: int, size: tuple[int, int, int] = (1, 8, 8)) -> Arrays:
    return {"image": np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)}


def assert_map(outputs: Arrays, arrays: Arrays) -> None:
    np.testing.assert_array_equal(outputs["map"], mean(arrays["image"]))


class Stage:
    """A driver, a TensorRT and what the package makes of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch = monkeypatch
        self._plan = folder / "x.plan"
        self._plan.write_bytes(PLAN)
        self.device()

    def device(self, **options: Any) -> FakeCudaRuntime:
        """Put another device in."""
        self.rt = FakeCudaRuntime(**options)
        self._monkeypatch.setitem(sys.modules, "cuda.bindings", SimpleNamespace(runtime=self.rt))
        self.cuda = CudaPython()
        return self.rt

    def runner(self, options: OpenOptions | None = None, **library: Any) -> TensorRTRunner:
        self.trt = FakeTensorRT(self.rt, **library)
        found = Library("tensorrt_rtx" if self.trt.rtx else "tensorrt", self.trt)
        return TensorRTRunner(found, Artifact(self._plan), options or OpenOptions(), self.cuda)

    def leaks(self) -> dict[str, int]:
        """What is alive when the device has done all that it was given."""
        gc.collect()
        self.rt.cudaDeviceSynchronize()
        assert not self.rt.why_lost
        return self.rt.alive()


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Stage:
    return Stage(monkeypatch, tmp_path)


LIBRARIES: list[dict[str, Any]] = [
    {},
    {"rtx": True},
    {"rtx": True, "own_graphs": False},
    {"rtx": True, "own_graphs": False, "capturable": False},
    {"implicit_profile": True},
]
every_library = pytest.mark.parametrize("library", LIBRARIES, ids=lambda x: "-".join(x) or "tensorrt")
with_and_without_graphs = pytest.mark.parametrize("graph", [None, False], ids=["graph", "no-graph"])
with_both_drivers = pytest.mark.parametrize("frees_wait", [True, False], ids=["frees-wait", "frees-do-not-wait"])


def within(seconds: float, *works: Callable[[], Any]) -> list[BaseException]:
    """What these raised, each in a thread of its own; fails where one does not end."""
    raised: list[BaseException] = []

    def guarded(work: Callable[[], Any]) -> None:
        try:
            work()
        except BaseException as e:
            raised.append(e)

    threads = [threading.Thread(target=guarded, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(seconds)
        assert not thread.is_alive(), "it hangs"
    return raised


# ---- results


@every_library
@with_and_without_graphs
def test_results_are_right_through_every_change_of_shape(
    stage: Stage, library: dict[str, Any], graph: bool | None
) -> None:
    with stage.runner(OpenOptions(cuda_graph=graph), **library) as runner:
        for seed, size in enumerate(SIZES):
            for again in range(3):
                arrays = picture(10 * seed + again, size)
                assert_map(runner.run(arrays), arrays)
            assert stage.rt.alive().get("graphs") is None and stage.rt.alive().get("executables", 0) <= 1
        ours = graph is None and library.get("capturable", True) and (not library.get("rtx") or "own_graphs" in library)
        assert stage.rt.calls["cudaGraphLaunch"] == (3 * len(SIZES) if ours else 0)
    assert stage.leaks() == {}


@every_library
@with_and_without_graphs
def test_two_in_flight_have_their_own_inputs_and_outputs(
    stage: Stage, library: dict[str, Any], graph: bool | None
) -> None:
    with stage.runner(OpenOptions(cuda_graph=graph), **library) as runner:
        runner.run(picture(0))
        for seed in range(1, 20, 2):
            first, second = picture(seed), picture(seed + 1)
            waits = [runner.submit(first), runner.submit(second)]
            with pytest.raises(RuntimeError, match="2 inferences are in flight"):
                runner.submit(picture(99))
            for wait, arrays in zip(waits, (first, second), strict=True):
                assert_map(wait()[0], arrays)
    assert stage.leaks() == {}


def test_a_pipeline_of_two_keeps_the_order(stage: Stage) -> None:
    """One is always in flight while the next is prepared, and the slots take turns."""
    with stage.runner() as runner:
        before, waiting = picture(0), runner.submit(picture(0))
        for seed in range(1, 12):
            arrays = picture(seed)
            after = runner.submit(arrays)
            assert_map(waiting()[0], before)
            before, waiting = arrays, after
        assert_map(waiting()[0], before)


@with_and_without_graphs
def test_another_shape_waits_until_nothing_is_in_flight(stage: Stage, graph: bool | None) -> None:
    with stage.runner(OpenOptions(cuda_graph=graph)) as runner:
        runner.run(picture(0))
        wait = runner.submit(picture(1))
        with pytest.raises(RuntimeError, match="another shape is in flight"):
            runner.submit(picture(2, LARGER))
        assert_map(wait()[0], picture(1))
        assert_map(runner.run(picture(2, LARGER)), picture(2, LARGER))


def test_results_are_the_callers_own(stage: Stage) -> None:
    with stage.runner() as runner:
        first = runner.run(picture(1))
        runner.run(picture(2))
        runner.run(picture(3))
    assert_map(first, picture(1))


def test_without_transfers_the_device_computes_on_what_it_has(stage: Stage) -> None:
    with stage.runner() as runner:
        runner.run(picture(0))
        copies, kernels = stage.rt.calls["cudaMemcpyAsync"], stage.rt.kernels
        outputs, timing = runner.submit(picture(0), transfers=False)()
        assert outputs == {} and stage.rt.kernels == kernels + 1 and stage.rt.calls["cudaMemcpyAsync"] == copies
        assert timing.compute > 0


@every_library
@with_and_without_graphs
def test_four_threads_at_once(stage: Stage, library: dict[str, Any], graph: bool | None) -> None:
    together = threading.Barrier(4)
    with stage.runner(OpenOptions(cuda_graph=graph), **library) as runner:

        def work(first: int) -> None:
            together.wait(10)
            for seed in range(first, first + 30):
                arrays = picture(seed, SIZES[seed // 5 % len(SIZES)])
                assert_map(runner.run(arrays), arrays)

        assert within(60, *(lambda first=100 * t: work(first) for t in range(4))) == []
    assert stage.leaks() == {}


def test_a_capture_bears_allocations_in_another_thread(stage: Stage) -> None:
    captured = 0

    def another_allocates(stream: int) -> None:
        nonlocal captured
        if int(stage.rt.cudaStreamIsCapturing(stream)[1]):
            captured += 1
            assert within(10, lambda: stage.cuda.free(stage.cuda.malloc(64))) == []

    with stage.runner() as runner:
        stage.trt.on_execute = another_allocates
        assert_map(runner.run(picture(1)), picture(1))
        assert captured == 1 and stage.rt.calls["cudaGraphLaunch"] == 1


# ---- refusals


def test_a_shape_outside_the_profile_is_refused_and_forgotten(stage: Stage) -> None:
    with stage.runner(largest=16) as runner:
        runner.run(picture(1))
        with pytest.raises(
            InputError, match=r"image \[1, 32, 8, 3\] is outside the plan's profile: .*outside the profile"
        ):
            runner.run(picture(1, (1, 32, 8)))
        assert_map(runner.run(picture(2)), picture(2))
    assert stage.leaks() == {}


@with_and_without_graphs
@with_both_drivers
def test_a_refused_inference_says_why_and_the_next_is_right(stage: Stage, graph: bool | None, frees_wait: bool) -> None:
    stage.device(frees_wait=frees_wait)
    with stage.runner(OpenOptions(cuda_graph=graph)) as runner:
        for size in SIZES:
            stage.trt.trouble.executions = 1
            with pytest.raises(RuntimeUnavailable, match="the test wants it so"):
                runner.run(picture(0, size))
            with pytest.raises(RuntimeUnavailable, match="the test wants it so"):
                stage.trt.trouble.executions = 1
                runner.run(picture(0, LARGER))
            assert_map(runner.run(picture(1, size)), picture(1, size))
    assert stage.leaks() == {}


def test_a_refusal_leaves_the_one_in_flight_alone(stage: Stage) -> None:
    with stage.runner(OpenOptions(cuda_graph=False)) as runner:
        runner.run(picture(0))
        wait = runner.submit(picture(1))
        stage.trt.trouble.executions = 1
        with pytest.raises(RuntimeUnavailable):
            runner.submit(picture(2))
        assert_map(wait()[0], picture(1))
        assert_map(runner.run(picture(3)), picture(3))


def test_no_room_for_a_context_is_said_and_room_later_is_taken(stage: Stage) -> None:
    with stage.runner() as runner:
        stage.trt.trouble.room = 0
        with pytest.raises(RuntimeUnavailable, match="no room for another context: out of memory"):
            runner.run(picture(1))
        stage.trt.trouble.room = None
        assert_map(runner.run(picture(1)), picture(1))
    assert stage.leaks() == {}


@pytest.mark.parametrize("size", [(1, 4, 4), LARGER], ids=["smaller", "larger"])
def test_a_refused_address_is_raised_before_anything_runs(stage: Stage, size: tuple[int, int, int]) -> None:
    with stage.runner() as runner:
        runner.run(picture(1))
        executions, stage.trt.trouble.addresses = stage.trt.executions, True
        with pytest.raises(RuntimeUnavailable, match="image"):
            runner.run(picture(2, size))
        assert stage.trt.executions == executions
        stage.trt.trouble.addresses = False
        assert_map(runner.run(picture(2, size)), picture(2, size))
    assert stage.leaks() == {}


def test_a_refused_profile_is_raised_and_is_not_the_inputs_fault(stage: Stage) -> None:
    with stage.runner(implicit_profile=True) as runner:
        runner.run(picture(0))
        stage.trt.trouble.profiles = True
        (error,) = within(10, lambda: runner.run(picture(1)))  # another thread's context has no profile yet
        assert isinstance(error, R2mrfError) and not isinstance(error, InputError)
        assert "profile 0 cannot be had" in str(error)
        stage.trt.trouble.profiles = False
        assert within(10, lambda: assert_map(runner.run(picture(1)), picture(1))) == []
        del error
    assert stage.leaks() == {}


# ---- graphs that cannot be had


@pytest.mark.parametrize("code", [1, 2, 801])
def test_a_graph_that_cannot_be_instantiated_is_done_without(stage: Stage, code: int) -> None:
    with stage.runner() as runner:
        stage.rt.fail("cudaGraphInstantiate", code)
        for seed in range(3):
            assert_map(runner.run(picture(seed)), picture(seed))
        assert stage.rt.alive().get("graphs") is None and stage.rt.calls["cudaGraphLaunch"] == 0
        runner.run(picture(0, LARGER))
        assert stage.rt.calls["cudaGraphLaunch"] == 1  # at another shape it is tried again
    assert stage.leaks() == {}


def test_an_inference_that_cannot_be_captured_runs_without_a_graph(stage: Stage) -> None:
    with stage.runner() as runner:
        stage.trt.trouble.captured_executions = True
        for seed in range(3):
            assert_map(runner.run(picture(seed)), picture(seed))
        assert stage.rt.calls["cudaStreamBeginCapture"] == 1 and stage.rt.calls["cudaGraphLaunch"] == 0
        assert stage.rt.alive().get("graphs") is None
    assert stage.leaks() == {}


def test_a_capture_that_something_breaks_is_done_without(stage: Stage) -> None:
    def allocate(stream: int) -> None:
        if int(stage.rt.cudaStreamIsCapturing(stream)[1]):
            stage.rt.cudaMalloc(8)  # what TensorRT may do in secret

    with stage.runner() as runner:
        stage.trt.on_execute = allocate
        for seed in range(3):
            assert_map(runner.run(picture(seed)), picture(seed))
        assert stage.rt.calls["cudaGraphLaunch"] == 0
    assert stage.leaks() == {}


@pytest.mark.parametrize("how", ["refuses", "raises", "breaks the capture", "breaks it and raises"])
def test_work_that_fails_in_a_capture_leaks_nothing(stage: Stage, how: str) -> None:
    stream = stage.cuda.stream()

    def work() -> bool:
        stage.rt.launch_kernel(stream, lambda: None)
        if "breaks" in how:
            assert int(stage.rt.cudaMalloc(8)[0]) == 900
        if "raises" in how:
            raise ZeroDivisionError
        return how != "refuses"

    if "raises" in how:
        with pytest.raises(ZeroDivisionError):
            stage.cuda.capture(stream, work)
    else:
        assert stage.cuda.capture(stream, work) is None
    assert stage.rt.alive() == {"streams": 1}
    assert stage.rt.cudaGetLastError() == (0,)  # nothing is left for the next who asks
    stage.cuda.synchronize(stream)
    graph = stage.cuda.capture(stream, lambda: stage.rt.launch_kernel(stream, lambda: None) == (0,))
    stage.cuda.launch(graph, stream)
    stage.cuda.synchronize(stream)
    assert stage.rt.kernels == 1


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


# ---- layers, and the benchmark


def test_a_profile_hears_of_every_layer_in_every_run(stage: Stage) -> None:
    with stage.runner(OpenOptions(profile=True)) as runner:
        found = runner.profile(picture(0), 3)
        assert [(layer.name, layer.milliseconds) for layer in found] == [(name, (0.25,) * 3) for name in LAYERS]
        assert stage.rt.calls["cudaGraphLaunch"] == 0
    assert stage.leaks() == {}


QUICK = {"warm_up": 0.0, "duration": 0.0, "iterations": 20, "avg_runs": 5}


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("transfers", [True, False])
def test_the_benchmark_measures_candidates_side_by_side(stage: Stage, streams: int, transfers: bool) -> None:
    feed = picture(0, LARGER)
    with stage.runner() as graph, stage.runner(OpenOptions(cuda_graph=False)) as plain:
        candidates = [Candidate("graph", graph, feed, 2), Candidate("plain", plain, feed, 2, ("cuda_graph",))]
        found = measure(candidates, Protocol(streams=streams, transfers=transfers, **QUICK))  # type: ignore[arg-type]
        assert [m.name for m in found] == ["graph", "plain"]
        for measurement in found:
            timings = [t for turn in measurement.turns for t in turn]
            assert len(timings) >= 20 and len(timings) % streams == 0
            assert all(len(turn) <= 5 * streams for turn in measurement.turns)
            assert measurement.latency.median > 0 and measurement.shape == [2, 32, 32, 3]
            for turn in measurement.turns if streams == 1 else ():
                in_order(turn)
        assert stage.rt.calls["cudaGraphLaunch"] > 0
        # one untimed inference of six in a turn copies in any case
        assert (stage.rt.calls["cudaMemcpyAsync"] > stage.rt.kernels) == transfers
    assert stage.leaks() == {}


def in_order(turn: tuple[Timing, ...]) -> None:
    """Inferences of one stream do not overlap on the device, nor do the parts of one."""
    marks = [m for t in turn for m in (t.start_h2d, t.end_h2d, t.start_compute, t.end_compute, t.start_d2h, t.end_d2h)]
    # 2 µs: float32 milliseconds up to 10 s from the base event resolve 1 µs, and two of them are added
    assert all(a <= b + 2e-3 for a, b in itertools.pairwise(marks)), marks


@pytest.mark.parametrize("streams", [1, 4])
@pytest.mark.parametrize("after", [0, 15])
def test_a_benchmark_on_a_lost_device_ends_with_its_error(stage: Stage, streams: int, after: int) -> None:
    def bench() -> None:
        with stage.runner() as runner:
            stage.rt.lose(700, after)
            measure([Candidate("x", runner, picture(0))], Protocol(streams=streams, **QUICK))  # type: ignore[arg-type]

    (error,) = within(30, bench)
    assert isinstance(error, CudaError if streams == 1 else RuntimeUnavailable), error
    assert "an illegal memory access was encountered" in str(error)


@pytest.mark.parametrize("room", [0, 1])
def test_a_benchmark_without_room_for_its_streams_says_so(stage: Stage, room: int) -> None:
    """And the stream that has room does not wait for the other for ever."""
    with stage.runner() as runner:
        runner.run(picture(0))
        stage.trt.trouble.room = room
        protocol = Protocol(streams=2, **QUICK)  # type: ignore[arg-type]
        (error,) = within(30, lambda: measure([Candidate("x", runner, picture(0))], protocol))
        assert isinstance(error, RuntimeUnavailable) and "no room for another context" in str(error)
        del error
    assert stage.leaks() == {}
