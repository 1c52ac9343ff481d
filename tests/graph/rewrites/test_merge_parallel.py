"""Parallel convolutions of one tensor become one where reading it once pays for the split."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx
import pytest

from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.rewrites.merge_parallel import merge_parallel

Graph = Callable[..., onnx.ModelProto]


def parallel(graph: Graph, first: str, second: str, channels: int = 32, **weights: Any) -> onnx.ModelProto:
    text = f"""g (double[1,{channels},6,6] x) => (double[1,2,?,?] y, double[1,3,?,?] z) {{
        p = {first} y = Relu(p) q = {second} z = Sigmoid(q) }}"""
    return graph(text, **weights)


@pytest.mark.parametrize(
    "second",
    ["Conv<pads=[1,1,1,1]>(x, w, c)", "Conv<pads=[1,1,1,1]>(x, w)", "Conv<pads=[1,1,1,1], strides=[1,1]>(x, w)"],
)
def test_two_become_one_and_a_split(graph: Graph, exact: Any, second: str) -> None:
    model = parallel(graph, "Conv<pads=[1,1,1,1]>(x, v, b)", second, v=(2, 32, 3, 3), w=(3, 32, 3, 3), b=(2,), c=(3,))
    done = exact(merge_parallel, model)
    assert done.ops()[:2] == ["Conv", "Split"]
    assert cost.multiply_adds(done.model) == cost.multiply_adds(model)


def test_convolutions_in_a_row_of_merged_ones_are_merged_too(graph: Graph, exact: Any) -> None:
    text = """g (double[1,32,6,6] x) => (double[1,1,6,6] p, double[1,1,6,6] q, double[1,1,6,6] r) {
        a = Conv(x, v) p = Conv(x, w) q = Conv(a, k) r = Conv(a, l) }"""
    model = graph(text, v=(12, 32, 1, 1), w=(1, 32, 1, 1), k=(1, 12, 1, 1), l=(1, 12, 1, 1))
    assert exact(merge_parallel, model).count == 2


@pytest.mark.parametrize(
    ("first", "second", "channels", "v", "w"),
    [
        ("Conv(x, v)", "Conv(x, w)", 4, (2, 4, 1, 1), (3, 4, 1, 1)),  # the split would move more than the second read
        ("Conv(x, v)", "Conv<pads=[1,1,1,1]>(x, w)", 32, (2, 32, 1, 1), (3, 32, 3, 3)),
        ("Conv(x, v)", "Conv<strides=[2,2]>(x, w)", 32, (2, 32, 1, 1), (3, 32, 1, 1)),
        ("Conv(x, v)", "Conv<group=3>(x, w)", 33, (2, 33, 1, 1), (3, 11, 1, 1)),
    ],
)
def test_others_stay_apart(
    graph: Graph, apply: Any, first: str, second: str, channels: int, v: tuple[int, ...], w: tuple[int, ...]
) -> None:
    assert apply(merge_parallel, parallel(graph, first, second, channels, v=v, w=w)).count == 0


def test_why_not_is_said(graph: Graph, apply: Any) -> None:
    model = parallel(graph, "Conv(x, v)", "Conv(x, w)", 4, v=(2, 4, 1, 1), w=(3, 4, 1, 1))
    assert "would cost more than reading the input once saves" in apply(merge_parallel, model).refusals[0]
