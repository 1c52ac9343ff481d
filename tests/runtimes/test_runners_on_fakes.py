"""TensorRT's runners on a driver and a TensorRT that are not there (`fake_stage`): results are right, and whatever the
library refuses is said, forgotten, or done without.
"""

from __future__ import annotations

import threading
from typing import Any

import pytest
from fake_stage import (
    LARGER,
    SIZES,
    Stage,
    assert_map,
    every_library,
    picture,
    with_and_without_graphs,
    with_both_drivers,
    within,
)
from fake_tensorrt import LAYERS

from r2mrf_deploy.errors import InputError, R2mrfError, RuntimeUnavailable
from r2mrf_deploy.manifest import Contract, Target
from r2mrf_deploy.runtimes.base import OpenOptions

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


def test_a_runner_says_whether_its_plan_rounds_to_tf32(stage: Stage) -> None:
    with stage.runner() as runner:
        assert runner.tf32  # the card is an Ampere
        target = Target(
            runtime="tensorrt", runtime_version="11", compute_capabilities=["8.6"], options={"noTF32": "true"},
            built_without_gpu=False, achieved_precision="fp32",
        )  # fmt: skip
        said = Contract(kind="plan", inputs=list(runner.inputs), outputs=list(runner.outputs), target=target)
    assert not stage.runner(contract=said).tf32


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


# ---- layers


def test_a_profile_hears_of_every_layer_in_every_run(stage: Stage) -> None:
    with stage.runner(OpenOptions(profile=True)) as runner:
        found = runner.profile(picture(0), 3)
        assert [(layer.name, layer.milliseconds) for layer in found] == [(name, (0.25,) * 3) for name in LAYERS]
        assert stage.rt.calls["cudaGraphLaunch"] == 0
    assert stage.leaks() == {}
