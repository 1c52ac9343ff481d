"""The kernels that a runtime makes of a graph: what each computes, in which precision, and how many bytes it moves.

A pointwise operator that is the only reader of another operator's result is fused into it, as TensorRT, ONNX Runtime and
OpenVINO do. A tensor between Q and DQ exists only in its quantised form. Everything else reads its inputs and writes its
outputs once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx
import onnx_ir as ir

from r2mrf_deploy.graph.cost import FREE, MULTIPLYING, node_multiply_adds
from r2mrf_deploy.graph.inference import Shapes, Types, infer
from r2mrf_deploy.graph.nodes import operator

Precision = Literal["fp32", "fp16", "bf16", "int8", "fp8"]

_PRECISIONS: dict[ir.DataType, Precision] = {
    ir.DataType.FLOAT16: "fp16",
    ir.DataType.BFLOAT16: "bf16",
    ir.DataType.INT8: "int8",
    ir.DataType.UINT8: "int8",
    ir.DataType.FLOAT8E4M3FN: "fp8",
}
_QUANTISE = frozenset({"QuantizeLinear", "DequantizeLinear"})
_TRANSPARENT = FREE | _QUANTISE
_POINTWISE = frozenset(
    {
        *("Relu", "LeakyRelu", "PRelu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Gelu", "Erf"),
        *("Add", "Sub", "Mul", "Div", "BatchNormalization", "Cast", "Neg", "Exp", "Sqrt", "Pow"),
    }
)


@dataclass(frozen=True)
class Kernel:
    """One kernel: a node and what is fused into it."""

    name: str
    op: str
    precision: Precision
    """Of its multiply-adds."""
    multiply_adds: int
    bytes: int
    """Read and written."""
    shape: tuple[int, ...]
    """Of what it writes."""


def kernels(model: onnx.ModelProto, shapes: Shapes | None = None) -> tuple[Kernel, ...]:
    """The kernels of a graph in its order; see `cost.multiply_adds` for the arguments.

    Raises:
        GraphError: a shape cannot be known.
    """
    loaded, types = infer(model, shapes)
    groups: dict[ir.Node, list[ir.Node]] = {}
    leader: dict[ir.Node, ir.Node] = {}
    for node in loaded.graph:
        if operator(node) not in _TRANSPARENT:
            leader[node] = _host(node, leader) or node
            groups.setdefault(leader[node], []).append(node)
    return tuple(_kernel(nodes, types) for nodes in groups.values() if not _constant(nodes))


def _host(node: ir.Node, leader: dict[ir.Node, ir.Node]) -> ir.Node | None:
    """The kernel that a pointwise node is fused into: the one that makes the last of the inputs that only this node
    reads."""
    if operator(node) not in _POINTWISE:
        return None
    for value in reversed(node.inputs):
        made = None if value is None else _maker(value)
        if made is not None and made in leader and _readers(made.outputs[0]) == {node} and len(made.outputs) == 1:
            return leader[made]
    return None


def _maker(value: ir.Value) -> ir.Node | None:
    """The node that computes a value, looking through views, Q and DQ."""
    node = value.producer()
    while node is not None and operator(node) in _TRANSPARENT and node.inputs and node.inputs[0]:
        node = node.inputs[0].producer()
    return node


def _readers(value: ir.Value) -> set[ir.Node | None]:
    """The nodes that read a value, looking through views, Q and DQ; with None if it is an output of the graph."""
    found: set[ir.Node | None] = {None} if value.is_graph_output() else set()
    for node in value.consumers():
        found |= _readers(node.outputs[0]) if operator(node) in _TRANSPARENT else {node}
    return found


def _kernel(nodes: list[ir.Node], types: Types) -> Kernel:
    first, inside = nodes[0], set(nodes)
    read = {
        _stored(value, types): None
        for node in nodes
        for value in node.inputs
        if value is not None and value.name and _maker(value) not in inside
    }
    written = [v for node in nodes for v in node.outputs if v.name and _readers(v) - inside]
    return Kernel(
        name=first.name or "",
        op="+".join(operator(node) for node in nodes),
        precision=_precision(first, types),
        multiply_adds=sum(node_multiply_adds(node, types) for node in nodes),
        bytes=sum(types[v].nbytes for v in read) + sum(_written(v, types) for v in written),
        shape=types[(written or list(nodes[-1].outputs))[0]].shape,
    )


def _stored(value: ir.Value, types: Types) -> ir.Value:
    """The tensor in memory that a value is read from: the input of its DQ."""
    node = value.producer()
    if node is not None and operator(node) == "DequantizeLinear" and node.inputs[0] in types:
        return node.inputs[0]
    return value


def _written(value: ir.Value, types: Types) -> int:
    """The bytes written for a value: those of its quantised form if nothing reads it otherwise."""
    users = list(value.consumers())
    if users and all(operator(u) == "QuantizeLinear" for u in users) and not value.is_graph_output():
        return types[users[0].outputs[0]].nbytes
    return types[value].nbytes


def _precision(node: ir.Node, types: Types) -> Precision:
    if operator(node) in MULTIPLYING:
        stored = {types[_stored(v, types)].dtype for v in node.inputs[:2]}
        if len(stored) == 1 and (low := _PRECISIONS.get(stored.pop())):
            return low
    return _PRECISIONS.get(types[node.outputs[0]].dtype, "fp32")


def _constant(nodes: list[ir.Node]) -> bool:
    """Whether these nodes read constants only, so that they are computed once, when the engine is built."""
    inputs = (value for node in nodes for value in node.inputs if value is not None)
    return all(v.is_initializer() or ir.convenience.get_const_tensor(v) is not None for v in inputs)
