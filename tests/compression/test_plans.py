"""Plans: from nothing to everything, the best saving for a predicted loss first."""

from __future__ import annotations

import pytest

from r2mrf_deploy.compression.costs import CostModel, Shape
from r2mrf_deploy.compression.plans import INT8, Option, Plan, Unit, factors, part_of, plans
from r2mrf_deploy.graph.compression.low_rank import Ranks


def unit(name: str, *options: tuple[int, float, float]) -> Unit:
    return Unit(name, tuple(Option(*option) for option in options))


def test_plans_grow_from_nothing_to_everything() -> None:
    found = [unit("a", (8, 0.01, 10), (4, 0.1, 30)), unit("b", (2, 0.01, 5)), Unit("c", (Option(INT8, 1.0, 40),))]
    harm = {"a": 1.0, "b": 1.0, "c": 0.5}
    made = plans(found, {u: harm[u.name] for u in found})
    assert made[0] == Plan()
    assert dict(made[-1].choice.channels) == {"a": 4, "b": 2} and made[-1].int8 == ("c",)
    # per unit of squared loss: a saves 10 / 0.01 first, then b 5 / 0.01, then a's next 20 / 0.09, and c 40 / 0.5 last
    seen = [(dict(p.choice.channels), p.int8) for p in made[1:]]
    assert seen == [({"a": 8}, ()), ({"a": 8, "b": 2}, ()), ({"a": 4, "b": 2}, ()), ({"a": 4, "b": 2}, ("c",))]


def test_what_does_no_harm_comes_first() -> None:
    free, dear = unit("free", (3, 0.01, 1)), unit("dear", (3, 0.01, 100))
    made = plans([dear, free], {free: 0.0, dear: 1.0})
    assert [dict(p.choice.channels) for p in made] == [{}, {"free": 3}, {"free": 3, "dear": 3}]
    assert plans([], {}) == [Plan()]


def test_a_layer_and_a_group_of_one_name_are_two_units() -> None:
    layer, group = Unit("b", (Option(Ranks(out=8), 0.01, 5),)), unit("b", (4, 0.01, 9))
    last = plans([layer, group], {layer: 1.0, group: 1.0})[-1].choice
    assert dict(last.channels) == {"b": 4} and dict(last.ranks) == {"b": Ranks(out=8)}


@pytest.mark.parametrize(
    ("node", "part"),
    [
        ("backbone/body.layer3.0.conv1/Conv", "backbone/body.layer3"),
        ("backbone/body.4.layers.norm2/Conv/factor1", "backbone/body.4"),
        ("step1.branch5/second3/Conv", "step1"),
        ("step4.branch2/second3/Conv", "later steps"),
        ("step12.branch2/second3/Conv", "later steps"),
        ("shared/first3/Conv/part/merged", "shared"),
    ],
)
def test_parts_are_those_of_the_network(node: str, part: str) -> None:
    assert part_of(node) == part


def test_the_factors_of_a_convolution_have_its_strides_once_and_its_output() -> None:
    strided = (("pads", (1, 1, 1, 1)), ("strides", (2, 2)))
    shape = Shape(64, 32, (3, 3), (40, 40), (20, 20), geometry=strided)
    down, middle, up = factors(shape, Ranks(16, 8))
    assert (down.channels, down.filters, down.kernel, down.geometry, down.made) == (64, 16, (1, 1), (), (40, 40))
    assert (middle.channels, middle.filters, middle.geometry) == (16, 8, strided)
    assert (up.channels, up.filters, up.pixels) == (8, 32, (20, 20))
    assert up.kernel_of("fp32").shape == shape.kernel_of("fp32").shape
    parts = sum(f.kernel_of("fp32").multiply_adds for f in (down, middle, up))
    assert parts == 40 * 40 * 64 * 16 + 20 * 20 * (9 * 16 * 8 + 8 * 32)
    assert CostModel().convolution(middle, "int8") < CostModel().convolution(middle, "fp32")
