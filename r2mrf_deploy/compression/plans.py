"""Which changes to make together: the cheapest for a predicted loss, from none at all to all at their strongest.

A unit is a layer to factor, a group of channels to thin out or a part of the network to compute in INT8. Its options have a
saving and an error: of the first two, the share of its output's energy that they lose. What an error does to the map is
measured for each unit once. Losses of different units are taken to be independent, so their squares add up, and a multiplier
weighs savings against losses (Lagrange).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from r2mrf_deploy.compression.costs import Costs, Low, Shape, always, convolutions, never
from r2mrf_deploy.graph import naming, quantize
from r2mrf_deploy.graph.compression.changes import Choice, Compressible, Layer
from r2mrf_deploy.graph.compression.channels import Group, fewest
from r2mrf_deploy.graph.compression.low_rank import Ranks

ERRORS = (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.2)
"""The errors that options are made for."""
PROBE = 0.01
"""The error nearest to which a unit's effect on the map is measured."""
WORTH = 0.002
"""A unit that saves no more than this share of the graph's cost is left alone."""


@dataclass(frozen=True)
class Plan:
    """What to change in a structure."""

    choice: Choice = Choice()  # noqa: RUF009 (it is frozen)
    int8: tuple[str, ...] = ()
    """The parts (see `part_of`) that are computed in INT8, sorted."""

    @property
    def precision(self) -> str:
        return "int8" if self.int8 else "fp32"


INT8: Literal["int8"] = "int8"


@dataclass(frozen=True)
class Option:
    """One way to change a unit."""

    value: int | Ranks | Literal["int8"]
    """The channels that are kept, the ranks, or `INT8`."""
    error: float
    saved: float


@dataclass(frozen=True)
class Unit:
    """A layer that can be factored, or a group that can lose channels."""

    name: str
    options: tuple[Option, ...]

    @property
    def probe(self) -> Option:
        """The option that its effect on the map is measured with."""
        return min(self.options, key=lambda o: abs(np.log(max(o.error, 1e-9) / PROBE)))


def units(subject: Compressible, costs: Costs, precision: str) -> list[Unit]:
    """What could be changed in a graph for a saving worth it.

    Args:
        precision: "int8" where parts may be computed in it: other savings are then those that are left in INT8.
    """
    low = never if precision == "fp32" else always
    whole = costs.total(subject.model, low)
    shapes = convolutions(subject.model)
    found = [_factored(layer, shapes[layer.name], costs, precision) for layer in subject.layers.values()]
    found += [_thinned(subject, group, costs, low, whole) for group in subject.groups.values()]
    found += _quantised(subject, shapes, costs) if precision == "int8" else []
    return [u for u in found if u.options and max(o.saved for o in u.options) > WORTH * whole]


def _quantised(subject: Compressible, shapes: Mapping[str, Shape], costs: Costs) -> list[Unit]:
    able = set(quantize.quantizable(subject.model)) - set(quantize.ends(subject.model))
    saved: dict[str, float] = {}
    for name in (n for n in shapes if n in able):
        shape = shapes[name]
        gain = costs.convolution(shape, "fp32") - costs.convolution(shape, "int8")
        saved[part_of(name)] = saved.get(part_of(name), 0.0) + gain
    return [Unit(part, (Option(INT8, 1.0, gain),)) for part, gain in saved.items() if gain > 0]


def part_of(node: str) -> str:
    """The part of the network that a node belongs to: its scope; a backbone's stages are apart, all later steps together."""
    scope = naming.scope(node)
    if re.match(r"step\d+\.", scope):
        return "step1" if scope.startswith("step1.") else "later steps"
    rest = node.split("/")[1:]
    return f"{scope}/{'.'.join(rest[0].split('.')[:2])}" if scope == "backbone" and rest else scope


def _factored(layer: Layer, shape: Shape, costs: Costs, precision: str) -> Unit:
    before = costs.convolution(shape, precision)
    best: dict[Ranks, Option] = {}
    for error in ERRORS:
        ranks = [r for r in layer.low_rank.ranks(error) if _smaller(layer, r)]
        options = [_option(layer, shape, r, costs, precision, before) for r in ranks]
        saving = [o for o in options if o.saved > 0]
        if saving:
            option = max(saving, key=lambda o: o.saved)
            best[option.value] = option  # type: ignore[index]
    return Unit(layer.name, tuple(best.values()))


def _option(layer: Layer, shape: Shape, ranks: Ranks, costs: Costs, precision: str, before: float) -> Option:
    after = sum(costs.convolution(s, precision) for s in factors(shape, ranks)) * len(layer.nodes)
    return Option(ranks, layer.low_rank.error(ranks), before * len(layer.nodes) - after)


def _smaller(layer: Layer, ranks: Ranks) -> bool:
    """Whether the factors have fewer weights, and so fewer multiply-adds."""
    filters, channels, *taps = layer.convolution.weight.shape
    inner, outer = ranks.into or channels, ranks.out or filters
    weights = inner * outer * taps[0] * taps[1]
    return (
        weights + bool(ranks.into) * inner * channels + bool(ranks.out) * outer * filters
        < layer.convolution.weight.size
    )


def factors(shape: Shape, ranks: Ranks) -> Iterator[Shape]:
    """The shapes of a convolution's factors."""
    point = replace(shape, kernel=(1, 1), geometry=())
    if ranks.into:
        yield replace(point, filters=ranks.into, made=shape.pixels)
    yield replace(shape, channels=ranks.into or shape.channels, filters=ranks.out or shape.filters)
    if ranks.out:
        yield replace(point, channels=ranks.out, pixels=shape.made)


def _thinned(subject: Compressible, group: Group, costs: Costs, low: Low, whole: float) -> Unit:
    _, left = subject.order(group)
    width = len(left)
    counts = sorted({k for e in ERRORS if (k := fewest(left, e)) < width}, reverse=True)
    if not counts:
        return Unit(group.name, ())

    def saved(count: int) -> float:
        return whole - costs.total(subject.changed(Choice(channels={group.name: count})), low)

    if width < 16:  # each may be a branch of its own
        options = [Option(k, float(left[k - 1]), saved(k)) for k in counts]
    else:  # every channel saves about the same
        each = saved(counts[-1]) / (width - counts[-1])
        options = [Option(k, float(left[k - 1]), each * (width - k)) for k in counts]
    return Unit(group.name, tuple(o for o in options if o.saved > 0))


def plans(found: Sequence[Unit], harm: Mapping[Unit, float]) -> list[Plan]:
    """Plans from the least to the largest predicted loss, each with one option more, or a stronger one, than the one before;
    the first one changes nothing.

    The steps are in the order of what they save for what they lose. Options that no multiplier would choose are left out.

    Args:
        harm: unit -> the square of what the map loses, for each unit of error.
    """
    steps = [(slope, unit, option) for unit in found for slope, option in _hull(unit, harm[unit])]
    made, chosen = [Plan()], dict[Unit, tuple[Unit, Option]]()
    for _, unit, option in sorted(steps, key=lambda step: -step[0]):
        chosen[unit] = unit, option
        made.append(plan(chosen.values()))
    return made


def _hull(unit: Unit, harm: float) -> list[tuple[float, Option]]:
    """The options of a unit that a multiplier could choose, weaker ones first, each with its saving for its loss over the
    one before, which falls."""
    hull: list[tuple[float, Option]] = []
    for option in sorted(unit.options, key=lambda o: (o.error, -o.saved)):
        while True:
            before = hull[-1][1] if hull else Option(INT8, 0.0, 0.0)
            if option.saved <= before.saved:
                break
            loss = harm * (option.error - before.error)
            slope = (option.saved - before.saved) / loss if loss > 0 else math.inf
            if not hull or slope < hull[-1][0]:
                hull.append((slope, option))
                break
            hull.pop()
    return hull


def plan(chosen: Iterable[tuple[Unit, Option]]) -> Plan:
    """The plan of some options."""
    channels: dict[str, int] = {}
    ranks: dict[str, Ranks] = {}
    int8: list[str] = []
    for unit, option in chosen:
        if isinstance(option.value, Ranks):
            ranks[unit.name] = option.value
        elif isinstance(option.value, int):
            channels[unit.name] = option.value
        else:
            int8.append(unit.name)
    return Plan(Choice(channels, ranks), tuple(sorted(int8)))
