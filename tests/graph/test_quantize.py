"""INT8 graphs: symmetric, a scale for each output channel, pairs only where a quantised node reads, and near enough."""

from __future__ import annotations

import io
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from r2mrf_deploy import images, sample_photographs
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.graph import quantize
from r2mrf_deploy.graph.precision import precisions
from r2mrf_deploy.graph.quantize import METHODS, Method
from r2mrf_deploy.progress import Progress

pytestmark = pytest.mark.artifact


@cache
def feeds(count: int = 4) -> list[dict[str, np.ndarray]]:
    return [{"image": images.resize(p, (96, 128))[None].copy()} for p in sample_photographs.sharp()[:count]]


@pytest.fixture(scope="module")
def plain(exported: Path) -> onnx.ModelProto:
    return onnx.load(exported)


@pytest.fixture(scope="module")
def ranges(plain: onnx.ModelProto) -> quantize.Ranges:
    return quantize.calibrate(plain, feeds())


def run(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[
        0
    ]


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {output: node for node in model.graph.node for output in node.output}


def test_pairs_are_symmetric_and_weights_int8_by_channel(plain: onnx.ModelProto, ranges: quantize.Ranges) -> None:
    done = quantize.quantize(plain, ranges)
    assert precisions(done) == ["int8"]
    constants = {i.name: numpy_helper.to_array(i) for i in done.graph.initializer}
    made = makers(done)
    for node in done.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert constants[node.input[2]].dtype == np.int8 and not constants[node.input[2]].any()
        if node.name in quantize.quantizable(plain):
            weight = made[node.input[1]]
            assert weight.op_type == "DequantizeLinear" and constants[weight.input[0]].dtype == np.int8
            assert constants[weight.input[1]].shape == (constants[weight.input[0]].shape[0],)
            assert not len(node.input) > 2 or node.input[2] in constants  # the bias as it was
    assert len(done.SerializeToString()) < 0.45 * len(plain.SerializeToString())


def test_no_cpu_overflows_in_the_weights() -> None:
    """Without VNNI, OpenVINO adds two products in 16 bits: with weights of 8 bits, this map was wrong by its own spread."""
    random = np.random.default_rng(0)
    weight = numpy_helper.from_array(random.uniform(-1, 1, (8, 64, 1, 1)).astype(np.float32), "w")
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Conv", ["image", "w"], ["y"], name="conv")],
            "conv",
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 64, 16, 16])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 16, 16])],
            [weight],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )
    image = {"image": random.uniform(0, 6, (1, 64, 16, 16)).astype(np.float32)}
    done = quantize.quantize(model, quantize.calibrate(model, [image]))
    (stored,) = (numpy_helper.to_array(i) for i in done.graph.initializer if i.name == "w_quantized")
    assert -64 <= stored.min() < -50 and 50 < stored.max() <= 64
    core = pytest.importorskip("openvino").Core()
    read = core.read_model(io.BytesIO(done.SerializeToString()))
    compiled = core.compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    exact, found = run(model, image), compiled(image)["y"]
    assert np.abs(found - exact).max() < 0.1 * exact.std()  # rounding alone gives 0.025
    assert np.abs(found - run(done, image)).max() < 0.01 * exact.std()  # one step of the input, where it was a tie


def test_only_quantised_nodes_read_what_was_rounded(plain: onnx.ModelProto, ranges: quantize.Ranges) -> None:
    done = quantize.quantize(plain, ranges, quantize.ends(plain))
    made, able = makers(done), set(quantize.quantizable(plain)) - set(quantize.ends(plain))
    for node in done.graph.node:
        reads = {made[name].op_type for name in node.input if name in made}
        if node.name in able:
            assert reads == {"DequantizeLinear"}, node.name
        elif node.op_type != "DequantizeLinear":
            assert "DequantizeLinear" not in reads, node.name


def test_the_ends_are_the_first_and_the_last_layers(plain: onnx.ModelProto) -> None:
    first, last = quantize.ends(plain)
    assert first.startswith("backbone/body.0") and last == "fusion/Conv"


def test_depthwise_convolutions_stay_as_they_are(plain: onnx.ModelProto, ranges: quantize.Ranges) -> None:
    constants = {i.name: i.dims for i in plain.graph.initializer}
    convolutions = [n for n in plain.graph.node if n.op_type == "Conv"]
    depthwise = {n.name for n in convolutions if any(a.name == "group" and a.i > 1 for a in n.attribute)}
    assert len(depthwise) == 15 and all(constants[n.input[1]][1] == 1 for n in convolutions if n.name in depthwise)
    assert depthwise == {n.name for n in convolutions} - set(quantize.quantizable(plain))
    done = quantize.quantize(plain, ranges)
    made = makers(done)
    for node in done.graph.node:
        if node.name in depthwise:
            assert node.input[1] not in made, node.name


def test_restoring_everything_gives_the_graph_back(plain: onnx.ModelProto, ranges: quantize.Ranges) -> None:
    whole = quantize.quantize(plain, ranges)
    back = quantize.restore(whole, plain, quantize.quantizable(plain))
    assert precisions(back) == []
    np.testing.assert_array_equal(run(back, feeds()[0]), run(plain, feeds()[0]))


def test_outputs_are_as_computed_also_where_a_quantised_node_reads_them(
    plain: onnx.ModelProto, ranges: quantize.Ranges
) -> None:
    done = quantize.quantize(plain, ranges)
    made = makers(done)
    assert [o.name for o in done.graph.output] == [o.name for o in plain.graph.output]
    assert {made[o.name].op_type for o in done.graph.output} <= {"Conv", "Add", "Sigmoid"}


def test_keeping_is_quantising_less(plain: onnx.ModelProto, ranges: quantize.Ranges) -> None:
    able = quantize.quantizable(plain)
    wanted = [run(plain, f) for f in feeds()]

    def error(keep: list[str]) -> float:
        done = quantize.quantize(plain, ranges, keep)
        return float(np.mean([np.abs(run(done, f) - w).mean() for f, w in zip(feeds(), wanted, strict=True)]))

    all_int8, most_kept = error([]), error(able[:-10])
    assert wanted[0].std() > 0.05 and 1e-5 < most_kept < all_int8 < 0.25


@pytest.mark.parametrize("method", METHODS)
def test_methods_agree_on_the_order_of_ranges(plain: onnx.ModelProto, ranges: quantize.Ranges, method: Method) -> None:
    told: list[Progress] = []
    found = quantize.calibrate(plain, feeds(), method, told.append)
    assert [(p.done, p.total) for p in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    for name, data in found.items():
        low, high = (float(v.item()) for v in data.range_value)
        assert low <= high, name
        assert high <= ranges[name].range_value[1].item() * 1.001 + 1e-6, name  # none is wider than the extremes


def test_ranges_are_those_of_all_photographs(plain: onnx.ModelProto, ranges: quantize.Ranges) -> None:
    alone = [quantize.calibrate(plain, [f]) for f in feeds()]
    for name, data in ranges.items():
        assert data.range_value[1].item() == pytest.approx(max(a[name].range_value[1].item() for a in alone), rel=1e-6)


def test_observed_extremes_are_the_tensors_own() -> None:
    node = helper.make_node("Mul", ["x", "f"], ["y"], name="m")
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [4]) for n in "xy"]
    graph = helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(np.float32(-3), "f")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    found = quantize.observe(
        model, [{"x": np.array([0, 1, 2, 3], np.float32)}, {"x": np.array([-1, 0, 0, 0], np.float32)}]
    )
    assert found["y"] == (-9.0, 3.0)


def test_wrong_use(plain: onnx.ModelProto, ranges: quantize.Ranges) -> None:
    with pytest.raises(UsageError, match="INT8 already"):
        quantize.calibrate(quantize.quantize(plain, ranges), feeds())
    with pytest.raises(UsageError, match="nothing to calibrate on"):
        quantize.calibrate(plain, [])
    with pytest.raises(UsageError, match="choose from minmax, entropy, percentile"):
        quantize.calibrate(plain, feeds(), "mean")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no node 'nothing'"):
        quantize.quantize(plain, ranges, ["nothing"])
