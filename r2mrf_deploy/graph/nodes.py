"""Reading a graph of onnx_ir: operators, subgraphs, declared shapes and constants, and loading a model into it."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from r2mrf_deploy.errors import GraphError


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


def operator(node: ir.Node) -> str:
    """The name of a node's operator; one of another domain has the domain before it, so that it is like no standard one."""
    return f"{node.domain}.{node.op_type}" if node.domain else node.op_type


def opset(model: ir.Model) -> int:
    """The version of the standard operators, whose domain has two spellings."""
    return model.opset_imports.get("", model.opset_imports.get("ai.onnx", 1))


def bodies(node: ir.Node) -> list[ir.Graph]:
    """The subgraphs of If, Loop and Scan."""
    found: list[ir.Graph] = []
    for attr in node.attributes.values():
        if attr.type == ir.AttributeType.GRAPH:
            found.append(attr.as_graph())
        elif attr.type == ir.AttributeType.GRAPHS:
            found += attr.as_graphs()
    return found


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


def constants(graph: ir.Graph) -> list[ir.Value]:
    """Initialisers, and the outputs of Constant nodes."""
    made = [node.outputs[0] for node in graph if node.op_type == "Constant"]
    return [*graph.initializers.values(), *made]
