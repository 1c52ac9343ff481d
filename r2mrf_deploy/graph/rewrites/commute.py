"""Take a pointwise function to the smaller side of a spatial average.

Conv1×1(up(x)) = up(Conv1×1(x)), exactly, because the weights of an interpolation sum to one; likewise for channel-wise
affine nodes, and for any pointwise function where the resizing only copies pixels. Upsampling is better done last, an
average that shrinks its input is better done first.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from r2mrf_deploy.graph.rewrites.affine import Affine, affine
from r2mrf_deploy.graph.rewrites.averaging import averaging
from r2mrf_deploy.graph.rewrites.convolution import Convolution
from r2mrf_deploy.graph.rewrites.editor import Draft, Editor, Outcome, channels

_UNARY = frozenset(
    {"Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Softplus", "Neg", "Abs"}
)
"""Pointwise functions of one input that commute with copying pixels."""


@dataclass(frozen=True)
class Pointwise:
    """A function of one tensor that treats every pixel alike."""

    node: ir.Node
    x: ir.Value
    conv: Convolution | None
    affine: bool

    @property
    def out(self) -> ir.Value:
        return self.node.outputs[0]

    def channels(self) -> int | None:
        return self.conv.channels_out if self.conv is not None else channels(self.out)

    def emit(self, draft: Draft, x: ir.Value, *, name: str) -> ir.Value:
        """The same function of another tensor with the same channels."""
        inputs = [x if value is self.x else value for value in self.node.inputs]
        return draft.op(
            self.node.op_type, inputs, dict(self.node.attributes), name=name, like=x, channels=self.channels()
        )


def commute(editor: Editor) -> Outcome:
    """Commute each pair of a pointwise function and an average once, where that pays."""
    attempts: list[str | None] = []
    for node in list(editor.graph):
        if node.graph is not None:  # else an earlier change dropped it
            attempts.append(_function_first(editor, node))
            if attempts[-1] != "":
                attempts.append(_average_first(editor, node))
    return Outcome.of(attempts)


def pointwise(editor: Editor, node: ir.Node | None) -> Pointwise | None:
    """Read a node as a pointwise function of a tensor [N, C, ...]; None where it is none."""
    conv = Convolution.of(editor, node)
    if conv is not None:
        return Pointwise(conv.node, conv.x, conv, affine=True) if conv.geometry.pointwise else None
    scaling = affine(editor, node)
    if scaling is not None:
        return _of_affine(scaling)
    if node is not None and node.op_type in _UNARY and node.domain == "" and node.inputs[0] is not None:
        return Pointwise(node, node.inputs[0], None, affine=False)
    return None


def _of_affine(scaling: Affine) -> Pointwise | None:
    widens = scaling.channels not in (1, channels(scaling.x))
    return None if widens else Pointwise(scaling.node, scaling.x, None, affine=True)


def _function_first(editor: Editor, node: ir.Node) -> str | None:
    """f(average(x)) to average(f(x)). Returns "" if it was done, else why not, or None if the pattern is not there."""
    function = pointwise(editor, node)
    average = averaging(editor, function.x.producer()) if function is not None else None
    if function is None or average is None:
        return None
    if isinstance(average, str):
        return f"{_name(function.node)} over {function.x.name}: {average}"
    if not (function.affine or average.selects):
        return None
    draft = editor.draft()
    inner = function.emit(draft, average.x, name=_name(node))
    outer = average.emit(draft, inner, name=_name(average.node), count=function.channels())
    return _settle(editor, draft, function.out, outer, before=average.node)


def _average_first(editor: Editor, node: ir.Node) -> str | None:
    """average(f(x)) to f(average(x)); returns as `_function_first`."""
    average = averaging(editor, node)
    if average is None or isinstance(average, str) or editor.sole_user(average.x) is not node:
        return None
    function = pointwise(editor, average.x.producer())
    if function is None or not (function.affine or average.selects):
        return None
    before = function.conv.channels_in if function.conv is not None else channels(function.x)
    if before is None:
        return f"{_name(node)} after {_name(function.node)}: the number of channels is not known"
    draft = editor.draft()
    inner = average.emit(draft, function.x, name=_name(node), count=before)
    outer = function.emit(draft, inner, name=_name(function.node))
    return _settle(editor, draft, average.out, outer, before=node)


def _settle(editor: Editor, draft: Draft, old: ir.Value, new: ir.Value, before: ir.Node) -> str | None:
    """Apply the draft if it pays."""
    gain = editor.gain(draft, [old])
    if gain.pays:
        editor.apply(draft, {old: new}, before)
        return ""
    draft.drop()
    if gain.multiply_adds <= 0:
        return None
    return f"{old.name}: the other order would save {gain.multiply_adds / 1e6:.1f} M multiply-adds but move more memory"


def _name(node: ir.Node) -> str:
    return node.name or node.op_type
