"""The types of all tensors of a graph in numbers, node by node, together with the values of small tensors.

So the sizes that a dynamic graph computes (Shape, Gather, Concat, Resize) become numbers. ONNX's own inference does one node
at a time; what it found for one node serves for all that are like it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.serde import serialize_node

from r2mrf_deploy.errors import GraphError, reading
from r2mrf_deploy.graph.nodes import bodies, constant_tensor, constants, load, opset, static_shape

Shapes = Mapping[str, Sequence[int]]

_SMALL = 4096
"""The most elements of a tensor whose value is computed too: sizes, axes and scales are small, weights are not needed."""
_REMEMBERED = 4096
"""The most bytes of a node whose inference is remembered: a Constant node holds its tensor."""

RANDOM = frozenset(
    {"RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial"}
)


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
        for value in constants(model.graph):
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
            found = zip(node.outputs, self._node_types(node, inputs), strict=True)
            self.types.update((value, known) for value, known in found if known is not None)
            self._values.update(self._node_values(node, inputs))
        for value in node.outputs:  # of another domain, or with a subgraph: what the file itself states
            shape = static_shape(value)
            if value not in self.types and value.name and shape is not None and isinstance(value.type, ir.TensorType):
                self.types[value] = TensorType(value.type.dtype, shape)

    def _node_types(self, node: ir.Node, inputs: list[ir.Value]) -> tuple[TensorType | None, ...]:
        known = dict.fromkeys(inputs)
        values = (self._values.get(value) for value in known)
        plain = tuple(None if v is None or not _plain(v) else (v.dtype.str, v.shape, v.tobytes()) for v in values)
        anonymous = _anonymous(node)
        find = _inferred if len(anonymous) <= _REMEMBERED else _inferred.__wrapped__
        return find(self._opset, anonymous, tuple(self.types[value] for value in known), plain)

    def _node_values(self, node: ir.Node, inputs: list[ir.Value]) -> dict[ir.Value, np.ndarray]:
        small = all(value in self.types and self.types[value].size <= _SMALL for value in node.outputs if value.name)
        if node.op_type in ("Shape", "Size"):  # only its input's shape is needed, so this takes no memory
            feeds = {inputs[0]: np.broadcast_to(np.float32(0), self.types[inputs[0]].shape)}
        else:
            feeds = {value: self._values[value] for value in inputs if value in self._values}
        if not small or len(feeds) < len(set(inputs)) or node.op_type in RANDOM:
            return {}
        try:
            results = evaluate(ir.to_proto(node), {value.name: array for value, array in feeds.items()}, self._opset)
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


def _anonymous(node: ir.Node) -> bytes:
    """A node without names: nodes with the same operator, attributes and pattern of inputs give the same."""
    proto = serialize_node(node)
    names: dict[ir.Value | None, str] = {None: ""}
    for value in node.inputs:
        names.setdefault(value, f"i{len(names) - 1}")
    proto.input[:] = [names[value] for value in node.inputs]
    proto.output[:] = [f"o{i}" if value.name else "" for i, value in enumerate(node.outputs)]
    proto.ClearField("name")
    proto.ClearField("doc_string")
    del proto.metadata_props[:]
    return proto.SerializeToString(deterministic=True)


_Number = tuple[str, tuple[int, ...], bytes]
"""The dtype, shape and content of an array."""


@lru_cache(maxsize=4096)
def _inferred(
    opset: int, node: bytes, types: tuple[TensorType, ...], values: tuple[_Number | None, ...]
) -> tuple[TensorType | None, ...]:
    """The types of a node's outputs, None where unknown. Unrolled steps ask the same again and again, and so do searches.

    Args:
        node: as `_anonymous` writes it.
        types: of its inputs, each once.
        values: of those of them whose numbers are known.
    """
    proto = onnx.NodeProto.FromString(node)
    numbers = {
        f"i{i}": onnx.numpy_helper.from_array(np.frombuffer(v[2], v[0]).reshape(v[1]))
        for i, v in enumerate(values)
        if v is not None
    }
    try:
        found = onnx.shape_inference.infer_node_outputs(
            onnx.defs.get_schema(proto.op_type, opset, ""),
            proto,
            {f"i{i}": onnx.helper.make_tensor_type_proto(int(t.dtype), t.shape) for i, t in enumerate(types)},
            numbers,
            opset_imports=[onnx.helper.make_opsetid("", opset)],
        )
    except Exception:  # the inference, the checker and the schemas raise what they like; an unknown type is no error
        return (None,) * len(proto.output)
    return tuple(_numbers(found[name]) if name in found else None for name in proto.output)


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
