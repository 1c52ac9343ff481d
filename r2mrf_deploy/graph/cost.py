"""What a graph costs: multiply-adds and bytes of every node, and the peak memory of its activations.

The rewrites ask it whether a change pays, the manifest states its totals, the latency budget builds a roofline on it. It
counts work, not time: no fusion, no cache, no runtime. Shapes are inferred here, node by node, with the values of small
tensors carried along, so that the sizes a dynamic graph computes (Shape, Gather, Concat, Resize) become numbers.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import InlinePass

from r2mrf_deploy.errors import GraphError

Shapes = Mapping[str, Sequence[int]]

_SMALL = 4096
"""Elements up to which a constant's value is followed: sizes, axes and scales are small, weights are not followed."""

MULTIPLY_ADDS_PER_BYTE = 8
"""What a processor computes in the time it moves a byte, to weigh one against the other. Convolutions in FP32 reach about
9 on two cores of a server, 12 on a GTX 1080 Ti, 7 on an H200; a rewrite that pays only on one side of this is not made."""

_VIEWS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators whose output is their first input's memory."""

FREE = frozenset({"Constant", "Shape", "Size"}) | _VIEWS
"""Operators that move no activation."""

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)

# operator -> the inputs that hold weights
_WEIGHTS = {
    "Conv": (1, 2),
    "ConvTranspose": (1, 2),
    "Gemm": (0, 1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2, 3, 4),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "GroupNormalization": (1, 2),
    "PRelu": (1,),
}

_CARRIERS = frozenset({"Identity", "Cast", "QuantizeLinear", "DequantizeLinear", "Transpose", "Reshape"})
"""Operators through which an initialiser is still the same weight."""


@dataclass(frozen=True)
class TensorType:
    """A tensor's dtype and its shape in numbers."""

    dtype: ir.DataType
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return 0 if self.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED) else self.size * self.dtype.bitwidth // 8


Types = Mapping[ir.Value, TensorType]


@dataclass(frozen=True)
class NodeCost:
    """The work of one node."""

    name: str
    op: str
    multiply_adds: int
    bytes_read: int
    """Every distinct input once, weights included; 0 for an operator that only renames its input's memory."""
    bytes_written: int
    shape: tuple[int, ...]
    """Of the first output."""

    @property
    def effort(self) -> int:
        """Work and traffic in one number, in multiply-adds: what a rewrite must lower."""
        return self.multiply_adds + MULTIPLY_ADDS_PER_BYTE * (self.bytes_read + self.bytes_written)


@dataclass(frozen=True)
class GraphCost:
    """The work of a graph, node by node in the graph's order."""

    nodes: tuple[NodeCost, ...]
    peak_activation_bytes: int
    """The most that inputs, outputs and intermediate tensors occupy at once when the nodes run in the graph's order and
    each tensor is freed after its last use. Weights are not counted."""

    @property
    def multiply_adds(self) -> int:
        return sum(node.multiply_adds for node in self.nodes)

    @property
    def bytes_read(self) -> int:
        return sum(node.bytes_read for node in self.nodes)

    @property
    def bytes_written(self) -> int:
        return sum(node.bytes_written for node in self.nodes)


def multiply_adds(model: onnx.ModelProto, shapes: Shapes | None = None) -> int:
    """Multiply-adds of one inference: Conv, ConvTranspose, Gemm and MatMul; padding counts as if it were image.

    Args:
        model: any ONNX model.
        shapes: input name -> shape. Needed where an input has free dimensions; a free first dimension alone is the batch
            and counts as 1.

    Raises:
        GraphError: a shape cannot be known.
    """
    return cost(model, shapes).multiply_adds


def multiply_adds_per_image(model: onnx.ModelProto, shapes: Shapes | None = None) -> int:
    """`multiply_adds` over the batch of the first input."""
    image = model.graph.input[0]
    shape = (shapes or {}).get(image.name) or [d.dim_value for d in image.type.tensor_type.shape.dim]
    return multiply_adds(model, shapes) // max(shape[0] if shape else 1, 1)


def parameters(model: onnx.ModelProto) -> int:
    """Elements of the initialisers that are weights: of convolutions, matrix products and normalisations.

    An initialiser with several users counts once. Weights stored in fewer bits and cast or dequantised on the way count as
    what they stand for; scales, sizes and normalisation constants of the input do not count.
    """
    graph = load(model).graph
    carried: dict[ir.Value, ir.Value] = {value: value for value in _constants(graph)}
    weights: set[ir.Value] = set()
    for node in graph:
        if node.op_type in _CARRIERS and node.inputs and node.inputs[0] in carried:
            carried[node.outputs[0]] = carried[node.inputs[0]]
        for slot in _WEIGHTS.get(node.op_type, ()):
            value = node.inputs[slot] if slot < len(node.inputs) else None
            if value is not None and value in carried:
                weights.add(carried[value])
    return sum(math.prod(shape) for value in weights if (shape := _constant_shape(value)) is not None)


def cost(model: onnx.ModelProto, shapes: Shapes | None = None) -> GraphCost:
    """The cost of every node of a model; see `multiply_adds` for the arguments.

    Raises:
        GraphError: a shape cannot be known.
    """
    loaded, types = infer(model, shapes)
    return graph_cost(loaded.graph, types)


def infer(model: onnx.ModelProto, shapes: Shapes | None = None) -> tuple[ir.Model, Types]:
    """The model with its local functions written out, and all its tensors' types; see `multiply_adds`.

    Raises:
        GraphError: a shape cannot be known.
    """
    loaded = load(model)
    types = Inference(loaded, _input_shapes(loaded, shapes or {})).types
    for node in loaded.graph:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name and value not in types:
                raise GraphError(
                    f"the shape of {value.name!r} at {node.op_type} {node.name!r} is not known before the graph runs: "
                    "its cost cannot be stated"
                )
    return loaded, types


def graph_cost(graph: ir.Graph, types: Types) -> GraphCost:
    """The cost of a graph whose shapes are given. Nodes with a tensor that is not in `types` count nothing."""
    return GraphCost(
        nodes=tuple(node_cost(node, types) for node in graph),
        peak_activation_bytes=_peak_activation_bytes(graph, types),
    )


def node_cost(node: ir.Node, types: Types) -> NodeCost:
    """The cost of one node; nothing where one of its tensors is not in `types`."""
    inputs = list(dict.fromkeys(value for value in node.inputs if value is not None))
    outputs = [value for value in node.outputs if value.name]
    known = all(value in types for value in (*inputs, *outputs))
    moves = known and node.op_type not in FREE
    return NodeCost(
        name=node.name or "",
        op=node.op_type,
        multiply_adds=node_multiply_adds(node, types) if known else 0,
        bytes_read=sum(types[value].nbytes for value in inputs) if moves else 0,
        bytes_written=sum(types[value].nbytes for value in outputs) if moves else 0,
        shape=types[outputs[0]].shape if known and outputs else (),
    )


def node_multiply_adds(node: ir.Node, types: Types) -> int:
    """Multiply-adds of one node whose tensors are all in `types`."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    a, b = (types[value].shape for value in node.inputs[:2] if value is not None)
    out = types[node.outputs[0]].size
    if node.op_type == "Conv":
        return out * math.prod(b[1:])
    if node.op_type == "ConvTranspose":
        return math.prod(a) * math.prod(b[1:])
    if node.op_type == "Gemm":
        return out * a[0 if node.attributes.get_int("transA", 0) else 1]
    return out * a[-1]


class Inference:
    """The tensors of a graph in numbers, found node by node.

    Args:
        model: the model; local functions must have been written out.
        shapes: input name -> shape; of an input that is missing nothing is known, nor of what follows from it.
    """

    def __init__(self, model: ir.Model, shapes: Shapes) -> None:
        self.types: dict[ir.Value, TensorType] = {}
        """Tensors whose shape depends on data are left out."""
        self._values: dict[ir.Value, np.ndarray] = {}
        self._opset = model.opset_imports.get("", 1)
        for value in _constants(model.graph):
            self.add_constant(value)
        for value in model.graph.inputs:
            if value not in self.types and value.dtype is not None and value.name in shapes:
                self.types[value] = TensorType(value.dtype, tuple(shapes[value.name]))
        for node in model.graph:
            self.add(node)

    def add_constant(self, value: ir.Value) -> None:
        """Take in an initialiser, or the output of a Constant node."""
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is not None:
            self.types[value] = TensorType(tensor.dtype, tuple(tensor.shape.numpy()))
            if tensor.size <= _SMALL and tensor.dtype != ir.DataType.STRING and not value.is_graph_input():
                self._values[value] = tensor.numpy()

    def forget(self, value: ir.Value) -> None:
        """Remove a tensor that did not join the graph."""
        self.types.pop(value, None)
        self._values.pop(value, None)

    def add(self, node: ir.Node) -> None:
        """Take in a node whose inputs are known: the types of its outputs, and their values where they are small."""
        inputs = [value for value in node.inputs if value is not None]
        graphs = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)
        plain = node.domain in ("", "ai.onnx") and all(attr.type not in graphs for attr in node.attributes.values())
        if plain and all(value in self.types for value in inputs):
            proto = ir.to_proto(node)
            found = self._node_types(proto, inputs)
            self.types.update((value, found[value.name]) for value in node.outputs if value.name in found)
            self._values.update(self._node_values(node, proto))
        for value in node.outputs:  # of another domain, or with a body: what the file itself states
            if value not in self.types and value.name and value.shape is not None and value.dtype is not None:
                dims = [d for d in value.shape if isinstance(d, int)]
                if len(dims) == len(value.shape):
                    self.types[value] = TensorType(value.dtype, tuple(dims))

    def _node_types(self, proto: onnx.NodeProto, inputs: list[ir.Value]) -> dict[str, TensorType]:
        types, values = self.types, self._values
        try:
            found = onnx.shape_inference.infer_node_outputs(
                onnx.defs.get_schema(proto.op_type, self._opset, ""),
                proto,
                {v.name: onnx.helper.make_tensor_type_proto(int(types[v].dtype), types[v].shape) for v in inputs},
                {v.name: onnx.numpy_helper.from_array(values[v]) for v in inputs if v in values and _plain(values[v])},
                opset_imports=[onnx.helper.make_opsetid("", self._opset)],
            )
        except (onnx.defs.SchemaError, onnx.shape_inference.InferenceError, RuntimeError, KeyError):
            return {}
        return {name: known for name, proto_type in found.items() if (known := _numbers(proto_type)) is not None}

    def _node_values(self, node: ir.Node, proto: onnx.NodeProto) -> dict[ir.Value, np.ndarray]:
        inputs = [value for value in node.inputs if value is not None]
        small = all(value in self.types and self.types[value].size <= _SMALL for value in node.outputs if value.name)
        if node.op_type in ("Shape", "Size") and inputs:  # only its shape is asked, so it needs no memory
            feeds = {inputs[0]: np.broadcast_to(np.float32(0), self.types[inputs[0]].shape)}
        else:
            feeds = {value: self._values[value] for value in inputs if value in self._values}
        if not small or len(feeds) < len(set(inputs)) or node.op_type in RANDOM:
            return {}
        try:
            results = evaluate(proto, {value.name: array for value, array in feeds.items()}, self._opset)
        except Exception:  # the reference evaluator raises whatever numpy does; a value that is not known is no error
            return {}
        return {
            value: array for value, array in zip(node.outputs, results, strict=True) if isinstance(array, np.ndarray)
        }


def _input_shapes(model: ir.Model, given: Shapes) -> Shapes:
    names = [value.name for value in model.graph.inputs]
    if unknown := set(given) - set(names):
        raise GraphError(f"no input {min(unknown)!r} to give a shape to: the inputs are {names}")
    inputs = [value for value in model.graph.inputs if value.name and not value.is_initializer()]
    return {value.name: _input_shape(value, given.get(value.name)) for value in inputs if value.name}


def _input_shape(value: ir.Value, given: Sequence[int] | None) -> tuple[int, ...]:
    declared = value.shape
    if given is not None:
        fits = declared is None or (
            len(declared) == len(given)
            and all(not isinstance(d, int) or d == g for d, g in zip(declared, given, strict=True))
        )
        if not fits:
            raise GraphError(f"shape {list(given)} does not fit input {value.name!r} {declared}: give one that does")
        return tuple(map(int, given))
    if declared is None:
        raise GraphError(f"input {value.name!r} has no shape: give one")
    free = [i for i, d in enumerate(declared) if not isinstance(d, int)]
    if any(i > 0 for i in free):
        raise GraphError(f"input {value.name!r} {declared} has free dimensions: give its shape")
    return tuple(d if isinstance(d, int) else 1 for d in declared)


def _plain(array: np.ndarray) -> bool:
    return array.dtype.kind in "biuf"  # bfloat16 and the 4- and 8-bit floats never hold sizes


def _numbers(proto: onnx.TypeProto) -> TensorType | None:
    if not proto.HasField("tensor_type") or not proto.tensor_type.HasField("shape"):
        return None
    dims = proto.tensor_type.shape.dim
    if not all(d.HasField("dim_value") for d in dims):
        return None
    return TensorType(ir.DataType(proto.tensor_type.elem_type), tuple(d.dim_value for d in dims))


def evaluate(proto: onnx.NodeProto, feeds: Mapping[str | None, np.ndarray], opset: int) -> list[Any]:
    """The outputs of one node by ONNX's reference implementation, which raises whatever numpy does."""
    graph = onnx.helper.make_graph(
        [proto],
        "node",
        [onnx.helper.make_value_info(str(name), onnx.TypeProto()) for name in feeds],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in proto.output if name],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    return list(ReferenceEvaluator(model).run(None, dict(feeds)))


def _peak_activation_bytes(graph: ir.Graph, types: Types) -> int:
    constants = set(_constants(graph))
    owner: dict[ir.Value, ir.Value] = {}  # a view -> the tensor whose memory it shows
    for node in graph:
        if node.op_type in _VIEWS and node.inputs and node.inputs[0] is not None:
            owner[node.outputs[0]] = owner.get(node.inputs[0], node.inputs[0])
    nodes = list(graph)
    last: dict[ir.Value, int] = {}
    for i, node in enumerate(nodes):
        last.update((owner.get(value, value), i) for value in _reads(node))
    last.update((owner.get(value, value), len(nodes)) for value in graph.outputs)

    live = {value: types[value].nbytes for value in graph.inputs if value in types and value not in constants}
    peak = sum(live.values())
    for i, node in enumerate(nodes):
        live.update(
            (value, types[value].nbytes)
            for value in node.outputs
            if value in types and value not in owner and value not in constants
        )
        peak = max(peak, sum(live.values()))
        live = {value: nbytes for value, nbytes in live.items() if last.get(value, -1) > i}
    return peak


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """The tensors of the main graph that a node reads, also from within its subgraphs."""
    yield from (value for value in node.inputs if value is not None)
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH:
            for inner in attr.as_graph():
                yield from _reads(inner)


def _constants(graph: ir.Graph) -> list[ir.Value]:
    """Initialisers, and the outputs of Constant nodes."""
    made = [node.outputs[0] for node in graph if node.op_type == "Constant"]
    return [*graph.initializers.values(), *made]


def _constant_shape(value: ir.Value) -> tuple[int, ...] | None:
    tensor = ir.convenience.get_const_tensor(value)
    floats = tensor is not None and (tensor.dtype.is_floating_point() or tensor.dtype.bitwidth <= 8)
    return tuple(tensor.shape.numpy()) if tensor is not None and floats else None


def load(model: onnx.ModelProto) -> ir.Model:
    """The model with its local functions written out.

    Raises:
        GraphError: it is not a valid model.
    """
    try:
        loaded = ir.from_proto(model)
        return InlinePass()(loaded).model
    except Exception as e:  # the deserialiser and the inliner raise many types; all mean the same to a user
        raise GraphError(f"not a valid ONNX model: {' '.join(str(e).split())}") from None
