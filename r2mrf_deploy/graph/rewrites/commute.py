"""Move a pointwise function to the smaller side of a spatial average.

Conv1×1(up(x)) = up(Conv1×1(x)) exactly, because the weights of an interpolation sum to one. The same holds for channel-wise
affine nodes, and for any pointwise function if the resizing only copies pixels. Upsampling is cheaper last; an average that
shrinks its input is cheaper first.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from r2mrf_deploy.graph.rewrites.affine import affine
from r2mrf_deploy.graph.rewrites.averaging import averaging
from r2mrf_deploy.graph.rewrites.convolution import Convolution
from r2mrf_deploy.graph.rewrites.editor import Draft, Editor, Outcome, Reading, channels

_UNARY = frozenset(
    {"Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Softplus", "Neg", "Abs"}
)
"""Pointwise functions of one input. They commute with copying pixels."""


@dataclass(frozen=True, eq=False)
class Pointwise(Reading):
    """A function of one tensor that treats every pixel alike."""

    channels_in: int | None
    channels_out: int | None
    affine: bool

    def emit(self, draft: Draft, x: ir.Value) -> ir.Value:
        """Draft the same function of another tensor with the same channels."""
        inputs = [x if value is self.x else value for value in self.node.inputs]
        attributes = dict(self.node.attributes)
        return draft.op(self.node.op_type, inputs, attributes, name=self.name, like=x, channels=self.channels_out)


def commute(editor: Editor) -> Outcome:
    """Commute each pair of a pointwise function and an average once, where that pays."""
    attempts: list[str | None] = []
    for node in list(editor.graph):
        if node.graph is not None:  # else an earlier change removed it
            attempts.append(_function_first(editor, node))
            if attempts[-1] != "":
                attempts.append(_average_first(editor, node))
    return Outcome.of(attempts)


def pointwise(editor: Editor, node: ir.Node | None) -> Pointwise | None:
    """Read a node as a pointwise function of a tensor [N, C, ...]; None if it is none."""
    conv, scaling = Convolution.of(editor, node), affine(editor, node)
    if conv is not None and conv.geometry.pointwise:
        return Pointwise(conv.node, conv.x, conv.channels_in, conv.channels_out, affine=True)
    if scaling is not None and scaling.channels in (1, channels(scaling.x)):  # else it broadcasts to more channels
        return Pointwise(scaling.node, scaling.x, channels(scaling.x), channels(scaling.x), affine=True)
    if node is not None and editor.has(node, *_UNARY):
        x = node.inputs[0]
        return Pointwise(node, x, channels(x), channels(x), affine=False)
    return None


def _function_first(editor: Editor, node: ir.Node) -> str | None:
    """Turn f(average(x)) into average(f(x)); "" if that was done, else why not, or None if nothing matched."""
    function = pointwise(editor, node)
    average = averaging(editor, function.x.producer()) if function is not None else None
    if function is None or average is None:
        return None
    if isinstance(average, str):
        return f"{function.name} over {function.x.name}: {average}"
    if not (function.affine or average.selects):
        return None
    draft = editor.draft()
    inner = function.emit(draft, average.x)
    outer = average.emit(draft, inner, name=average.name, count=function.channels_out)
    return _settle(editor, draft, function.out, outer, before=average.node)


def _average_first(editor: Editor, node: ir.Node) -> str | None:
    """Turn average(f(x)) into f(average(x)); returns the same as `_function_first`."""
    average = averaging(editor, node)
    if average is None or isinstance(average, str) or editor.sole_user(average.x) is not node:
        return None
    function = pointwise(editor, average.x.producer())
    if function is None or not (function.affine or average.selects):
        return None
    if function.channels_in is None:
        return f"{average.name} after {function.name}: the number of channels is not known"
    draft = editor.draft()
    inner = average.emit(draft, function.x, name=average.name, count=function.channels_in)
    return _settle(editor, draft, average.out, function.emit(draft, inner), before=node)


def _settle(editor: Editor, draft: Draft, old: ir.Value, new: ir.Value, before: ir.Node) -> str | None:
    """Apply the draft if it pays."""
    gain = editor.apply_if_it_pays(draft, {old: new}, before)
    if gain.pays:
        return ""
    if gain.multiply_adds <= 0:
        return None
    return f"{old.name}: the other order would save {gain.multiply_adds / 1e6:.1f} M multiply-adds but move more bytes"
