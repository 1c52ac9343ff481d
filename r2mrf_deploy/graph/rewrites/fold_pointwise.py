"""Fold two convolutions in a row into one if one of them is pointwise and the product costs less than the pair.

W_b (W_a x + b_a) + b_b = (W_b W_a) x + (W_b b_a + b_b). If the pointwise one comes first, the padding of the second holds
zeros where the product would need the first one's bias, so such a pair is folded only without that bias or that padding.
"""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.graph.rewrites.convolution import Convolution
from r2mrf_deploy.graph.rewrites.editor import Editor, Outcome
from r2mrf_deploy.graph.rewrites.rounding import rounded


def fold_pointwise(editor: Editor) -> Outcome:
    """Fold each pair where that pays."""
    return Outcome.of(_fold(editor, Convolution.of(editor, node)) for node in editor.nodes("Conv"))


def _fold(editor: Editor, second: Convolution | None) -> str | None:
    """Returns "" if the pair was folded, else why not, or None if there is no pair."""
    first = Convolution.of(editor, second.x.producer()) if second is not None else None
    if first is None or second is None or not (first.geometry.pointwise or second.geometry.pointwise):
        return None
    pair = f"{second.name} after {first.name}"
    if editor.sole_user(first.out) is not second.node:
        return f"{pair}: the result of the first is also used by others"
    if first.geometry.group != 1 or second.geometry.group != 1:
        return f"{pair}: the convolutions are grouped"
    biased = first.bias is not None and bool(first.bias.any())
    if not second.geometry.pointwise and biased and second.geometry.padded:
        return f"{pair}: the bias of the first does not reach the padding of the second"
    constants = rounded(second.weight.dtype, *_product(first, second))
    if isinstance(constants, str):
        return f"{pair}: {constants}"
    weight, bias = constants[0], constants[1] if len(constants) > 1 else None
    draft = editor.draft()
    shape = first if second.geometry.pointwise else second
    out = shape.emit(draft, first.x, weight, bias, name=f"{first.name}/folded", like=second.out)
    applied = editor.apply_if_it_pays(draft, {second.out: out}, before=second.node).pays
    return "" if applied else f"{pair}: the product would cost more than the pair"


def _product(first: Convolution, second: Convolution) -> list[np.ndarray]:
    """The weights and, if there is one, the bias of both in one, in float64."""
    a, b = first.weight.astype(np.float64), second.weight.astype(np.float64)
    if second.geometry.pointwise:
        weight = np.tensordot(b.reshape(b.shape[:2]), a, axes=(1, 0))
    else:
        weight = np.moveaxis(np.tensordot(b, a.reshape(a.shape[:2]), axes=(1, 0)), -1, 1)
    if first.bias is None and second.bias is None:
        return [weight]
    bias = np.zeros(second.channels_out) if second.bias is None else second.bias.astype(np.float64)
    if first.bias is not None:
        bias = bias + b.sum(axis=tuple(range(2, b.ndim))) @ first.bias.astype(np.float64)
    return [weight, bias]
