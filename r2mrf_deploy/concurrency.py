"""Work on a stream of items by several threads: in order, and with few items in memory at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def ordered_map(
    function: Callable[[T], R],
    items: Iterable[T],
    threads: int,
    ahead: int = 2,
    pool: ThreadPoolExecutor | None = None,
    abandon: Callable[[], None] | None = None,
) -> Generator[R, None, None]:
    """`map(function, items)` by `threads` threads, as a generator.

    Results come in the order of the items. `items` is read in the thread that asks for results, and only as far as is needed
    to keep the threads busy: at most `threads + ahead` items are taken and not yet given back, however many there are. So
    several of these can be put behind one another, and all of them work at once.

    Args:
        pool: threads that outlast the call; by default new ones.
        abandon: called if it ends before its end, so that what runs already does not have to be waited for in full.

    Raises:
        Exception: what `function` raises, in its item's place. Nothing further is started then, nor after the generator is
            closed; what runs already is waited for.
    """
    own = pool or ThreadPoolExecutor(threads)
    running: deque[Future[R]] = deque()
    try:
        for item in items:
            running.append(own.submit(function, item))
            if len(running) >= threads + ahead:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()
    except BaseException:
        if abandon is not None:
            abandon()
        raise
    finally:
        if pool is None:
            own.shutdown(wait=True, cancel_futures=True)
        else:
            wait([job for job in running if not job.cancel()])
