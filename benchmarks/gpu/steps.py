"""What the first minutes on a GPU do, a step at a time; `first_minutes.py` runs them, each in a process of its own.

A step returns what it found, for JSON. What it makes lies in the folder, where a later step finds it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import budget, environment, gpus, runtimes, sample_photographs
from r2mrf_deploy.bench import feeds
from r2mrf_deploy.bench.protocol import Candidate, Protocol, measure
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import R2mrfError, RuntimeUnavailable
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.convert import convert_artifact
from r2mrf_deploy.export.options import ExportOptions, PrecisionOptions
from r2mrf_deploy.graph import files
from r2mrf_deploy.images import resize
from r2mrf_deploy.runtimes import OpenOptions

Result = dict[str, Any]
FORMS = {"traced": False, "rewritten": True}


@dataclass(frozen=True)
class Config:
    """A size and a batch that everything is measured at."""

    size: tuple[int, int]
    batch: int

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]}-b{self.batch}"


@dataclass(frozen=True)
class Place:
    """Where the steps run, and on what."""

    folder: Path
    device: str
    """"cuda", or "cpu" for a dry run."""
    network: str
    settings: tuple[tuple[str, str], ...] = ()
    seconds: float = 1.0
    """To time each candidate for."""

    def order(self) -> dict[str, Any]:
        """As JSON, for another process."""
        return asdict(self) | {"folder": str(self.folder)}

    @classmethod
    def ordered(cls, order: dict[str, Any]) -> Place:
        return cls(**order | {"folder": Path(order["folder"]), "settings": tuple(map(tuple, order["settings"]))})

    @property
    def checkpoint(self) -> Path:
        """Untrained weights whose map is informative, made once."""
        path = self.folder / f"{self.network}.pth"
        if not path.exists():
            Checkpoint.init(self.network, dict(self.settings)).save(path)
        return path

    def artifact(self, config: Config, form: str, half: bool, suffix: str) -> Path:
        return self.folder / str(config) / f"{form}{'-fp16' if half else ''}{suffix}"

    def card(self) -> gpus.GPU:
        """The class of the GPU at hand; on a CPU, that of the mission."""
        if self.device == "cpu":
            return gpus.get("gtx1080ti")
        from r2mrf_deploy.runtimes.cuda import bindings

        found = bindings.device()
        card = gpus.of_device(found.name, found.compute_capability)
        if card is None:
            raise RuntimeUnavailable(f"the table of GPUs has no {found.name}: add it to r2mrf_deploy/gpus.py")
        return card


@dataclass(frozen=True)
class Step:
    """One step, and the seconds after which it is stopped."""

    name: str
    limit: float
    run: Callable[[Place], Result]


def steps(sizes: Sequence[tuple[int, int]], batches: Sequence[int], families: Sequence[str]) -> list[Step]:
    """All steps, the most valuable first.

    Args:
        families: which runtimes to time: "pytorch", "aotinductor", "onnxruntime", "tensorrt".
    """
    found = [Step("card", 60, card), Step("bindings", 60, smoke), Step("parity", 150, parity)]
    for config in (Config(size, batch) for batch in batches for size in sizes):
        if "pytorch" in families:
            first = config == Config(sizes[0], batches[0])
            found.append(Step(f"pytorch-{config}", 120, _timing(config, PYTORCH if first else GRAPHS)))
        if set(families) - {"pytorch"}:
            found.append(Step(f"export-{config}", 280, lambda place, config=config: export(place, config)))
        for family in families:
            for precision, graph in COMPILED_AS if family in COMPILED else ():  # apart: a crash takes the whole process
                name = f"{family}-{config}-{precision}{'-graph' if graph else ''}"
                found.append(Step(name, 90, _timing(config, _pair(family, precision, graph))))
    if "pytorch" in families:
        first = Config(sizes[0], batches[0])
        found.append(Step(f"compile-{first}", 280, _timing(first, COMPILE)))
        found.append(Step(f"streams-{first}", 90, lambda place: overlap(place, first)))
        found.append(Step(f"modules-{first}", 90, lambda place: as_modules(place, first)))
        found.append(Step(f"kernels-{first}", 90, lambda place: kernel_times(place, first)))
    return found


def card(place: Place) -> Result:
    """The machine, the versions, and what the device reaches on a large convolution and a large copy."""
    found: Result = {"machine": environment.describe(), "tools": environment.tool_versions(), "network": place.network}
    if place.device == "cpu":
        return found | {"class": None}
    import torch

    from r2mrf_deploy.runtimes.pytorch.execution_context import precision

    rates: dict[str, float] = {}
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("fp16", torch.float16, None),
    ):
        channels, side, batch = 512, 128, 16
        layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False).to("cuda", dtype)
        layer, image = layer.to(memory_format=torch.channels_last), torch.randn(batch, channels, side, side)
        image = image.to("cuda", dtype).to(memory_format=torch.channels_last)
        with torch.inference_mode(), precision(tf32):
            ms = _milliseconds(lambda layer=layer, image=image: layer(image))[0]
        rates[name] = 2 * 9 * channels**2 * side**2 * batch / ms / 1e9
    source = torch.randn(1 << 28, device="cuda")
    target = torch.empty_like(source)
    ms = _milliseconds(lambda: target.copy_(source))[0]
    return found | {
        "class": gpus.of_device(torch.cuda.get_device_name(), "{}.{}".format(*torch.cuda.get_device_capability())).name,  # type: ignore[union-attr]
        "architectures": torch.cuda.get_arch_list(),
        "measured_tflops": rates,
        "measured_gb_s": 2 * source.nbytes / ms / 1e6,
    }


def _milliseconds(work: Callable[[], Any], repeats: int = 30) -> list[float]:
    """Of several runs on the device, the shortest first."""
    import torch

    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return sorted(times)


def smoke(place: Place) -> Result:
    """Every provider of CUDA: memory, pinned copies, events, a captured copy that is replayed, two copies in flight."""
    from r2mrf_deploy.runtimes.cuda import bindings
    from r2mrf_deploy.runtimes.pytorch.execution_context import TorchCuda

    found: Result = {}
    makers: dict[str, Callable[[], bindings.Cuda]] = {"cuda-python": bindings.CudaPython, "pycuda": bindings.PyCuda}
    for name, make in (makers | {"torch": TorchCuda}).items():
        try:
            found[name] = _provider(make())
        except ImportError:
            found[name] = "not installed"
        except (R2mrfError, RuntimeError, AssertionError) as e:
            if place.device != "cpu":
                raise
            found[name] = f"not run: {str(e).splitlines()[0]}"
    return found


def _provider(cuda: Any) -> Result:
    device, size = cuda.device(), 1 << 24
    stream, events = cuda.stream(), [cuda.event(spin) for spin in (True, False)]
    address, hosts = cuda.malloc(size), [cuda.pinned(size) for _ in range(3)]
    for number, host in enumerate(hosts):
        host[:] = number + 1
    cuda.copy_in(address, hosts[0], stream)
    cuda.record(events[0], stream)
    cuda.copy_out(hosts[1], address, stream)
    cuda.record(events[1], stream)
    cuda.wait(events[1])
    assert (hosts[1] == 1).all(), "a copy to the device and back changed the bytes"
    ms, captured = cuda.elapsed(*events), False
    if cuda.graphs:

        def work() -> bool:
            cuda.copy_in(address, hosts[2], stream)
            cuda.copy_out(hosts[1], address, stream)
            return True

        graph = cuda.capture(stream, work)
        assert (hosts[1] == 1).all(), "what was captured ran already"
        assert graph is not None, "copies could not be captured"
        for value in (7, 9):  # a graph reads what is in the memory when it is launched
            hosts[2][:] = value
            cuda.launch(graph, stream)
            cuda.synchronize(stream)
            assert (hosts[1] == value).all(), "a replayed copy gave other bytes"
        cuda.destroy_graph(graph)
        captured = True
    hosts[0][:], hosts[2][:] = 3, 5  # two in flight: each must see its own bytes
    cuda.copy_in(address, hosts[0], stream)
    cuda.copy_out(hosts[0], address, stream)
    cuda.copy_in(address, hosts[2], stream)
    cuda.copy_out(hosts[2], address, stream)
    cuda.synchronize(stream)
    assert (hosts[0] == 3).all() and (hosts[2] == 5).all(), "two copies in flight were mixed up"
    for host in hosts:
        cuda.unpin(host)
    cuda.free(address)
    for event in events:
        cuda.destroy_event(event)
    cuda.destroy_stream(stream)
    return {
        "device": device.name, "compute_capability": device.compute_capability, "captured": captured,
        "copy_out_gb_s": size / ms / 1e6,
    }  # fmt: skip


VARIANTS = {
    "pytorch-cuda": 5e-4,
    "pytorch-cuda-tf32": 0.05,
    "pytorch-cuda-fp16": 0.05,
    "pytorch-cuda-channels-last": 0.05,
}
"""PyTorch's variants, and how far the logits of a step may be from the CPU's FP32 on average, as a share of their standard
deviation: parity's own bounds for FP32 and FP16 (TF32 has FP16's eleven bits)."""


def parity(place: Place) -> Result:
    """PyTorch's variants against FP32 on the CPU, step by step, on a photograph of odd sides."""
    import torch

    from r2mrf_deploy.networks.deployed import Deployed
    from r2mrf_deploy.runtimes.pytorch.cuda import make_program
    from r2mrf_deploy.runtimes.pytorch.execution_context import precision

    loaded = Checkpoint.load(place.checkpoint)
    image = resize(sample_photographs.sample("chelsea"), (213, 317))[None]
    reference = Deployed(loaded.module(), loaded.preprocess, all_steps=True).eval()
    with torch.inference_mode():
        wanted = [o.numpy() for o in reference(torch.from_numpy(image))]
    found: Result = {"spread": float(wanted[0].std())}
    for name, bound in VARIANTS.items():
        variant = runtimes.get(name).variant  # type: ignore[attr-defined]
        _, program = make_program(Checkpoint.load(place.checkpoint), variant, place.device, all_steps=True)
        tf32 = None if variant.half or place.device == "cpu" else variant.tf32
        with torch.inference_mode(), precision(tf32):
            given = [o.cpu().numpy() for o in program(torch.from_numpy(image).to(place.device))]
        relative = {
            output: float(np.abs(a - b).mean() / b.std())
            for output, a, b in zip(reference.output_names, given, wanted, strict=True)
        }
        worst = max(relative, key=relative.__getitem__)
        found[name] = {
            "map_largest": float(np.abs(given[0] - wanted[0]).max()),
            "map_mean": float(np.abs(given[0] - wanted[0]).mean()),
            "worst_output": worst, "worst_relative": relative[worst], "bound": bound, "ok": relative[worst] < bound,
            "relative": relative,
        }  # fmt: skip
    return found


def export(place: Place, config: Config) -> Result:
    """Artifacts of the network as traced and rewritten, in FP32 and FP16, several at once; and their roofs on this card.

    Each is made by a process of its own: a compiler that crashes takes its own artifact with it, and says so.
    """
    (place.folder / str(config)).mkdir(parents=True, exist_ok=True)
    _ = place.checkpoint

    def make(form: str, half: bool, suffix: str) -> tuple[str, bool, str, str]:
        path = place.artifact(config, form, half, suffix)
        log = path.with_name(path.name + ".log")
        order = json.dumps(
            {"place": place.order(), "config": [config.size, config.batch], "make": [form, half, suffix]}
        )
        with log.open("w") as output:
            code = subprocess.run(
                [sys.executable, "-X", "faulthandler", __file__, order], stdout=output, stderr=output
            ).returncode
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        return form, half, suffix, last[0] if not code and last else f"exit code {code}: {' '.join(last)}"

    found: Result = {}
    with ThreadPoolExecutor(max(1, min(6, environment.cores() // 2))) as pool:
        waiting = {pool.submit(make, form, False, ".onnx") for form in FORMS}
        while waiting:
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for form, half, suffix, said in (job.result() for job in done):
                path = place.artifact(config, form, half, suffix)
                found[path.name] = said
                if suffix == ".onnx" and path.exists():  # the others are made from it
                    further = [(half, ".pt2"), (half, ".plan"), *([] if half else [(True, ".onnx")])]
                    waiting |= {pool.submit(make, form, h, other) for h, other in reversed(further)}
    return found


def make(place: Place, config: Config, form: str, half: bool, suffix: str) -> str:
    """Make one file where it is not there yet: what became of it."""
    path, source = (place.artifact(config, form, half, s) for s in (suffix, ".onnx"))
    if path.exists():
        return "was there"
    try:
        if suffix == ".plan" and not (state := runtimes.get("tensorrt").availability()).ok:
            raise RuntimeUnavailable(f"nothing here runs a plan: {state.reason}")
        if suffix != ".onnx":
            made = build_artifact(source, path, device=place.device if suffix == ".pt2" else None)  # type: ignore[arg-type]
        elif half:
            made = convert_artifact(place.artifact(config, form, False, ".onnx"), path, PrecisionOptions("fp16"))
        else:
            options = ExportOptions(config.size, batch=config.batch, optimize=FORMS[form])
            made = export_artifact(place.checkpoint, path, options)
    except R2mrfError as e:
        return str(e)
    if suffix == ".onnx":
        path.with_suffix(".roof.json").write_text(json.dumps(_roof(place, path)))
    return made.parity.verdict if made.parity else "made"


def _roof(place: Place, onnx: Path) -> Result:
    """The least milliseconds that a graph takes on this card by its published figures, in each precision."""
    card_class, graph, found = place.card(), budget.Graph.of(onnx.stem, files.read(onnx)), {}
    half = onnx.stem.endswith("-fp16")
    if half and card_class.tflops["fp16"] < card_class.tflops["fp32"]:
        return {}
    for precision in ("fp16",) if half else ("fp32", "tf32"):
        said = budget.predict(graph, budget.Roof.of(card_class, tf32=precision == "tf32"))
        found[precision] = {"roof_ms": said.roof, "multiply_adds": said.multiply_adds, "kernels": said.kernels}
    return found


@dataclass(frozen=True)
class Way:
    """A way of running the network: its candidate in a benchmark."""

    runtime: str
    form: str = "traced"
    precision: str = "fp32"
    """That it computes in."""
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
"""(precision, whether it is launched as a CUDA graph)."""


def _pair(family: str, precision: str, graph: bool) -> tuple[Way, ...]:
    """A graph as traced and as rewritten: their ratio is what the rewrites give."""
    runtime, suffix = COMPILED[family]
    return tuple(Way(runtime, form, precision, graph, suffix) for form in FORMS)


ON_CPU = {"aotinductor": "aotinductor", "onnxruntime-cuda": "onnxruntime"}


def _timing(config: Config, ways: Sequence[Way]) -> Callable[[Place], Result]:
    return lambda place: timing(place, config, ways)


def timing(place: Place, config: Config, ways: Sequence[Way], protocol: Protocol | None = None) -> Result:
    """Time ways of running the network side by side; what cannot be run is listed with the reason."""
    protocol = protocol or Protocol(duration=place.seconds)
    skipped: dict[str, str] = {}
    candidates: list[Candidate] = []
    with ExitStack() as stack:
        for way, candidate in _opened(place, config, ways, skipped):
            stack.callback(candidate.runner.close)
            candidates.append(candidate)
            candidate.name = str(way)
        if not candidates:
            raise RuntimeUnavailable(next(iter(skipped.values()), "there is nothing to time"))
        measured = measure(candidates, protocol)
    skipped |= {c.title: f"{type(c.failure).__name__}: {c.failure}" for c in candidates if c.failure}
    found: list[Result] = []
    sound = [c for c in candidates if not c.failure]
    for m in measured:
        way = next(w for w in ways if (str(w), _runtime(place, w)) == (m.name, m.runtime))
        found.append(m.to_dict() | {"form": way.form, "precision": way.precision, "cuda_graph": way.cuda_graph})
    assert len(found) == len(sound)
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
        options = OpenOptions(cuda_graph=True) if way.cuda_graph and place.device == "cuda" else OpenOptions()
        if name == "tensorrt" and not way.cuda_graph and place.device == "cuda":
            options = OpenOptions(cuda_graph=False)
        try:
            if not (state := runtimes.get(name).availability()).ok:
                raise RuntimeUnavailable(f"{state.reason}; {state.cure}")
            if not file.exists():
                raise RuntimeUnavailable(f"{file.name} could not be made: see the step export-{config}")
            runner = runtimes.open(file, name, options=options)
        except (R2mrfError, RuntimeError) as e:
            skipped[f"{way} on {name}"] = str(e).splitlines()[0]
            continue
        feed = dict(feeds.sweep(runner.inputs, [config.batch], config.size, {}, {}))[config.batch]
        yield way, Candidate(str(way), runner, feed, config.batch)


def overlap(place: Place, config: Config) -> Result:
    """Whether copies that wait for the computation cost throughput: one stream, and two that overlap."""
    ways = [w for w in PYTORCH if w.runtime == "pytorch-cuda-graph"]
    return {
        f"{streams} streams": timing(place, config, ways, Protocol(duration=place.seconds, streams=streams))
        for streams in (1, 2, 3)
    }


def as_modules(place: Place, config: Config) -> Result:
    """The FP16 graphs as PyTorch modules, each a CUDA graph, in milliseconds: what the rewrites give without a compiler."""
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
                found[f"{form}, {layout}"] = _milliseconds(graph.replay)[15]
    return found


def kernel_times(place: Place, config: Config, shown: int = 25) -> Result:
    """Where PyTorch's time goes: the kernels of one inference in FP16, the costliest first."""
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


def main(order: dict[str, Any]) -> None:
    """Run one step and write its result, or make one artifact and print what became of it."""
    place = Place.ordered(order["place"])
    if "make" in order:
        size, batch = order["config"]
        print(make(place, Config(tuple(size), batch), *order["make"]))
        return
    chosen = steps([tuple(s) for s in order["sizes"]], order["batches"], order["families"])
    step = next(s for s in chosen if s.name == order["step"])
    Path(order["result"]).write_text(json.dumps(step.run(place), default=str))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
