"""Constants narrower than float32 are not multiplied, added or made anew: they were rounded once, and that is enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from ml_dtypes import bfloat16
from onnx.reference import ReferenceEvaluator

from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.rewrites import optimize
from r2mrf_deploy.graph.rewrites.fold_affine import fold_affine
from r2mrf_deploy.graph.rewrites.fold_pointwise import fold_pointwise
from r2mrf_deploy.graph.rewrites.fold_sums import fold_sums
from r2mrf_deploy.graph.rewrites.interpolate_last import interpolate_last

Graph = Callable[..., onnx.ModelProto]
NORM = {"g": (4,), "h": (4,), "m": (4,), "v": np.linspace(0.5, 2, 4)}
CASES: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "batch norm": (fold_affine, "a = Conv(x, w) y = BatchNormalization(a, g, h, m, v)", {"w": (4, 4, 1, 1), **NORM}),
    "scale": (fold_affine, "a = Conv(x, w) y = Mul(a, c)", {"w": (4, 4, 1, 1), "c": (4, 1, 1)}),
    "convolutions": (fold_sums, "a = Conv(x, w) c = Conv(x, v) y = Add(a, c)", {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1)}),
    "constants": (fold_sums, "a = Add(x, k) y = Add(a, l)", {"k": (4, 1, 1), "l": (4, 1, 1)}),
    "products": (fold_pointwise, "a = Conv(x, w) y = Conv(a, v)", {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1)}),
    "matrices": (
        interpolate_last,
        'u = Resize<mode="linear">(x, , s) y = Conv<pads=[1,1,1,1]>(u, w)',
        {"w": (4, 4, 3, 3), "s": np.array([1, 1, 4, 4], np.float32)},
    ),
}
TYPES = {"float": np.dtype(np.float32), "float16": np.dtype(np.float16), "bfloat16": np.dtype(bfloat16)}


def model(graph: Graph, dtype: str, body: str, weights: dict[str, Any]) -> onnx.ModelProto:
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=w) if isinstance(w, tuple) else w for name, w in weights.items()}
    cast = {name: a if a.dtype == np.float32 else a.astype(TYPES[dtype]) for name, a in arrays.items()}
    return graph(f"g ({dtype}[2,4,5,4] x) => ({dtype}[2,4,?,?] y) {{ {body} }}", opset=22, **cast)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("dtype", TYPES)
def test_only_wide_constants_are_computed(
    graph: Graph, apply: Any, name: str, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cost, "MULTIPLY_ADDS_PER_BYTE", 0 if name == "matrices" else 8)
    rewrite, body, weights = CASES[name]
    done = apply(rewrite, model(graph, dtype, body, weights))
    assert done.count == (dtype == "float")
    assert dtype == "float" or any(f"lose precision in {dtype}" in refusal for refusal in done.refusals)


def test_a_small_gamma_does_not_underflow(graph: Graph) -> None:
    """0.02 · 1e-6 is under the smallest float16; the batch norm itself computes with 0.02 and with 1e-6."""
    _, body, weights = CASES["batch norm"]
    small = {"w": np.full((4, 4, 1, 1), 0.02), "g": np.full(4, 1e-6), "h": np.zeros(4), "m": np.zeros(4)}
    half = model(graph, "float16", body, weights | small | {"v": np.full(4, 1e-12)})
    feeds = {"x": np.full((2, 4, 5, 4), 100, np.float16)}
    before, after = (ReferenceEvaluator(m).run(None, feeds)[0] for m in (half, optimize(half).model))
    assert before.min() > 0
    np.testing.assert_array_equal(after, before)
