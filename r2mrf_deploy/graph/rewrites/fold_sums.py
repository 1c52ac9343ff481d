"""Fold terms of a sum that are of one kind: convolutions of the same tensor, equal averages, constants.

W_1 x + W_2 x = (W_1 + W_2) x; up(a) + up(b) = up(a + b); (x + c_1) + c_2 = x + (c_1 + c_2). A sum is a tree of Add nodes
whose inner results have no other reader.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from r2mrf_deploy.graph.nodes import static_shape
from r2mrf_deploy.graph.rewrites.averaging import Averaging, averaging
from r2mrf_deploy.graph.rewrites.convolution import Convolution
from r2mrf_deploy.graph.rewrites.editor import Draft, Editor, Outcome, channels
from r2mrf_deploy.graph.rewrites.rounding import rounded

Terms = list[ir.Value]


def fold_sums(editor: Editor) -> Outcome:
    """Fold terms of one kind in every sum where that pays, one kind at a time."""
    count, refusals = 0, []
    for node in editor.nodes("Add"):
        while _is_root(editor, node):
            folded, why_not = _fold(editor, node)
            refusals += why_not
            if folded is None:
                break
            count, node = count + 1, folded
    return Outcome(count, tuple(dict.fromkeys(refusals)))


def _is_root(editor: Editor, node: ir.Node) -> bool:
    user = editor.sole_user(node.outputs[0])
    floating = node.outputs[0].dtype is not None and node.outputs[0].dtype.is_floating_point()
    return editor.has(node, "Add") and floating and not editor.has(user, "Add")


def _terms(editor: Editor, node: ir.Node) -> Terms:
    """The leaves of the tree of Add nodes below `node`, in order."""
    leaves: Terms = []
    pending = [(value, node) for value in reversed(node.inputs)]
    while pending:  # not by recursion: a chain may be longer than Python's stack
        value, reader = pending.pop()
        inner, twice = value.producer(), reader.inputs[0] is reader.inputs[1]
        if editor.has(inner, "Add") and editor.sole_user(value) is reader and not twice:
            pending += [(term, inner) for term in reversed(inner.inputs)]
        else:
            leaves.append(value)
    return leaves


def _fold(editor: Editor, node: ir.Node) -> tuple[ir.Node | None, list[str]]:
    """Fold one group of terms; returns the node that now computes the sum, or None, and why other groups stay."""
    terms, name, refusals = _terms(editor, node), node.name, []
    groups: dict[tuple[Any, ...], Terms] = defaultdict(list)
    for term in terms:
        key = _kind(editor, term)
        if key is not None:
            groups[key].append(term)
    for (fold, *_), alike in groups.items():
        group = [term for term in alike if fold is _fold_constants or editor.sole_user(term) is not None]
        if len(group) < 2:
            if len(alike) > 1:
                refusals.append(
                    f"{name}: {alike[-1].name} and {alike[0].name} could be folded, but others read them too"
                )
            continue
        draft = editor.draft()
        folded = fold(editor, draft, group, name)
        if isinstance(folded, str):
            refusals.append(f"{name}: {group[-1].name} and {group[0].name}: {folded}")
            continue
        rest = [term for term in terms if term not in group]
        at = terms.index(group[0])  # no earlier term is in the group, so the result takes this one's place
        total = _sum(draft, [*rest[:at], folded, *rest[at:]], node)
        if total.producer() is None:  # the whole sum is constant: for `cleanup`
            draft.drop()
        elif editor.apply_if_it_pays(draft, {node.outputs[0]: total}, before=node).pays:
            return total.producer(), refusals
        refusals.append(f"{name}: folding {group[-1].name} into {group[0].name} would cost more than it saves")
    return None, refusals


def _sum(draft: Draft, terms: Sequence[ir.Value], node: ir.Node) -> ir.Value:
    """Draft the sum; a partial sum may be smaller than the whole, so its shape is left open."""
    total = terms[0]
    for i, term in enumerate(terms[1:], 2):
        whole = node.outputs[0] if i == len(terms) else None
        total = draft.op("Add", [total, term], name=node.name, like=whole)
        total.type = node.outputs[0].type
    return total


def _kind(editor: Editor, term: ir.Value) -> tuple[Any, ...] | None:
    """The function that folds terms like this one, and what they must have in common; None for a term like no other."""
    if editor.constant(term) is not None:
        return _fold_constants, term.dtype
    conv = Convolution.of(editor, term.producer())
    if conv is not None:
        return _fold_convolutions, conv.x, conv.geometry, conv.weight.shape
    average = averaging(editor, term.producer())
    shape = static_shape(average.x) if isinstance(average, Averaging) else None
    if not isinstance(average, Averaging) or shape is None:
        return None
    others = tuple(None if v is None else editor.digest(v) or v for v in average.node.inputs[1:])
    attributes = tuple((name, str(attr.value)) for name, attr in sorted(average.node.attributes.items()))
    return _fold_averages, average.node.op_type, shape, others, attributes


def _fold_constants(editor: Editor, draft: Draft, terms: Terms, name: str) -> ir.Value | str:
    arrays = [array for term in terms if (array := editor.constant(term)) is not None]
    total = np.sum(np.broadcast_arrays(*(array.astype(np.float64) for array in arrays)), axis=0)
    constants = rounded(arrays[0].dtype, total)
    return constants if isinstance(constants, str) else draft.constant(constants[0], f"{name}/constant")


def _fold_convolutions(editor: Editor, draft: Draft, terms: Terms, name: str) -> ir.Value | str:
    convs = [conv for term in terms if (conv := Convolution.of(editor, term.producer())) is not None]
    weights = [conv.weight.astype(np.float64) for conv in convs]
    biases = [conv.bias.astype(np.float64) for conv in convs if conv.bias is not None]
    totals = [np.sum(arrays, axis=0) for arrays in (weights, biases) if arrays]
    constants = rounded(convs[0].weight.dtype, *totals)
    if isinstance(constants, str):
        return constants
    weight, bias = constants[0], constants[1] if len(constants) > 1 else None
    return convs[0].emit(draft, convs[0].x, weight, bias, name=f"{name}/folded", like=convs[0].out)


def _fold_averages(editor: Editor, draft: Draft, terms: Terms, name: str) -> ir.Value:
    averages = [a for term in terms if isinstance(a := averaging(editor, term.producer()), Averaging)]
    total = averages[0].x
    for average in averages[1:]:
        total = draft.op("Add", [total, average.x], name=f"{name}/inner", like=average.x)
    return averages[0].emit(draft, total, name=f"{name}/folded", count=channels(total))
