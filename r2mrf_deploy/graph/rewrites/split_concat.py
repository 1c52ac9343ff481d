"""Split a convolution over a concatenation: Conv(Cat(a, b)) = Conv_a(a) + Conv_b(b), with the bias in one of them.

On its own this saves nothing and costs an addition, so it is done only for parts that another rewrite can then make cheaper:
a part that several convolutions read with the same weights (one convolution will serve all of them: the AMDF of every
recurrent step), a part that was upsampled (a pointwise convolution will run before the upsampling: the taps of the AMDF),
or a wide part that many convolutions read with different weights (one wide convolution will read it once).
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.rewrites.averaging import Averaging, averaging
from r2mrf_deploy.graph.rewrites.convolution import Convolution, Part, parts_of
from r2mrf_deploy.graph.rewrites.editor import Editor, Outcome


@dataclass(frozen=True, eq=False)
class Candidate:
    """A convolution over a concatenation along the channels."""

    conv: Convolution
    concat: ir.Node
    parts: tuple[Part, ...]

    def key(self, editor: Editor, part: Part) -> Hashable:
        """What this part shares with the parts of other convolutions that compute the same from it."""
        return part.value, self.conv.geometry, editor.digest(self.conv.node.inputs[1], (part.start, part.stop))


@dataclass(frozen=True)
class Plan:
    """Parts to take out of convolutions, and the effort that this will let the following rewrites save."""

    cuts: tuple[tuple[Candidate, tuple[Part, ...]], ...]
    saving: int


def split_concat(editor: Editor, *, merging: bool = True) -> Outcome:
    """Split where sharing, commuting or merging pays, the most profitable first.

    Args:
        merging: whether convolutions of one tensor will be merged afterwards.
    """
    count = 0
    while True:
        readings = [_candidate(editor, node) for node in editor.nodes("Conv")]
        candidates = [reading for reading in readings if isinstance(reading, Candidate)]
        plans = [*_sharing(editor, candidates), *_commuting(editor, candidates)]
        plans += _merging(editor, candidates) if merging else []
        chosen = _independent(plans)
        if not chosen:
            refusals = [reading for reading in readings if isinstance(reading, str)]
            return Outcome(count, (*refusals, *_why_not(candidates, plans)))
        for candidate, parts in (cut for plan in chosen for cut in plan.cuts):
            _split(editor, candidate.conv.node, parts)
            count += 1


def _independent(plans: Iterable[Plan]) -> list[Plan]:
    """The most profitable plans, up to the first that one before it would change: the graph is then read again.

    To read it again after each plan would take a time that grows with the square of the number of recurrent steps.
    """
    chosen: list[Plan] = []
    touched: set[ir.Node] = set()
    for plan in sorted(plans, key=lambda plan: -plan.saving):
        nodes = {node for candidate, _ in plan.cuts for node in (candidate.conv.node, candidate.concat)}
        if plan.saving <= 0 or nodes & touched:
            break
        chosen.append(plan)
        touched |= nodes
    return chosen


def _candidate(editor: Editor, node: ir.Node) -> Candidate | str | None:
    """Read a Conv node; why not if it reads a concatenation that cannot be split, None if it reads none."""
    concat = node.inputs[0].producer()
    if not editor.has(concat, "Concat") or len(concat.inputs) < 2:
        return None
    pair = f"{node.name} over {concat.name}"
    conv = Convolution.of(editor, node)
    if conv is None:
        return f"{pair}: the weights are not constant"
    if conv.geometry.group != 1:
        return f"{pair}: the convolution has {conv.geometry.group} groups"
    parts = parts_of(conv, concat)
    if isinstance(parts, str):
        return f"{pair}: {parts}"
    if not all(value in editor.types for value in (conv.out, *concat.inputs)):
        return f"{pair}: a size is not known, so the cost cannot be estimated"
    return Candidate(conv, concat, parts)


def _sharing(editor: Editor, candidates: list[Candidate]) -> Iterable[Plan]:
    """For each set of convolutions that read some parts with the same weights, the plan to take these parts out of all."""
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
    out = editor.types[candidate.conv.out]
    taps = math.prod(candidate.conv.geometry.kernel)
    multiply_adds = out.size * taps * sum(part.width for part in parts)
    joined = 2 if len(parts) > 1 else 0  # several parts are first concatenated on their own
    moved = len(cuts) * 3 * out.nbytes + out.nbytes + joined * sum(editor.types[part.value].nbytes for part in parts)
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
    """None if the average does not enlarge its input: the convolution then stays after it."""
    small, large, out = editor.types.get(average.x), editor.types[part.value], editor.types[candidate.conv.out]
    if small is None or small.size >= large.size:
        return None
    m = candidate.conv.channels_out
    inner = small.nbytes * m // part.width  # the convolution's result before the average
    joined = candidate.concat.outputs[0]
    alone = editor.sole_user(average.out) is candidate.concat and editor.sole_user(joined) is not None
    # conv, average, addition; instead of concatenation, conv and, if nothing else reads it, the average of the input
    moved = (small.nbytes + inner) + (inner + out.nbytes) + 3 * out.nbytes
    unmoved = 3 * large.nbytes + (small.nbytes + large.nbytes if alone else 0)
    multiply_adds = (large.size - small.size) * m
    return multiply_adds - cost.MULTIPLY_ADDS_PER_BYTE * (moved - unmoved)


def _merging(editor: Editor, candidates: list[Candidate]) -> Iterable[Plan]:
    """For each tensor that is a part for several convolutions, the plan to let one wide convolution read it."""
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
    """Concatenations removed or narrowed and reads of the tensor spared, less a split and one addition per convolution.

    None if merging by itself would not pay.
    """
    read = editor.types[value]
    written = sum(editor.types[candidate.conv.out].nbytes for candidate in users)
    spared = (len(users) - len({candidate.conv.geometry for candidate in users})) * read.nbytes
    if spared <= 2 * written:
        return None
    nodes = {candidate.conv.node for candidate in users}
    concats = {candidate.concat for candidate in users}
    freed = sum(all(user in nodes for user, _ in concat.outputs[0].uses()) for concat in concats)
    return cost.MULTIPLY_ADDS_PER_BYTE * (2 * freed * read.nbytes + spared - 5 * written)


def _split(editor: Editor, node: ir.Node, cut: Sequence[Part]) -> None:
    """A convolution of the parts that stay, with the bias, plus one of those taken out.

    The node is read again, because an earlier split may have replaced one of its parts.
    """
    candidate = _candidate(editor, node)
    assert isinstance(candidate, Candidate)
    conv, draft, starts = candidate.conv, editor.draft(), {part.start for part in cut}
    stay = [part for part in candidate.parts if part.start not in starts]
    taken = [part for part in candidate.parts if part.start in starts]
    rest = conv.emit_over(draft, stay, conv.bias, name=f"{conv.name}/rest")
    extra = conv.emit_over(draft, taken, None, name=f"{conv.name}/part")
    total = draft.op("Add", [rest, extra], name=f"{conv.name}/sum", like=conv.out)
    editor.apply(draft, {conv.out: total}, before=conv.node)


def _why_not(candidates: list[Candidate], plans: list[Plan]) -> Iterable[str]:
    """For the convolutions that had a plan, and for those with a part that is in another concatenation too."""
    planned = {candidate: plan for plan in plans for candidate, _ in plan.cuts}
    holders: dict[ir.Value, set[ir.Node]] = defaultdict(set)
    for candidate in candidates:
        for part in candidate.parts:
            holders[part.value].add(candidate.concat)
    for candidate in candidates:
        pair = f"{candidate.conv.name} over {candidate.concat.name}"
        plan = planned.get(candidate)
        if plan is not None:
            loss = -plan.saving / 1e6
            yield f"{pair}: taking a part out would cost the time of {loss:.1f} M multiply-adds more than it saves"
        elif any(len(holders[part.value]) > 1 for part in candidate.parts):
            yield f"{pair}: other convolutions read a part of it too, but with different weights"
