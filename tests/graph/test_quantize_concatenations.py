"""INT8 graphs with concatenations: OpenVINO rounds these right if their parts were rounded, not if the whole was."""

from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from r2mrf_deploy.graph import quantize
from r2mrf_deploy.runtimes.openvino import core
from tests.graph.sessions import unoptimised


def concatenating() -> onnx.ModelProto:
    """Convolutions of a concatenation, and of a concatenation of that; the last one is kept."""
    random = np.random.default_rng(0)

    def node(kind: str, inputs: list[str], output: str, **attributes: int) -> onnx.NodeProto:
        return helper.make_node(kind, inputs, [output], name=output, **attributes)

    weights = {"w1": (8, 6, 1, 1), "w2": (4, 8, 1, 1), "w3": (4, 8, 1, 1)}
    return helper.make_model(
        helper.make_graph(
            [
                node("Relu", ["image"], "r"),
                node("Concat", ["image", "r"], "c", axis=1),
                node("Conv", ["c", "w1"], "y1"),
                node("Concat", ["c", "image2"], "d", axis=1),
                node("Conv", ["d", "w2"], "y2"),
                node("Conv", ["d", "w3"], "y3"),
            ],
            "concatenating",
            [
                helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 16, 16])
                for n, c in (("image", 3), ("image2", 2))
            ],
            [
                helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, c, 16, 16])
                for n, c in (("y1", 8), ("y2", 4), ("y3", 4))
            ],
            [numpy_helper.from_array(random.uniform(-1, 1, s).astype(np.float32), n) for n, s in weights.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20)],
        ir_version=10,
    )


def images() -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    return {n: random.normal(0, 2, (1, c, 16, 16)).astype(np.float32) for n, c in (("image", 3), ("image2", 2))}


def test_what_is_concatenated_is_rounded_before() -> None:
    """OpenVINO made steps of 20 of a rounded concatenation on a CPU without VNNI."""
    model, feed = concatenating(), images()
    done = quantize.quantize(model, quantize.calibrate(model, [feed]), ["y3"])
    made = {output: node for node in done.graph.node for output in node.output}
    rounded = [n for n in done.graph.node if n.op_type == "QuantizeLinear"]
    assert len(rounded) == 5 and all(n.input[0] in ("image", "image2", "r") for n in rounded)
    assert made["y3"].input[0] == "d" and made["d"].op_type == "Concat"  # is kept, and reads what was not rounded
    exact, found = every(model, feed), every(done, feed)
    np.testing.assert_array_equal(found["y3"], exact["y3"])
    for name in ("y1", "y2"):
        assert 0 < np.abs(found[name] - exact[name]).mean() < 0.05 * exact[name].std()
    pytest.importorskip("openvino")
    read = core().read_model(io.BytesIO(done.SerializeToString()))
    compiled = core().compile_model(read, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})(feed)
    for name in ("y1", "y2"):
        assert np.abs(compiled[name] - found[name]).mean() < 0.005 * exact[name].std()  # ties only


def test_concatenations_are_restored() -> None:
    model, feed = concatenating(), images()
    whole = quantize.quantize(model, quantize.calibrate(model, [feed]))
    assert not any(n.op_type == "Concat" and n.name in "cd" for n in whole.graph.node)
    back = every(quantize.restore(whole, model, ["y1", "y2", "y3"]), feed)
    one, exact = every(quantize.restore(whole, model, ["y2"]), feed), every(model, feed)
    for name, value in exact.items():
        np.testing.assert_array_equal(back[name], value)
        assert np.array_equal(one[name], value) == (name == "y2")
    again = quantize.restore(quantize.restore(whole, model), model)
    assert again == quantize.restore(whole, model)


def every(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = [output.name for output in model.graph.output]
    return dict(zip(names, unoptimised(model).run(names, feed), strict=True))
