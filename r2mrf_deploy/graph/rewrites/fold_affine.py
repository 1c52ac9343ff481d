"""Fold a channel-wise affine node (batch norm, a scaling, a separate bias) into the convolution before it.

s · (W x + b) + t = (s W) x + (s b + t). This is exact for any padding, since the node acts after the
sum. Folding into the convolution *after* the node is not: a shift moved across zero padding would change the border.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from r2mrf_deploy.graph.rewrites.affine import Affine, affine
from r2mrf_deploy.graph.rewrites.editor import Editor, Outcome, operand
from r2mrf_deploy.graph.rewrites.rounding import rounded


def fold_affine(editor: Editor) -> Outcome:
    """Fold until no Conv or ConvTranspose is followed by an affine node that is its only reader."""
    count, refusals = 0, []
    for node in editor.nodes("Conv", "ConvTranspose"):
        refusal: str | None = None
        current: ir.Node | None = node
        while current is not None:
            current, refusal = _fold(editor, current)
            count += current is not None
        if refusal:
            refusals.append(refusal)
    return Outcome(count, tuple(refusals))


def _fold(editor: Editor, conv: ir.Node) -> tuple[ir.Node | None, str | None]:
    """The convolution with its follower folded in; or None and, for a near match, why not."""
    weight, out = editor.constant(conv.inputs[1]), conv.outputs[0]
    followers = [node for node, _ in out.uses()]
    rank = weight.ndim if weight is not None else 0
    follower = next((a for node in followers if (a := affine(editor, node, rank)) is not None and a.x is out), None)
    if follower is None:
        return None, None
    name = f"{conv.name} and {follower.name}"
    if weight is None:
        return None, f"{name}: the weights are not constant"
    if len(followers) > 1 or out.is_graph_output():
        return None, f"{name}: the convolution's result is also used by others"
    given = operand(conv, 2)
    bias = editor.constant(given)
    if given is not None and bias is None:
        return None, f"{name}: the bias is not constant"
    return _folded(editor, conv, follower, weight, bias, name)


def _folded(
    editor: Editor, conv: ir.Node, follower: Affine, weight: np.ndarray, bias: np.ndarray | None, name: str
) -> tuple[ir.Node | None, str | None]:
    group = conv.attributes.get_int("group", 1)
    transposed = conv.op_type == "ConvTranspose"
    channels = weight.shape[1] * group if transposed else weight.shape[0]
    if follower.channels not in (1, channels):
        return None, f"{name}: the constants are for {follower.channels} channels, the convolution has {channels}"
    scale = np.broadcast_to(follower.scale, (channels,))
    old_bias = np.zeros(channels) if bias is None else bias.astype(np.float64)
    with np.errstate(over="ignore"):  # `rounded` refuses it
        new_weight = weight.astype(np.float64) * _spread(scale, weight, group, transposed)
        new_bias = old_bias * scale + follower.shift
    constants = rounded(weight.dtype, new_weight, new_bias)
    if isinstance(constants, str):
        return None, f"{name}: {constants}"
    draft, base = editor.draft(), conv.name
    ends = zip(constants, ("weight", "bias"), strict=True)
    inputs = [conv.inputs[0], *(draft.constant(array, f"{base}/{end}") for array, end in ends)]
    out = draft.op(conv.op_type, inputs, dict(conv.attributes), name=base, like=follower.out)
    editor.apply(draft, {follower.out: out}, before=conv)
    return draft.nodes[0], None


def _spread(scale: np.ndarray, weight: np.ndarray, group: int, transposed: bool) -> np.ndarray:
    """The scale of each output channel, in the weights' shape: [M, C/g, ...] or, transposed, [C, M/g, ...]."""
    space = (1,) * (weight.ndim - 2)
    if not transposed:
        return scale.reshape(-1, 1, *space)
    per_group = scale.reshape(group, 1, -1)
    return np.repeat(per_group, weight.shape[0] // group, axis=1).reshape(weight.shape[0], -1, *space)
