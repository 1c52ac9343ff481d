"""Benchmark several candidates side by side on any runtime, by trtexec's measuring protocol.

Each candidate warms up, then runs for at least `iterations` inferences and `duration` seconds. Candidates take turns of
`avg_runs` inferences or half a second, so that other load on the machine affects all of them alike; ratios are taken
within a turn. In the pause between turns, the thread pools of the previous candidate stop spinning.
"""

from __future__ import annotations

import logging
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

from r2mrf_deploy import environment, formats, runtimes, web
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.bench import feeds, power
from r2mrf_deploy.bench.candidates import MARKS, MODES, Candidate, Measurement, Mode, Protocol, worded
from r2mrf_deploy.bench.profiling import Profile, profile
from r2mrf_deploy.bench.summary import Summary
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError, did_you_mean
from r2mrf_deploy.manifest import DEFAULT_SIZE
from r2mrf_deploy.progress import Interrupted, Progress, ProgressCallback, silent, timed
from r2mrf_deploy.runtimes import OpenOptions, Runner, Runtime, Timing
from r2mrf_deploy.runtimes.base import Pending, changed

__all__ = [
    "PAUSE",
    "Bench",
    "Candidate",
    "Measurement",
    "Protocol",
    "Timing",
    "bench_artifacts",
    "measure",
    "median_interval",
]

_LOG = logging.getLogger(__name__)
PAUSE = 0.05
"""Seconds between turns."""
TURN = 0.5
"""Seconds after which a turn ends early."""
CONFIDENCE = 0.95
"""Confidence level of the interval that decides whether a ratio differs from 1."""


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
    mode: str = "latency",
    profiles: bool = False,
    record: bool = False,
    trust: bool = False,
    progress: ProgressCallback = silent,
    keep: Callable[[Bench], object] | None = None,
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
        mode: "latency"; "throughput": as many inferences in flight as pay, by the runtime's own choice, and what counts is
            images per second; or "both", beside one another.
        profiles: after the timing, also profile each artifact whose runtime can.
        record: keep the results in the artifacts' manifests.
        keep: called now and then with the benchmark so far, as for `measure`.

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
    if mode not in MODES:
        raise UsageError(f"`mode` {mode!r}: {did_you_mean(mode, MODES)}")
    tools = environment.tool_versions("torch", "onnxruntime-gpu", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
    opened: list[tuple[Runner, Path, Runtime, OpenOptions, Mode, int | None]] = []
    candidates: list[Candidate] = []
    skipped: list[tuple[str, str]] = []
    unrecorded: list[str] = []
    unopened: Exception | None = None
    with ExitStack() as stack:
        for artifact, runtime, kind in ((a, r, kind) for a, r in pairs for kind in MODES[mode]):
            progress(Progress(f"opening {artifact.name}"))
            supported = {f: getattr(options, f) for f in changed(options) if f in runtime.supported_options}
            chosen = OpenOptions(**supported | _for_mode(kind, runtime, protocol))
            try:
                runner = runtimes.open(artifact, runtime.name, trust=trust, options=chosen)
            except Exception as e:  # libraries raise their own; the others are timed all the same
                unopened = unopened or e
                skipped.append((f"{artifact.name} on {runtime.name}", worded(e)))
                continue
            stack.callback(_close, runner, artifact.name, unrecorded)
            requests = _requests(kind, mode, runner, runtime, protocol)
            if kind == "throughput" and requests is None:
                why = f"{runtime.title} computes one inference after the other: there is no throughput mode"
                skipped.append((f"{artifact.name} on {runtime.name}{MARKS[kind]}", why))
                continue
            opened.append((runner, artifact, runtime, chosen, kind, requests))
        free = size or feeds.fixed_size([spec for runner, *_ in opened for spec in runner.inputs]) or DEFAULT_SIZE
        for runner, artifact, runtime, chosen, kind, requests in opened:
            if size:
                feeds.refuse_size(artifact.name, runner.inputs, size, shapes)
            fed = feeds.sweep(runner.inputs, batches, free, shapes, inputs)
            candidates += [
                Candidate(names[artifact], runner, feed, batch, _flags(chosen, kind), kind, requests)
                for batch, feed in fed
            ]
            for batch in set(batches) - {b for b, _ in fed} if len(batches) > 1 else ():
                skipped.append((f"{artifact.name} on {runtime.name}, batch {batch}", f"its batch is {fed[0][0]}"))
        if not candidates and unopened:
            raise unopened
        if not candidates:
            raise RuntimeUnavailable(f"{skipped[0][0]} was not run: {skipped[0][1]}; leave out `mode`")
        if not protocol.transfers and not any(c.runner.on_gpu for c in candidates):
            raise UsageError("`transfers` cannot be omitted on a CPU, where nothing is copied")
        feeds.refuse_unknown({s.name for c in candidates for s in c.runner.inputs}, shapes, inputs)
        interrupted = False

        def keep_measured(found: list[Measurement]) -> None:
            if keep:
                keep(Bench(found, skipped, [], found[0].title, protocol, environment.describe(), tools))

        try:
            measured = measure(candidates, protocol, progress=progress, keep=keep_measured)
        except Interrupted as e:
            measured, interrupted = e.done, True
        skipped += [(c.title, c.reason) for c in candidates if c.failure]
        candidates = [c for c in candidates if not c.failure]
        tables = []
        for runner, artifact, runtime, chosen, kind, _ in opened if profiles and not interrupted else ():
            if kind == "throughput" and mode == "both":
                continue  # the layers are those of the other
            feed = next((c.feed for c in candidates if c.runner is runner), None)
            what = f"the profile of {artifact.name} on {runtime.name}"
            if "profile" not in runtime.supported_options:
                skipped.append((what, f"{runtime.title} cannot profile"))
            elif feed is not None:
                progress(Progress(f"profiling {artifact.name} on {runtime.name}"))
                profiling = replace(chosen, profile=True, cuda_graph=None, throughput=False, streams=None)
                try:
                    with runtimes.open(artifact, runtime.name, trust=trust, options=profiling) as profiled:
                        tables.append(profile(names[artifact], profiled, feed, protocol.iterations))
                except Exception as e:  # the timings are there
                    skipped.append((what, worded(e)))
                except KeyboardInterrupt:
                    interrupted = True
                    break
    machine = environment.describe()  # with the clocks at the end
    if record and not interrupted:
        unrecorded += _record(measured, {names[a]: a for a in artifacts}, protocol, machine)
    done = Bench(
        measured, skipped, tables, candidates[0].title if candidates else "", protocol, machine, tools, unrecorded
    )
    if interrupted:
        raise Interrupted(done)
    return done


def _close(runner: Runner, name: str, unrecorded: list[str]) -> None:
    """Close a runner. A runtime that cannot store its cache must not lose the timings."""
    try:
        runner.close()
    except Exception as e:
        unrecorded.append(f"{name} on {runner.runtime}: {worded(e)}")


def _for_mode(mode: Mode, runtime: Runtime, protocol: Protocol) -> dict[str, Any]:
    """The options that a mode opens an artifact with, among those that a runtime supports."""
    if mode == "latency":
        return {}
    if protocol.streams > 1 and "streams" in runtime.supported_options:
        return {"streams": protocol.streams}
    return {"throughput": True} if "throughput" in runtime.supported_options else {}


def _requests(kind: Mode, mode: str, runner: Runner, runtime: Runtime, protocol: Protocol) -> int | None:
    """How many threads run a candidate's inferences side by side; None leaves it to the protocol.

    In throughput mode it is what the protocol says, or else what pays; None if that is not known, since the runtime computes
    one after the other.
    """
    if kind == "latency":
        return 1 if mode == "both" else None
    if protocol.streams > 1:
        return protocol.streams
    # with one core, the runtime's own choice is one inference, which is the most that it can
    able = runner.streams > 1 or runner.in_flight > 1 or "throughput" in runtime.supported_options
    return runner.streams if able else None


def _flags(options: OpenOptions, mode: Mode) -> tuple[str, ...]:
    """The options of a candidate, which tell its measurement from that in another mode, in a manifest too."""
    found = changed(options)
    return tuple(found if mode == "latency" or "throughput" in found else [*found, "throughput"])


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


KEPT_EVERY = 5.0
"""Seconds between two calls of `keep`."""


def measure(
    candidates: Sequence[Candidate],
    protocol: Protocol | None = None,
    *,
    progress: ProgressCallback = silent,
    keep: Callable[[list[Measurement]], object] | None = None,
) -> list[Measurement]:
    """Time candidates side by side.

    Args:
        candidates: opened, with their inputs. Their turns are filled in; one that fails takes no further part, and its
            `failure` says why. The first that does not fail is the baseline.
        progress: called after each turn with the percentage of that candidate's run.
        keep: called now and then between turns with the measurements so far, to store them where a crash does not reach.

    Raises:
        Exception: what the first candidate raised, if all of them failed.
        Interrupted: Ctrl-C, with the measurements so far.
    """
    protocol = protocol or Protocol()
    meters = {True: power.of_gpu(), False: power.of_cpu()}
    most = max([protocol.streams, *(c.requests or 1 for c in candidates)])
    spent, shares = [0.0] * len(candidates), [0.0] * len(candidates)
    kept = time.perf_counter()
    try:
        with ThreadPoolExecutor(most) as streams:
            for candidate in candidates:
                with timed(_LOG, "warmed up %s", candidate.title):
                    _attempt(candidate, _warm_up, protocol, streams)
            while any(c.failure is None and share < 1 for c, share in zip(candidates, shares, strict=True)):
                # all take part until the last is done, so that every turn yields a ratio
                for number, candidate in enumerate(candidates):
                    if candidate.failure is not None:
                        continue
                    if len(candidates) > 1:
                        time.sleep(PAUSE)
                    meter = meters[candidate.runner.on_gpu]
                    start, before = time.perf_counter(), meter.now() if meter else None
                    turn = _attempt(candidate, _turn, protocol, streams)
                    if turn is None:
                        continue
                    candidate.turns.append(turn)
                    seconds = time.perf_counter() - start
                    joules = meter.between(before, meter.now()) if meter else None
                    candidate.watts.append(None if joules is None else joules / seconds)
                    spent[number] += seconds
                    share = min(
                        candidate.inferences / protocol.iterations, spent[number] / max(protocol.duration, 1e-9), 1
                    )
                    shares[number] = share
                    progress(Progress(f"timing {candidate.title}", round(100 * share), 100))
                if keep and time.perf_counter() - kept > KEPT_EVERY and (found := _so_far(candidates, protocol)):
                    keep(found)
                    kept = time.perf_counter()
    except KeyboardInterrupt:
        raise Interrupted(_so_far(candidates, protocol)) from None
    sound = [c for c in candidates if c.failure is None]
    if not sound and candidates and (error := candidates[0].failure):
        raise error
    return [_summarise(c, protocol, sound[0]) for c in sound]


def _so_far(candidates: Sequence[Candidate], protocol: Protocol) -> list[Measurement]:
    """The measurements of the turns that all candidates have had that did not fail; none before the first."""
    sound = [c for c in candidates if c.failure is None]
    rounds = min((len(c.turns) for c in sound), default=0)
    common = [replace(c, turns=c.turns[:rounds], watts=c.watts[:rounds]) for c in sound if rounds]
    return [_summarise(c, protocol, common[0]) for c in common]


Part = Callable[["Candidate", Protocol], list[Timing]]
"""What one stream does in a candidate's turn."""


def _attempt(candidate: Candidate, part: Part, protocol: Protocol, streams: ThreadPoolExecutor) -> list[Timing] | None:
    """Have every stream do its part, in a thread of its own; None where the candidate failed."""
    requests = candidate.requests or protocol.streams
    together = threading.Barrier(requests)

    def stream() -> list[Timing]:
        try:
            candidate.runner.run(candidate.feed)  # untimed: it wakes the threads and refills the caches
            together.wait()
        except BaseException:
            together.abort()  # or the others would wait forever
            raise
        return part(candidate, protocol)

    jobs = [streams.submit(stream) for _ in range(requests)]
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
    pace = _turn_pace if "throughput" in (candidate.mode, baseline.mode) else _median_latency
    theirs, ours = ([pace(turn) / c.batch for turn in c.turns] for c in (baseline, candidate))
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
        mode=candidate.mode,
        requests=(candidate.requests or protocol.streams) * runner.in_flight,
        watts=statistics.fmean(told) if (told := [w for w in candidate.watts if w is not None]) else None,
    )


def _median_latency(turn: Sequence[Timing]) -> float:
    return statistics.median(t.latency for t in turn)


def _turn_pace(turn: Sequence[Timing]) -> float:
    """Milliseconds of a turn for each of its inferences, however many are in flight."""
    return (max(t.end_d2h for t in turn) - min(t.start_enqueue for t in turn)) / len(turn)


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
