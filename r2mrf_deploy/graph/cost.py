"""What a graph costs: multiply-adds and bytes of every node, and the peak memory of its activations.

The rewrites ask it whether a change pays, the manifest states its totals, and the latency budget builds a roofline on it. It
counts work, not time: no fusion, no cache, no runtime. Shapes are those of `inference`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import onnx
import onnx_ir as ir

from r2mrf_deploy.graph.inference import Shapes, Types, infer
from r2mrf_deploy.graph.nodes import bodies, constant_tensor, constants, load, operator

MULTIPLY_ADDS_PER_BYTE = 8
"""How many multiply-adds take the time of moving one byte. For convolutions in FP32 it is about 9 on two cores of a server,
12 on a GTX 1080 Ti and 7 on an H200."""

_VIEWS = frozenset({"Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators whose output shares its memory with the first input."""

FREE = frozenset({"Constant", "Shape", "Size"}) | _VIEWS
"""Operators that move no activation."""

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
    carried: dict[ir.Value, ir.Value] = {value: value for value in constants(graph)}
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


def known_multiply_adds(node: ir.Node, types: Types) -> int:
    """Multiply-adds of one node; 0 if one of its tensors is not in `types`."""
    if operator(node) not in MULTIPLYING:
        return 0
    tensors = (*node.inputs, *(value for value in node.outputs if value.name))
    return node_multiply_adds(node, types) if all(v is None or v in types for v in tensors) else 0


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


def _peak_activation_bytes(graph: ir.Graph, types: Types) -> int:
    constant = set(constants(graph))
    owner: dict[ir.Value, ir.Value] = {}  # a view -> the tensor whose memory it shares
    for node in graph:
        if operator(node) in _VIEWS:
            owner[node.outputs[0]] = owner.get(node.inputs[0], node.inputs[0])
    nodes = list(graph)
    last: dict[ir.Value, int] = {}
    for i, node in enumerate(nodes):
        last.update((owner.get(value, value), i) for value in _reads(node))
    last.update((owner.get(value, value), len(nodes)) for value in graph.outputs)

    live = {value: types[value].nbytes for value in graph.inputs if value in types and value not in constant}
    peak = total = sum(live.values())
    dying: dict[int, list[ir.Value]] = defaultdict(list)  # a node -> what need not be kept once it has run
    for value in live:
        dying[max(last.get(value, -1), 0)].append(value)
    for i, node in enumerate(nodes):
        for value in node.outputs:
            if value in types and value not in owner and value not in constant:
                live[value] = types[value].nbytes
                total += live[value]
                dying[max(last.get(value, -1), i)].append(value)
        peak = max(peak, total)
        total -= sum(live[value] for value in dying.pop(i, ()))
    return peak


def _reads(node: ir.Node) -> Iterator[ir.Value]:
    """The tensors that a node reads, also from within its subgraphs."""
    yield from (value for value in node.inputs if value is not None)
    for body in bodies(node):
        for inner in body:
            yield from _reads(inner)
