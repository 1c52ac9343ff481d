"""A load generator for inference servers: so many requests in flight, or so many in a second, whatever becomes of them.

In a closed loop, each of N senders sends its next request when the last is answered: that finds the throughput. In an open
loop, requests come at random times (a Poisson process), as those of many independent users do, and the latency of each is
counted from the time at which it was due. A request that had to wait because others were slow thus counts in full.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import images
from r2mrf_deploy.bench import feeds
from r2mrf_deploy.bench.summary import Statistics
from r2mrf_deploy.errors import InputError, R2mrfError, UsageError, first_line
from r2mrf_deploy.manifest import DEFAULT_SIZE, Contract
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.progress import Progress, ProgressCallback, item_by_item, silent
from r2mrf_deploy.runtimes.served import Connection, Prepared, ServedRunner, ServerStatistics, connect

PERCENTILES = (50.0, 90.0, 99.0, 99.9)
FILE = "file"
"""The input of a model that takes the bytes of a picture's file, and below what it is asked for by default."""
PICTURE = "png"
MOST_IMAGES = 200
"""The most photographs that are sent, again and again: all of them are kept in memory."""
MOST_IN_FLIGHT = 512
TICK = 0.002
"""Seconds before a request is due from which the event loop is asked without a pause: it sleeps to the millisecond only."""
AFTER_AN_ERROR = 0.05
"""Seconds that a sender waits after a failure: a server that is away would be asked thousands of times in a second."""


@dataclass(frozen=True)
class Load:
    """What is sent to a server, and for how long."""

    concurrency: int = 1
    """Requests in flight, of a closed loop."""
    rate: float | None = None
    """Requests in a second, of an open loop."""
    duration: float = 3.0
    """Seconds."""
    warm_up: float = 200.0
    """Milliseconds."""
    seed: int = 0
    """Of the times of an open loop, and of the order of the inputs."""

    def __post_init__(self) -> None:
        if not 1 <= self.concurrency <= MOST_IN_FLIGHT:
            raise UsageError(f"`concurrency` {self.concurrency}: it must be from 1 to {MOST_IN_FLIGHT}")
        if self.rate is not None and not 0 < self.rate <= 1e5:
            raise UsageError(f"`rate` {self.rate:g}: it must be above 0, and 100,000 requests in a second at most")
        if not 0 < self.duration < float("inf") or not 0 <= self.warm_up < float("inf"):
            raise UsageError("`duration` must be above 0, and `warm_up` not negative")

    def __str__(self) -> str:
        return f"{self.concurrency} in flight" if self.rate is None else f"{self.rate:g} per s"


@dataclass(frozen=True)
class LoadResult:
    """What became of a load."""

    address: str
    model: str
    device: str
    """The server, in words."""
    load: Load
    batch: int
    """Images of a request."""
    inputs: list[str]
    """Their shapes, each once."""
    requests: int
    """Those that were answered, and those that failed."""
    errors: int
    first_error: str
    seconds: float
    """From the first request to the last answer."""
    latency: Statistics | None
    """Milliseconds, of those that were answered; None if none was."""
    server: tuple[ServerStatistics, ...]
    """What the server counted meanwhile: of the model, then of the steps of an ensemble. Others' requests are among it."""
    early: tuple[str, ...] = ()
    """Those of them whose computation is counted in part only."""

    @property
    def throughput(self) -> float:
        """Answers in a second."""
        return (self.requests - self.errors) / self.seconds

    @property
    def title(self) -> str:
        return f"{self.model}, {self.load}" + (f", batch {self.batch}" if self.batch > 1 else "")

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self) | {"server": [s.to_dict() for s in self.server]}
        return found | {"throughput": self.throughput, "images_per_second": self.throughput * self.batch}


@item_by_item
def bench_servers(
    connections: Sequence[Connection],
    loads: Sequence[Load],
    *,
    folder: Path | None = None,
    outputs: Sequence[str] = (),
    size: tuple[int, int] | None = None,
    batches: Sequence[int] = (1,),
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Mapping[str, Path] | None = None,
    contract: Contract | None = None,
    progress: ProgressCallback = silent,
) -> Iterator[LoadResult]:
    """Put servers under load, one after another.

    Args:
        folder: of photographs, which are fitted into the input as the contract says, or sent as files to a model that takes
            files; where its size is free, there are inputs of many sizes. By default the values are random.
        outputs: the names of those to ask for; by default all, and of a model that takes files its picture.
        size, batches, shapes, inputs: as for `bench_artifacts`.
        contract: of the artifact that is served, for a server that does not know it.

    Returns:
        A list: one for each server, batch size and load.

    Raises:
        UsageError, InputError, ArtifactError, RuntimeUnavailable: as `connect` raises them, or the model cannot be fed so.
    """
    shapes, inputs = shapes or {}, inputs or {}
    if folder is not None and (given := [n for n, v in (("size", size), ("shapes", shapes), ("inputs", inputs)) if v]):
        raise UsageError(f"`{given[0]}` and photographs (`images`) exclude each other")
    with ExitStack() as stack:
        runners = []
        for connection in connections:
            progress(Progress(f"connecting to {connection.where}"))
            runners.append(connect(connection, contract=contract))
            stack.callback(runners[-1].close)
        for runner in runners:
            if not runner.inputs:
                raise InputError(f"{runner.model} at {runner.client.address} has no inputs")
            feeds.refuse_unknown([s.name for s in runner.inputs], shapes, inputs)
            asked = outputs or ([PICTURE] if takes_files(runner) and _has(runner, PICTURE) else None)
            for batch, arrays in _feeds(runner, folder, size, batches, shapes, inputs):
                prepared = [runner.prepare(each, asked) for each in arrays]
                for load in loads:
                    yield _measured(runner, load, batch, prepared, progress)


def takes_files(runner: ServedRunner) -> bool:
    """Whether a model takes the bytes of pictures' files."""
    return len(runner.inputs) == 1 and runner.inputs[0].name == FILE and runner.inputs[0].dtype == "object"


def _has(runner: ServedRunner, output: str) -> bool:
    return any(s.name == output for s in runner.outputs)


def _feeds(
    runner: ServedRunner,
    folder: Path | None,
    size: tuple[int, int] | None,
    batches: Sequence[int],
    shapes: Mapping[str, Sequence[int]],
    inputs: Mapping[str, Path],
) -> Iterator[tuple[int, list[feeds.Feed]]]:
    """Each batch size with its inputs."""
    spec = runner.inputs[0]
    if folder is None:
        if strange := [s.name for s in runner.inputs if s.dtype in ("object", "bool", "bfloat16")]:
            raise UsageError(f"{runner.model} takes {strange[0]!r}: name photographs to send (`images`)")
        if size:
            feeds.refuse_size(runner.model, runner.inputs, size, shapes)
        free = size or feeds.fixed_size(runner.inputs) or DEFAULT_SIZE
        yield from ((batch, [feed]) for batch, feed in feeds.sweep(runner.inputs, batches, free, shapes, inputs))
        return
    found = images.find([folder])
    chosen = found[:: -(-len(found) // MOST_IMAGES)]  # from all over the folder
    if takes_files(runner):
        arrays = [_as_file(path, len(spec.shape)) for path in chosen]
    elif len(runner.inputs) == 1 and spec.layout:
        predictor = Predictor.of(runner, runner.contract)
        arrays = [predictor.fit(images.read(path)).views[0] for path in chosen]
    else:
        raise UsageError(f"{runner.model} takes no photographs (`images`): {', '.join(map(str, runner.inputs))}")
    own = spec.shape[0] if len(spec.shape) == 4 or len(spec.shape) == 2 else 1
    if isinstance(own, int):
        if list(batches) not in ([1], [own]):
            raise UsageError(f"`batch` {','.join(map(str, batches))}: the batch of {runner.model} is {own}")
        batches = [own]
    for batch in batches:
        yield batch, [{spec.name: np.repeat(array, batch, axis=0)} for array in arrays]


def _as_file(path: Path, rank: int) -> np.ndarray:
    array = np.empty((1,) * rank, object)
    array.fill(path.read_bytes())
    return array


def _measured(
    runner: ServedRunner, load: Load, batch: int, prepared: Sequence[Prepared], progress: ProgressCallback
) -> LoadResult:
    shapes = list(dict.fromkeys(p.input for p in prepared))
    before, took, after = runner.client.call(_run(runner, load, prepared, progress))
    done = [ends - due for due, ends, error in took if not error]
    errors = [error for _, _, error in took if error]
    counted = {s.model: s for s in before}
    return LoadResult(
        runner.client.address, runner.model, runner.device, load, batch, shapes, len(took), len(errors),
        errors[0] if errors else "", max(ends for _, ends, _ in took) - min(due for due, _, _ in took),
        Statistics.of([1e3 * seconds for seconds in done], PERCENTILES) if done else None,
        tuple(s.since(counted[s.model]) if s.model in counted else s for s in after), runner.early,
    )  # fmt: skip


Took = list[tuple[float, float, str]]
"""Of each request, the seconds at which it was due and at which it was done, and why it failed."""
Statistic = list[ServerStatistics]


async def _run(
    runner: ServedRunner, load: Load, prepared: Sequence[Prepared], progress: ProgressCallback
) -> tuple[Statistic, Took, Statistic]:
    """The server's statistics, then the requests, and the statistics after that."""
    order, times = (np.random.default_rng([load.seed, what]) for what in range(2))
    took: Took = []

    async def send(due: float) -> bool:
        """Send one of the inputs; whether it was answered."""
        error = ""
        try:
            await runner.infer(prepared[int(order.integers(len(prepared)))])
        except R2mrfError as e:
            error = str(e)
        except Exception as e:
            error = f"{type(e).__name__}: {first_line(e)}"
        took.append((due, time.perf_counter(), error))
        return not error

    await _closed(send, load.concurrency if load.rate is None else 1, load.warm_up / 1e3)
    took.clear()
    before = await _counted(runner)
    showing = asyncio.create_task(_show(progress, f"{runner.model}, {load}", load.duration))
    try:
        if load.rate is None:
            await _closed(send, load.concurrency, load.duration)
        else:
            await _open(send, load.rate, load.duration, times)
    finally:
        showing.cancel()
        with suppress(asyncio.CancelledError):
            await showing
    return before, took, await _counted(runner)


async def _counted(runner: ServedRunner) -> Statistic:
    """The server's statistics, which are no reason to lose a measurement."""
    try:
        return await runner.counted()
    except R2mrfError:
        return []


Send = Callable[[float], Coroutine[Any, Any, bool]]


async def _closed(send: Send, senders: int, duration: float) -> None:
    ends = time.perf_counter() + duration

    async def sender() -> None:
        while True:
            if not await send(time.perf_counter()):
                await asyncio.sleep(AFTER_AN_ERROR)
            if time.perf_counter() >= ends:
                return

    await asyncio.gather(*(sender() for _ in range(senders)))


async def _open(send: Send, rate: float, duration: float, generator: np.random.Generator) -> None:
    due = time.perf_counter()
    ends, tasks, sent = due + duration, set[asyncio.Task[bool]](), 0
    try:
        while (due := due + generator.exponential(1 / rate)) < ends or not sent:
            if (left := due - time.perf_counter()) > TICK:
                await asyncio.sleep(left - TICK)
            while time.perf_counter() < due:
                await asyncio.sleep(0)
            task = asyncio.create_task(send(due))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            sent += 1
            await asyncio.sleep(0)  # it starts now, even if the next is due already
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def _show(progress: ProgressCallback, what: str, duration: float) -> None:
    start = time.perf_counter()
    while True:
        progress(Progress(what, min(100, round(100 * (time.perf_counter() - start) / duration)), 100))
        await asyncio.sleep(0.2)
