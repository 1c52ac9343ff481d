"""The benchmark on a driver and a TensorRT that are not there (`fake_stage`)."""

from __future__ import annotations

import itertools

import pytest
from fake_stage import LARGER, Stage, picture, within

from r2mrf_deploy.bench.protocol import Candidate, Protocol, measure
from r2mrf_deploy.errors import RuntimeUnavailable
from r2mrf_deploy.runtimes.base import OpenOptions, Timing
from r2mrf_deploy.runtimes.cuda.bindings import CudaError

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
