"""Fold two convolutions in a row into one, where one of them is pointwise and the product costs less than the pair.

W_b (W_a x + b_a) + b_b = (W_b W_a) x + (W_b b_a + b_b). With the pointwise one first, its bias would also have to fill the
padding of the second, so that pair is folded only where there is no such bias or no such padding.
"""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.graph.rewrites.convolution import Convolution
from r2mrf_deploy.graph.rewrites.editor import Editor, Outcome


def fold_pointwise(editor: Editor) -> Outcome:
    """Fold each pair where that pays."""
    return Outcome.of(_fold(editor, Convolution.of(editor, node)) for node in editor.nodes("Conv"))


def _fold(editor: Editor, second: Convolution | None) -> str | None:
    """Returns "" where the pair was folded, why not where it nearly was, None where there is no pair."""
    first = Convolution.of(editor, second.x.producer()) if second is not None else None
    if first is None or second is None or not (first.geometry.pointwise or second.geometry.pointwise):
        return None
    pair = f"{second.name} after {first.name}"
    if editor.sole_user(first.out) is not second.node:
        return f"{pair}: the first one's result is also used by others"
    if first.geometry.group != 1 or second.geometry.group != 1:
        return f"{pair}: grouped convolutions"
    biased = first.bias is not None and bool(first.bias.any())
    if not second.geometry.pointwise and biased and second.geometry.padded:
        return f"{pair}: the first one's bias does not reach the padding of the second"
    weight, bias = _product(first, second)
    if not np.isfinite(weight.astype(np.float64)).all():
        return f"{pair}: the product's weights would overflow"
    draft = editor.draft()
    shape = first if second.geometry.pointwise else second
    out = shape.emit(draft, first.x, weight, bias, name=f"{first.name}/folded", like=second.out)
    if not editor.gain(draft, [second.out]).pays:
        draft.drop()
        return f"{pair}: the product would cost more than the pair"
    editor.apply(draft, {second.out: out}, before=second.node)
    return ""


def _product(first: Convolution, second: Convolution) -> tuple[np.ndarray, np.ndarray | None]:
    """The weights and the bias of both in one, computed in float64."""
    a, b = first.weight.astype(np.float64), second.weight.astype(np.float64)
    if second.geometry.pointwise:
        weight = np.tensordot(b.reshape(b.shape[:2]), a, axes=(1, 0))
    else:
        weight = np.moveaxis(np.tensordot(b, a.reshape(a.shape[:2]), axes=(1, 0)), -1, 1)
    dtype = second.weight.dtype
    if first.bias is None and second.bias is None:
        return weight.astype(dtype), None
    bias = np.zeros(second.channels_out) if second.bias is None else second.bias.astype(np.float64)
    if first.bias is not None:
        bias = bias + b.sum(axis=tuple(range(2, b.ndim))) @ first.bias.astype(np.float64)
    return weight.astype(dtype), bias.astype(dtype)
