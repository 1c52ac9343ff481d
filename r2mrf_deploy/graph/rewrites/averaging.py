"""Operators whose output pixels are weighted means of input pixels, channel by channel, with weights that sum to one.

A function that treats every pixel alike and is affine in the channels commutes with them exactly, bias included:
W (sum_i a_i x_i) + b = sum_i a_i (W x_i + b). Bilinear Resize is the one that matters to recurrent detectors.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from r2mrf_deploy.graph.rewrites.editor import Draft, Editor, channels

CLAMPED = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
"""Coordinates of a Resize that clamps at the border. tf_crop_and_resize puts a constant there, so its weights do not sum
to one."""


@dataclass(frozen=True)
class Averaging:
    """A node that averages over space."""

    node: ir.Node
    selects: bool
    """Every output pixel is one input pixel (nearest): then any pointwise function commutes, not only affine ones."""

    @property
    def x(self) -> ir.Value:
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def out(self) -> ir.Value:
        return self.node.outputs[0]

    def emit(self, draft: Draft, x: ir.Value, *, name: str, count: int | None) -> ir.Value:
        """The same averaging of another tensor with the same spatial size and `count` channels, into a draft."""
        inputs: list[ir.Value | None] = [x, *self.node.inputs[1:]]
        if self.node.op_type == "Resize" and count != channels(self.x):
            inputs = _resize_inputs(draft, self.node, x, count, name)
        return draft.op(
            self.node.op_type,
            inputs,
            dict(self.node.attributes),
            name=name,
            like=self.out,
            channels=count,
        )


def averaging(editor: Editor, node: ir.Node | None) -> Averaging | str | None:
    """Read a node as an average.

    Returns:
        the average; or why a node that resembles one is not one; or None for any other node.
    """
    if node is None or node.domain != "" or node.graph is not editor.graph or not node.inputs or node.inputs[0] is None:
        return None
    if node.op_type == "Resize":
        refusal = _resize_refusal(editor, node)
        return refusal or Averaging(node, selects=node.attributes.get_string("mode", "nearest") == "nearest")
    if node.op_type == "AveragePool":
        refusal = _pool_refusal(node)
        return refusal or Averaging(node, selects=False)
    if node.op_type == "GlobalAveragePool":
        return Averaging(node, selects=False)
    return None


def _pool_refusal(node: ir.Node) -> str | None:
    attributes = node.attributes
    if attributes.get_int("ceil_mode", 0):
        return "the pooling rounds its size up, and runtimes differ in what they divide by there"
    auto_pad = attributes.get_string("auto_pad", "NOTSET")
    unpadded = auto_pad == "VALID" or (auto_pad == "NOTSET" and not any(attributes.get_ints("pads", [0])))
    if attributes.get_int("count_include_pad", 0) and not unpadded:
        return "the pooling counts its padding, so its weights do not sum to one"
    return None


def _resize_refusal(editor: Editor, node: ir.Node) -> str | None:
    attributes = node.attributes
    mode = attributes.get_string("mode", "nearest")
    if mode not in ("linear", "nearest"):
        return f"the resizing is {mode}"
    transformation = attributes.get_string("coordinate_transformation_mode", "half_pixel")
    if transformation not in CLAMPED:
        return f"the resizing's coordinates are {transformation}"
    if attributes.get_int("antialias", 0) or attributes.get_int("exclude_outside", 0):
        return "the resizing filters with weights that depend on the border"
    if attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "the resizing keeps the aspect ratio, which it takes over all axes"
    if not _spatial(editor, node):
        return "the resizing is not known to leave the channels as they are"
    return None


def _spatial(editor: Editor, node: ir.Node) -> bool:
    """Whether a Resize is known to leave axis 1 alone."""
    x = node.inputs[0]
    rank = len(x.shape) if x is not None and x.shape is not None else None
    axes = node.attributes.get_ints("axes", None)
    if axes is not None:
        return rank is not None and all(axis % rank >= 2 for axis in axes)
    scales = operand(node, 2)
    if scales is not None:
        factors = editor.constant(scales)
        return factors is not None and factors.size > 2 and float(factors[1]) == 1.0
    before, sizes = channels(x), editor.constant(operand(node, 3))
    after = int(sizes[1]) if sizes is not None and sizes.size > 2 else channels(node.outputs[0])
    return before is not None and before == after


def operand(node: ir.Node, i: int) -> ir.Value | None:
    """An optional input; None also if it is an empty tensor, by which older opsets leave an input out."""
    value = node.inputs[i] if i < len(node.inputs) else None
    empty = value is not None and value.const_value is not None and value.const_value.size == 0
    return None if empty else value


def _resize_inputs(draft: Draft, node: ir.Node, x: ir.Value, count: int | None, name: str) -> list[ir.Value | None]:
    """A Resize's inputs for `count` channels: sizes over all axes name the channels too."""
    sizes = operand(node, 3)
    if sizes is None or node.attributes.get_ints("axes", None) is not None:
        return [x, *node.inputs[1:]]
    if sizes.const_value is not None and sizes.is_initializer() and not sizes.is_graph_input():
        array = sizes.const_value.numpy().copy()
        array[1] = count
        return [x, *node.inputs[1:3], draft.constant(array, f"{name}/sizes")]

    def at(i: int) -> ir.Value:
        return draft.constant(np.array([i], np.int64), f"{name}/at{i}")

    batch = draft.op("Slice", [sizes, at(0), at(1)], name=f"{name}/batch")
    space = draft.op("Slice", [sizes, at(2), at(np.iinfo(np.int64).max)], name=f"{name}/space")
    new = draft.constant(np.array([count], np.int64), f"{name}/channels")
    return [x, *node.inputs[1:3], draft.op("Concat", [batch, new, space], {"axis": 0}, name=f"{name}/sizes")]
