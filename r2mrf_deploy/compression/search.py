"""One search over everything that trades accuracy for time: recurrent steps, channels and branches, ranks, INT8.

For each number of steps that the bound allows, every unit (see `plans`) is tried alone once, and what it does to the maps
is measured, whatever the bound is on: against masks a change that ruins maps at full strength may look harmless alone, or
even good. Plans are made of what that showed; and the strongest plan within the bound is found by bisection.
Whatever is measured is kept, so the search is deterministic given what was.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import onnx

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.compression import plans
from r2mrf_deploy.compression.costs import Costs, Low, never
from r2mrf_deploy.compression.curve import Curve, Point
from r2mrf_deploy.compression.finetune import distil
from r2mrf_deploy.compression.judging import Judge, size
from r2mrf_deploy.compression.plans import Plan, part_of
from r2mrf_deploy.graph import cost, quantize
from r2mrf_deploy.graph.compression.changes import Choice, Compressible
from r2mrf_deploy.parity.measurements import Measurements
from r2mrf_deploy.parity.node_search import Drop
from r2mrf_deploy.progress import Progress, ProgressCallback

METHOD: quantize.Method = "percentile"
FINETUNED = 4.0
"""With distillation, points that lose up to this many times the bound are tried."""
CANDIDATES = 3
"""How many of them, the cheapest first."""

Feeds = Sequence[Mapping[str, np.ndarray]]


@dataclass(frozen=True, eq=False)
class Structure:
    """The network with a number of recurrent steps, as an optimised FP32 graph."""

    steps: int | None
    artifact: Artifact
    model: onnx.ModelProto
    """Prepared, with shapes inferred."""


@dataclass(eq=False)
class Search:
    """The state of a search.

    Args:
        structures: the network with every number of steps, the full one first and then ever fewer; opened one by one.
        judge: of whole plans.
        probe: makes the judge of what single changes do to the maps of a graph.
        fitting: photographs to fit factors to and to calibrate on.
    """

    structures: Sequence[Callable[[], Structure]]
    full: onnx.ModelProto
    judge: Judge
    probe: Callable[[onnx.ModelProto], Judge]
    costs: Costs
    fitting: Feeds
    measured: Measurements[Any]
    precision: str
    """"int8" where parts may be computed in it, else "fp32"."""
    curve: Curve
    progress: ProgressCallback
    _opened: dict[int | None, Structure] = field(default_factory=dict)
    _subjects: dict[int | None, Compressible] = field(default_factory=dict)
    _distilled: dict[str, onnx.ModelProto] = field(default_factory=dict)
    _whole: tuple[onnx.ModelProto, onnx.ModelProto] | None = None
    """The last FP32 graph that was quantised, and it in INT8."""

    @cached_property
    def bound(self) -> Drop:
        return Drop(self.curve.max_drop, self.curve.max_drop)

    def run(self, finetune: int = 0) -> None:
        """Fill the curve with points.

        Args:
            finetune: iterations of distillation, for points that the bound would not allow without it.
        """
        for structure in self._allowed():
            self._bisect(structure)
        if finetune:
            self._finetune(finetune)

    def _allowed(self) -> list[Structure]:
        """The structures to look into: the fewest steps within the bound, and within half of it."""
        found: list[Structure] = []
        for number, opening in enumerate(self.structures):
            structure = opening()
            self._opened[structure.steps] = structure
            if number and not self.measure(structure, Plan()).within:
                break
            found.append(structure)
        half = [s for s in found if 2 * size(self._drop(s, Plan(), self.judge)) <= self.curve.max_drop]
        return list(dict.fromkeys([found[-1], half[-1]]))

    def _bisect(self, structure: Structure) -> None:
        """The strongest plan within the bound."""
        found = plans.units(self.subject(structure), self.costs, self.precision)
        made = plans.plans(found, self._harm(structure, found))
        low, high = 0, len(made)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.measure(structure, made[middle]).within else (low, middle)

    def _harm(self, structure: Structure, found: Sequence[plans.Unit]) -> dict[plans.Unit, float]:
        """What each unit's error does to the map: the square of the drop for each unit of error."""
        harm, judge = {}, self.probe(structure.model)
        for number, unit in enumerate(found, 1):
            self.progress(Progress(f"trying each change alone, {steps_of(structure)}", number, len(found)))
            option = unit.probe
            drop = self._drop(structure, plans.plan([(unit, option)]), judge)
            harm[unit] = size(drop) ** 2 / max(option.error, 1e-12)
        return harm

    def _finetune(self, iterations: int) -> None:
        """Distil the cheapest points that are not too far from the bound, until one is within it."""
        best = self.curve.cheapest()
        most = FINETUNED * self.curve.max_drop
        cheaper = [
            p for p in self.curve.points
            if size(p.drop) <= most and not p.within and (best is None or p.cost < self.curve.points[best].cost)
        ]  # fmt: skip
        for point in sorted(cheaper, key=lambda p: p.cost)[:CANDIDATES]:
            if self.measure(self.structure(point.steps), point.plan, iterations).within:
                return

    def measure(self, structure: Structure, plan: Plan, finetune: int = 0) -> Point:
        """A point of the curve."""
        drop = self._drop(structure, plan, self.judge, finetune)
        changed = self._changed(structure, plan)
        choice = plan.choice
        point = Point(
            steps=structure.steps, precision=plan.precision, channels=dict(choice.channels),
            ranks={name: (r.into, r.out) for name, r in choice.ranks.items()}, int8=plan.int8, finetune=finetune,
            cost=self.costs.total(changed, _low(changed, plan)), multiply_adds=cost.multiply_adds(changed),
            parameters=cost.parameters(changed), mae=drop.mae, f=drop.f, within=drop.within(self.bound),
        )  # fmt: skip
        if point not in self.curve.points:
            self.curve.points.append(point)
        share = point.cost / self.curve.full.cost
        self.progress(Progress(f"{steps_of(structure)}, {plan.precision}: {share:.0%} of the cost, {drop}"))
        return point

    def _drop(self, structure: Structure, plan: Plan, judge: Judge, finetune: int = 0) -> Drop:
        def find() -> Drop:
            drop = judge.drop(self.graph(structure, plan, finetune), plan.precision)
            return Drop(*(v if math.isfinite(v) else 1.0 for v in (drop.mae, drop.f)))  # not finite: all is lost

        key = json.dumps([_described(structure, plan.choice), plan.int8, finetune, judge.what])
        found: Drop = self.measured.get(key, find)
        return found

    def _changed(self, structure: Structure, plan: Plan) -> onnx.ModelProto:
        return self.subject(structure).changed(plan.choice) if plan.choice != Choice() else structure.model

    def graph(self, structure: Structure, plan: Plan, finetune: int = 0) -> onnx.ModelProto:
        """The graph of a point."""
        return self.lowered(self.single(structure, plan, finetune), plan)

    def single(self, structure: Structure, plan: Plan, finetune: int = 0) -> onnx.ModelProto:
        """The same in FP32."""
        changed = self._changed(structure, plan)
        if not finetune:
            return changed
        key = f"{_described(structure, plan.choice)} {finetune}"
        if key not in self._distilled:
            self._distilled = {key: distil(changed, self.full, self.fitting, finetune, self.progress)}
        return self._distilled[key]

    def lowered(self, model: onnx.ModelProto, plan: Plan) -> onnx.ModelProto:
        """An FP32 graph with the plan's parts in INT8, but for its ends."""
        if not plan.int8:
            return model
        if self._whole is None or self._whole[0] is not model:  # parts are tried one by one on the same graph
            ranges = quantize.calibrate(model, [dict(feed) for feed in self.fitting], METHOD)
            self._whole = model, quantize.quantize(model, ranges)
        return quantize.restore(self._whole[1], model, held(model, plan))

    def subject(self, structure: Structure) -> Compressible:
        """What can be changed in a structure."""
        if structure.steps not in self._subjects:
            self._subjects[structure.steps] = Compressible(structure.model, self.fitting, self.progress)
        return self._subjects[structure.steps]

    def structure(self, steps: int | None) -> Structure:
        """The structure with a number of steps.

        Raises:
            KeyError: there is none.
        """
        for opening in () if steps in self._opened else self.structures:
            structure = opening()
            self._opened[structure.steps] = structure
            if structure.steps == steps:
                break
        return self._opened[steps]


def held(model: onnx.ModelProto, plan: Plan) -> list[str]:
    """The nodes of an INT8 graph that could be quantised and stay in FP32: its ends, and the parts that a plan does not
    name."""
    rest = [n for n in quantize.quantizable(model) if part_of(n) not in plan.int8]
    return list(dict.fromkeys([*quantize.ends(model), *rest]))


def _low(model: onnx.ModelProto, plan: Plan) -> Low:
    kept = set(held(model, plan)) if plan.int8 else set()
    return (lambda name: name not in kept) if plan.int8 else never


def _described(structure: Structure, choice: Choice) -> list[Any]:
    ranks = {name: [r.into, r.out] for name, r in choice.ranks.items()}
    return [structure.steps, dict(choice.channels), ranks]


def steps_of(structure: Structure) -> str:
    """A structure in words."""
    return "the graph" if structure.steps is None else f"{structure.steps} step{'s' * (structure.steps != 1)}"
