"""Benchmark several candidates side by side on any runtime, by trtexec's measuring protocol.

Each candidate warms up, then runs for at least `iterations` inferences and `duration` seconds. Candidates take turns of
`avg_runs` inferences or half a second, so that other load on the machine affects all of them alike; ratios are taken
within a turn. In the pause between turns, the thread pools of the previous candidate stop spinning.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import environment, formats, runtimes, web
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.bench import feeds
from r2mrf_deploy.bench.profiling import Profile, profile
from r2mrf_deploy.bench.summary import Statistics, Summary
from r2mrf_deploy.errors import ArtifactError, R2mrfError, RuntimeUnavailable, UsageError
from r2mrf_deploy.manifest import DEFAULT_SIZE
from r2mrf_deploy.progress import Interrupted, Progress, ProgressCallback, silent
from r2mrf_deploy.runtimes import OpenOptions, Runner, Runtime, Timing
from r2mrf_deploy.runtimes.base import Pending, changed

PAUSE = 0.05
"""Seconds between turns."""
TURN = 0.5
"""Seconds after which a turn ends early."""
CONFIDENCE = 0.95
"""Confidence level of the interval that decides whether a ratio differs from 1."""


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
    streams: int = 1
    """Concurrent inference streams, one thread each."""
    transfers: bool = True
    """Time the copies to and from the device too; trtexec 11 omits them unless asked."""

    def __post_init__(self) -> None:
        if self.warm_up < 0 or self.duration < 0 or self.iterations < 1 or self.avg_runs < 1:
            raise UsageError("`warm_up` and `duration` must not be negative, `iterations` and `avg_runs` at least 1")
        if not all(0 < p < 100 for p in self.percentiles):
            raise UsageError("`percentiles` must be between 0 and 100")
        if self.streams < 1:
            raise UsageError("`streams` must be at least 1")


@dataclass
class Candidate:
    """A runner to be timed, and its timings."""

    name: str
    runner: Runner
    feed: dict[str, np.ndarray]
    batch: int = 1
    flags: tuple[str, ...] = ()
    """Names of the options it was opened with."""
    turns: list[list[Timing]] = field(default_factory=list)
    failure: Exception | None = None
    """What ended its run early."""

    @property
    def reason(self) -> str:
        """`failure` in one line, with its type if it is not one of this package's."""
        text = next((line.strip() for line in str(self.failure).splitlines() if line.strip()), "")
        return text if isinstance(self.failure, R2mrfError) else f"{type(self.failure).__name__}: {text}"

    @property
    def title(self) -> str:
        return _title(self.name, self.runner.runtime, self.batch)

    @property
    def inferences(self) -> int:
        return sum(map(len, self.turns))


def _title(name: str, runtime: str, batch: int) -> str:
    return f"{name} on {runtime}" + (f", batch {batch}" if batch > 1 else "")


@dataclass(frozen=True)
class Measurement:
    """The measurement of one candidate."""

    name: str
    runtime: str
    device: str
    on_gpu: bool
    batch: int
    flags: tuple[str, ...]
    summary: Summary
    speed_up: float
    """Latency of the baseline divided by this one's, median over the turns; above 1 is faster."""
    speed_up_range: tuple[float, float]
    """The quartiles of those ratios."""
    differs: bool | None
    """Whether the 95 % confidence interval of the speed-up excludes 1; None for the baseline or with too few turns."""
    turns: tuple[tuple[Timing, ...], ...]
    shape: list[int]
    """Of the first input."""

    @property
    def title(self) -> str:
        return _title(self.name, self.runtime, self.batch)

    @property
    def input(self) -> str:
        """The shape of the first input: `1x320x320x3`."""
        return "x".join(map(str, self.shape))

    @property
    def latency(self) -> Statistics:
        return self.summary.latency

    @property
    def images_per_second(self) -> float:
        return self.summary.throughput * self.batch

    def evidence(self, protocol: Protocol, machine: Mapping[str, str | int]) -> dict[str, Any]:
        """The summary that a manifest keeps."""
        return {
            "runtime": self.runtime, "device": self.device, "batch": self.batch, "shape": self.shape,
            "options": list(self.flags), "protocol": asdict(protocol), "machine": dict(machine),
            "latency": asdict(self.latency), "images_per_second": self.images_per_second, "date": environment.now(),
        }  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Everything except the individual inferences."""
        found = {k: v for k, v in asdict(replace(self, turns=())).items() if k not in ("summary", "turns")}
        return found | {"images_per_second": self.images_per_second} | asdict(self.summary)


@dataclass(frozen=True)
class Bench:
    """A benchmark: what was measured, what could not be measured, and where."""

    measurements: list[Measurement]
    skipped: list[tuple[str, str]]
    """(artifact on runtime, reason)."""
    profiles: list[Profile]
    baseline: str
    protocol: Protocol
    machine: dict[str, str | int]
    tools: dict[str, str]
    not_recorded: list[str] = field(default_factory=list)
    """Why results could not be recorded in a manifest."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "measurements": [m.to_dict() for m in self.measurements],
            "skipped": self.skipped,
            "profiles": [asdict(p) | {"scopes": p.scopes()} for p in self.profiles],
            "baseline": self.baseline,
            "protocol": asdict(self.protocol),
            "machine": self.machine,
            "tools": self.tools,
        }


def bench_artifacts(
    artifacts: Sequence[Path],
    runtime_names: Sequence[str] = (),
    protocol: Protocol | None = None,
    *,
    size: tuple[int, int] | None = None,
    batches: Sequence[int] = (1,),
    shapes: Mapping[str, Sequence[int]] | None = None,
    inputs: Mapping[str, Path] | None = None,
    options: OpenOptions | None = None,
    profiles: bool = False,
    record: bool = False,
    trust: bool = False,
    progress: ProgressCallback = silent,
) -> Bench:
    """Time artifacts and checkpoints side by side.

    Args:
        runtime_names: time each artifact on each of these that can open it; by default on its default runtime.
        size: height and width where an input leaves them free, as a checkpoint does; by default those of the first artifact
            that has a fixed size, else 320×320.
        batches: batch sizes where an input leaves them free; each makes its own candidate.
        shapes: input name -> shape; overrides `size` and `batches`.
        inputs: input name -> file with its values, see `feeds.load`; by default the values are random.
        options: each runtime gets the options that it supports.
        profiles: after the timing, also profile each artifact whose runtime can.
        record: keep the results in the artifacts' manifests.

    Returns:
        The measurements; the first candidate that could be run is the baseline.

    Raises:
        RuntimeUnavailable: none of the artifacts can be run here.
        Interrupted: Ctrl-C, with the benchmark so far, of which nothing is recorded.
        InputError, ArtifactError, CheckpointError, UsageError: an argument is wrong.
    """
    protocol, options, shapes, inputs = protocol or Protocol(), options or OpenOptions(), shapes or {}, inputs or {}
    artifacts = [web.file_of(a) for a in artifacts]
    pairs = _pairs(artifacts, runtime_names)
    called = [a.name for a in artifacts]
    names = {a: a.name if called.count(a.name) == 1 else str(a) for a in artifacts}
    _refuse_unsupported(options, [runtime for _, runtime in pairs])
    opened: list[tuple[Runner, Path, Runtime, OpenOptions]] = []
    candidates: list[Candidate] = []
    skipped: list[tuple[str, str]] = []
    unopened: R2mrfError | None = None
    with ExitStack() as stack:
        for artifact, runtime in pairs:
            progress(Progress(f"opening {artifact.name}"))
            supported = {f: getattr(options, f) for f in changed(options) if f in runtime.supported_options}
            chosen = OpenOptions(**supported)
            try:
                runner = stack.enter_context(runtimes.open(artifact, runtime.name, trust=trust, options=chosen))
            except (RuntimeUnavailable, ArtifactError) as e:
                unopened = unopened or e
                skipped.append((f"{artifact.name} on {runtime.name}", str(e)))
                continue
            opened.append((runner, artifact, runtime, chosen))
        free = size or feeds.fixed_size([spec for runner, *_ in opened for spec in runner.inputs]) or DEFAULT_SIZE
        for runner, artifact, runtime, chosen in opened:
            if size:
                feeds.refuse_size(artifact.name, runner.inputs, size, shapes)
            fed = feeds.sweep(runner.inputs, batches, free, shapes, inputs)
            candidates += [
                Candidate(names[artifact], runner, feed, batch, tuple(changed(chosen))) for batch, feed in fed
            ]
            for batch in set(batches) - {b for b, _ in fed} if len(batches) > 1 else ():
                skipped.append((f"{artifact.name} on {runtime.name}, batch {batch}", f"its batch is {fed[0][0]}"))
        if not candidates and unopened:
            raise unopened
        if not protocol.transfers and not any(c.runner.on_gpu for c in candidates):
            raise UsageError("`transfers` cannot be omitted on a CPU, where nothing is copied")
        feeds.refuse_unknown({s.name for c in candidates for s in c.runner.inputs}, shapes, inputs)
        interrupted = False
        try:
            measured = measure(candidates, protocol, progress=progress)
        except Interrupted as e:
            measured, interrupted = e.done, True
        skipped += [(c.title, c.reason) for c in candidates if c.failure]
        candidates = [c for c in candidates if not c.failure]
        tables = []
        for runner, artifact, runtime, chosen in opened if profiles and not interrupted else ():
            feed = next((c.feed for c in candidates if c.runner is runner), None)
            if "profile" not in runtime.supported_options:
                what = f"the profile of {artifact.name} on {runtime.name}"
                skipped.append((what, f"{runtime.title} cannot profile"))
            elif feed is not None:
                progress(Progress(f"profiling {artifact.name} on {runtime.name}"))
                profiling = replace(chosen, profile=True, cuda_graph=None)
                with runtimes.open(artifact, runtime.name, trust=trust, options=profiling) as profiled:
                    tables.append(profile(names[artifact], profiled, feed, protocol.iterations))
    machine = environment.describe()
    unrecorded = (
        _record(measured, {names[a]: a for a in artifacts}, protocol, machine) if record and not interrupted else []
    )
    tools = environment.tool_versions("torch", "onnxruntime-gpu", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
    done = Bench(
        measured, skipped, tables, candidates[0].title if candidates else "", protocol, machine, tools, unrecorded
    )
    if interrupted:
        raise Interrupted(done)
    return done


def _pairs(artifacts: Sequence[Path], names: Sequence[str]) -> list[tuple[Path, Runtime]]:
    """Each artifact with each requested runtime that opens it, or with its default runtime."""
    asked = [runtimes.get(name) for name in names]
    pairs: list[tuple[Path, Runtime]] = []
    for artifact in artifacts:
        able = {r.name for r in runtimes.suitable(artifact)}
        if not able or not artifact.is_file():
            runtimes.open(artifact)  # raises the error that says what is wrong with it
        chosen = [r for r in asked if r.name in able] or [runtimes.default(Artifact.open(artifact))]
        pairs += [(artifact, r) for r in chosen]
    for runtime in asked:
        if runtime.name not in {r.name for _, r in pairs}:
            suffix = runtime.suffixes[0]
            raise UsageError(
                f"`runtime` {runtime.name} opens none of these files: make a {suffix} file with {_MADE_BY[suffix]}"
            )
    return pairs


_MADE_BY = {
    ".plan": "`r2mrf build FILE.onnx`",
    ".xml": "`r2mrf build FILE.onnx -o FILE.xml`",
    ".pt2": "`r2mrf export CHECKPOINT -o FILE.pt2`",
    ".pte": "`r2mrf export CHECKPOINT -o FILE.pte`",
    ".onnx": "`r2mrf export CHECKPOINT`",
    ".html": "`r2mrf export CHECKPOINT -o FOLDER`",
    ".pth": "`r2mrf train` or `r2mrf init`",
}


def _record(
    measured: Sequence[Measurement], files: Mapping[str, Path], protocol: Protocol, machine: Mapping[str, str | int]
) -> list[str]:
    """Record latencies in the manifests of the artifacts, and return why some were not recorded."""
    reasons = []
    for name, file in files.items():
        if file.suffix.lower() not in formats.KINDS:
            continue  # a checkpoint has no manifest
        found = [m.evidence(protocol, machine) for m in measured if m.name == name]
        if found and (why := Artifact.open(file).record(latency=found)):
            reasons.append(why)
    return reasons


def _refuse_unsupported(options: OpenOptions, asked: Sequence[Runtime]) -> None:
    for name in changed(options):
        if not any(name in r.supported_options for r in asked):
            titles = ", ".join(dict.fromkeys(r.title for r in asked))
            raise UsageError(f"`{name}` is not supported by {titles}: leave it out")


def measure(
    candidates: Sequence[Candidate], protocol: Protocol | None = None, *, progress: ProgressCallback = silent
) -> list[Measurement]:
    """Time candidates side by side.

    Args:
        candidates: opened, with their inputs. Their turns are filled in; one that fails takes no further part, and its
            `failure` says why. The first that does not fail is the baseline.
        progress: called after each turn with the percentage of that candidate's run.

    Raises:
        Exception: what the first candidate raised, if all of them failed.
        Interrupted: Ctrl-C, with the measurements so far.
    """
    protocol = protocol or Protocol()
    spent, shares = [0.0] * len(candidates), [0.0] * len(candidates)
    try:
        with ThreadPoolExecutor(protocol.streams) as streams:
            for candidate in candidates:
                _attempt(candidate, _warm_up, protocol, streams)
            while any(c.failure is None and share < 1 for c, share in zip(candidates, shares, strict=True)):
                # all take part until the last is done, so that every turn yields a ratio
                for number, candidate in enumerate(candidates):
                    if candidate.failure is not None:
                        continue
                    if len(candidates) > 1:
                        time.sleep(PAUSE)
                    start = time.perf_counter()
                    turn = _attempt(candidate, _turn, protocol, streams)
                    if turn is None:
                        continue
                    candidate.turns.append(turn)
                    spent[number] += time.perf_counter() - start
                    share = min(
                        candidate.inferences / protocol.iterations, spent[number] / max(protocol.duration, 1e-9), 1
                    )
                    shares[number] = share
                    progress(Progress(f"timing {candidate.title}", round(100 * share), 100))
    except KeyboardInterrupt:
        sound = [c for c in candidates if c.failure is None]
        rounds = min((len(c.turns) for c in sound), default=0)  # the turns that all have had
        for c in candidates:
            del c.turns[rounds:]
        raise Interrupted([_summarise(c, protocol, sound[0]) for c in sound if rounds]) from None
    sound = [c for c in candidates if c.failure is None]
    if not sound and candidates and (error := candidates[0].failure):
        raise error
    return [_summarise(c, protocol, sound[0]) for c in sound]


Part = Callable[["Candidate", Protocol], list[Timing]]
"""What one stream does in a candidate's turn."""


def _attempt(candidate: Candidate, part: Part, protocol: Protocol, streams: ThreadPoolExecutor) -> list[Timing] | None:
    """Have every stream do its part, in a thread of its own; None where the candidate failed."""
    together = threading.Barrier(protocol.streams)

    def stream() -> list[Timing]:
        try:
            candidate.runner.run(candidate.feed)  # untimed: it wakes the threads and refills the caches
            together.wait()
        except BaseException:
            together.abort()  # or the others would wait forever
            raise
        return part(candidate, protocol)

    jobs = [streams.submit(stream) for _ in range(protocol.streams)]
    failed = [e for job in jobs if (e := job.exception()) is not None]
    # the cause comes before the errors of those that waited for it
    for error in sorted(failed, key=lambda e: isinstance(e, threading.BrokenBarrierError)):
        if not isinstance(error, Exception):
            raise error
        candidate.failure = error
        return None
    return sorted((t for job in jobs for t in job.result()), key=lambda t: t.start_enqueue)


def _warm_up(candidate: Candidate, protocol: Protocol) -> list[Timing]:
    end = time.perf_counter() + protocol.warm_up / 1e3
    while time.perf_counter() < end:
        candidate.runner.run(candidate.feed)
    return []


def _turn(candidate: Candidate, protocol: Protocol) -> list[Timing]:
    """`avg_runs` inferences, or as many as fit into half a second."""
    runner, started = candidate.runner, 0
    flying: deque[Pending] = deque()
    done: list[Timing] = []
    end = time.perf_counter() + TURN
    while True:
        while len(flying) < runner.in_flight and (
            not started or (started < protocol.avg_runs and time.perf_counter() < end)
        ):
            flying.append(runner.submit(candidate.feed, transfers=protocol.transfers))
            started += 1
        if not flying:
            return done
        done.append(flying.popleft()()[1])


def _summarise(candidate: Candidate, protocol: Protocol, baseline: Candidate) -> Measurement:
    # per image, so that different batch sizes can be compared
    theirs, ours = (
        [statistics.median(t.latency for t in turn) / c.batch for turn in c.turns] for c in (baseline, candidate)
    )
    ratios = sorted(b / c for b, c in zip(theirs, ours, strict=True))
    quarter = len(ratios) // 4
    interval = median_interval(ratios)
    runner = candidate.runner
    return Measurement(
        name=candidate.name,
        runtime=runner.runtime,
        device=runner.device,
        on_gpu=runner.on_gpu,
        batch=candidate.batch,
        flags=candidate.flags,
        summary=Summary.of(candidate.turns, protocol.percentiles),
        speed_up=statistics.median(ratios),
        speed_up_range=(ratios[quarter], ratios[-1 - quarter]),
        differs=None if candidate is baseline or interval is None else not interval[0] <= 1 <= interval[1],
        turns=tuple(map(tuple, candidate.turns)),
        shape=list(next(iter(candidate.feed.values())).shape),
    )


def median_interval(ordered: Sequence[float], confidence: float = CONFIDENCE) -> tuple[float, float] | None:
    """The distribution-free confidence interval of the median of sorted values, between two order statistics.

    Returns:
        None where there are too few values (fewer than 6 at 95 %).
    """
    n, tail, k = len(ordered), 0.0, 0
    while 2 * (tail + math.comb(n, k) / 2**n) <= 1 - confidence:
        tail += math.comb(n, k) / 2**n
        k += 1
    return None if k == 0 else (ordered[k - 1], ordered[n - k])
