"""Winograd's minimal filtering computes what the convolution computes, and replaces no convolution that it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.rewrites.winograd import minimal_filtering
from tests.graph.rewrites.conftest import as_float32

Graph = Callable[..., onnx.ModelProto]
WIDE = 96
"""Channels for which the transforms of a tile cost less than its products."""


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("kernel", "pads", "shape"),
    [
        (3, (1, 1, 1, 1), (1, 8, 8)),
        (3, (1, 1, 1, 1), (2, 15, 14)),  # sizes that no whole number of tiles covers, and two images
        (3, (0, 0, 0, 0), (1, 10, 13)),
        (3, (2, 0, 1, 3), (1, 11, 6)),
        (5, (2, 2, 2, 2), (1, 12, 8)),
        (5, (2, 2, 2, 2), (2, 11, 13)),
        (5, (0, 0, 0, 0), (1, 12, 11)),
        (5, (4, 1, 0, 3), (1, 6, 10)),
    ],
)
def test_the_result_stays(
    apply: Any, graph: Graph, kernel: int, pads: tuple[int, ...], shape: tuple[int, ...], bias: bool
) -> None:
    model = _model(graph, kernel, pads, shape, bias)
    done = apply(minimal_filtering, model)
    assert (done.count, done.refusals) == (1, ()) and "Conv" not in done.ops()
    assert 2 * cost.multiply_adds(done.model) <= cost.multiply_adds(model)
    before, after = map(_run, (as_float32(model), as_float32(done.model)))
    assert before.shape == after.shape and before.std() > 0.1
    # the transforms, whose factors reach 30, lose up to two digits of what sums of up to 2,400 products have: about 1e-6
    assert np.abs(after - before).max() < 1e-4 * before.std()


@pytest.mark.parametrize("shape", [(1, 8, 8), (2, 8, 7)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_it_is_an_identity_of_real_arithmetic(exact: Any, graph: Graph, kernel: int, shape: tuple[int, ...]) -> None:
    assert exact(minimal_filtering, _model(graph, kernel, (kernel // 2,) * 4, shape, True)).count == 1


def test_narrow_convolutions_stay(apply: Any, graph: Graph) -> None:
    model = _model(graph, 3, (1, 1, 1, 1), (1, 8, 8), False)
    assert apply(partial(minimal_filtering, channels=WIDE + 1), model).count == 0
    assert apply(partial(minimal_filtering, channels=WIDE), model).count == 1
    few = graph("g (double[1,2,8,8] x) => (double[1,2,8,8] y) { y = Conv<pads=[1,1,1,1]>(x, w) }", w=(2, 2, 3, 3))
    assert "would not halve" in apply(minimal_filtering, few).refusals[0]


def test_small_maps_stay(apply: Any, graph: Graph) -> None:
    model = _model(graph, 3, (1, 1, 1, 1), (2, 8, 8), False)  # 2 × 2 × 2 tiles
    assert "small" in apply(partial(minimal_filtering, tiles=9), model).refusals[0]
    assert apply(partial(minimal_filtering, tiles=8), model).count == 1


@pytest.mark.parametrize(
    ("attributes", "weight", "why"),
    [
        ("strides=[2,2]", (32, 32, 3, 3), "strides"),
        ("dilations=[2,2]", (32, 32, 3, 3), "strides"),
        ("group=2", (32, 16, 3, 3), "strides"),
        ('auto_pad="SAME_UPPER"', (32, 32, 3, 3), "strides"),
        ("group=1", (32, 32, 1, 1), None),
        ("group=1", (32, 32, 7, 7), None),
        ("group=1", (32, 32, 3, 5), None),
    ],
)
def test_other_convolutions_stay(
    apply: Any, graph: Graph, attributes: str, weight: tuple[int, ...], why: str | None
) -> None:
    model = graph(f"g (double[1,32,16,16] x) => (double[1,32,?,?] y) {{ y = Conv<{attributes}>(x, w) }}", w=weight)
    done = apply(minimal_filtering, model)
    assert done.count == 0 and [why in line for line in done.refusals if why] == [True] * (why is not None)


def test_free_sizes_and_half_precision_stay(apply: Any, graph: Graph) -> None:
    free = graph("g (double[1,32,h,w] x) => (double[1,32,?,?] y) { y = Conv(x, k) }", k=(32, 32, 3, 3))
    half = graph(
        "g (float16[1,32,8,8] x) => (float16[1,32,?,?] y) { y = Conv(x, k) }", k=np.ones((32, 32, 3, 3), np.float16)
    )
    assert "sizes are free" in apply(minimal_filtering, free).refusals[0]
    assert "lose precision" in apply(minimal_filtering, half).refusals[0]


def _model(graph: Graph, kernel: int, pads: tuple[int, ...], shape: tuple[int, ...], bias: bool) -> onnx.ModelProto:
    batch, height, width = shape
    weights = {"w": (WIDE, WIDE, kernel, kernel)} | ({"b": (WIDE,)} if bias else {})
    body = f"y = Conv<pads={list(pads)}>({', '.join(['x', *weights])})"
    return graph(f"g (double[{batch},{WIDE},{height},{width}] x) => (double[?,?,?,?] y) {{ {body} }}", **weights)


def _run(model: onnx.ModelProto) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=[d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim])
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x.astype(np.float32)})[0])
