"""The curve of a compression for people: a table and lines for the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from r2mrf_deploy.report.screen import Sheet
from r2mrf_deploy.wording import count

if TYPE_CHECKING:
    from r2mrf_deploy.compression.curve import Curve, Point


def pareto_table(curve: Curve) -> Sheet:
    """The points that no other one beats, the cheapest first, and the full network."""
    figures = ("cost", "multiply-adds", "parameters", "MAE lost", "F lost")
    table = Sheet("point", "steps", "precision", "changed", "within", numbers=figures, spare=("parameters",))
    for index in curve.front():
        point = curve.points[index]
        style = "bold" if index == curve.chosen else ""
        table.add(Text(str(index + 1), style), *_cells(point, curve))
    if not any(p.mae <= 0 and p.f <= 0 and p.cost <= curve.full.cost for p in curve.points):
        table.add("full", *_cells(curve.full, curve))
    return table


def _cells(point: Point, curve: Curve) -> list[str]:
    changed = [count(len(point.ranks), "rank")] * bool(point.ranks)
    changed += [count(len(point.channels), "width")] * bool(point.channels)
    changed += [count(len(point.int8), "part")] * bool(point.int8)
    changed += [f"{point.finetune} iterations"] * bool(point.finetune)
    return [
        "-" if point.steps is None else str(point.steps),
        point.precision,
        ", ".join(changed) or "nothing",
        "yes" if point.within else "no",
        f"{point.cost / curve.full.cost:.0%}",
        f"{point.multiply_adds / 1e9:.2f} G",
        f"{point.parameters / 1e6:.2f} M",
        f"{point.mae:.4f}",
        f"{point.f:.4f}",
    ]


def compressed_lines(curve: Curve) -> list[str]:
    """What the table does not say."""
    assert curve.chosen is not None
    point = curve.points[curve.chosen]
    allowed = f"within {curve.max_drop:g}" if point.within else f"not within {curve.max_drop:g}"
    return [
        f"point {curve.chosen + 1} of {len(curve.points)} costs {point.cost / curve.full.cost:.0%} of the full network by "
        f"{curve.costs}, and loses {point.mae:.4f} of MAE and {point.f:.4f} of F against {curve.judged}: {allowed}"
    ]
