"""Work on a stream: in order, few items at once, and nothing left running."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest

from r2mrf_deploy.concurrency import ordered_map


def test_results_come_in_order_whoever_is_done_first() -> None:
    def slow_if_even(n: int) -> int:
        time.sleep(0.002 * (n % 2 == 0))
        return n * n

    assert list(ordered_map(slow_if_even, range(50), 4)) == [n * n for n in range(50)]


def test_several_work_at_once() -> None:
    meet = threading.Barrier(3)
    assert len(list(ordered_map(lambda _: meet.wait(timeout=30), range(9), 3))) == 9


def test_an_endless_stream_is_read_only_as_far_as_is_needed() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        for n in itertools.count(1):
            taken = n
            yield n

    stages = ordered_map(lambda n: n, ordered_map(lambda n: n, items(), 2, ahead=1), 3, ahead=2)
    assert [next(stages) for _ in range(10)] == list(range(1, 11))
    assert taken <= 10 + (2 + 1) + (3 + 2)
    stages.close()


def test_an_error_comes_in_its_item_s_place_and_ends_it() -> None:
    started = []

    def fails(n: int) -> int:
        started.append(n)
        if n == 5:
            raise ValueError("five")
        return n

    before = set(threading.enumerate())
    found = ordered_map(fails, range(1000), 2)
    assert [next(found) for _ in range(5)] == list(range(5))
    with pytest.raises(ValueError, match="five"):
        next(found)
    assert max(started) < 5 + 2 * (2 + 2) and set(threading.enumerate()) <= before


def test_closed_early_nothing_goes_on() -> None:
    done = []
    found = ordered_map(done.append, itertools.count(), 2)
    next(found)
    found.close()
    count = len(done)
    time.sleep(0.01)
    assert len(done) == count


def test_what_runs_is_abandoned_if_nobody_waits_for_it() -> None:
    """Whoever closes the stream, or is interrupted, does not wait for it in full."""
    given_up, begun = threading.Event(), threading.Event()

    def work(n: int) -> int:
        if n:
            begun.set()
            assert given_up.wait(30)
        return n

    stages = ordered_map(work, range(9), 2, abandon=given_up.set)
    assert next(stages) == 0 and begun.wait(30) and not given_up.is_set()
    stages.close()
    assert given_up.is_set()
    assert list(ordered_map(lambda n: n, range(3), 2, abandon=pytest.fail)) == [0, 1, 2]
