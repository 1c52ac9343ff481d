"""Throughput mode: as many inferences in flight as a runtime says pay, and figures that say how many."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2mrf_deploy import environment, runtimes
from r2mrf_deploy.bench import power
from r2mrf_deploy.bench.protocol import Candidate, Protocol, bench_artifacts, measure
from r2mrf_deploy.cli import main
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.report import bench_tables
from r2mrf_deploy.runtimes import MOST_STREAMS, OpenOptions
from r2mrf_deploy.runtimes.base import Arrays, Availability, Runner, Runtime

X = TensorSpec(name="x", dtype="float32", shape=[1])
QUICK = Protocol(0, 0.2, 10, 5)


class Shared(Runner):
    """Takes 10 ms, however many threads call it; writes down the most that did at once."""

    runtime, device = "shared", "none"
    inputs = outputs = (X,)

    def __init__(self, streams: int = 1) -> None:
        self.streams, self._now, self.most, self._lock = streams, 0, 0, threading.Lock()

    def _run(self, arrays: Arrays) -> Arrays:
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        time.sleep(0.01)
        with self._lock:
            self._now -= 1
        return dict(arrays)


class Fake(Runtime):
    """Opens any file as `Shared`."""

    name, title, suffixes = "onnxruntime", "Fake", (".onnx",)
    supported_options = frozenset({"throughput", "streams"})
    opened: list[OpenOptions]

    def __init__(self, streams: int) -> None:
        self._streams, self.opened = streams, []

    def availability(self) -> Availability:
        return Availability(True)

    def _open(self, artifact: Any, options: OpenOptions) -> Runner:
        self.opened.append(options)
        return Shared(options.streams or (self._streams if options.throughput else 1))


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Callable[[Fake], Fake]:
    def use(runtime: Fake) -> Fake:
        monkeypatch.setattr(runtimes, "get", lambda _: runtime)
        return runtime

    return use


def candidate(runner: Runner, **how: Any) -> Candidate:
    return Candidate("s", runner, {"x": np.zeros(1, np.float32)}, **how)


def test_candidates_have_as_many_in_flight_as_each_says() -> None:
    one, four = Shared(), Shared()
    found = measure([candidate(one), candidate(four, mode="throughput", requests=4)], QUICK)
    assert (one.most, four.most) == (1, 4) and [m.requests for m in found] == [1, 4]
    assert found[1].images_per_second / found[0].images_per_second == pytest.approx(4, rel=0.3)  # a sleep takes no core
    # the latency is the same, so the speed-up can only be that of images per second
    assert found[1].speed_up == pytest.approx(4, rel=0.3) and found[0].speed_up == 1.0
    assert found[1].latency.median == pytest.approx(found[0].latency.median, rel=0.3)


def test_those_that_a_stream_has_in_flight_are_counted() -> None:
    class Device(Shared):
        in_flight = 2

    (found,) = measure([candidate(Device(), mode="throughput", requests=3)], QUICK)
    assert found.requests == bench_tables.bench_rows([found])[0]["requests"] == 6
    assert "with 6 inferences in flight" in bench_tables.throughput_lines([found])[0]


def test_both_modes_are_compared(tiny_onnx: Callable[..., Path], fake: Callable[[Fake], Fake]) -> None:
    runtime = fake(Fake(3))
    done = bench_artifacts([tiny_onnx()], protocol=QUICK, mode="both")
    alone, together = done.measurements
    assert [(m.mode, m.requests) for m in (alone, together)] == [("latency", 1), ("throughput", 3)]
    assert [o.throughput for o in runtime.opened] == [False, True]
    assert together.flags == ("throughput",) and alone.flags == (), "a manifest keeps the two apart"
    said = bench_tables.throughput_lines(done.measurements)[0]
    ratio = together.images_per_second / alone.images_per_second
    assert "with 3 inferences in flight" in said and f"{ratio:.2f} times those of one after the other" in said
    head = bench_tables.bench_table(done.measurements).heads
    assert "in flight" in head and "images/s" in head
    rows = bench_tables.bench_rows(done.measurements)
    assert [(r["mode"], r["requests"]) for r in rows] == [("latency", 1), ("throughput", 3)]
    assert done.to_dict()["measurements"][1]["requests"] == 3


def test_a_number_that_is_given_is_taken(tiny_onnx: Callable[..., Path], fake: Callable[[Fake], Fake]) -> None:
    runtime = fake(Fake(3))
    (m,) = bench_artifacts([tiny_onnx()], protocol=Protocol(0, 0.1, 10, 5, streams=2), mode="throughput").measurements
    assert m.requests == 2 and runtime.opened[0].streams == 2


def test_who_cannot_says_so(tiny_onnx: Callable[..., Path], fake: Callable[[Fake], Fake]) -> None:
    class Alone(Fake):
        supported_options = frozenset()

    fake(Alone(1))
    done = bench_artifacts([tiny_onnx()], protocol=QUICK, mode="both")
    assert [m.mode for m in done.measurements] == ["latency"]
    assert "there is no throughput mode" in done.skipped[0][1] and "throughput" in done.skipped[0][0]
    with pytest.raises(RuntimeUnavailable, match="there is no throughput mode"):
        bench_artifacts([tiny_onnx()], protocol=QUICK, mode="throughput")
    with pytest.raises(UsageError, match="throughput"):
        bench_artifacts([tiny_onnx()], protocol=QUICK, mode="thruput")


def test_power_is_told_where_the_machine_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that takes 20 W all the time."""
    monkeypatch.setattr(power, "of_cpu", lambda: power.Meter(lambda: 20 * time.perf_counter()))
    (m,) = measure([candidate(Shared(), mode="throughput", requests=2)], QUICK)
    assert m.watts == pytest.approx(20, rel=0.1)
    assert m.images_per_joule == pytest.approx(m.images_per_second / 20, rel=0.1)
    (said,) = bench_tables.throughput_lines([m])
    assert "images per second per watt of the processor" in said
    assert "images/J" in bench_tables.bench_table([m]).heads


def test_else_it_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(power, "of_cpu", lambda: None)
    (m,) = measure([candidate(Shared(), mode="throughput", requests=2)], QUICK)
    assert m.watts is None and m.images_per_joule is None
    assert bench_tables.throughput_lines([m])[-1] == "the machine does not tell its power"
    assert "images/J" not in bench_tables.bench_table([m]).heads


@pytest.mark.artifact
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_runtimes_choose_how_many(exported: Path, runtime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(runtime)
    done = bench_artifacts([exported], [runtime], Protocol(0, 0.1, 10, 5), mode="both")
    alone, together = done.measurements
    assert alone.requests == 1 <= together.requests <= MOST_STREAMS
    if runtime == "onnxruntime":
        assert together.requests == min(MOST_STREAMS, environment.cores())
        monkeypatch.setattr(environment, "cores", lambda: 64)
        with runtimes.open(exported, runtime, options=OpenOptions(throughput=True)) as runner:
            assert runner.streams == MOST_STREAMS, "each takes memory of its own"


@pytest.mark.artifact
def test_maps_are_those_of_one_after_the_other(exported: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (6, 1, 96, 128, 3), np.uint8)
    for runtime in ("onnxruntime", "openvino"):
        pytest.importorskip(runtime)
        with (
            runtimes.open(exported, runtime) as alone,
            runtimes.open(exported, runtime, options=OpenOptions(throughput=True)) as together,
        ):
            for image in images:
                a, b = (r.run({"image": image})["map"] for r in (alone, together))
                np.testing.assert_allclose(
                    a, b, atol=1e-5
                )  # the same kernels, which may split sums among other threads


@pytest.mark.artifact
def test_many_photographs_are_computed_for_throughput_unless_told_otherwise(exported: Path) -> None:
    cores = min(MOST_STREAMS, environment.cores())
    for options, many, streams in (
        (None, True, cores),
        (None, False, 1),
        (OpenOptions(streams=3), True, 3),
        (OpenOptions(threads=1), True, 1),
        (OpenOptions(threads=2), True, 2),
    ):
        with Predictor.open(exported, "onnxruntime", options=options, many=many) as predictor:
            assert predictor.streams == streams


@pytest.mark.artifact
def test_the_command(exported: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick = ["--duration", "0.1", "--warmUp", "0", "--no-record"]
    assert main(["bench", str(exported), "--runtime", "onnxruntime", "--mode", "both", *quick]) == 0
    said = capsys.readouterr().out
    assert "in flight" in said and "times those of one after the other" in said
    assert main(["bench", str(exported), "--runtime", "onnxruntime", "--mode", "throughput", *quick]) == 0
    assert "images per second with" in capsys.readouterr().out
