"""Nodes that scale and shift each channel by constants: y = scale · x + shift.

These are BatchNormalization at inference, and Add, Sub, Mul and Div with a constant that has one element, or one per
channel.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from r2mrf_deploy.graph.rewrites.editor import Editor, Reading


@dataclass(frozen=True, eq=False)
class Affine(Reading):
    """y = scale · x + shift; scale and shift are float64 [C], or [1] if all channels share them."""

    scale: np.ndarray
    shift: np.ndarray

    @property
    def channels(self) -> int:
        """The number of channels that its constants are for; 1 if any number fits."""
        return max(self.scale.size, self.shift.size)


def affine(editor: Editor, node: ir.Node | None, rank: int | None = None) -> Affine | None:
    """Read a node as a channel-wise affine function of a float tensor [N, C, ...]; None if it is none.

    Args:
        rank: that tensor's rank, if it is known from elsewhere than its declared shape.
    """
    found = None
    if editor.has(node, "BatchNormalization"):
        found = _batch_norm(editor, node)
    elif editor.has(node, "Add", "Sub", "Mul", "Div"):
        found = _arithmetic(editor, node, rank)
    finite = found is not None and np.isfinite(found.scale).all() and np.isfinite(found.shift).all()
    return found if finite else None


def _batch_norm(editor: Editor, node: ir.Node) -> Affine | None:
    # before opset 14 the outputs beside the first are what tells training from inference
    trained = node.attributes.get_int("training_mode", 0) or (editor.opset < 14 and len(node.outputs) > 1)
    constants = [editor.constant(value) for value in node.inputs[1:]]
    if trained or any(c is None for c in constants) or any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):
        return None
    gamma, beta, mean, variance = (np.asarray(c, np.float64) for c in constants)
    with np.errstate(all="ignore"):  # `affine` refuses what is not finite
        scale = gamma / np.sqrt(variance + node.attributes.get_float("epsilon", 1e-5))
        return Affine(node, node.inputs[0], scale, beta - mean * scale)


def _arithmetic(editor: Editor, node: ir.Node, rank: int | None) -> Affine | None:
    left, right = node.inputs
    a, b = editor.constant(left), editor.constant(right)
    if (a is None) == (b is None):
        return None
    given, x = (b, left) if a is None else (a, right)
    assert given is not None
    if rank is None:
        rank = len(x.shape) if x.shape is not None else 0
    c = _per_channel(given, rank)
    if c is None or given.dtype.kind in "iub":
        return None
    one, zero = np.ones(1), np.zeros(1)
    if node.op_type == "Add":
        return Affine(node, x, one, c)
    if node.op_type == "Mul":
        return Affine(node, x, c, zero)
    if node.op_type == "Sub":
        return Affine(node, x, one, -c) if a is None else Affine(node, x, -one, c)
    if a is not None or not c.all():  # c / x is not affine
        return None
    return Affine(node, x, 1 / c, zero)


def _per_channel(array: np.ndarray, rank: int) -> np.ndarray | None:
    """A constant that broadcasts to [N, C, ...] along C alone, as float64 [C] or [1]."""
    axis = array.ndim - rank + 1  # the constant's axis that meets the channels
    if array.ndim > rank or rank < 2:
        return None
    if array.size != 1 and (axis < 0 or array.size != array.shape[axis]):
        return None
    return array.reshape(-1).astype(np.float64)
