"""What the tests of the rewrites share: models from ONNX's text form, and what "the same function" means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

Arrays = dict[str, np.ndarray]
RNG_SEED = 7

FLOAT64_TOLERANCE = 1e-9
"""Relative. Sums of a few thousand products, reordered, differ by about 1e-13; anything inexact differs by far more."""
FLOAT32_TOLERANCE = 1e-5
"""Relative to the output's largest value: the same sums in float32, about 1e-6."""


@pytest.fixture(scope="session")
def graph() -> Callable[..., onnx.ModelProto]:
    """`graph(text, opset=20, **weights)`: a float64 model. A weight is an array, or a shape to fill with random numbers."""

    def build(text: str, opset: int = 20, **weights: np.ndarray | tuple[int, ...]) -> onnx.ModelProto:
        rng = np.random.default_rng(RNG_SEED)
        model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
        for name, weight in weights.items():
            array = rng.normal(size=weight) if isinstance(weight, tuple) else weight
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        onnx.checker.check_model(model, full_check=True)
        return model

    return build


@pytest.fixture(scope="session")
def same_function() -> Callable[..., None]:
    """`same_function(rewrite, model, shapes={}, informative=True)`: assert that `rewrite` does not change what a float64
    model computes: in float64 by ONNX's reference, and as a float32 model in ONNX Runtime."""

    def check(
        rewrite: Callable[[onnx.ModelProto], onnx.ModelProto],
        model: onnx.ModelProto,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        informative: bool = True,
    ) -> None:
        feeds = _feeds(model, shapes or {})
        after = rewrite(model)
        onnx.checker.check_model(after, full_check=True)
        assert _interface(after) == _interface(model)
        _assert_close(_reference(model, feeds), _reference(after, feeds), FLOAT64_TOLERANCE, informative)
        single = as_float32(model)
        narrow = {
            name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in feeds.items()
        }
        _assert_close(_runtime(single, narrow), _runtime(rewrite(single), narrow), FLOAT32_TOLERANCE, informative)

    return check


def as_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float64 model with every tensor in float32."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for tensor in single.graph.initializer:
        if tensor.data_type == TensorProto.DOUBLE:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for value in [*single.graph.input, *single.graph.output, *single.graph.value_info]:
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    return single


def _feeds(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    rng = np.random.default_rng(RNG_SEED + 1)
    initialised = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: rng.normal(size=shapes.get(value.name) or [d.dim_value for d in value.type.tensor_type.shape.dim])
        for value in model.graph.input
        if value.name not in initialised
    }


def _interface(model: onnx.ModelProto) -> Any:
    return [
        (v.name, v.type.tensor_type.elem_type, [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim])
        for v in [*model.graph.input, *model.graph.output]
    ]


def _reference(model: onnx.ModelProto, feeds: Arrays) -> list[np.ndarray]:
    """By ONNX's reference, at opset 15 or later: before, it takes BatchNormalization to be in training. Nothing else that
    these models hold changed its meaning between 13 and 20."""
    later = onnx.ModelProto()
    later.CopyFrom(model)
    later.opset_import[0].version = max(15, model.opset_import[0].version)
    return list(ReferenceEvaluator(later).run(None, feeds))


def _runtime(model: onnx.ModelProto, feeds: Arrays) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    # its own fusions would hide what the graph says
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, feeds))


def _assert_close(before: list[np.ndarray], after: list[np.ndarray], tolerance: float, informative: bool) -> None:
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        assert a.shape == b.shape
        assert np.isfinite(a).all()
        assert not informative or a.std() > 1e-3, "a flat output would prove nothing"
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * max(np.abs(a).max(), 1e-6))
