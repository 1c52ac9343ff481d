"""Operators whose output pixels are weighted means of input pixels, channel by channel, with weights that sum to one.

A function that treats every pixel alike and is affine in the channels commutes with them exactly, bias included:
W (sum_i a_i x_i) + b = sum_i a_i (W x_i + b). In recurrent detectors the important one is bilinear Resize.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from r2mrf_deploy.graph.nodes import static_shape
from r2mrf_deploy.graph.rewrites.editor import Draft, Editor, Reading, channels, operand, static_dim

CLAMPED = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
"""The `coordinate_transformation_mode`s of Resize that clamp at the border. tf_crop_and_resize extrapolates by a constant,
so its weights do not sum to one."""

_WHOLE = (ir.DataType.INT64, ir.DataType.INT32)


@dataclass(frozen=True, eq=False)
class Averaging(Reading):
    """A node that averages over space."""

    selects: bool
    """Every output pixel is one input pixel (nearest): any pointwise function then commutes, not only affine ones."""

    def emit(self, draft: Draft, x: ir.Value, *, name: str, count: int | None) -> ir.Value:
        """Draft the same averaging of another tensor with the same spatial size and `count` channels."""
        node, inputs = self.node, [x, *self.node.inputs[1:]]
        if node.op_type == "Resize" and count != channels(self.x):
            inputs = _resize_inputs(draft, node, x, count, name)
        return draft.op(node.op_type, inputs, dict(node.attributes), name=name, like=self.out, channels=count)


def averaging(editor: Editor, node: ir.Node | None) -> Averaging | str | None:
    """Read a node as an average: the average, or why a similar node is none, or None for any other node."""
    if node is None or not editor.has(node, "Resize", "AveragePool", "GlobalAveragePool"):
        return None
    refusal = None
    if node.op_type == "Resize":
        refusal = _resize_refusal(editor, node)
    elif node.op_type == "AveragePool":
        refusal = _pool_refusal(node)
    selects = node.op_type == "Resize" and node.attributes.get_string("mode", "nearest") == "nearest"
    return refusal or Averaging(node, node.inputs[0], selects)


def _pool_refusal(node: ir.Node) -> str | None:
    attributes = node.attributes
    if attributes.get_int("ceil_mode", 0):
        return "the pooling rounds its output size up, and runtimes divide by different counts at that border"
    auto_pad = attributes.get_string("auto_pad", "NOTSET")
    unpadded = auto_pad == "VALID" or (auto_pad == "NOTSET" and not any(attributes.get_ints("pads", [0])))
    if attributes.get_int("count_include_pad", 0) and not unpadded:
        return "the pooling counts its padding, so its weights do not sum to one"
    return None


def _resize_refusal(editor: Editor, node: ir.Node) -> str | None:
    attributes = node.attributes
    mode = attributes.get_string("mode", "nearest")
    if mode not in ("linear", "nearest"):
        return f"the resizing's mode is {mode}"
    transformation = attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if transformation not in CLAMPED:
        return f"the resizing's coordinates are {transformation}"
    if attributes.get_int("antialias", 0) or attributes.get_int("exclude_outside", 0):
        return "the resizing filters with weights that depend on the border"
    if attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "the resizing keeps the aspect ratio, which depends on all axes"
    if not keeps(editor, node, axis=1):
        return "the resizing may change the number of channels"
    return None


def keeps(editor: Editor, resize: ir.Node, axis: int) -> bool:
    """Whether a Resize is known to leave the batch (axis 0) or the channels (axis 1) as they are."""
    x = resize.inputs[0]
    axes = resize.attributes.get_ints("axes", None)
    if axes is not None:
        return x.shape is not None and all(other % len(x.shape) >= 2 for other in axes)
    scales = operand(resize, 2)
    if scales is not None:
        factors = editor.constant(scales)
        return factors is not None and factors.size > 2 and float(factors[axis]) == 1.0
    sizes = operand(resize, 3)
    array = editor.constant(sizes)
    before = static_dim(x, axis)
    after = int(array[axis]) if array is not None and array.size > 2 else static_dim(resize.outputs[0], axis)
    return before == after if before is not None else axis == 0 and _begins_with_batch_of(editor, x, sizes)


def _begins_with_batch_of(editor: Editor, x: ir.Value, sizes: ir.Value | None) -> bool:
    """Whether the first of some sizes is computed as that of `x`: then the batch is free, and equal.

    That two free dimensions have one name proves nothing: exporters give results the names of what they were made from.
    """
    node, shape = (sizes.producer(), static_shape(sizes)) if sizes is not None else (None, None)
    if node is None or sizes is None or shape is None or 0 in shape or sizes.dtype not in _WHOLE:
        return False
    if editor.has(node, "Shape"):
        return node.inputs[0] is x and node.attributes.get_int("start", 0) == 0
    if editor.has(node, "Slice"):
        starts, forward = editor.constant(node.inputs[1]), operand(node, 4) is None
        unchanged = starts is not None and not starts.any() and forward
    elif editor.has(node, "Gather"):
        indices = editor.constant(node.inputs[1])
        unchanged = indices is not None and indices.flat[0] == 0
    else:
        unchanged = editor.has(node, "Concat", "Cast", "Reshape", "Squeeze", "Unsqueeze")
    return unchanged and _begins_with_batch_of(editor, x, node.inputs[0])


def _resize_inputs(draft: Draft, node: ir.Node, x: ir.Value, count: int | None, name: str) -> list[ir.Value | None]:
    """A Resize's inputs for `count` channels: sizes that are given for all axes include the channels."""
    sizes = operand(node, 3)
    if sizes is None or node.attributes.get_ints("axes", None) is not None:
        return [x, *node.inputs[1:]]
    array = draft.editor.constant(sizes)
    if array is not None:
        return [x, *node.inputs[1:3], draft.constant(np.array([array[0], count, *array[2:]]), f"{name}/sizes")]

    def at(i: int) -> ir.Value:
        return draft.constant(np.array([i], np.int64), f"{name}/at{i}")

    batch = draft.op("Slice", [sizes, at(0), at(1)], name=f"{name}/batch")
    space = draft.op("Slice", [sizes, at(2), at(np.iinfo(np.int64).max)], name=f"{name}/space")
    new = draft.constant(np.array([count], np.int64), f"{name}/channels")
    return [x, *node.inputs[1:3], draft.op("Concat", [batch, new, space], {"axis": 0}, name=f"{name}/sizes")]
