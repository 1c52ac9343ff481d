"""The trade of accuracy for time that a search found: its points, each with what is needed to make it again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from r2mrf_deploy.compression.plans import Plan
from r2mrf_deploy.errors import InputError, reading
from r2mrf_deploy.files import document, write_atomically
from r2mrf_deploy.graph.compression.changes import Choice
from r2mrf_deploy.graph.compression.low_rank import Ranks
from r2mrf_deploy.parity.node_search import Drop


class Point(BaseModel):
    """One way to compress the network, and what it gives."""

    model_config = ConfigDict(frozen=True)

    steps: int | None
    """Recurrent steps; None where the graph has none to choose."""
    precision: str
    """Of the graph: "int8" where any part is."""
    channels: dict[str, int] = {}
    """Group of channels -> how many it keeps."""
    ranks: dict[str, tuple[int, int]] = {}
    """Layer -> its inner channels, at its input and its output; 0 where that side is not factored."""
    int8: tuple[str, ...] = ()
    """The parts of the network that are computed in INT8."""
    finetune: int = 0
    """Iterations of distillation."""
    cost: float
    """By the search's costs."""
    multiply_adds: int
    parameters: int
    mae: float
    """What the map loses: the mean absolute difference, or against masks the loss of MAE."""
    f: float
    """The same for F."""
    within: bool
    """Whether both are within the bound."""

    @property
    def plan(self) -> Plan:
        return Plan(Choice(self.channels, {name: Ranks(*ranks) for name, ranks in self.ranks.items()}), self.int8)

    @property
    def drop(self) -> Drop:
        return Drop(self.mae, self.f)


class Curve(BaseModel):
    """The points of a search."""

    format: Literal["r2mrf-pareto/1"] = "r2mrf-pareto/1"
    source: str
    subject: str
    """A hash of what was searched: the network, the options, the photographs."""
    costs: str
    """What the costs stand for: the cost model, a runtime or a device."""
    unit: str
    judged: str
    """What the points are compared with."""
    max_drop: float
    full: Point
    points: list[Point] = []
    chosen: int | None = None
    """The index of the point that was written."""

    def front(self) -> list[int]:
        """The indices of the points that no other one beats in both cost and loss, from the cheapest on."""
        order = sorted(range(len(self.points)), key=lambda i: (self.points[i].cost, _loss(self.points[i])))
        front: list[int] = []
        for i in order:
            if not front or _loss(self.points[i]) < _loss(self.points[front[-1]]):
                front.append(i)
        return front

    def cheapest(self) -> int | None:
        """The index of the cheapest point within the bound; None if none is cheaper than the full network."""
        able = [i for i, p in enumerate(self.points) if p.within and p.cost < self.full.cost]
        return min(able, key=lambda i: (self.points[i].cost, i), default=None)

    def nearest(self) -> Point | None:
        """Of the points that are cheaper than the full network, the one that loses least."""
        able = [p for p in self.points if p.cost < self.full.cost]
        return min(able, key=_loss, default=None)

    def write(self, path: Path) -> None:
        """Write the curve as JSON, in one piece or not at all."""
        write_atomically(path, (self.model_dump_json(indent=2) + "\n").encode())

    @classmethod
    def read(cls, path: Path) -> Curve:
        """Read a curve.

        Raises:
            InputError: there is no such file, or it is no curve.
        """
        with reading(path, InputError, "is not a Pareto curve of `r2mrf compress`"):
            return cls.model_validate_json(document(path))

    def point(self, number: int) -> Point:
        """The point called `number`, from 1 as they are printed.

        Raises:
            InputError: there is none.
        """
        if not 1 <= number <= len(self.points):
            raise InputError(f"there is no point {number}: the curve has points 1 to {len(self.points)}")
        return self.points[number - 1]


def _loss(point: Point) -> float:
    return max(point.mae, point.f)
