"""Times different ways of running the network side by side, and shows where the time goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from device import milliseconds
from place import FORMS, Config, Place, Result

from r2mrf_deploy import runtimes
from r2mrf_deploy.bench import feeds
from r2mrf_deploy.bench.protocol import Candidate, Protocol, measure
from r2mrf_deploy.errors import R2mrfError, RuntimeUnavailable
from r2mrf_deploy.graph import files
from r2mrf_deploy.runtimes import OpenOptions


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
COMPILE = (*PYTORCH[:3], Way("pytorch-cuda-compile", precision="fp16"))
COMPILED = {
    "aotinductor": ("aotinductor", ".pt2"),
    "onnxruntime": ("onnxruntime-cuda", ".onnx"),
    "tensorrt": ("tensorrt", ".plan"),
}
COMPILED_AS = (("fp16", True), ("fp32", True), ("fp16", False))
"""Pairs of a precision and whether to launch a CUDA graph."""


def pair(family: str, precision: str, graph: bool) -> tuple[Way, ...]:
    """The traced and the rewritten graph: the ratio of their times is what the rewrites gain."""
    runtime, suffix = COMPILED[family]
    return tuple(Way(runtime, form, precision, graph, suffix) for form in FORMS)


ON_CPU = {"aotinductor": "aotinductor", "onnxruntime-cuda": "onnxruntime", "tensorrt": "tensorrt"}


def timing(place: Place, config: Config, ways: Sequence[Way], protocol: Protocol | None = None) -> Result:
    """Time ways of running the network side by side. The result lists those that cannot run, with the reason."""
    protocol = protocol or Protocol(duration=place.seconds)
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        opened = []
        for way, candidate in _opened(place, config, ways, skipped):
            stack.callback(candidate.runner.close)
            opened.append((way, candidate))
        if not opened:
            raise RuntimeUnavailable(next(iter(skipped.values()), "there is nothing to time"))
        measured = measure([candidate for _, candidate in opened], protocol)
    skipped |= {c.title: c.reason for _, c in opened if c.failure}
    sound = [way for way, candidate in opened if not candidate.failure]
    found = [
        m.to_dict() | {"form": way.form, "precision": way.precision, "cuda_graph": way.cuda_graph}
        for m, way in zip(measured, sound, strict=True)
    ]
    return {
        "config": str(config),
        "size": config.size,
        "batch": config.batch,
        "measurements": found,
        "skipped": skipped,
    }


def _runtime(place: Place, way: Way) -> str:
    return way.runtime if place.device == "cuda" else ON_CPU.get(way.runtime, "pytorch")


def _opened(
    place: Place, config: Config, ways: Sequence[Way], skipped: dict[str, str]
) -> Iterator[tuple[Way, Candidate]]:
    for way in ways:
        file, name = way.file(place, config), _runtime(place, way)
        options = OpenOptions(cuda_graph=way.cuda_graph if place.device == "cuda" else None)
        try:
            if not (state := runtimes.get(name).availability()).ok:
                raise RuntimeUnavailable(f"{state.reason}; {state.cure}")
            if not file.exists():
                raise RuntimeUnavailable(f"{file.name} was not made: see the step export-{config}")
            runner = runtimes.open(file, name, options=options)
        except (R2mrfError, RuntimeError) as e:
            skipped[f"{way} on {name}"] = str(e).splitlines()[0]
            continue
        feed = dict(feeds.sweep(runner.inputs, [config.batch], config.size, {}, {}))[config.batch]
        yield way, Candidate(str(way), runner, feed, config.batch)


def overlap(place: Place, config: Config) -> Result:
    """Throughput with one, two and three streams: whether overlapping copies with computation gains any."""
    ways = [w for w in PYTORCH if w.runtime == "pytorch-cuda-graph"]
    return {
        f"{streams} streams": timing(place, config, ways, Protocol(duration=place.seconds, streams=streams))
        for streams in (1, 2, 3)
    }


def as_modules(place: Place, config: Config) -> Result:
    """Milliseconds of the FP16 graphs as PyTorch modules in CUDA graphs: what the rewrites gain without a compiler."""
    import torch

    from r2mrf_deploy.graph.torch_module import to_module

    found: Result = {}
    image = torch.randint(0, 256, (config.batch, *config.size, 3), dtype=torch.uint8, device=place.device)
    for form in FORMS:
        module = to_module(files.read(place.artifact(config, form, place.device == "cuda", ".onnx"))).to(place.device)
        with torch.inference_mode():
            if place.device == "cpu":
                found[form] = [list(output.shape) for output in module(image)]
                continue
            for layout in ("NCHW", "NHWC"):
                for buffer in module.buffers() if layout == "NHWC" else ():
                    if buffer.ndim == 4:
                        buffer.data = buffer.data.contiguous(memory_format=torch.channels_last)
                torch.backends.cudnn.benchmark = True
                with torch.cuda.stream(torch.cuda.Stream()):
                    for _ in range(3):
                        module(image)
                torch.cuda.synchronize()
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph):
                    module(image)
                found[f"{form}, {layout}"] = milliseconds(graph.replay)[15]
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
