"""The benchmark of compression: which points it times, and how it shows what it found."""

from __future__ import annotations

import json
from pathlib import Path

from r2mrf_deploy.compression.curve import Curve, Point
from tests.benchmarks.conftest import FOLDER, load

load("tables")  # which the script imports by this name
compression = load("compression")


def point(cost: float, loss: float) -> Point:
    return Point(
        steps=1, precision="int8", cost=cost, multiply_adds=1, parameters=1, mae=loss, f=0.0, within=loss <= 0.005
    )


def test_points_that_cost_nearly_the_same_are_timed_once() -> None:
    points = [
        point(20, 0.02),
        point(31, 0.006),
        point(31.5, 0.0055),
        point(32, 0.004),
        point(40, 0.003),
        point(50, 0.0035),
    ]
    curve = Curve(
        source="x", subject="", costs="openvino", unit="ms", judged="maps", max_drop=0.005, full=point(100, 0.0),
        points=points, chosen=3,
    )  # fmt: skip
    assert compression.apart(curve) == [
        0,
        1,
        3,
        4,
    ]  # the chosen one, though it is near the second; none that another beats


def test_the_stored_results_of_this_project_render(tmp_path: Path) -> None:
    found = json.loads((FOLDER / "results" / "compression.json").read_text())
    for network in found.values():
        assert len(compression.table(network).splitlines()) == 2 + len(network["rows"])
    compression.plot(list(found.values()), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 10_000
