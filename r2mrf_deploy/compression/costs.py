"""What a graph costs where it is to run: by the cost model, by a device's roofline, or by its kernels' measured times."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx

from r2mrf_deploy import gpus, runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.bench import feeds
from r2mrf_deploy.budget import EFFICIENCY, Roof
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError, did_you_mean
from r2mrf_deploy.files import scratch
from r2mrf_deploy.graph.cost import MULTIPLY_ADDS_PER_BYTE
from r2mrf_deploy.graph.kernels import Kernel, kernels
from r2mrf_deploy.graph.prepare import standard
from r2mrf_deploy.parity.measurements import Measurements

MEASURED = ("onnxruntime", "openvino")
"""The runtimes whose kernels can be measured here."""
INT8_RATE = 4
"""How many INT8 multiply-adds the cost model counts as one in FP32: as for VNNI, DP4A and tensor cores."""
RUNS, SECONDS = 5, 0.05
"""A kernel's time is the shortest of at least this many runs and of this much time."""
COPIES, SHORT = 8, 5.0
"""A kernel of fewer milliseconds is timed in so many copies, so that starting an inference counts little."""


@dataclass(frozen=True)
class Shape:
    """A convolution's sizes; pixels are (height, width)."""

    channels: int
    """Read."""
    filters: int
    """Written."""
    kernel: tuple[int, int]
    pixels: tuple[int, int]
    """Of the input."""
    made: tuple[int, int]
    """Pixels of the output."""
    group: int = 1
    geometry: tuple[tuple[str, Any], ...] = ()
    """The node's other attributes: strides, pads, dilations, auto_pad."""

    def kernel_of(self, precision: str) -> Kernel:
        """The convolution as a kernel."""
        taps, out = math.prod(self.kernel) * self.channels // self.group, math.prod(self.made)
        numbers = self.channels * math.prod(self.pixels) + self.filters * (taps + out)
        size, shape = (1 if precision == "int8" else 4), (1, self.filters, *self.made)
        return Kernel("", "Conv", precision, self.filters * taps * out, numbers * size, shape)  # type: ignore[arg-type]

    @property
    def depthwise(self) -> bool:
        return self.group > 1 and self.group == self.channels


Low = Callable[[str], bool]
"""Whether the node of a name is computed in INT8."""


def never(node: str) -> bool:
    return False


def always(node: str) -> bool:
    return True


class Costs(ABC):
    """The cost of kernels. Numbers are comparable within one `Costs` only."""

    name: str
    unit: str

    @abstractmethod
    def kernel(self, kernel: Kernel) -> float:
        """The cost of a kernel by its multiply-adds and bytes."""

    def convolution(self, shape: Shape, precision: str) -> float:
        """The cost of a convolution."""
        return self.kernel(shape.kernel_of(precision))

    def total(self, model: onnx.ModelProto, low: Low = never) -> float:
        """The cost of an FP32 graph with shapes inferred.

        Args:
            low: the convolutions that would be computed in INT8.

        Raises:
            GraphError: a shape is not static.
        """
        shapes = convolutions(model)
        return sum(self._node(k, shapes.get(k.name), low) for k in kernels(model))

    def _node(self, kernel: Kernel, shape: Shape | None, low: Low) -> float:
        if shape is None:
            return self.kernel(kernel)
        # a depthwise convolution is never quantised (see `graph.quantize`)
        return self.convolution(shape, "int8" if not shape.depthwise and low(kernel.name) else "fp32")

    def pays(self, precision: str) -> bool:
        """Whether a convolution as networks have them costs less in a precision than in FP32."""
        shape = Shape(64, 64, (3, 3), (80, 80), (80, 80), geometry=(("pads", (1, 1, 1, 1)),))
        return self.convolution(shape, precision) < self.convolution(shape, "fp32")


class CostModel(Costs):
    """Multiply-adds and traffic, as the rewrites weigh them (see `graph.cost`)."""

    name = "cost model"
    unit = "multiply-adds"

    def kernel(self, kernel: Kernel) -> float:
        rate = INT8_RATE if kernel.precision == "int8" else 1
        return kernel.multiply_adds / rate + MULTIPLY_ADDS_PER_BYTE * kernel.bytes


class Roofline(Costs):
    """A class of devices, by its data (see `budget`)."""

    unit = "ms"

    def __init__(self, roof: Roof) -> None:
        self.name = roof.title
        self._roof = roof

    def kernel(self, kernel: Kernel) -> float:
        return self._roof.limit(kernel)[0] / EFFICIENCY + self._roof.launch_ms

    def pays(self, precision: str) -> bool:
        return precision in self._roof.tflops and super().pays(precision)


class Measured(Costs):
    """A runtime on this machine: each convolution is timed by itself, in each size and precision once.

    What is not a convolution is counted by its bytes, at the rate of `BANDWIDTH`.

    Args:
        measured: keeps the times, so that a search that is resumed decides as it would have.
    """

    unit = "ms"
    BANDWIDTH = 8e6
    """Bytes per millisecond, of one core's copies."""

    def __init__(self, runtime: str, measured: Measurements[Any]) -> None:
        self.name = runtime
        self._runtime = runtimes.get(runtime)
        self._measured = measured

    def kernel(self, kernel: Kernel) -> float:
        return kernel.bytes / self.BANDWIDTH

    def convolution(self, shape: Shape, precision: str) -> float:
        key = f"{self.name} {precision} {shape}"
        return float(self._measured.get(key, lambda: self._time(shape, precision)))

    def _time(self, shape: Shape, precision: str) -> float:
        alone = self._fastest(copies_of(shape, precision))
        if alone > SHORT:
            return alone
        return self._fastest(copies_of(shape, precision, COPIES)) / COPIES

    def _fastest(self, model: onnx.ModelProto) -> float:
        with scratch() as folder:
            file = folder / "convolutions.onnx"
            onnx.save(model, file)
            with self._runtime.open(Artifact(file)) as runner:
                feed = feeds.random(runner.inputs)
                runner.run(feed)
                times: list[float] = []
                end = time.perf_counter() + SECONDS
                while len(times) < RUNS or time.perf_counter() < end:
                    start = time.perf_counter()
                    runner.run(feed)
                    times.append((time.perf_counter() - start) * 1e3)
        return min(times)  # what else the machine does can only add to it


def find(name: str | None, measured: Measurements[Any]) -> Costs:
    """The costs that a name stands for: a runtime of `MEASURED`, a class of `gpus`, or None for the cost model.

    Raises:
        UsageError: there is nothing of that name.
        RuntimeUnavailable: the runtime is not installed.
    """
    if name is None:
        return CostModel()
    if name in MEASURED:
        _require(name)
        return Measured(name, measured)
    try:
        return Roofline(Roof.of(gpus.find(name)))
    except UsageError:
        known = [*MEASURED, *gpus.GPUS, *gpus.CPUS]
        raise UsageError(f"`costs` {name}: no such runtime or device; {did_you_mean(name, known)}") from None


def _require(name: str) -> None:
    state = runtimes.get(name).availability()
    if not state.ok:
        raise RuntimeUnavailable(f"`costs` {name}: {state.reason}; {state.cure}")


def convolutions(model: onnx.ModelProto) -> dict[str, Shape]:
    """The shape of each convolution with constant weights, by the node's name."""
    weights = {i.name: i.dims for i in model.graph.initializer}
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    sizes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in values}
    found = {}
    for node in model.graph.node:
        if standard(node, "Conv") and len(weight := weights.get(node.input[1], ())) == 4:
            (*_, h, w), (*_, oh, ow) = sizes[node.input[0]], sizes[node.output[0]]
            given = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            group = int(given.pop("group", 1))
            geometry = tuple((k, tuple(v) if isinstance(v, list) else v) for k, v in sorted(given.items()))
            kernel = (weight[2], weight[3])
            found[node.name] = Shape(weight[1] * group, weight[0], kernel, (h, w), (oh, ow), group, geometry)
    return found


def copies_of(shape: Shape, precision: str, copies: int = 1) -> onnx.ModelProto:
    """A graph of the same convolution, with other random weights each time, of which only a corner is put out.

    A runtime keeps its own layout between layers, and turns inputs and outputs into it and back. In a network nearly no
    convolution pays for that, so the copies share the input, and what is put out is small. In INT8 there are Q/DQ pairs, as
    `graph.quantize` writes them.
    """
    rng = np.random.default_rng(0)
    size = (shape.filters, shape.channels // shape.group, *shape.kernel)
    quantised = precision == "int8"
    constants: dict[str, Any] = {"s": np.float32(0.05), "z": np.int8(0)} if quantised else {}
    nodes = []
    if quantised:
        nodes = [
            onnx.helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
            onnx.helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        ]
    corner = {"kernel_shape": [min(2, pixels) for pixels in shape.made], "strides": list(shape.made)}
    for i in range(copies):
        drawn = rng.integers(-63, 64, size).astype(np.int8) if quantised else rng.standard_normal(size, np.float32)
        constants[f"w{i}"] = drawn
        if quantised:
            nodes.append(onnx.helper.make_node("DequantizeLinear", [f"w{i}", "s", "z"], [f"v{i}"]))
        inputs = ["d", f"v{i}"] if quantised else ["x", f"w{i}"]
        nodes += [
            onnx.helper.make_node(
                "Conv", inputs, [f"c{i}"], name=f"Conv{i}", group=shape.group, **dict(shape.geometry)
            ),
            onnx.helper.make_node("MaxPool", [f"c{i}"], [f"y{i}"], **corner),
        ]
    value = partial(onnx.helper.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    graph = onnx.helper.make_graph(
        nodes, "convolutions", [value("x", shape=(1, shape.channels, *shape.pixels))],
        [value(f"y{i}", shape=(1, shape.filters, 1, 1)) for i in range(copies)],
        [onnx.numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )  # fmt: skip
    return onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", 17)])
