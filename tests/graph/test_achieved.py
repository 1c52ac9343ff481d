"""What share of the multiply-adds is in a precision, by the types of the graph; and what a converter needs to reach it."""

from __future__ import annotations

from typing import Literal

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph import precision, quantize
from r2mrf_deploy.graph.achieved import achieved
from r2mrf_deploy.graph.prepare import prepared

X = np.random.default_rng(1).standard_normal((1, 3, 8, 8)).astype(np.float32)


def small(form: str = "plain") -> onnx.ModelProto:
    """Three convolutions of 216, 576 and 8 multiply-adds a pixel, in a form that exporters write."""
    rng = np.random.default_rng(0)
    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (1, 8, 1, 1)}
    weights = [numpy_helper.from_array(rng.standard_normal(s).astype(np.float32) / 4, n) for n, s in shapes.items()]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["a"], name="first", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Conv", ["b", "w2"], ["c"], name="second", pads=[1, 1, 1, 1]),
        helper.make_node("Conv", ["c", "w3"], ["y"], name="third"),
    ]
    ends = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 8, 8]),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1, 8, 8]),
    ]
    functions, inputs = [], ends[:1]
    if form in ("nameless", "one name"):
        for node in nodes:
            node.name = "" if form == "nameless" else "node"
    if form == "constants":
        nodes = [helper.make_node("Constant", [], [w.name], value=w) for w in weights] + nodes
        weights = []
    if form == "identities":
        nodes.insert(0, helper.make_node("Identity", ["w2"], ["w2_shared"], name="shared"))
        nodes[3].input[1] = "w2_shared"
    if form == "weights as inputs":
        inputs = [*inputs, *(helper.make_tensor_value_info(w.name, TensorProto.FLOAT, w.dims) for w in weights)]
    opsets = [helper.make_opsetid("", 17)]
    if form == "functions":
        body = helper.make_node("Conv", ["i", "w"], ["o"], name="inner", pads=[1, 1, 1, 1])
        functions = [helper.make_function("local", "Layer", ["i", "w"], ["o"], [body], opsets)]
        nodes[2] = helper.make_node("Layer", ["b", "w2"], ["c"], domain="local")
        opsets = [*opsets, helper.make_opsetid("local", 1)]
    graph = helper.make_graph(nodes, "g", inputs, ends[1:], weights)
    return helper.make_model(graph, opset_imports=opsets, functions=functions, ir_version=8)


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(["y"], {"x": X})[0]


FORMS = ("plain", "nameless", "one name", "constants", "identities", "weights as inputs", "functions")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", ["fp16", "bf16", "int8"])
def test_however_a_graph_is_written_all_of_it_is_reduced(form: str, kind: Literal["fp16", "bf16", "int8"]) -> None:
    model = small(form)
    ready = prepared(model)
    assert len({n.name for n in ready.graph.node}) == len(ready.graph.node) and all(n.name for n in ready.graph.node)
    np.testing.assert_allclose(run(ready), run(small()), atol=2e-6)
    if kind == "int8":
        low = quantize.quantize(ready, quantize.calibrate(ready, [{"x": X}]))
    else:
        low = precision.to_half(ready, kind)
    found = achieved(low, kind)
    assert found.share == 1 and found.multiply_adds == 64 * (8 * 27 + 8 * 72 + 8)
    assert low.ByteSize() < model.ByteSize() + 1500 and precision.precisions(low) == [kind]


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_what_is_kept_is_not_in_the_precision_and_is_explained(kind: Literal["fp16", "int8"]) -> None:
    ready = prepared(small())
    if kind == "int8":
        low = quantize.quantize(ready, quantize.calibrate(ready, [{"x": X}]), ["second"])
    else:
        low = precision.to_half(ready, kind, ["second"])
    found = achieved(low, kind)
    assert found.others == {"second": 64 * 576} and found.share == pytest.approx(1 - 576 / 800)
    assert found.unexplained(["second"]) == {} and found.unexplained([]) == found.others


def test_a_prepared_graph_keeps_its_names_and_one_that_is_not_is_refused() -> None:
    once = prepared(small())
    assert [n.name for n in once.graph.node] == ["first", "relu", "second", "third"]
    assert prepared(once).SerializeToString(deterministic=True) == once.SerializeToString(deterministic=True)
    assert [n.name for n in prepared(small("nameless")).graph.node] == ["Conv", "Relu", "Conv_1", "Conv_2"]
    for form in ("nameless", "one name"):
        with pytest.raises(GraphError, match="is the name of 4 nodes"):
            precision.to_half(small(form), "fp16")
        with pytest.raises(GraphError, match="is the name of 4 nodes"):
            quantize.quantize(small(form), {})


def test_an_operator_of_another_domain_is_not_taken_for_the_standard_one() -> None:
    model = small()
    model.graph.node[2].domain = "elsewhere"
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    assert quantize.quantizable(model) == ["first", "third"]
    assert "second" in precision.always_fp32(model, "fp16") and not precision.multiplies(model.graph.node[2])
    model.graph.node[2].op_type = "QuantizeLinear"
    assert precision.precisions(model) == []


def test_a_precision_in_a_constant_node_is_seen() -> None:
    half = precision.to_half(small(), "fp16")
    constants = [helper.make_node("Constant", [], [w.name], value=w) for w in half.graph.initializer]
    nodes = [n for n in half.graph.node if n.op_type != "Cast"]
    del half.graph.node[:], half.graph.initializer[:]
    half.graph.node.extend([*constants, *nodes])
    assert precision.precisions(half) == ["fp16"]
