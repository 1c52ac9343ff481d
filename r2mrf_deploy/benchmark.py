"""Benchmark by trtexec's measuring protocol, for every runtime, several side by side.

Each contestant warms up, then runs until it has both `iterations` inferences and `duration` seconds. Contestants take
turns of `avg_runs` inferences, or half a second, so that whatever else the machine does falls on all alike; ratios are
taken within a turn. Between turns there is a pause, in which the thread pools of the one before stop spinning.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import machine, runtimes
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError
from r2mrf_deploy.manifest import TensorSpec
from r2mrf_deploy.runtimes import OpenOptions, Runner, Timing

PAUSE = 0.05
"""Seconds between turns."""
TURN = 0.5
"""Seconds after which a turn ends early."""
NOISY = 2.5
"""Coefficient of variation, in percent, over which trtexec warns."""


@dataclass(frozen=True)
class Protocol:
    """trtexec's options, with trtexec's defaults."""

    warm_up: float = 200.0
    """Milliseconds."""
    duration: float = 3.0
    """Seconds."""
    iterations: int = 10
    avg_runs: int = 10
    percentiles: tuple[float, ...] = (90.0, 95.0, 99.0)

    def __post_init__(self) -> None:
        if self.warm_up < 0 or self.duration < 0 or self.iterations < 1 or self.avg_runs < 1:
            raise UsageError("--warmUp and --duration must not be negative, --iterations and --avgRuns at least 1")
        if not all(0 < p < 100 for p in self.percentiles):
            raise UsageError("--percentile must be between 0 and 100")


@dataclass(frozen=True)
class Statistics:
    """Of one quantity over all inferences, in milliseconds."""

    min: float
    max: float
    mean: float
    median: float
    percentiles: dict[str, float]

    @classmethod
    def of(cls, values: Sequence[float], percentiles: Sequence[float]) -> Statistics:
        ordered = sorted(values)
        return cls(
            ordered[0],
            ordered[-1],
            statistics.fmean(ordered),
            statistics.median(ordered),
            {f"{p:g}": percentile(ordered, p) for p in percentiles},
        )


def percentile(ordered: Sequence[float], p: float) -> float:
    """trtexec's percentile of sorted values: index max(n - 1 - int((1 - p/100) * n), 0), in single precision as there."""
    share = np.float32(1) - np.float32(p) / np.float32(100)
    return ordered[max(len(ordered) - 1 - int(share * np.float32(len(ordered))), 0)]


@dataclass
class Contestant:
    """A runner to be timed, and what was measured."""

    name: str
    runner: Runner
    feed: dict[str, np.ndarray]
    timings: list[Timing] = field(default_factory=list)
    turns: list[float] = field(default_factory=list)
    """Median latency of each turn, milliseconds."""


@dataclass(frozen=True)
class Measurement:
    """What was measured of one contestant."""

    name: str
    runtime: str
    device: str
    inferences: int
    throughput: float
    """Inferences per second of the time the contestant was running, as trtexec's queries per second."""
    latency: Statistics
    enqueue: Statistics
    h2d: Statistics
    compute: Statistics
    d2h: Statistics
    variation: float
    """Coefficient of variation of the latency, percent."""
    speed_up: float
    """Over the baseline: the median over the turns of its latency's ratio to this one's; over 1 is faster."""
    speed_up_range: tuple[float, float]
    """The middle half of those ratios."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Bench:
    """A benchmark: what was measured, what could not be, and where."""

    measurements: list[Measurement]
    skipped: list[tuple[str, str]]
    """(artifact on runtime, reason)."""
    baseline: str
    protocol: Protocol
    machine: dict[str, str | int]
    tools: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def bench_artifacts(
    artifacts: Sequence[Path],
    runtime_names: Sequence[str] = (),
    protocol: Protocol | None = None,
    *,
    size: tuple[int, int] = (320, 320),
    threads: int | None = None,
    trust: bool = False,
    phase: Callable[[str], None] | None = None,
) -> Bench:
    """Time artifacts and checkpoints side by side.

    Args:
        runtime_names: time each artifact on every one of these that opens it; by default on the first that does.
        size: height and width, where an input leaves them free (a checkpoint's always does).
        threads: CPU threads of each runtime.
        phase: called with how far each is.

    Returns:
        The baseline is PyTorch where it takes part, else the first.

    Raises:
        RuntimeUnavailable: none of them can be run here.
        InputError, ArtifactError, CheckpointError, UsageError: something given is wrong.
    """
    say = phase or (lambda _: None)
    contestants: list[Contestant] = []
    skipped: list[tuple[str, str]] = []
    try:
        for artifact, runtime in _pairs(artifacts, runtime_names):
            say(f"opening {artifact.name}")
            options = None if threads is None else OpenOptions(threads=threads)
            try:
                runner = runtimes.open(artifact, runtime, trust=trust, options=options)
            except RuntimeUnavailable as e:
                skipped.append((f"{artifact.name} on {runtime}" if runtime else artifact.name, str(e)))
                continue
            contestants.append(Contestant(artifact.name, runner, feed_for(runner.inputs, (1, *size))))
        if not contestants:
            raise RuntimeUnavailable(skipped[0][1])
        baseline = next((i for i, c in enumerate(contestants) if c.runner.runtime == "pytorch"), 0)
        names = [f"{c.name} on {c.runner.runtime}" for c in contestants]
        measured = measure(
            contestants, protocol, baseline=baseline, progress=lambda i, share: say(f"{names[i]} {100 * share:.0f} %")
        )
    finally:
        for contestant in contestants:
            contestant.runner.close()
    tools = machine.tool_versions("torch", "onnxruntime-gpu", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
    return Bench(measured, skipped, names[baseline], protocol or Protocol(), machine.describe(), tools)


def _pairs(artifacts: Sequence[Path], names: Sequence[str]) -> list[tuple[Path, str | None]]:
    """Every artifact with every runtime asked for that opens it."""
    pairs: list[tuple[Path, str | None]] = []
    for artifact in artifacts:
        known = {r.name for r in runtimes.suitable(artifact)}
        for name in names:
            runtimes.get(name)
        chosen = [n for n in names if n in known]
        pairs += [(artifact, n) for n in chosen] or [(artifact, None)]
    return pairs


def measure(
    contestants: Sequence[Contestant],
    protocol: Protocol | None = None,
    *,
    baseline: int = 0,
    progress: Callable[[int, float], None] | None = None,
) -> list[Measurement]:
    """Time contestants side by side.

    Args:
        contestants: opened, with their inputs. Their timings are filled in.
        baseline: which of them the others are compared with.
        progress: called after each turn with a contestant's number and the share of its run that is done.
    """
    protocol = protocol or Protocol()
    for contestant in contestants:
        _warm_up(contestant, protocol.warm_up)
    spent = [0.0] * len(contestants)
    running = set(range(len(contestants)))
    while running:
        # all take part until the last is done, so that every turn has a ratio
        for number, contestant in enumerate(contestants):
            if len(contestants) > 1:
                time.sleep(PAUSE)
                contestant.runner.run(contestant.feed)  # wakes its threads and refills the caches
            spent[number] += _turn(contestant, protocol.avg_runs)
            share = min(len(contestant.timings) / protocol.iterations, spent[number] / max(protocol.duration, 1e-9))
            if share >= 1:
                running.discard(number)
            if progress:
                progress(number, min(share, 1.0))
    return [
        _summarise(c, protocol, contestants[baseline], seconds) for c, seconds in zip(contestants, spent, strict=True)
    ]


def _warm_up(contestant: Contestant, milliseconds: float) -> None:
    end = time.perf_counter() + milliseconds / 1e3
    contestant.runner.run(contestant.feed)
    while time.perf_counter() < end:
        contestant.runner.run(contestant.feed)


def _turn(contestant: Contestant, runs: int) -> float:
    """Run one turn; the seconds it took."""
    start = time.perf_counter()
    block: list[Timing] = []
    while len(block) < runs and (not block or time.perf_counter() - start < TURN):
        block.append(contestant.runner.run_timed(contestant.feed)[1])
    contestant.timings += block
    contestant.turns.append(statistics.median(t.latency for t in block))
    return time.perf_counter() - start


def _summarise(contestant: Contestant, protocol: Protocol, baseline: Contestant, seconds: float) -> Measurement:
    def of(name: str) -> Statistics:
        return Statistics.of([getattr(t, name) for t in contestant.timings], protocol.percentiles)

    latencies = [t.latency for t in contestant.timings]
    ratios = sorted(b / c for b, c in zip(baseline.turns, contestant.turns, strict=True))
    quarter = len(ratios) // 4
    return Measurement(
        name=contestant.name,
        runtime=contestant.runner.runtime,
        device=contestant.runner.device,
        inferences=len(latencies),
        throughput=len(latencies) / seconds,
        latency=of("latency"),
        enqueue=of("enqueue"),
        h2d=of("h2d"),
        compute=of("compute"),
        d2h=of("d2h"),
        variation=100 * statistics.pstdev(latencies) / statistics.fmean(latencies),
        speed_up=statistics.median(ratios),
        speed_up_range=(ratios[quarter], ratios[-1 - quarter]),
    )


def feed_for(specs: Sequence[TensorSpec], free: Sequence[int] = (1, 320, 320), seed: int = 0) -> dict[str, np.ndarray]:
    """Random inputs: the time of a convolution does not depend on what is in the image.

    Args:
        specs: the inputs.
        free: batch, height and width, where they are free.
    """
    generator = np.random.default_rng(seed)
    feed = {}
    for spec in specs:
        where = {"NCHW": (0, 2, 3)}.get(spec.layout or "NHWC", (0, 1, 2))
        values = dict(zip(where, free, strict=True))
        shape = [d if isinstance(d, int) else values.get(i, 1) for i, d in enumerate(spec.shape)]
        if spec.dtype == "uint8":
            feed[spec.name] = generator.integers(0, 256, shape, dtype=np.uint8)
        else:
            feed[spec.name] = generator.standard_normal(shape).astype(spec.dtype)
    return feed
