"""Channels are filled up where WebGPU needs it, the maps stay the same, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from r2mrf_deploy.graph.webgpu_channels import fill_channels


def conv(
    channels: int, out: int, kernel: int = 3, group: int = 1, strides: int = 1, half: bool = False
) -> onnx.ModelProto:
    """Two convolutions that share their input and weights, of random values; stored as FP16 if `half`."""
    rng = np.random.default_rng(channels)
    weights = rng.standard_normal((out, channels // group, kernel, kernel)).astype(np.float16 if half else np.float32)
    cast = [helper.make_node("Cast", ["stored"], ["w"], to=TensorProto.FLOAT)] if half else []
    nodes = [
        helper.make_node("Conv", ["x", "w"], [name], group=group, strides=[strides] * 2, pads=[kernel // 2] * 4)
        for name in ("a", "b")
    ]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, out, None, None]) for n in ("a", "b")]
    graph = helper.make_graph(
        [*cast, *nodes], "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, channels, 11, 13])], outputs,
        [numpy_helper.from_array(weights, "stored" if half else "w")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto, channels: int) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": np.random.default_rng(1).standard_normal((1, channels, 11, 13)).astype(np.float32)})


@pytest.mark.parametrize(
    ("channels", "out", "how"),
    [(9, 4, {}), (33, 8, {}), (6, 4, {"kernel": 5}), (9, 4, {"half": True}), (9, 4, {"kernel": 1, "strides": 2})],
)
def test_wrong_ones_are_filled_up(channels: int, out: int, how: dict[str, int]) -> None:
    model = conv(channels, out, **how)
    before = model.SerializeToString()
    filled = fill_channels(model)
    assert model.SerializeToString() == before
    pads = [node for node in filled.graph.node if node.op_type == "Pad"]
    assert len(pads) == 2 and fill_channels(filled) is filled  # the input's and the weights', once for both
    for wanted, got in zip(run(model, channels), run(filled, channels), strict=True):
        assert np.allclose(wanted, got, rtol=0, atol=1e-4)  # hundreds of products, in another order


@pytest.mark.parametrize(
    ("channels", "out", "how"),
    [(3, 8, {}), (8, 8, {}), (12, 4, {}), (10, 4, {}), (9, 3, {}), (9, 4, {"kernel": 1}), (9, 9, {"group": 9}),
     (36, 12, {"group": 4})],
)  # fmt: skip
def test_others_stay(channels: int, out: int, how: dict[str, int]) -> None:
    model = conv(channels, out, **how)
    assert fill_channels(model) is model


def test_a_network_s_maps_stay(export: Callable[..., Path]) -> None:
    model = onnx.load(export(optimize=False))
    filled = fill_channels(model)
    assert filled is not model
    sessions = [
        onnxruntime.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]) for m in (model, filled)
    ]
    image = np.random.default_rng(0).integers(0, 256, (1, 96, 128, 3), np.uint8)
    wanted, got = (session.run(["map"], {"image": image})[0] for session in sessions)
    assert wanted.std() > 0 and np.abs(wanted - got).max() < 1e-4
