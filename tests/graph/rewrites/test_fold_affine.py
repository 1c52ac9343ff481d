"""What scales and shifts the channels of a convolution's result goes into its weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from r2mrf_deploy.graph.rewrites.fold_affine import fold_affine

Graph = Callable[..., onnx.ModelProto]
CONV = "Conv<pads=[1,0,2,1], strides=[2,1]>(x, w, b)"
NORM = {"g": (4,), "h": (4,), "m": (4,), "v": np.linspace(0.5, 2, 4)}


def after(graph: Graph, conv: str, node: str, opset: int = 20, outputs: str = "", **weights: Any) -> onnx.ModelProto:
    text = f"g (double[2,4,5,5] x) => (double[2,4,?,?] y {outputs}) {{ a = {conv} y = {node} }}"
    return graph(text, opset=opset, **({"w": (4, 4, 3, 3), "b": (4,)} | weights))


@pytest.mark.parametrize("opset", [13, 14, 15, 20])
@pytest.mark.parametrize(
    ("conv", "w"),
    [
        (CONV, (4, 4, 3, 3)),
        ("Conv<pads=[1,1,1,1]>(x, w)", (4, 4, 3, 3)),
        ("Conv<group=2>(x, w, b)", (4, 2, 1, 1)),
        ("ConvTranspose<strides=[2,2]>(x, w, b)", (4, 4, 2, 2)),
    ],
)
def test_batch_norm_disappears(graph: Graph, exact: Any, opset: int, conv: str, w: tuple[int, ...]) -> None:
    node = "BatchNormalization<epsilon=0.01>(a, g, h, m, v)"
    assert len(exact(fold_affine, after(graph, conv, node, opset, w=w, **NORM)).ops()) == 1


@pytest.mark.parametrize("node", ["Add(a, c)", "Add(c, a)", "Mul(c, a)", "Sub(a, c)", "Sub(c, a)", "Div(a, c)"])
@pytest.mark.parametrize("c", [(), (1,), (4, 1, 1), (1, 4, 1, 1), (1, 1, 1)])
def test_arithmetic_with_one_number_for_each_channel_disappears(
    graph: Graph, exact: Any, node: str, c: tuple[int, ...]
) -> None:
    array = np.random.default_rng(0).uniform(0.5, 2, c)
    assert exact(fold_affine, after(graph, CONV, node, c=array)).ops() == ["Conv"]


def test_a_chain_disappears(graph: Graph, exact: Any) -> None:
    text = """g (double[2,4,5,5] x) => (double[2,4,5,5] y) {
        a = Conv(x, w) n = BatchNormalization(a, g, h, m, v) s = Mul(n, c) y = Add(s, c) }"""
    assert exact(fold_affine, graph(text, w=(4, 4, 1, 1), c=(4, 1, 1), **NORM)).ops() == ["Conv"]


def test_batch_norm_disappears_into_a_grouped_transposed_convolution(graph: Graph, exact: Any) -> None:
    model = after(graph, "ConvTranspose<group=2>(x, w)", "BatchNormalization(a, g, h, m, v)", w=(4, 2, 2, 2), **NORM)
    assert exact(fold_affine, model, reference=False).ops() == ["ConvTranspose"]  # the reference cannot compute it


def test_weights_that_two_convolutions_share_are_folded_apart(graph: Graph, exact: Any) -> None:
    text = """g (double[2,4,5,5] x) => (double[2,4,5,5] y, double[2,4,5,5] z) {
        a = Conv(x, w, b) y = Mul(a, c) r = Relu(x) z = Conv(r, w, b) }"""
    assert exact(fold_affine, graph(text, w=(4, 4, 1, 1), b=(4,), c=(4, 1, 1))).count == 1


@pytest.mark.parametrize(
    ("node", "weights"),
    [
        ("Add(a, c)", {"c": (5,)}),  # along the width
        ("Add(a, c)", {"c": (2, 1, 1, 1)}),  # along the batch
        ("Div(c, a)", {"c": (4, 1, 1)}),
        ("Div(a, c)", {"c": np.array([1.0, 0, 1, 1]).reshape(4, 1, 1)}),
        ("Add(a, c)", {"c": (4, 1, 1), "w": (1, 4, 3, 3), "b": (1,)}),  # one channel becomes four
        ("Mul(a, x)", {}),
        ("BatchNormalization(a, g, h, m, v)", NORM | {"v": -np.ones(4)}),
    ],
)
def test_other_arithmetic_stays(graph: Graph, apply: Any, node: str, weights: Any) -> None:
    assert apply(fold_affine, after(graph, "Conv<pads=[1,1,1,1]>(x, w, b)", node, **weights)).count == 0


def test_a_result_that_others_read_stays(graph: Graph, apply: Any) -> None:
    model = after(graph, "Conv(x, w, b)", "Mul(a, c)", outputs=", double[2,4,5,5] a", w=(4, 4, 1, 1), c=(4, 1, 1))
    done = apply(fold_affine, model)
    assert done.count == 0
    assert "also used by others" in done.refusals[0]


def test_batch_norm_in_training_stays(graph: Graph, apply: Any) -> None:
    text = """g (double[2,4,5,5] x) => (double[2,4,5,5] y, double[4] p, double[4] q) {
        a = Conv(x, w) y, p, q = BatchNormalization<training_mode=1>(a, g, h, m, v) }"""
    assert apply(fold_affine, graph(text, w=(4, 4, 1, 1), **NORM)).count == 0


def test_weights_that_would_overflow_stay(graph: Graph, apply: Any) -> None:
    text = "g (float[1,4,5,5] x) => (float[1,4,5,5] y) { a = Conv(x, w) y = Mul(a, c) }"
    large = np.full((4, 4, 1, 1), 3e38, np.float32)
    done = apply(fold_affine, graph(text, w=large, c=np.full((4, 1, 1), 2, np.float32)))
    assert done.count == 0
    assert "overflow" in done.refusals[0]
