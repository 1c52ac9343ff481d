"""Fold the terms of a sum that are the same function: convolutions of one tensor, equal averages, constants.

W_1 x + W_2 x = (W_1 + W_2) x; up(a) + up(b) = up(a + b); (x + c_1) + c_2 = x + (c_1 + c_2). A sum is a tree of Add nodes
whose inner results nobody else reads.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence

import numpy as np
import onnx_ir as ir

from r2mrf_deploy.graph.rewrites.averaging import Averaging, averaging
from r2mrf_deploy.graph.rewrites.convolution import Convolution
from r2mrf_deploy.graph.rewrites.editor import Draft, Editor, Outcome, channels, static_shape

Terms = list[ir.Value]
Fold = Callable[[Editor, Draft, Terms, str], "ir.Value | None"]


def fold_sums(editor: Editor) -> Outcome:
    """Fold alike terms of every sum, one kind at a time, where that pays."""
    count, refusals = 0, []
    for node in editor.nodes("Add"):
        while node.graph is not None and _is_root(editor, node):
            folded, why_not = _fold(editor, node)
            refusals += why_not
            if folded is None:
                break
            count, node = count + 1, folded
    return Outcome(count, tuple(dict.fromkeys(refusals)))


def _is_root(editor: Editor, node: ir.Node) -> bool:
    user = editor.sole_user(node.outputs[0])
    floating = node.outputs[0].dtype is not None and node.outputs[0].dtype.is_floating_point()
    return node.op_type == "Add" and floating and not (user is not None and user.op_type == "Add" and user.domain == "")


def _terms(editor: Editor, node: ir.Node) -> Terms:
    """The leaves of the tree of Add nodes below `node`, in order."""
    leaves: Terms = []
    for value in node.inputs:
        assert value is not None
        inner = value.producer()
        twice = node.inputs[0] is node.inputs[1]
        if inner is not None and inner.op_type == "Add" and editor.sole_user(value) is node and not twice:
            leaves += _terms(editor, inner)
        else:
            leaves.append(value)
    return leaves


def _fold(editor: Editor, node: ir.Node) -> tuple[ir.Node | None, list[str]]:
    """Fold one group of terms; returns the Add (or other node) that now computes the sum, or None; and why others stay."""
    terms, name, refusals = _terms(editor, node), node.name or "Add", []
    groups: dict[Hashable, Terms] = defaultdict(list)
    for term in terms:
        key = _kind(editor, term)
        if key is not None:
            groups[key].append(term)
    for key, alike in groups.items():
        group = [term for term in alike if key[0] == "constant" or editor.sole_user(term) is not None]  # type: ignore[index]
        if len(group) < 2:
            if len(alike) > 1:
                refusals.append(f"{name}: {alike[-1].name} and {alike[0].name} are alike, but others read them too")
            continue
        draft = editor.draft()
        folded = _FOLDS[key[0]](editor, draft, group, name)  # type: ignore[index]
        rest = [term for term in terms if term not in group]
        at = next(i for i, term in enumerate(terms) if term is group[0])
        at -= sum(term in group for term in terms[:at])
        total = _sum(draft, [*rest[:at], folded, *rest[at:]], node)
        if total.producer() is not None and editor.gain(draft, node.outputs).pays:
            editor.apply(draft, {node.outputs[0]: total}, before=node)
            return total.producer(), refusals
        draft.drop()
        refusals.append(f"{name}: folding {group[-1].name} into {group[0].name} would cost more than it saves")
    return None, refusals


def _sum(draft: Draft, terms: Sequence[ir.Value], node: ir.Node) -> ir.Value:
    """An Add for each further term; a partial sum may be smaller than the whole, so its shape is left open."""
    total = terms[0]
    for i, term in enumerate(terms[1:], 2):
        whole = node.outputs[0] if i == len(terms) else None
        total = draft.op("Add", [total, term], name=node.name or "Add", like=whole)
        total.type = node.outputs[0].type
    return total


def _kind(editor: Editor, term: ir.Value) -> Hashable | None:
    """What terms must have in common to be folded; None for a term that is like no other."""
    if editor.constant(term) is not None:
        return "constant", term.dtype
    node = term.producer()
    conv = Convolution.of(editor, node)
    if conv is not None:
        return "convolution", conv.x, conv.geometry, conv.weight.shape
    average = averaging(editor, node)
    if isinstance(average, Averaging):
        return _kind_of_average(editor, average)
    return None


def _kind_of_average(editor: Editor, average: Averaging) -> Hashable | None:
    shape = static_shape(average.x)
    if shape is None:
        return None
    others = tuple(None if v is None else editor.digest(v) or v for v in average.node.inputs[1:])
    attributes = tuple((name, str(attr.value)) for name, attr in sorted(average.node.attributes.items()))
    return "average", average.node.op_type, shape, others, attributes


def _fold_constants(editor: Editor, draft: Draft, terms: Terms, name: str) -> ir.Value:
    arrays = [array for term in terms if (array := editor.constant(term)) is not None]
    total = np.sum(np.broadcast_arrays(*(array.astype(np.float64) for array in arrays)), axis=0)
    return draft.constant(total.astype(arrays[0].dtype), f"{name}/constant")


def _fold_convolutions(editor: Editor, draft: Draft, terms: Terms, name: str) -> ir.Value:
    convs = [conv for term in terms if (conv := Convolution.of(editor, term.producer())) is not None]
    dtype = convs[0].weight.dtype
    weight = np.sum([conv.weight.astype(np.float64) for conv in convs], axis=0).astype(dtype)
    biases = [conv.bias.astype(np.float64) for conv in convs if conv.bias is not None]
    bias = np.sum(biases, axis=0).astype(dtype) if biases else None
    return convs[0].emit(draft, convs[0].x, weight, bias, name=f"{name}/folded", like=convs[0].out)


def _fold_averages(editor: Editor, draft: Draft, terms: Terms, name: str) -> ir.Value:
    averages = [a for term in terms if isinstance(a := averaging(editor, term.producer()), Averaging)]
    total = averages[0].x
    for average in averages[1:]:
        total = draft.op("Add", [total, average.x], name=f"{name}/inner", like=average.x)
    return averages[0].emit(draft, total, name=f"{name}/folded", count=channels(total))


_FOLDS = {"constant": _fold_constants, "convolution": _fold_convolutions, "average": _fold_averages}
