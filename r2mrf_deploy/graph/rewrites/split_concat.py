"""Split a convolution over a concatenation: Conv(Cat(a, b)) = Conv_a(a) + Conv_b(b), the bias once.

On its own this saves nothing and adds an addition, so it is done only for parts that another rewrite can then make cheaper:
a part that several convolutions treat with the same weights (one convolution will serve all of them: the AMDF of every
recurrent step), a part that was upsampled (a pointwise convolution will run before the upsampling: the taps of the AMDF),
or a wide part that many convolutions read with other weights (one wide convolution will read it once).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.rewrites.averaging import Averaging, averaging
from r2mrf_deploy.graph.rewrites.convolution import Convolution
from r2mrf_deploy.graph.rewrites.editor import Draft, Editor, Outcome, channels


@dataclass(frozen=True)
class Part:
    """One input of the concatenation that a convolution reads."""

    value: ir.Value
    index: int
    """Its place among the concatenation's inputs."""
    start: int
    stop: int
    """Its channels in the concatenation."""


@dataclass(frozen=True, eq=False)
class Candidate:
    """A convolution over a concatenation along the channels."""

    conv: Convolution
    concat: ir.Node
    parts: tuple[Part, ...]

    def weight(self, part: Part) -> np.ndarray:
        return self.conv.weight[:, part.start : part.stop]

    def key(self, editor: Editor, part: Part) -> Hashable:
        """What this part has in common with the parts of other convolutions that compute the same from it."""
        weight = self.conv.node.inputs[1]
        assert weight is not None
        return part.value, self.conv.geometry, editor.digest(weight, (part.start, part.stop))


@dataclass(frozen=True)
class Plan:
    """Parts to take out of convolutions, and the effort that the rewrites to follow will save by it."""

    cuts: tuple[tuple[Candidate, tuple[Part, ...]], ...]
    saving: int


def split_concat(editor: Editor, *, merging: bool = True) -> Outcome:
    """Split where sharing, commuting or merging pays, the most profitable first.

    Args:
        merging: whether convolutions of one tensor will be merged afterwards.
    """
    count = 0
    while True:
        candidates, refusals = _candidates(editor)
        plans = [*_sharing(editor, candidates), *_commuting(editor, candidates)]
        plans += _merging(editor, candidates) if merging else []
        best = max(plans, key=lambda plan: plan.saving, default=None)
        if best is None or best.saving <= 0:
            return Outcome(count, (*refusals, *_why_not(candidates, plans)))
        for candidate, parts in best.cuts:
            _split(editor, candidate.conv.node, [part.index for part in parts])
            count += 1


def _candidates(editor: Editor) -> tuple[list[Candidate], list[str]]:
    readings = [_candidate(editor, node) for node in editor.nodes("Conv")]
    return [r for r in readings if isinstance(r, Candidate)], [r for r in readings if isinstance(r, str)]


def _candidate(editor: Editor, node: ir.Node) -> Candidate | str | None:
    """Read a Conv node; why not where it is over a concatenation that cannot be split, None where it is over none."""
    concat = node.inputs[0].producer() if node.inputs[0] is not None else None
    if concat is None or concat.op_type != "Concat" or concat.graph is not editor.graph or len(concat.inputs) < 2:
        return None
    pair = f"{node.name} over {concat.name}"
    conv = Convolution.of(editor, node)
    if conv is None:
        return f"{pair}: the weights are not constant"
    parts = _parts(conv, concat)
    return f"{pair}: {parts}" if isinstance(parts, str) else Candidate(conv, concat, parts)


def _parts(conv: Convolution, concat: ir.Node) -> tuple[Part, ...] | str:
    if conv.geometry.group != 1:
        return f"the convolution has {conv.geometry.group} groups"
    if concat.attributes.get_int("axis", 0) not in (1, 1 - conv.weight.ndim):
        return "the concatenation is not along the channels"
    parts, at = [], 0
    for index, value in enumerate(concat.inputs):
        width = channels(value)
        if value is None or width is None:
            return "a part's number of channels is not known"
        parts.append(Part(value, index, at, at + width))
        at += width
    return tuple(parts) if at == conv.channels_in else "the channels do not add up"


def _sharing(editor: Editor, candidates: list[Candidate]) -> Iterable[Plan]:
    """For each set of convolutions that treat some parts alike, the plan to take these parts out of all of them."""
    users: dict[Hashable, dict[Candidate, Part]] = defaultdict(dict)
    for candidate in candidates:
        for part in candidate.parts:
            users[candidate.key(editor, part)].setdefault(candidate, part)
    alike: dict[tuple[Candidate, ...], list[dict[Candidate, Part]]] = defaultdict(list)
    for shared in users.values():
        if len(shared) > 1:
            alike[tuple(shared)].append(shared)
    for group, shared_parts in alike.items():
        cuts = tuple((candidate, tuple(by_user[candidate] for by_user in shared_parts)) for candidate in group)
        # if all parts are shared, the convolutions are equal, and `cse` merges them
        if all(len(parts) < len(candidate.parts) for candidate, parts in cuts):
            yield Plan(cuts, _saving_of_sharing(editor, cuts))


def _saving_of_sharing(editor: Editor, cuts: tuple[tuple[Candidate, tuple[Part, ...]], ...]) -> int:
    """All but one of the partial convolutions go; each of them leaves an addition behind."""
    candidate, parts = cuts[0]
    out = editor.types.get(candidate.conv.out)
    read = [editor.types.get(part.value) for part in parts]
    if out is None or any(t is None for t in read):
        return 0
    multiply_adds = out.size * sum(candidate.weight(part)[0].size for part in parts)
    joined = 2 if len(parts) > 1 else 0  # several parts are concatenated on their own first
    moved = len(cuts) * 3 * out.nbytes + out.nbytes + joined * sum(t.nbytes for t in read if t is not None)
    return (len(cuts) - 1) * multiply_adds - cost.MULTIPLY_ADDS_PER_BYTE * moved


def _commuting(editor: Editor, candidates: list[Candidate]) -> Iterable[Plan]:
    """For each part that was upsampled before a pointwise convolution, the plan to take it out."""
    for candidate in candidates:
        if not candidate.conv.geometry.pointwise:
            continue
        for part in candidate.parts:
            average = averaging(editor, part.value.producer())
            if isinstance(average, Averaging):
                saving = _saving_of_commuting(editor, candidate, part, average)
                if saving is not None:
                    yield Plan(((candidate, (part,)),), saving)


def _saving_of_commuting(editor: Editor, candidate: Candidate, part: Part, average: Averaging) -> int | None:
    """None where the average does not enlarge its input, so that the convolution stays after it."""
    small, large, out = (editor.types.get(v) for v in (average.x, average.out, candidate.conv.out))
    if small is None or large is None or out is None or small.size >= large.size:
        return None
    m, c = candidate.conv.channels_out, part.stop - part.start
    inner = small.nbytes * m // c  # the convolution's result before the average
    joined = candidate.concat.outputs[0]
    alone = editor.sole_user(average.out) is candidate.concat and editor.sole_user(joined) is not None
    # conv, average, addition instead of concatenation, conv and, where nobody else wants it, the average of the input
    moved = (small.nbytes + inner) + (inner + out.nbytes) + 3 * out.nbytes
    unmoved = 3 * large.nbytes + (small.nbytes + large.nbytes if alone else 0)
    multiply_adds = (large.size - small.size) * m
    return multiply_adds - cost.MULTIPLY_ADDS_PER_BYTE * (moved - unmoved)


def _merging(editor: Editor, candidates: list[Candidate]) -> Iterable[Plan]:
    """For each tensor that several convolutions read beside others, the plan to let one wide convolution read it."""
    readers: dict[ir.Value, dict[Candidate, Part]] = defaultdict(dict)
    for candidate in candidates:
        for part in candidate.parts:
            readers[part.value].setdefault(candidate, part)
    for value, parts in readers.items():
        if len({candidate.concat for candidate in parts}) > 1:  # else they can be merged over the concatenation itself
            saving = _saving_of_merging(editor, value, list(parts))
            if saving is not None:
                yield Plan(tuple((candidate, (part,)) for candidate, part in parts.items()), saving)


def _saving_of_merging(editor: Editor, value: ir.Value, users: list[Candidate]) -> int | None:
    """Concatenations that go or shrink, and reads of the tensor, against a split and an addition for each.

    None where merging itself would not pay.
    """
    read = editor.types.get(value)
    outs = [editor.types.get(candidate.conv.out) for candidate in users]
    if read is None or any(out is None for out in outs):
        return None
    written = sum(out.nbytes for out in outs if out is not None)
    spared = (len(users) - len({candidate.conv.geometry for candidate in users})) * read.nbytes
    if spared <= 2 * written:
        return None
    nodes = {candidate.conv.node for candidate in users}
    concats = {candidate.concat for candidate in users}
    freed = sum(all(user in nodes for user, _ in concat.outputs[0].uses()) for concat in concats)
    return cost.MULTIPLY_ADDS_PER_BYTE * (2 * freed * read.nbytes + spared - 5 * written)


def _split(editor: Editor, node: ir.Node, indices: Sequence[int]) -> None:
    """Conv over the parts that stay, with the bias, plus a convolution over those taken out.

    The node is read anew: an earlier split may have replaced one of its parts.
    """
    candidate = _candidate(editor, node)
    assert isinstance(candidate, Candidate)
    conv, draft = candidate.conv, editor.draft()
    stay = [part for part in candidate.parts if part.index not in indices]
    taken = [part for part in candidate.parts if part.index in indices]
    rest = _partial(draft, candidate, stay, conv.bias, f"{conv.name}/rest")
    extra = _partial(draft, candidate, taken, None, f"{conv.name}/part")
    total = draft.op("Add", [rest, extra], name=f"{conv.name}/sum", like=conv.out)
    editor.apply(draft, {conv.out: total}, before=conv.node)


def _partial(draft: Draft, candidate: Candidate, parts: Sequence[Part], bias: np.ndarray | None, name: str) -> ir.Value:
    conv = candidate.conv
    x = parts[0].value
    if len(parts) > 1:
        width = sum(part.stop - part.start for part in parts)
        values = [part.value for part in parts]
        x = draft.op("Concat", values, {"axis": 1}, name=f"{name}/concat", like=conv.x, channels=width)
    weight = np.concatenate([candidate.weight(part) for part in parts], axis=1)
    return conv.emit(draft, x, weight, bias, name=name, like=conv.out)


def _why_not(candidates: list[Candidate], plans: list[Plan]) -> Iterable[str]:
    """For the convolutions that had a plan, and for those with a part that another concatenation holds too."""
    planned = {candidate: plan for plan in plans for candidate, _ in plan.cuts}
    holders: dict[ir.Value, set[ir.Node]] = defaultdict(set)
    for candidate in candidates:
        for part in candidate.parts:
            holders[part.value].add(candidate.concat)
    for candidate in candidates:
        pair = f"{candidate.conv.name} over {candidate.concat.name}"
        plan = planned.get(candidate)
        if plan is not None:
            yield f"{pair}: taking a part out would cost {-plan.saving / 1e6:.1f} M multiply-adds' time more than it saves"
        elif any(len(holders[part.value]) > 1 for part in candidate.parts):
            yield f"{pair}: other convolutions read a part of it too, but with other weights"
