"""Two convolutions in a row become one where the product is cheaper, borders included."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.rewrites.fold_pointwise import fold_pointwise

Graph = Callable[..., onnx.ModelProto]
WIDE = {"v": (16, 4, 1, 1), "w": (3, 16, 3, 3), "b": (16,), "c": (3,)}
"""A pointwise convolution to many channels before a 3×3 one: the product is 4·3·9 instead of 4·16 + 16·3·9."""


def pair(graph: Graph, first: str, second: str, outputs: str = "", **weights: Any) -> onnx.ModelProto:
    return graph(f"g (double[2,4,6,6] x) => (double[2,3,?,?] y {outputs}) {{ a = {first} y = {second} }}", **weights)


@pytest.mark.parametrize("first", ["Conv(x, v)", "Conv(x, v, b)"])
@pytest.mark.parametrize("second", ["Conv<strides=[2,1], dilations=[1,2]>(a, w)", "Conv(a, w, c)"])
def test_a_pointwise_convolution_before_another(graph: Graph, exact: Any, first: str, second: str) -> None:
    model = pair(graph, first, second, **WIDE)
    done = exact(fold_pointwise, model)
    assert done.ops() == ["Conv"]
    assert cost.multiply_adds(done.model) < cost.multiply_adds(model)


@pytest.mark.parametrize("first", ["Conv<pads=[1,0,2,1], strides=[2,2]>(x, v)", 'Conv<auto_pad="SAME_LOWER">(x, v, b)'])
@pytest.mark.parametrize("second", ["Conv(a, w)", "Conv(a, w, c)"])
def test_a_pointwise_convolution_after_another(graph: Graph, exact: Any, first: str, second: str) -> None:
    model = pair(graph, first, second, v=(16, 4, 3, 3), w=(3, 16, 1, 1), b=(16,), c=(3,))
    assert exact(fold_pointwise, model).ops() == ["Conv"]


def test_padding_is_no_obstacle_without_a_bias(graph: Graph, exact: Any) -> None:
    assert exact(fold_pointwise, pair(graph, "Conv(x, v)", "Conv<pads=[1,1,1,1]>(a, w, c)", **WIDE)).count == 1


@pytest.mark.parametrize(
    ("first", "second", "weights", "reason"),
    [
        ("Conv(x, v, b)", "Conv<pads=[1,1,1,1]>(a, w)", WIDE, "padding"),
        ("Conv(x, v, b)", 'Conv<auto_pad="SAME_UPPER">(a, w)', WIDE, "padding"),
        ("Conv<group=2>(x, v)", "Conv(a, w)", WIDE | {"v": (16, 2, 1, 1)}, "grouped"),
        ("Conv(x, v)", "Conv(a, w)", WIDE | {"v": (1, 4, 1, 1), "w": (3, 1, 3, 3)}, "cost more"),
    ],
)
def test_other_pairs_stay(graph: Graph, apply: Any, first: str, second: str, weights: Any, reason: str) -> None:
    done = apply(fold_pointwise, pair(graph, first, second, **weights))
    assert done.count == 0
    assert reason in done.refusals[0]


def test_a_product_that_overflows_is_not_said_to_cost_more(graph: Graph, apply: Any) -> None:
    large = {name: np.full(shape, 1e200) for name, shape in (("v", (16, 4, 1, 1)), ("w", (3, 16, 1, 1)))}
    done = apply(fold_pointwise, pair(graph, "Conv(x, v)", "Conv(a, w)", **large))
    assert done.count == 0 and "would overflow" in done.refusals[0]


def test_a_first_result_that_is_asked_for_stays(graph: Graph, apply: Any) -> None:
    done = apply(fold_pointwise, pair(graph, "Conv(x, v)", "Conv(a, w)", ", double[2,16,6,6] a", **WIDE))
    assert done.count == 0
    assert "also used by others" in done.refusals[0]
