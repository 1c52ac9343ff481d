"""Terms of a sum that are the same function are computed once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from r2mrf_deploy.graph.rewrites.fold_sums import fold_sums

Graph = Callable[..., onnx.ModelProto]
HEAD = "g (double[2,4,6,6] x, double[2,4,6,6] z) => (double[2,4,?,?] y"


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        ("a = Conv(x, v, b) c = Conv(x, w) y = Add(a, c)", ["Conv"]),
        ("a = Conv(x, v, b) c = Conv(x, w, b) s = Add(a, z) y = Add(s, c)", ["Conv", "Add"]),
        ("a = Conv(x, v) y = Add(a, a)", ["Conv"]),
        ("s = Add(x, k) t = Add(l, s) y = Add(t, z)", ["Add", "Add"]),
        ("s = Add(x, k) t = Add(z, l) y = Add(s, t)", ["Add", "Add"]),
        (
            'a = Resize<mode="linear">(x, , r) c = Resize<mode="linear">(z, , q) y = Add(a, c)',
            ["Add", "Resize"],
        ),
    ],
)
def test_terms_alike_are_folded(graph: Graph, exact: Any, body: str, ops: list[str]) -> None:
    twice = np.array([1, 1, 2, 2], np.float32)
    weights = {
        "v": (4, 4, 1, 1),
        "w": (4, 4, 1, 1),
        "b": (4,),
        "k": (4, 1, 1),
        "l": (1, 1, 6, 6),
        "r": twice,
        "q": twice,
    }
    used = {name: weight for name, weight in weights.items() if f" {name})" in body or f"{name}," in body}
    assert exact(fold_sums, graph(f"{HEAD}) {{ {body} }}", **used)).ops() == ops


@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("a = Conv(x, v) c = Conv<pads=[1,1,1,1]>(x, w) y = Add(a, c)", ""),
        ("a = Conv(x, v) c = Conv(z, v) y = Add(a, c)", ""),
        ("a = Conv(x, v) c = Conv(x, u) y = Add(a, c)", ", double[2,4,6,6] c"),
        ('a = Resize<mode="linear">(x, , r) c = Resize<mode="nearest">(z, , r) y = Add(a, c)', ""),
        ("s = Add(x, k) y = Add(s, k)", ", double[2,4,6,6] s"),
    ],
)
def test_other_terms_stay(graph: Graph, apply: Any, body: str, outputs: str) -> None:
    twice = np.array([1, 1, 2, 2], np.float32)
    weights = {"v": (4, 4, 1, 1), "w": (4, 4, 3, 3), "u": (4, 4, 1, 1), "k": (4, 1, 1), "r": twice}
    assert apply(fold_sums, graph(f"{HEAD} {outputs}) {{ {body} }}", **weights)).count == 0


@pytest.mark.parametrize(
    ("body", "outputs", "reason"),
    [
        (
            "a = Conv(x, v) c = Conv(x, u) y = Add(a, c)",
            ", double[2,4,6,6] c",
            "c and a could be folded, but others read",
        ),
        ('a = Resize<mode="linear">(x, , r) c = Resize<mode="linear">(z, , r) y = Add(a, c)', "", "cost more"),
    ],
)
def test_terms_alike_that_stay_say_why(graph: Graph, apply: Any, body: str, outputs: str, reason: str) -> None:
    weights = {"v": (4, 4, 1, 1), "u": (4, 4, 1, 1), "r": np.array([1, 1, 0.5, 0.5], np.float32)}
    used = {name: weight for name, weight in weights.items() if f" {name})" in body}
    model = graph(f"{HEAD} {outputs}) {{ {body} }}", **used)
    done = apply(fold_sums, model)
    assert done.count == 0 and reason in done.refusals[0]


def test_a_smaller_shape_inside_the_sum_is_not_taken_for_the_whole(graph: Graph, exact: Any) -> None:
    text = "g (double[1,4,1,1] p, double[1,4,1,1] q, double[2,4,6,6] x) => (double[2,4,6,6] y) {"
    body = " s = Add(p, k) t = Add(s, q) u = Add(t, l) y = Add(u, x) }"
    assert exact(fold_sums, graph(text + body, k=(4, 1, 1), l=(4, 1, 1))).count == 1


def test_whole_numbers_are_left_alone(graph: Graph, apply: Any) -> None:
    text = "g (int32[4] x) => (int32[4] y) { s = Add(x, k) y = Add(s, k) }"
    assert apply(fold_sums, graph(text, k=np.arange(4, dtype=np.int32))).count == 0
