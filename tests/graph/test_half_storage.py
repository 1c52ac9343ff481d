"""Weights stored as FP16: half the bytes, the same graph but for one rounding of every weight."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from r2mrf_deploy.graph.half_storage import store_half

X = np.random.default_rng(0).standard_normal((1, 4, 9, 9)).astype(np.float32)


def _convolution(weights: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w", "b"], ["y"], pads=[1, 1, 1, 1])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 16, 9, 9])],
        [
            numpy_helper.from_array(weights, "w"),
            numpy_helper.from_array(np.linspace(0, 1, 16, dtype=np.float32), "b"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _run(model: onnx.ModelProto) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": X})[0]


def test_large_weights_are_rounded_once_and_the_rest_is_as_it_was() -> None:
    weights = np.random.default_rng(1).standard_normal((16, 4, 3, 3)).astype(np.float32)
    model = _convolution(weights)
    stored = store_half(model)
    rounded = _convolution(weights.astype(np.float16).astype(np.float32))
    np.testing.assert_array_equal(_run(stored), _run(rounded))
    assert np.abs(_run(stored) - _run(model)).max() > 1e-4  # it was rounded
    assert {t.name: t.data_type for t in stored.graph.initializer} == {
        "w/fp16": TensorProto.FLOAT16,
        "b": TensorProto.FLOAT,
    }
    assert {t.name for t in model.graph.initializer} == {"w", "b"}  # the caller's graph is as it was
    assert stored.ByteSize() < 0.6 * model.ByteSize()


@pytest.mark.parametrize("value", [70000.0, np.inf, np.nan])
def test_weights_that_fp16_cannot_hold_stay(value: float) -> None:
    weights = np.ones((16, 4, 3, 3), np.float32)
    weights[0, 0, 0, 0] = value
    model = store_half(_convolution(weights))
    assert [t.name for t in model.graph.initializer] == ["w", "b"] and len(model.graph.node) == 1
