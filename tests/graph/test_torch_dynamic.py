"""INT8 graphs as PyTorch modules: the graph's weights and nodes, with ranges that are found in each image."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph.torch_dynamic import to_dynamic_module
from r2mrf_deploy.graph.trace import checked
from tests.graph.sessions import unoptimised

RNG = np.random.default_rng(0)
X = np.float32(RNG.standard_normal((1, 4, 12, 12)))
RANGE = np.abs(X).max() / 127


def quantised(
    weight: np.ndarray, scales: np.ndarray, axis: int = 0, op: str = "Conv", scale: float = RANGE, **attributes: Any
) -> onnx.ModelProto:
    """x, rounded, through one convolution with an INT8 weight, to y."""
    constants = {
        "x_scale": np.float32(scale),
        "x_zero": np.int8(0),
        "weight": weight,
        "scales": np.float32(scales),
        "zeros": np.zeros(np.shape(scales), weight.dtype),
        "bias": np.float32(RNG.standard_normal(4)),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xr"]),
        helper.make_node("DequantizeLinear", ["weight", "scales", "zeros"], ["w"], "dequantised", axis=axis),
        helper.make_node(op, ["xr", "w", "bias"], ["y"], "convolution", pads=[1, 1, 1, 1], **attributes),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, X.shape)],
        [helper.make_empty_tensor_value_info("y")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return checked(onnx.shape_inference.infer_shapes(made, strict_mode=True))


def weight(*shape: int) -> np.ndarray:
    return np.int8(RNG.integers(-64, 65, shape))


def both(graph: onnx.ModelProto, x: np.ndarray = X) -> tuple[np.ndarray, np.ndarray]:
    """What the module computes, and what ONNX Runtime does without merging nodes."""
    with torch.no_grad():
        (found,) = to_dynamic_module(graph)(torch.from_numpy(x))
    return found.numpy(), unoptimised(graph).run(None, {"x": x})[0]


SCALES = np.array([0.01, 0.02, 0.03, 0.04])


@pytest.mark.parametrize(
    "graph",
    [
        quantised(weight(4, 4, 3, 3), SCALES),
        quantised(weight(4, 4, 3, 3), np.array(0.01)),
        quantised(weight(4, 2, 3, 3), SCALES, group=2),
        quantised(weight(4, 4, 3, 3), SCALES, axis=1, op="ConvTranspose"),
        quantised(weight(4, 4, 3, 3), SCALES, auto_pad="NOTSET", strides=[2, 2]),
    ],
    ids=["by channel", "one scale", "groups", "transposed", "strides"],
)
def test_a_convolution_reads_the_weights_of_the_graph_in_8_bits(graph: onnx.ModelProto) -> None:
    found, wanted = both(graph)
    # both round x to 255 steps over nearly the same range: a product is off by at most a step, a sum by much less than all
    assert 0 < np.abs(found - wanted).max() < 0.02 * np.ptp(wanted)


def test_the_range_is_that_of_the_image() -> None:
    """A range for images 1000 times as bright would leave nothing of this one; its own does, whatever the graph says."""
    graph = quantised(weight(4, 4, 3, 3), SCALES)
    found, _ = both(graph)
    graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.float32(1000 * RANGE), "x_scale"))
    again, nothing = both(graph)
    np.testing.assert_array_equal(again, found)
    assert np.ptp(nothing, axis=(2, 3)).max() == 0 < np.ptp(found, axis=(2, 3)).min()


def test_depthwise_convolutions_are_computed_in_floating_point() -> None:
    graph = quantised(weight(4, 1, 3, 3), SCALES, group=4)
    with torch.no_grad():
        (found,) = to_dynamic_module(graph)(torch.from_numpy(X))
        values, bias = (numpy_helper.to_array(graph.graph.initializer[n]).copy() for n in (2, 5))
        kernel, bias = torch.from_numpy(values * np.float32(SCALES)[:, None, None, None]), torch.from_numpy(bias)
        wanted = torch.nn.functional.conv2d(torch.from_numpy(X), kernel, bias, padding=1, groups=4)
    np.testing.assert_allclose(found.numpy(), wanted.numpy(), atol=1e-5)


def test_a_concatenation_of_rounded_parts_is_rounded() -> None:
    """Quantised graphs round what is concatenated before; the range in the image is that of the whole."""
    convolution = quantised(weight(4, 8, 3, 3), SCALES)
    others, scale = convolution.graph.node[1:], ["x_scale", "x_zero"]
    shifted = helper.make_node("Add", ["x", "x_scale"], ["shifted"])

    def reading(*nodes: onnx.NodeProto) -> onnx.ModelProto:
        made = onnx.ModelProto()
        made.CopyFrom(convolution)
        del made.graph.node[:], made.graph.value_info[:]
        made.graph.node.extend([shifted, *nodes, *others])
        return made

    whole = reading(
        helper.make_node("Concat", ["x", "shifted"], ["joined"], axis=1),
        helper.make_node("QuantizeLinear", ["joined", *scale], ["xq"]),
    )
    parts = reading(
        helper.make_node("QuantizeLinear", ["x", *scale], ["q1"]),
        helper.make_node("QuantizeLinear", ["shifted", *scale], ["q2"]),
        helper.make_node("Concat", ["q1", "q2"], ["xq"], axis=1),
    )
    (found, same), (expected, same_again) = both(parts), both(whole)
    np.testing.assert_array_equal(same, same_again)
    np.testing.assert_array_equal(found, expected)
    assert 0 < np.abs(found - same).max() < 0.02 * np.ptp(same)


def test_unsigned_weights_are_refused() -> None:
    graph = quantised(np.uint8(RNG.integers(0, 255, (4, 4, 3, 3))), SCALES)
    with pytest.raises(GraphError, match=r"dequantised cannot be turned into PyTorch: only weights in signed"):
        to_dynamic_module(graph)


def test_the_graph_that_is_given_stays_as_it_is() -> None:
    graph = quantised(weight(4, 4, 3, 3), SCALES)
    before = graph.SerializeToString()
    to_dynamic_module(graph)
    assert graph.SerializeToString() == before
