"""Table 1 of the R²MRF paper beside what was measured here: a row for each of its twelve methods, whoever computes it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from r2mrf_deploy.baselines import BASELINES
from r2mrf_deploy.protocols import PROTOCOLS, TABLE1
from r2mrf_deploy.report.screen import Sheet

if TYPE_CHECKING:
    from r2mrf_deploy.evaluation import Evaluation
    from r2mrf_deploy.protocols import Published

PROTOCOL = PROTOCOLS["r2mrf"]
BASELINES_OF_IT = tuple(name for name in TABLE1.values() if name in BASELINES)
"""The baselines that compute rows of the table. The other rows need a checkpoint or an artifact of a network."""


@dataclass(frozen=True)
class Line:
    """A line of the table: what the paper prints of a method, and what was measured. At least one of them is there."""

    printed: Published | None
    own: Evaluation | None

    def to_dict(self) -> dict[str, Any]:
        """`own` is the name of the row with all figures; without one, the own figures are null."""
        scores = None if self.own is None else self.own.scores
        return {
            "method": None if self.printed is None else self.printed.method,
            "printed": None if self.printed is None else {"f": self.printed.f, "mae": self.printed.mae},
            "own": None if self.own is None else self.own.name,
            "f": None if scores is None else PROTOCOL.f_of(scores),
            "mae": None if scores is None else scores.mae,
        }


def lines(rows: Sequence[Evaluation], published: Sequence[Published]) -> list[Line]:
    """The lines of the table, in the paper's order, then the rows of methods that are not in it.

    Args:
        rows: what was measured. A row belongs to the line of the network or the baseline that computed it.
        published: the rows that the paper prints.
    """
    found = []
    for printed in published:
        own = [row for row in rows if row.computed_by == TABLE1[printed.method]]
        found += [Line(printed, row) for row in own] or [Line(printed, None)]
    return found + [Line(None, row) for row in rows if row.computed_by not in TABLE1.values()]


def sheet(found: Sequence[Line]) -> Sheet:
    """F is that of the protocol `r2mrf`; the columns that end in `printed` are the paper's."""
    numbers = ("F printed", "F", "ΔF", "mae printed", "mae", "Δmae", "f_max", "auc")
    table = Sheet(
        "method", "computed by", "input", numbers=numbers, spare=("Δmae", "input", "auc", "f_max"), once=("input",)
    )
    notes = list(dict.fromkeys(each.printed.note for each in found if each.printed and each.printed.note))
    for each in found:
        printed, own = each.printed, each.own
        title = "-" if printed is None else printed.title
        if printed is not None and printed.note:
            title += f" {'*' * (notes.index(printed.note) + 1)}"  # as the lines below the table count them
        theirs = (None, None) if printed is None else (printed.f, printed.mae)
        if own is None:
            table.add(title, "-", "", f"{theirs[0]:.3f}", "-", "-", f"{theirs[1]:.3f}", *["-"] * 4)
            continue
        ours = (PROTOCOL.f_of(own.scores), own.scores.mae)
        cells = [cell for pair in zip(theirs, ours, strict=True) for cell in _compared(*pair)]
        table.add(title, own.name, own.size, *cells, f"{own.scores.f_max:.3f}", f"{own.scores.auc:.3f}")
    return table


def _compared(printed: float | None, own: float) -> tuple[str, str, str]:
    if printed is None:
        return "-", f"{own:.3f}", "-"
    return f"{printed:.3f}", f"{own:.3f}", f"{own - printed:+.3f}"


def missing(found: Sequence[Line]) -> list[str]:
    """What the rows without own figures need."""
    lines = []
    for each in found:
        if each.printed is not None and each.own is None:
            name = TABLE1[each.printed.method]
            need = f"the baseline {name}" if name in BASELINES else f"a checkpoint or an artifact of the network {name}"
            lines.append(f"{each.printed.method} has no figures of your own: give {need}")
    return lines
