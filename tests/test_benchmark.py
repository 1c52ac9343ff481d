"""The benchmark measures what it says: percentiles, interleaving, ratios."""

from __future__ import annotations

import time

import numpy as np
import pytest

from r2mrf_deploy.benchmark import Contestant, Protocol, Statistics, feed_for, measure, percentile
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.runtimes.base import Arrays, Runner

X = TensorSpec(name="x", dtype="float32", shape=[1])
LOG: list[str] = []


class Sleeper(Runner):
    """Takes as long as it says."""

    device = "none"
    inputs = outputs = (X,)

    def __init__(self, name: str, milliseconds: float) -> None:
        self.runtime, self._seconds = name, milliseconds / 1e3

    def _run(self, arrays: Arrays) -> Arrays:
        LOG.append(self.runtime)
        time.sleep(self._seconds)
        return dict(arrays)


def contestants(*milliseconds: float) -> list[Contestant]:
    feed = {"x": np.zeros(1, np.float32)}
    return [Contestant(f"s{m}", Sleeper(f"s{m}", m), feed) for m in milliseconds]


def test_percentile_is_trtexec_s() -> None:
    values = list(range(100))
    # index max(n - 1 - int((1 - p/100) * n), 0); in single precision 1 - 0.9 is over 0.1, and 1 - 0.99 under 0.01
    assert [percentile(values, p) for p in (50, 90, 95, 99)] == [49, 89, 94, 99]
    assert percentile([5.0], 99) == 5.0
    assert percentile([1.0, 2.0], 50) == 1.0


def test_statistics() -> None:
    s = Statistics.of([3.0, 1.0, 2.0, 10.0], (90.0,))
    assert (s.min, s.max, s.mean, s.median, s.percentiles) == (1.0, 10.0, 4.0, 2.5, {"90": 10.0})


def test_iterations_and_duration_are_both_reached() -> None:
    by_count, by_time = contestants(1), contestants(1)
    assert measure(by_count, Protocol(0, 0, 25, 10))[0].inferences >= 25
    assert measure(by_time, Protocol(0, 0.1, 1, 10))[0].inferences >= 50


def test_contestants_take_turns_and_ratios_follow() -> None:
    LOG.clear()
    slow, fast = measure(contestants(8, 2), Protocol(0, 0, 30, 10))
    assert (slow.inferences, fast.inferences) == (30, 30)
    order = [name for name, before in zip(LOG, [None, *LOG[:-1]], strict=True) if name != before]
    assert order == ["s8", "s2"] * 4, "a warm-up and three turns each"
    assert slow.speed_up == 1.0
    # sleeping overshoots by up to a millisecond or so
    assert 2 < fast.speed_up < 5
    assert fast.speed_up_range[0] <= fast.speed_up <= fast.speed_up_range[1]
    assert fast.throughput == pytest.approx(1e3 / fast.latency.mean, rel=0.3)


def test_a_turn_ends_early_where_inferences_are_slow() -> None:
    # 200 ms each: three fit into half a second
    only, _ = measure(contestants(200, 200), Protocol(0, 0, 4, 10))
    assert only.inferences == 6


def test_feed_follows_layout_dtype_and_free_sizes() -> None:
    specs = [
        TensorSpec(name="image", dtype="uint8", shape=["n", "h", "w", 3], layout="NHWC"),
        TensorSpec(name="tensor", dtype="float32", shape=["n", 3, "h", "w"], layout="NCHW"),
        TensorSpec(name="fixed", dtype="float32", shape=[2, 3, 5, 7], layout="NCHW"),
    ]
    feed = feed_for(specs, (4, 32, 64))
    assert {k: (v.shape, v.dtype.name) for k, v in feed.items()} == {
        "image": ((4, 32, 64, 3), "uint8"),
        "tensor": ((4, 3, 32, 64), "float32"),
        "fixed": ((2, 3, 5, 7), "float32"),
    }
    assert feed["image"].std() > 50


def test_nonsense_is_refused() -> None:
    with pytest.raises(UsageError, match="iterations"):
        Protocol(iterations=0)
    with pytest.raises(UsageError, match="percentile"):
        Protocol(percentiles=(100.0,))
