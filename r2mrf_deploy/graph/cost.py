"""What a graph costs: multiply-adds and bytes of every node, and the peak memory of its activations.

The rewrites ask it whether a change pays, the manifest states its totals, and the latency budget builds a roofline on it. It
counts work, not time: no fusion, no cache, no runtime. Shapes are inferred here, node by node, together with the values of
small tensors, so that the sizes that a dynamic graph computes (Shape, Gather, Concat, Resize) become numbers.
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

from r2mrf_deploy.errors import GraphError, reading

Shapes = Mapping[str, Sequence[int]]

_SMALL = 4096
"""The most elements of a tensor whose value is computed too: sizes, axes and scales are small, weights are not needed."""

MULTIPLY_ADDS_PER_BYTE = 8
"""How many multiply-adds take the time of moving one byte. For convolutions in FP32 it is about 9 on two cores of a server,
12 on a GTX 1080 Ti and 7 on an H200."""

_VIEWS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators whose output shares its memory with the first input."""

FREE = frozenset({"Constant", "Shape", "Size"}) | _VIEWS
"""Operators that move no activation."""

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)

MULTIPLYING = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})
"""Operators whose multiply-adds are counted."""

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
    """Every distinct input once, including weights; 0 for an operator whose output shares its input's memory."""
    bytes_written: int
    shape: tuple[int, ...]
    """Of the first output."""

    @property
    def effort(self) -> int:
        """Work and traffic in one number, in multiply-adds: a rewrite must lower it."""
        return self.multiply_adds + MULTIPLY_ADDS_PER_BYTE * (self.bytes_read + self.bytes_written)


@dataclass(frozen=True)
class GraphCost:
    """The work of a graph, node by node in the graph's order."""

    nodes: tuple[NodeCost, ...]
    peak_activation_bytes: int
    """The most that inputs, outputs and intermediate tensors occupy at once if the nodes run in the graph's order and each
    tensor is freed after its last use. Weights are not counted."""

    @property
    def multiply_adds(self) -> int:
        return sum(node.multiply_adds for node in self.nodes)

    @property
    def bytes(self) -> int:
        """Read and written."""
        return sum(node.bytes_read + node.bytes_written for node in self.nodes)


def multiply_adds(model: onnx.ModelProto, shapes: Shapes | None = None) -> int:
    """Multiply-adds of one inference: Conv, ConvTranspose, Gemm and MatMul; padding counts like pixels.

    Args:
        model: any ONNX model.
        shapes: input name -> shape. Required for an input with free dimensions, unless only the first is free: that is the
            batch and counts as 1.

    Raises:
        GraphError: a shape cannot be known.
    """
    return cost(model, shapes).multiply_adds


def multiply_adds_per_image(model: onnx.ModelProto, shapes: Shapes | None = None) -> int:
    """`multiply_adds` over the batch of the first input."""
    first = next(iter(model.graph.input), onnx.ValueInfoProto())
    shape = (shapes or {}).get(first.name) or [d.dim_value for d in first.type.tensor_type.shape.dim]
    return multiply_adds(model, shapes) // max(shape[0] if shape else 1, 1)


def parameters(model: onnx.ModelProto) -> int:
    """Elements of the weights of convolutions, matrix products and normalisations.

    An initialiser with several users counts once. Weights that are stored in fewer bits and cast or dequantised count in
    full; scales, sizes and the constants that normalise the input do not count.
    """
    graph = load(model).graph
    carried: dict[ir.Value, ir.Value] = {value: value for value in _constants(graph)}
    weights: set[ir.Value] = set()
    for node in graph:
        if operator(node) in _CARRIERS and node.inputs and node.inputs[0] in carried:
            carried[node.outputs[0]] = carried[node.inputs[0]]
        for slot in _WEIGHTS.get(operator(node), ()):
            value = node.inputs[slot] if slot < len(node.inputs) else None
            if value is not None and value in carried:
                weights.add(carried[value])
    tensors = map(constant_tensor, weights)
    return sum(t.size for t in tensors if t is not None and (t.dtype.is_floating_point() or t.dtype.bitwidth <= 8))


def cost(model: onnx.ModelProto, shapes: Shapes | None = None) -> GraphCost:
    """The cost of every node of a model; see `multiply_adds` for the arguments.

    Raises:
        GraphError: a shape cannot be known.
    """
    loaded, types = infer(model, shapes)
    return graph_cost(loaded.graph, types)


def infer(model: onnx.ModelProto, shapes: Shapes | None = None) -> tuple[ir.Model, Types]:
    """The model with its local functions inlined, and the types of all its tensors; see `multiply_adds`.

    Raises:
        GraphError: a shape cannot be known.
    """
    loaded = load(model)
    with reading("the model", GraphError, "is not a valid ONNX model"):
        types = Inference(loaded, _input_shapes(loaded, shapes or {})).types
    for node in loaded.graph:
        for value in (*node.inputs, *node.outputs):
            if value is not None and value.name and value not in types:
                raise GraphError(
                    f"the shape of {value.name!r} at {node.op_type} {node.name!r} is not known before the graph runs, so "
                    "its cost cannot be computed"
                )
    return loaded, types


def graph_cost(graph: ir.Graph, types: Types) -> GraphCost:
    """The cost of a graph whose shapes are given. Nodes with a tensor that is not in `types` count as free."""
    return GraphCost(tuple(node_cost(node, types) for node in graph), _peak_activation_bytes(graph, types))


def node_cost(node: ir.Node, types: Types) -> NodeCost:
    """The cost of one node; zero if one of its tensors is not in `types`."""
    inputs = list(dict.fromkeys(value for value in node.inputs if value is not None))
    outputs = [value for value in node.outputs if value.name]
    known = all(value in types for value in (*inputs, *outputs))
    moves = known and operator(node) not in FREE
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
    if operator(node) not in MULTIPLYING:
        return 0
    a, b = (types[value].shape for value in node.inputs[:2])
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
        model: without local functions.
        shapes: input name -> shape; of a missing input nothing is known, nor of what depends on it.
    """

    def __init__(self, model: ir.Model, shapes: Shapes) -> None:
        self.types: dict[ir.Value, TensorType] = {}
        """Without the tensors whose shape depends on data."""
        self._values: dict[ir.Value, np.ndarray] = {}
        self._opset = opset(model)
        for value in _constants(model.graph):
            self.add_constant(value)
        for value in model.graph.inputs:
            if value not in self.types and isinstance(value.type, ir.TensorType) and value.name in shapes:
                self.types[value] = TensorType(value.type.dtype, tuple(shapes[value.name]))
        for node in model.graph:
            self.add(node)

    def add_constant(self, value: ir.Value) -> None:
        """Take in an initialiser, or the output of a Constant node."""
        tensor = constant_tensor(value)
        if tensor is not None:
            self.types[value] = TensorType(tensor.dtype, tuple(tensor.shape.numpy()))
            if tensor.size <= _SMALL and tensor.dtype != ir.DataType.STRING and not value.is_graph_input():
                self._values[value] = tensor.numpy()

    def forget(self, value: ir.Value) -> None:
        """Remove a tensor that did not join the graph."""
        self.types.pop(value, None)
        self._values.pop(value, None)

    def add(self, node: ir.Node) -> None:
        """Take in a node whose inputs are known: the types of its outputs, and the values of small ones."""
        inputs = [value for value in node.inputs if value is not None]
        plain = node.domain in ("", "ai.onnx") and not bodies(node)
        if plain and all(value in self.types for value in inputs):
            proto = ir.to_proto(node)
            found = self._node_types(proto, inputs)
            self.types.update((value, found[value.name]) for value in node.outputs if value.name in found)
            self._values.update(self._node_values(node, proto, inputs))
        for value in node.outputs:  # of another domain, or with a subgraph: what the file itself states
            shape = static_shape(value)
            if value not in self.types and value.name and shape is not None and isinstance(value.type, ir.TensorType):
                self.types[value] = TensorType(value.type.dtype, shape)

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
        except (
            Exception
        ):  # the inference, the checker and the schemas raise what they like; an unknown type is no error
            return {}
        return {name: known for name, proto_type in found.items() if (known := _numbers(proto_type)) is not None}

    def _node_values(self, node: ir.Node, proto: onnx.NodeProto, inputs: list[ir.Value]) -> dict[ir.Value, np.ndarray]:
        small = all(value in self.types and self.types[value].size <= _SMALL for value in node.outputs if value.name)
        if node.op_type in ("Shape", "Size"):  # only its input's shape is needed, so this takes no memory
            feeds = {inputs[0]: np.broadcast_to(np.float32(0), self.types[inputs[0]].shape)}
        else:
            feeds = {value: self._values[value] for value in inputs if value in self._values}
        if not small or len(feeds) < len(set(inputs)) or node.op_type in RANDOM:
            return {}
        try:
            results = evaluate(proto, {value.name: array for value, array in feeds.items()}, self._opset)
        except Exception:  # the reference evaluator raises whatever numpy raises; an unknown value is no error
            return {}
        return {v: array for v, array in zip(node.outputs, results, strict=True) if isinstance(array, np.ndarray)}


def _input_shapes(model: ir.Model, given: Shapes) -> Shapes:
    names = [value.name for value in model.graph.inputs]
    if unknown := set(given) - set(names):
        raise GraphError(f"no input {min(unknown)!r} to give a shape to: the inputs are {names}")
    inputs = [value for value in model.graph.inputs if not value.is_initializer()]
    return {value.name: _input_shape(value, given.get(value.name)) for value in inputs}


def _input_shape(value: ir.Value, given: Sequence[int] | None) -> tuple[int, ...]:
    declared = value.shape
    if given is not None:
        fits = declared is None or (
            len(declared) == len(given)
            and all(not isinstance(d, int) or d == g for d, g in zip(declared, given, strict=True))
        )
        if not fits:
            raise GraphError(f"shape {list(given)} does not fit input {value.name!r} {declared}: give one that fits")
        return tuple(map(int, given))
    if declared is None:
        raise GraphError(f"input {value.name!r} has no shape: give one")
    if not all(isinstance(d, int) for d in declared[1:]):
        raise GraphError(f"input {value.name!r} {declared} has free dimensions: give its shape")
    return tuple(d if isinstance(d, int) else 1 for d in declared)


def _plain(array: np.ndarray) -> bool:
    return array.dtype.kind in "biuf"  # bfloat16 and the 4- and 8-bit floats never hold sizes


def _numbers(proto: onnx.TypeProto) -> TensorType | None:
    tensor = proto.tensor_type
    if not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
        return None
    return TensorType(ir.DataType(tensor.elem_type), tuple(d.dim_value for d in tensor.shape.dim))


def evaluate(proto: onnx.NodeProto, feeds: Mapping[str | None, np.ndarray], opset: int) -> list[Any]:
    """The outputs of one node by ONNX's reference implementation, which raises whatever numpy raises."""
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
    owner: dict[ir.Value, ir.Value] = {}  # a view -> the tensor whose memory it shares
    for node in graph:
        if operator(node) in _VIEWS:
            owner[node.outputs[0]] = owner.get(node.inputs[0], node.inputs[0])
    nodes = list(graph)
    last: dict[ir.Value, int] = {}
    for i, node in enumerate(nodes):
        last.update((owner.get(value, value), i) for value in _reads(node))
    last.update((owner.get(value, value), len(nodes)) for value in graph.outputs)

    live = {value: types[value].nbytes for value in graph.inputs if value in types and value not in constants}
    peak = sum(live.values())
    for i, node in enumerate(nodes):
        made = (value for value in node.outputs if value in types and value not in owner and value not in constants)
        live.update((value, types[value].nbytes) for value in made)
        peak = max(peak, sum(live.values()))
        live = {value: nbytes for value, nbytes in live.items() if last.get(value, -1) > i}
    return peak


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """The tensors that a node reads, also from within its subgraphs."""
    yield from (value for value in node.inputs if value is not None)
    for body in bodies(node):
        for inner in body:
            yield from _reads(inner)


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The subgraphs of If, Loop and Scan."""
    found: list[ir.Graph] = []
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH:
            found.append(attr.as_graph())
        elif attr.type == ir.AttributeType.GRAPHS:
            found += attr.as_graphs()
    return found


def operator(node: ir.Node) -> str:
    """The name of a node's operator; one of another domain has the domain before it, so that it is like no standard one."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def opset(model: ir.Model) -> int:
    """The version of the standard operators, whose domain has two spellings."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The shape that a tensor is declared to have; None if a dimension is free."""
    return value.shape.numpy() if value.shape is not None and value.shape.is_static() else None


def constant_tensor(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor of an initialiser, or of a Constant node unless it holds strings; None for anything else.

    `ir.convenience.get_const_tensor` would write a name into the tensor, which may be the caller's, and cannot read some
    strings.
    """
    node = value.producer()
    if value.const_value is not None or node is None or node.op_type != "Constant" or node.domain != "":
        return value.const_value
    ((name, attribute),) = node.attributes.items()
    if name == "value":
        return attribute.as_tensor()
    dtype = {"f": np.float32, "i": np.int64}.get(name.removeprefix("value_")[0])
    return ir.tensor(np.array(attribute.value, dtype)) if dtype is not None else None


def _constants(graph: ir.Graph) -> list[ir.Value]:
    """Initialisers, and the outputs of Constant nodes."""
    made = [node.outputs[0] for node in graph if node.op_type == "Constant"]
    return [*graph.initializers.values(), *made]


def load(model: onnx.ModelProto) -> ir.Model:
    """The model with its local functions inlined.

    Raises:
        GraphError: it is not a valid model, or has something that onnx_ir does not know, such as sparse tensors.
    """
    try:
        return InlinePass()(ir.from_proto(model)).model
    except Exception as e:  # the deserialiser and the inliner raise many types, one around the other
        cause: BaseException = e
        while cause.__cause__ is not None:
            cause = cause.__cause__
        why = " ".join(str(cause).split()) or type(cause).__name__
        raise GraphError(f"onnx_ir cannot read this ONNX model: {why}") from None
