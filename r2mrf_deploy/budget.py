"""A latency budget that travels: the roofline of a graph on a class of devices, before one is at hand.

A kernel takes at least as long as its multiply-adds at the device's peak and as its bytes at the memory's bandwidth; the
longer of the two is its roof (Williams, Waterman and Patterson, Communications of the ACM 52(4), 2009). No kernel reaches
its roof, so the prediction is the sum of the roofs divided by a stated efficiency, plus a launch for each kernel and the
copies to and from the device, of which a CPU has neither. `calibrate` measures the local machine's peak and bandwidth, to
show how good predictions are.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx

from r2mrf_deploy import environment, gpus
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.bench import feeds
from r2mrf_deploy.bench.protocol import Candidate, Protocol, measure
from r2mrf_deploy.checkpoint_files import Loading, is_checkpoint
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.files import scratch
from r2mrf_deploy.gpus import CPU, GPU, Device
from r2mrf_deploy.graph import files
from r2mrf_deploy.graph.inference import Shapes, infer
from r2mrf_deploy.graph.kernels import Kernel, Precision, kernels
from r2mrf_deploy.manifest import DEFAULT_SIZE
from r2mrf_deploy.progress import Progress, ProgressCallback, silent
from r2mrf_deploy.runtimes import OpenOptions, Runner, Runtime
from r2mrf_deploy.runtimes.onnxruntime import OnnxRuntimeCPU, OnnxRuntimeCUDA
from r2mrf_deploy.wording import count

if TYPE_CHECKING:
    from typing_extensions import Unpack

EFFICIENCY = 0.5
"""The assumed share of the roof that kernels reach. R²MRF's published 0.096 s on a GTX 1080 Ti (AAAI 2020, Table 2,
Shi et al.'s images) is 0.60 of the roof for the graph as traced, if the images were 640×427."""
LAUNCH_MS = 0.005
"""Milliseconds to launch one kernel."""
JETSON_LAUNCH_MS = 0.01
"""The same on a Jetson. An assumption: its cores run at about half the clock of a PC's."""
TRANSFER = 12.0
"""GB/s between host and device: PCIe 3.0 with 16 lanes, as measured with pinned memory on cards of the 1080 Ti's time."""
BUDGET_MS = 100.0
"""The goal: 0.1 s per image on a card of the GTX 1080 Ti class."""


@dataclass(frozen=True)
class Roof:
    """The best that a device could do."""

    name: str
    title: str
    tflops: dict[str, float]
    """10^12 operations per second by precision; a multiply-add counts as two."""
    bandwidth: float
    """GB/s."""
    launch_ms: float = LAUNCH_MS
    transfer: float | None = TRANSFER
    """GB/s to and from the device; None where nothing has to be copied."""

    @classmethod
    def of(cls, device: Device, *, tf32: bool = True, threads: int | None = None) -> Roof:
        """The roof of a class of devices.

        Args:
            tf32: FP32 convolutions run as TF32 if that is faster. TensorRT does this unless a plan is built with
                `no_tf32`; PyTorch, AOTInductor and ONNX Runtime CUDA do not use it here, except for `pytorch-cuda-tf32`.
            threads: the cores of a CPU that compute, by default all. One alone has all of the memory's bandwidth.
        """
        tflops = dict(device.tflops)
        if tf32:
            tflops["fp32"] = max(tflops["fp32"], tflops.get("tf32", 0.0))
        if isinstance(device, CPU):
            used = min(threads or device.cores, device.cores)
            tflops = {precision: rate * used / device.cores for precision, rate in tflops.items()}
            cores = f"{used} of {count(device.cores, 'core')}"
            return cls(device.name, f"{device.title}, {cores}", tflops, device.bandwidth, 0.0, None)
        roof = cls(device.name, device.title, tflops, device.bandwidth)
        if isinstance(device, GPU) and device.jetpacks:  # a copy reads and writes the memory that host and GPU share
            return replace(roof, launch_ms=JETSON_LAUNCH_MS, transfer=device.bandwidth / 2)
        return roof

    def limit(self, kernel: Kernel) -> tuple[float, str]:
        """The least time that a kernel can take, in milliseconds, and what bounds it: "compute" or "memory".

        Raises:
            UsageError: the device does not compute in the kernel's precision.
        """
        if kernel.precision not in self.tflops:
            raise UsageError(f"the {self.title} has no {kernel.precision.upper()}: choose another precision or GPU")
        compute = 2 * kernel.multiply_adds / (self.tflops[kernel.precision] * 1e9)
        memory = kernel.bytes / (self.bandwidth * 1e6)
        return (compute, "compute") if compute >= memory else (memory, "memory")


@dataclass(frozen=True)
class Cost:
    """One kernel's share of a prediction."""

    name: str
    op: str
    precision: str
    multiply_adds: int
    bytes: int
    ms: float
    bound: str


@dataclass(frozen=True)
class Prediction:
    """How long an inference is predicted to take, in milliseconds."""

    graph: str
    device: str
    title: str
    efficiency: float
    multiply_adds: int
    bytes: int
    kernels: int
    roof: float
    """The sum of the kernels' roofs."""
    launches: float
    transfers: float
    ms: float
    costliest: tuple[Cost, ...]
    """The ten slowest kernels."""

    def headroom(self, budget: float) -> float:
        """The share of the budget that is left; negative where the prediction exceeds it."""
        return 1 - self.ms / budget


@dataclass(frozen=True)
class Graph:
    """The kernels of a graph at given shapes."""

    name: str
    kernels: tuple[Kernel, ...]
    transferred: int
    """Bytes of the inputs and outputs."""

    @classmethod
    def of(cls, name: str, model: onnx.ModelProto, shapes: Shapes | None = None) -> Graph:
        """The kernels of `model` with inputs of `shapes`. Raises GraphError if a shape cannot be inferred."""
        loaded, types = infer(model, shapes or {})
        ends = [v for v in (*loaded.graph.inputs, *loaded.graph.outputs) if v in types and not v.is_initializer()]
        return cls(name, kernels(model, shapes), sum(types[v].nbytes for v in ends))

    @property
    def precisions(self) -> list[Precision]:
        """The precisions that the multiply-adds are computed in."""
        return list(dict.fromkeys(k.precision for k in self.kernels if k.multiply_adds))


def predict(graph: Graph, roof: Roof, efficiency: float = EFFICIENCY) -> Prediction:
    """Predict the latency of `graph` under `roof`.

    Raises:
        UsageError: the device does not compute in the graph's precision, or the efficiency is not in (0, 1].
    """
    if not 0 < efficiency <= 1:
        raise UsageError(f"`efficiency` must be above 0 and at most 1, not {efficiency:g}")
    limits = [roof.limit(k) for k in graph.kernels]
    costs = [
        Cost(k.name, k.op, k.precision, k.multiply_adds, k.bytes, ms / efficiency, bound)
        for k, (ms, bound) in zip(graph.kernels, limits, strict=True)
    ]
    bare = sum(ms for ms, _ in limits)
    launches = roof.launch_ms * len(graph.kernels)
    transfers = 0.0 if roof.transfer is None else graph.transferred / (roof.transfer * 1e6)
    return Prediction(
        graph=graph.name,
        device=roof.name,
        title=roof.title,
        efficiency=efficiency,
        multiply_adds=sum(k.multiply_adds for k in graph.kernels),
        bytes=sum(k.bytes for k in graph.kernels),
        kernels=len(graph.kernels),
        roof=bare,
        launches=launches,
        transfers=transfers,
        ms=bare / efficiency + launches + transfers,
        costliest=tuple(sorted(costs, key=lambda c: -c.ms)[:10]),
    )


def scaled(limit: float, there: Prediction, here: Prediction, slack: float) -> float:
    """Convert a latency limit, in milliseconds, on the card of `there` into one on the card of `here`: by the ratio of
    the roofs and a slack, plus the launches and copies, which the roofs do not include.

    Args:
        slack: the efficiency that `here` may have, as a share of that of `there`.
    """
    return limit * here.roof / there.roof / slack + here.launches + here.transfers


def able(names: Iterable[str], graphs: Sequence[Graph]) -> tuple[list[Device], list[str]]:
    """The devices that compute in the graphs' precisions at a useful rate, and why the others are refused. Raises
    UsageError if there is no such class."""
    found, refusals = [], []
    for name in names:
        device = gpus.find(name)
        why = [r for g in graphs for p in g.precisions if (r := gpus.precision_refusal(device, p))]
        found += [] if why else [device]
        refusals += why[:1]
    return found, refusals


def calibrate(runtime: Runtime, threads: int | None = None) -> Roof:
    """Measure the roof of the local device: the best rates of large convolutions and of a large copy.

    Args:
        runtime: one that opens `.onnx`; FP16 is measured too if it runs on a GPU.
        threads: CPU threads; by default those that the runtime chooses.
    """
    options = OpenOptions(threads=threads)
    ms, runner = _best(runtime, _convolution(256, 96, np.float32), options)
    tflops = {"fp32": 2 * 9 * 256**2 * 96**2 / ms / 1e9}
    if runner.on_gpu:
        ms, _ = _best(runtime, _convolution(512, 256, np.float16), options)
        tflops["fp16"] = 2 * 9 * 512**2 * 256**2 / ms / 1e9
    ms, _ = _best(runtime, _one_node(f"float[{COPIED}]", "Relu(x)"), options)
    title = runner.device if runner.on_gpu else environment.cpu()
    costs = (LAUNCH_MS, TRANSFER) if runner.on_gpu else (0.0, None)
    return Roof("here", title, tflops, 2 * COPIED * 4 / ms / 1e6, *costs)


COPIED = 1 << 25
"""Elements of the copy that measures the bandwidth: 128 MiB, larger than every cache."""


def _best(runtime: Runtime, model: onnx.ModelProto, options: OpenOptions, seconds: float = 0.5) -> tuple[float, Runner]:
    """The shortest compute time of a model, in milliseconds, and the runner, closed, that says where it ran."""
    with scratch() as folder:
        file = folder / "calibrate.onnx"
        onnx.save(model, file)
        with runtime.open(Artifact(file), options) as runner:
            feed = feeds.random(runner.inputs)
            end, best = time.perf_counter() + seconds, math.inf
            while best == math.inf or time.perf_counter() < end:
                best = min(best, runner.run_timed(feed)[1].compute)
    return best, runner


def _convolution(channels: int, side: int, dtype: type[np.floating[Any]]) -> onnx.ModelProto:
    kind = {np.float32: "float", np.float16: "float16"}[dtype]
    model = _one_node(f"{kind}[1,{channels},{side},{side}]", "Conv<pads = [1, 1, 1, 1]>(x, w)")
    # a constant, since runtimes lay out constant weights in advance
    weight = np.random.default_rng(0).standard_normal((channels, channels, 3, 3)) / channels
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight.astype(dtype), "w"))
    return model


def _one_node(kind: str, node: str) -> onnx.ModelProto:
    """A model of one node, from `x` to `y` of the same type and shape."""
    return onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> calibration ({kind} x) => ({kind} y) {{ y = {node} }}'
    )


@dataclass(frozen=True)
class Here:
    """Predictions beside measurements, on the local machine."""

    roof: Roof
    predictions: tuple[Prediction, ...]
    measured: tuple[float, ...]
    """Median latency of each graph, milliseconds."""
    runtime: str


@dataclass(frozen=True)
class Budget:
    """The verdict on a graph, or on a network's graph as traced and as rewritten."""

    budget_ms: float
    predictions: tuple[Prediction, ...]
    refused: tuple[str, ...]
    """Why devices are missing from `predictions`."""
    here: Here | None
    advice: Mapping[str, str] = field(default_factory=dict)
    """How a network gets onto the devices that were asked for, by their names."""

    @property
    def over(self) -> list[Prediction]:
        """Predictions for the last graph, the one to deploy, that exceed the budget."""
        last = self.predictions[-1].graph if self.predictions else ""
        return [p for p in self.predictions if p.graph == last and p.ms > self.budget_ms]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def draw_up(
    source: str,
    gpu_names: Sequence[str] = (),
    *,
    budget_ms: float = BUDGET_MS,
    size: tuple[int, int] | None = None,
    efficiency: float = EFFICIENCY,
    threads: int | None = None,
    check: bool = True,
    progress: ProgressCallback = silent,
    **loading: Unpack[Loading],
) -> Budget:
    """Predict a graph's latency on GPUs and small devices, and compare predictions with measurements on the local machine.

    Args:
        source: an ONNX file; or a checkpoint or a preset's name, which is traced and shown as traced and as rewritten.
        gpu_names: of `gpus.GPUS` and `gpus.CPUS`; by default every class that computes in the graph's precision.
        budget_ms: the budget for one image.
        size: height and width; by default those of the file, else 320×320.
        threads: the cores of a CPU that compute, there and on this machine; by default all.
        check: also run the graphs on this machine.
        loading: for a checkpoint, as for `Checkpoint.load`; a preset takes `settings`.

    Raises:
        UsageError, InputError, GraphError, CheckpointError: an argument is wrong.
    """
    models = _models(source, size, loading, progress)
    progress(Progress("counting"))
    graphs = [Graph.of(name, model, shapes) for name, model, shapes in models]
    found, refused = able(gpu_names or (*gpus.GPUS, *gpus.CPUS), graphs[-1:])
    roofs = [Roof.of(device, threads=threads) for device in found]
    predictions = tuple(predict(g, roof, efficiency) for g in graphs for roof in roofs)
    here = _here(models, graphs, efficiency, threads, progress) if check else None
    if not gpu_names:
        return Budget(budget_ms, predictions, (), here)
    return Budget(budget_ms, predictions, tuple(refused), here, {d.name: d.advice for d in found if d.advice})


Model = tuple[str, onnx.ModelProto, Shapes | None]


def _models(source: str, size: tuple[int, int] | None, loading: Loading, progress: ProgressCallback) -> list[Model]:
    path = Path(source)
    if path.suffix == ".onnx":
        model, shapes = files.read(path), None
        spec = next(v for v in model.graph.input if v.name not in {i.name for i in model.graph.initializer})
        dims = [d.dim_value for d in spec.type.tensor_type.shape.dim]
        nhwc = dims[-1:] == [3]
        if not all(dims):
            height, width = size or DEFAULT_SIZE
            dims = [1, height, width, 3] if nhwc else [1, 3, height, width]
            shapes = {spec.name: tuple(dims)}
        elif size and tuple(dims[1:3] if nhwc else dims[2:4]) != size:
            raise UsageError(f"{path} has a fixed size: omit `size`, or give the checkpoint or a dynamic graph")
        return [(f"{path.name} at {'x'.join(map(str, dims))}", model, shapes)]
    from r2mrf_deploy import networks
    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.graph.rewrites import optimize
    from r2mrf_deploy.graph.trace import trace
    from r2mrf_deploy.networks.deployed import Deployed

    if is_checkpoint(path):
        loaded = Checkpoint.load(path, **loading)
        module, preprocess = loaded.module(), loaded.preprocess
    elif path.suffix:
        raise UsageError(f"{source} contains no graph: give an ONNX file, a checkpoint or the name of a preset")
    else:
        family, config = networks.preset(source, loading.get("settings"))
        module, preprocess = networks.create(family, config), config.preprocess
    progress(Progress("tracing"))
    height, width = size or DEFAULT_SIZE
    traced = trace(Deployed(module.eval(), preprocess), (height, width))
    progress(Progress("rewriting"))
    name = f"{path.stem} at {height}x{width}"
    return [(f"{name}, as traced", traced, None), (f"{name}, rewritten", optimize(traced).model, None)]


def _here(
    models: Sequence[Model], graphs: Sequence[Graph], efficiency: float, threads: int | None, progress: ProgressCallback
) -> Here | None:
    """Measure the device and the graphs; None where the device cannot be calibrated in the graphs' precision."""
    cuda = OnnxRuntimeCUDA()
    runtime = cuda if cuda.availability().ok else OnnxRuntimeCPU()
    progress(Progress("calibrating"))
    roof = calibrate(runtime, threads)
    if any(p not in roof.tflops for g in graphs for p in g.precisions):
        return None
    with scratch() as folder, ExitStack() as stack:
        candidates = []
        for number, (name, model, shapes) in enumerate(models):
            progress(Progress(f"timing {name}", number, len(models)))
            file = folder / f"{number}.onnx"
            onnx.save(model, file)
            runner = stack.enter_context(runtime.open(Artifact(file), OpenOptions(threads=threads)))
            candidates.append(Candidate(name, runner, feeds.random(runner.inputs, shapes=shapes)))
        measured = measure(candidates, Protocol(duration=1.0, iterations=3, avg_runs=3))
    predictions = tuple(predict(g, roof, efficiency) for g in graphs)
    return Here(roof, predictions, tuple(m.latency.median for m in measured), runtime.title)
