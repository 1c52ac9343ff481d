"""Products with constant matrices become 1×1 convolutions, on either side, and give the same result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from r2mrf_deploy.graph.rewrites.products import convolve_products

Graph = Callable[..., onnx.ModelProto]
RNG = np.random.default_rng(0)
ROWS, COLUMNS = (RNG.normal(size=shape).astype(np.float32) for shape in ((9, 4), (7, 5)))


@pytest.mark.parametrize("shape", ["2,3,4,7", "n,3,4,7"])
@pytest.mark.parametrize(
    "body", ["y = MatMul(rows, x)", "y = MatMul(x, columns)", "m = MatMul(rows, x) y = MatMul(m, columns)"]
)
def test_a_product_with_a_matrix_is_a_convolution(apply: Any, graph: Graph, body: str, shape: str) -> None:
    weights = {name: array for name, array in (("rows", ROWS), ("columns", COLUMNS)) if name in body}
    model = graph(f"g (float[{shape}] x) => (float[?,?,?,?] y) {{ {body} }}", **weights)
    done = apply(convolve_products, model)
    assert done.count == body.count("MatMul") and "MatMul" not in done.ops()
    assert {t.name for t in done.model.graph.initializer}.isdisjoint(weights)
    x = RNG.normal(size=(2, 3, 4, 7)).astype(np.float32)
    before, after = (
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for m in (model, done.model)
    )
    assert before.std() > 1
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)  # the same sums of at most seven products


@pytest.mark.parametrize(
    ("body", "shape", "weights"),
    [
        (
            "y = MatMul(x, other)",
            "[?,?,?,?]",
            {"other": RNG.normal(size=(3, 7, 5)).astype(np.float32)},
        ),  # a stack of matrices
        ("y = MatMul(x, vector)", "[?,?,?]", {"vector": RNG.normal(size=7).astype(np.float32)}),
        ("t = Transpose<perm=[0,1,3,2]>(x) y = MatMul(x, t)", "[?,?,?,?]", {}),
        ("f = Flatten<axis=2>(x) y = MatMul(f, m)", "[?,?]", {"m": RNG.normal(size=(28, 2)).astype(np.float32)}),
    ],
)
def test_other_products_stay(apply: Any, graph: Graph, body: str, shape: str, weights: Any) -> None:
    model = graph(f"g (float[2,3,4,7] x) => (float{shape} y) {{ {body} }}", **weights)
    assert apply(convolve_products, model).count == 0


def test_products_in_half_precision_stay(apply: Any, graph: Graph) -> None:
    model = graph("g (float16[2,3,4,7] x) => (float16[?,?,?,?] y) { y = MatMul(x, m) }", m=COLUMNS.astype(np.float16))
    assert apply(convolve_products, model).count == 0
