"""Remove what need not be computed: constant subgraphs, nodes that return their input, results that nothing reads.

Only operators that every runtime computes alike are evaluated here, by ONNX's reference implementation. Quantised weights
stay as they are: a DequantizeLinear of a constant tells a runtime to compute in integers.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from r2mrf_deploy.graph.inference import TensorType, evaluate
from r2mrf_deploy.graph.nodes import bodies, static_shape
from r2mrf_deploy.graph.rewrites.averaging import CLAMPED
from r2mrf_deploy.graph.rewrites.editor import Editor, Outcome, has_fixed_name, operand

_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Neg", "Sqrt", "Reciprocal", "Pow", "Abs", "Floor", "Ceil", "Min", "Max")
_ARRANGING = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Slice", "Gather", "Expand")
_MAKING = ("Cast", "CastLike", "Shape", "Size", "ConstantOfShape", "Range")
_CHOOSING = ("Equal", "Less", "Greater", "Not", "And", "Or", "Where")
FOLDED = frozenset((*_ARITHMETIC, *_ARRANGING, *_MAKING, *_CHOOSING))

_SMALL = 4096
"""The number of elements up to which a constant may be larger than the constants it is made from."""


def cleanup(editor: Editor) -> Outcome:
    """Fold, bypass and remove; counts the nodes removed."""
    for node in editor.nodes("Constant"):
        editor.lift(node)
    before, refusals = len(editor.graph), []
    for node in list(editor.graph):
        if not editor.knows(node) or bodies(node):
            continue
        source = _source(editor, node)
        if source is not None:
            _bypass(editor, node, source)
        elif refusal := _fold(editor, node) if node.op_type in FOLDED else _why_it_stays(editor, node):
            refusals.append(f"{node.name}: {refusal}")
    RemoveUnusedNodesPass()(editor.model)
    return Outcome(before - len(editor.graph), tuple(refusals))


def _source(editor: Editor, node: ir.Node) -> ir.Value | None:
    """The input that a node returns unchanged; None for a node that does something."""
    if not node.inputs:
        return None
    x, same = node.inputs[0], node.op_type == "Identity"
    if node.op_type == "Dropout":  # at inference: training mode is its third input
        same = len(node.inputs) < 3 and not any(v.uses() or v.is_graph_output() for v in node.outputs[1:])
    elif node.op_type == "Concat":
        same = len(node.inputs) == 1
    elif node.op_type == "Cast":
        same = x.dtype is not None and x.dtype == node.attributes.get_int("to", 0)
    elif node.op_type == "Resize":
        same = _keeps_size(editor, node)
    return x if same else None


def _keeps_size(editor: Editor, node: ir.Node) -> bool:
    """Whether a Resize maps every pixel to itself, whatever its interpolation."""
    attributes = node.attributes
    if attributes.get_string("coordinate_transformation_mode", "half_pixel") not in CLAMPED:
        return False
    if attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return False
    scales = operand(node, 2)
    if scales is not None:
        factors = editor.constant(scales)
        return factors is not None and bool((factors == 1).all())
    # from sizes: if the shapes are equal, every scale is 1. Two free dimensions of one name are not taken to be equal:
    # exporters give an enlarged output the names of the input's dimensions
    before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
    return before is not None and before == after


def _bypass(editor: Editor, node: ir.Node, source: ir.Value) -> None:
    out = node.outputs[0]
    # the node stays where it keeps two names apart that are both asked for
    if not (out.is_graph_output() and (has_fixed_name(source) or source.producer() is None)):
        editor.apply(editor.draft(), {out: source}, before=node)


def _why_it_stays(editor: Editor, node: ir.Node) -> str | None:
    """Why a node that looks as if it returned its input stays."""
    if node.op_type == "Dropout":
        return "its training mode is not known before it runs, or its mask is used"
    if node.op_type == "Resize":
        before, after = static_shape(node.inputs[0]), static_shape(node.outputs[0])
        if before is not None and before == after:
            return "the sizes are equal, but its coordinates or its scales move pixels"
    return None


def _fold(editor: Editor, node: ir.Node) -> str | None:
    """Replace a node by the constant that it computes; returns why not if it reads constants only."""
    draft, out = editor.draft(), node.outputs[0]
    array = _value(editor, node)
    if isinstance(array, str) or array is None:
        return array
    if out.is_graph_output():
        return "it is constant, but it is an output of the graph"
    editor.apply(draft, {out: draft.constant(array, f"{out.name}/value")}, before=node)
    return None


def _value(editor: Editor, node: ir.Node) -> np.ndarray | str | None:
    """What a node computes from constants alone, or why it is kept; None if it also reads other tensors."""
    inputs = [value for value in node.inputs if value is not None]
    if node.op_type in ("Shape", "Size"):
        return _static_size(node)
    if node.op_type == "CastLike":
        return _cast_like(editor, *node.inputs)
    feeds = {value.name: array for value in inputs if (array := editor.constant(value)) is not None}
    size = editor.types.get(node.outputs[0])
    if size is None or not inputs or len(feeds) < len({value.name for value in inputs}):
        return None
    if size.size > max(_SMALL, sum(array.size for array in feeds.values())):
        return f"it is constant, but its {size.size} elements are more than those it is made from"
    if node.op_type == "Div" and any(array.dtype.kind == "i" and (array < 0).any() for array in feeds.values()):
        return "it divides negative integers, which runtimes round differently"  # numpy down, processors towards zero
    try:
        result = evaluate(ir.to_proto(node), feeds, editor.opset)[0]
    except Exception:  # the reference evaluator raises whatever numpy raises; a node that it cannot compute stays
        return None
    if not isinstance(result, np.ndarray) or result.dtype.kind not in "biuf":
        return None
    return result if TensorType(ir.DataType.from_numpy(result.dtype), result.shape) == size else None


def _cast_like(editor: Editor, x: ir.Value | None, like: ir.Value | None) -> np.ndarray | None:
    array = editor.constant(x)
    if array is None or like is None or like.dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return None
    return array.astype(like.dtype.numpy())


def _static_size(node: ir.Node) -> np.ndarray | None:
    shape = static_shape(node.inputs[0])
    if shape is None:
        return None
    dims = np.array(shape, np.int64)
    if node.op_type == "Size":
        return np.array(dims.prod(), np.int64)
    start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", len(dims))
    return dims[start:end]
