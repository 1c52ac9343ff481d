"""Times different ways of running the network side by side, and shows where the time goes."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from place import FORMS, Config, Place, Result

from r2mrf_deploy import runtimes
from r2mrf_deploy.bench import feeds
from r2mrf_deploy.bench.candidates import worded
from r2mrf_deploy.bench.protocol import Candidate, Measurement, Protocol, measure
from r2mrf_deploy.errors import RuntimeUnavailable
from r2mrf_deploy.runtimes import OpenOptions

NOT_MADE = "was not made: see the step"


@dataclass(frozen=True)
class Way:
    """A way of running the network."""

    runtime: str
    form: str = "traced"
    precision: str = "fp32"
    """The precision in which it computes."""
    cuda_graph: bool = False
    suffix: str = ".pth"

    def __str__(self) -> str:
        graph = ", CUDA graph" if self.cuda_graph else ""
        return f"{self.form} {self.precision.upper()}{graph}"

    def file(self, place: Place, config: Config) -> Path:
        if self.suffix == ".pth":
            return place.checkpoint
        return place.artifact(config, self.form, self.precision == "fp16", self.suffix)


PYTORCH = (
    Way("pytorch-cuda-fp16", precision="fp16"),
    Way("pytorch-cuda-channels-last", precision="fp16"),
    Way("pytorch-cuda-graph", precision="fp16", cuda_graph=True),
    Way("pytorch-cuda-fp16", precision="fp16", cuda_graph=True),
    Way("pytorch-cuda"),
    Way("pytorch-cuda", cuda_graph=True),
    Way("pytorch-cuda-tf32", precision="tf32"),
    Way("pytorch-cuda-tf32", precision="tf32", cuda_graph=True),
)
GRAPHS = tuple(w for w in PYTORCH if w.cuda_graph)
COMPILE = {
    "checkpoint": (*PYTORCH[:3], Way("pytorch-cuda-compile", precision="fp16")),
    "rewritten": tuple(
        Way(runtime, "rewritten", "fp16", graph, ".onnx")
        for runtime, graph in (
            ("pytorch-cuda-channels-last", True),
            ("pytorch-cuda-compile", False),
            ("pytorch-cuda-compile", True),
        )
    ),
}
"""What PyTorch's compiler gains, and what it gains beside the rewrites."""
SUFFIXES = {"pytorch": ".onnx", "aotinductor": ".pt2", "onnxruntime": ".onnx", "tensorrt": ".plan"}
"""Family -> the files that it opens."""
PAIRS = (("fp16", True), ("fp32", True), ("fp16", False))
"""A precision, and whether to launch a CUDA graph."""


def pair(family: str, precision: str, graph: bool) -> tuple[Way, ...]:
    """The traced and the rewritten graph: the ratio of their times is what the rewrites gain.

    PyTorch has the checkpoint in place of the traced graph.
    """
    if family == "pytorch":
        name = "pytorch-cuda-channels-last" if precision == "fp16" else "pytorch-cuda"
        return Way(name, precision=precision, cuda_graph=graph), Way(name, "rewritten", precision, graph, ".onnx")
    name = "onnxruntime-cuda" if family == "onnxruntime" else family
    return tuple(Way(name, form, precision, graph, SUFFIXES[family]) for form in FORMS)


ON_CPU = {"aotinductor": "aotinductor", "onnxruntime-cuda": "onnxruntime", "tensorrt": "tensorrt"}


def timing(
    place: Place, config: Config, ways: Sequence[Way], protocol: Protocol | None = None, *, keep: bool = True
) -> Result:
    """Time ways of running the network side by side. The result lists those that cannot run, with the reason.

    All are open at once. One that finds no room beside the others is timed alone, and has no speed-up.
    """
    protocol = protocol or Protocol(duration=place.seconds)
    found, skipped = _side_by_side(place, config, ways, protocol, keep)
    for way in [way for way, why in skipped.items() if len(ways) > 1 and CROWDED.search(why)]:
        with suppress(Exception):  # it stays among those that cannot run
            alone, _ = _side_by_side(place, config, [way], protocol, keep=False)
            found["measurements"] += [m | {"speed_up": None} for m in alone["measurements"]]
            skipped = {w: why for w, why in skipped.items() if w != way or not alone["measurements"]}
    return found | {"skipped": _named(place, skipped)}


UNCAPTURED = "without a CUDA graph"
CROWDED = re.compile(f"out of memory|{UNCAPTURED}")  # PyTorch's captures end for want of memory too


def _side_by_side(
    place: Place, config: Config, ways: Sequence[Way], protocol: Protocol, keep: bool
) -> tuple[Result, dict[Way, str]]:
    """The measurements, and why each of the other ways has none."""
    skipped: dict[Way, str] = {}
    with ExitStack() as stack:
        opened = []
        for way, candidate in _opened(place, config, ways, skipped):
            stack.callback(candidate.runner.close)
            opened.append((way, candidate))
        if not opened:
            raise RuntimeUnavailable(next(iter(skipped.values()), "there is nothing to time"))

        def result(measured: Sequence[Measurement]) -> Result:
            sound = [way for way, candidate in opened if not candidate.failure]
            skipped.update({way: c.reason for way, c in opened if c.failure})
            skipped.update({way: m.device for m, way in zip(measured, sound, strict=True) if UNCAPTURED in m.device})
            found = [
                m.to_dict() | {"form": way.form, "precision": way.precision, "cuda_graph": way.cuda_graph}
                for m, way in zip(measured, sound, strict=True)
                if way not in skipped
            ]
            return {
                "config": str(config), "size": config.size, "batch": config.batch, "measurements": found,
                "skipped": _named(place, skipped),
            }  # fmt: skip

        measured = measure(
            [c for _, c in opened], protocol, keep=lambda measured: keep and place.keep(result(measured))
        )
        return result(measured), skipped


def _named(place: Place, skipped: dict[Way, str]) -> dict[str, str]:
    return {f"{way} on {_runtime(place, way)}": why for way, why in skipped.items()}


def _runtime(place: Place, way: Way) -> str:
    if place.device == "cuda":
        return way.runtime
    return ON_CPU.get(way.runtime, "onnxruntime" if way.suffix == ".onnx" else "pytorch")


def _opened(
    place: Place, config: Config, ways: Sequence[Way], skipped: dict[Way, str]
) -> Iterator[tuple[Way, Candidate]]:
    for way in ways:
        file, name = way.file(place, config), _runtime(place, way)
        options = OpenOptions(cuda_graph=way.cuda_graph if place.device == "cuda" else None)
        try:
            if not (state := runtimes.get(name).availability()).ok:
                raise RuntimeUnavailable(f"{state.reason}; {state.cure}")
            if not file.exists():
                raise RuntimeUnavailable(f"{file.name} {NOT_MADE} export-{config}")
            runner = runtimes.open(file, name, options=options)
        except Exception as e:  # libraries raise their own; the other ways are timed all the same
            skipped[way] = worded(e)
            continue
        feed = dict(feeds.sweep(runner.inputs, [config.batch], config.size, {}, {}))[config.batch]
        yield way, Candidate(str(way), runner, feed, config.batch)


def overlap(place: Place, config: Config) -> Result:
    """Throughput with one, two and three streams: whether overlapping copies with computation gains any."""
    ways = [w for w in PYTORCH if w.runtime == "pytorch-cuda-graph"]
    found: Result = {}
    for streams in (1, 2, 3):
        protocol = Protocol(duration=place.seconds, streams=streams)
        found[f"{streams} streams"] = timing(place, config, ways, protocol, keep=False)
        place.keep(found)
    return found


def kernel_times(place: Place, config: Config, shown: int = 25) -> Result:
    """Where PyTorch's time goes: the kernels of one FP16 inference, the most expensive first."""
    import torch
    from torch.profiler import ProfilerActivity

    way = next(w for w in PYTORCH if w.runtime == "pytorch-cuda-fp16")
    activities = [ProfilerActivity.CUDA if place.device == "cuda" else ProfilerActivity.CPU]
    with runtimes.open(way.file(place, config), _runtime(place, way)) as runner:
        feed = dict(feeds.sweep(runner.inputs, [config.batch], config.size, {}, {}))[config.batch]
        for _ in range(3):
            runner.run(feed)
        with torch.profiler.profile(activities=activities) as profiled:
            runner.run(feed)
    attribute = "self_device_time_total" if place.device == "cuda" else "self_cpu_time_total"
    rows = sorted(((e.key, getattr(e, attribute) / 1e3, e.count) for e in profiled.key_averages()), key=lambda r: -r[1])
    return {
        "total_ms": sum(ms for _, ms, _ in rows), "kernels": sum(count for *_, count in rows),
        "costliest": [{"kernel": name[:160], "ms": ms, "launches": count} for name, ms, count in rows[:shown]],
    }  # fmt: skip
