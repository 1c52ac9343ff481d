"""ONNX's own tests of the operators that the rewrites read or write, through the pipeline."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.rewrites import cleanup, optimize

pytestmark = pytest.mark.artifact

Cases = dict[str, list[Any]]
OPERATORS = sorted(
    cleanup.FOLDED
    | {"Conv", "ConvTranspose", "Resize", "AveragePool", "GlobalAveragePool", "BatchNormalization", "Split"}
    | {"Identity", "Dropout", "Relu", "Sigmoid", "HardSigmoid", "HardSwish", "Elu", "Softplus", "Tanh", "LeakyRelu"}
    | {"If", "Loop", "Scan", "DequantizeLinear", "QuantizeLinear"}
)


@pytest.fixture(scope="session")
def cases(node_cases: list[Any]) -> Cases:
    """Operator -> its cases: a model of one node, with inputs and expected outputs."""
    found: Cases = defaultdict(list)
    for case in copy.deepcopy(node_cases):
        if len(case.model.graph.node) == 1 and _modern(case.model):
            found[case.model.graph.node[0].op_type].append(case)
    return found


@pytest.mark.parametrize("operator", OPERATORS)
def test_the_result_is_what_it_was(cases: Cases, operator: str) -> None:
    assert cases[operator]
    for case in cases[operator]:
        model = optimize(case.model).model
        constant = optimize(_with_constants(case)).model
        for inputs, _ in case.data_sets:
            feeds = dict(zip([i.name for i in case.model.graph.input], inputs, strict=True))
            expected = _evaluate(case.model, feeds)  # a few of the stated ones are rounded
            if expected is None or "training" in case.name:
                continue  # beyond ONNX's reference, or random
            _assert_equal(_evaluate(model, feeds), expected, case)
            _assert_equal(_evaluate(constant, {i.name: feeds[i.name] for i in constant.graph.input}), expected, case)


@pytest.mark.parametrize(
    ("operator", "before"), [("Resize", False), ("Resize", True), ("AveragePool", True), ("GlobalAveragePool", True)]
)
def test_a_convolution_beside_it_gives_the_same(
    cases: Cases, operator: str, before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether or not the two commute, which they do for some of the cases and must not for others."""
    monkeypatch.setattr(cost, "MULTIPLY_ADDS_PER_BYTE", 0)  # so that the small graphs are worth it
    commuted = 0
    for case in cases[operator]:
        model = _with_convolution(case, before)
        if model is None:
            continue
        result = optimize(model)
        commuted += "commute" in {r.name for r in result.records}
        for inputs, _ in case.data_sets:
            expected = _evaluate(model, {"x": np.asarray(inputs[0], np.float32)})
            if expected is not None:
                _assert_equal(_evaluate(result.model, {"x": np.asarray(inputs[0], np.float32)}), expected, case)
    assert commuted > 0


def _modern(model: onnx.ModelProto) -> bool:
    """Bring a case to opset 13, at which an operator that was last changed before is still what it was."""
    model.opset_import[0].version = max(13, model.opset_import[0].version)
    model.ir_version = max(8, model.ir_version)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError:  # it tests an older form
        return False
    return True


def _with_constants(case: Any) -> onnx.ModelProto:
    """The case with every tensor input but the first as an initialiser."""
    model = onnx.ModelProto()
    model.CopyFrom(case.model)
    for value, array in list(zip(model.graph.input, case.data_sets[0][0], strict=True))[1:]:
        if isinstance(array, np.ndarray) and value.type.HasField("tensor_type"):
            tensor = numpy_helper.from_array(array, value.name)
            if tensor.data_type == value.type.tensor_type.elem_type:
                model.graph.initializer.append(tensor)
                model.graph.input.remove(value)
    return model


def _with_convolution(case: Any, before: bool) -> onnx.ModelProto | None:
    """The case's node, its further inputs constant, after or before a pointwise convolution; None where it has no image."""
    node, arrays = case.model.graph.node[0], case.data_sets[0][0]
    if len(node.output) != 1 or arrays[0].ndim != 4 or arrays[0].dtype != np.float32:
        return None
    rng, (n, c, h, w) = np.random.default_rng(0), arrays[0].shape
    channels = c if before else case.data_sets[0][1][0].shape[1]
    names = [name for name in dict.fromkeys(node.input) if name][1:]
    constants = [numpy_helper.from_array(a, name) for name, a in zip(names, arrays[1:], strict=True)]
    constants += [
        numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name)
        for name, shape in (("weight", (c, channels, 1, 1)), ("bias", (c,)))
    ]
    inner = onnx.NodeProto()
    inner.CopyFrom(node)
    inner.input[0], inner.output[0] = ("y", "z") if before else ("x", "y")
    conv = helper.make_node(
        "Conv", ["x", "weight", "bias"] if before else ["y", "weight", "bias"], ["y" if before else "z"]
    )
    nodes = [conv, inner] if before else [inner, conv]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, (n, c, h, w))],
        [helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["n", "c", "h", "w"])],
        constants,
    )
    return helper.make_model(graph, opset_imports=list(case.model.opset_import), ir_version=8)


def _evaluate(model: onnx.ModelProto, feeds: dict[str, Any]) -> list[Any] | None:
    try:
        return list(ReferenceEvaluator(model).run(None, feeds))
    except Exception:  # it does not implement every case
        return None


def _assert_equal(actual: list[Any] | None, expected: list[Any], case: Any) -> None:
    assert actual is not None, case.name
    for a, b in zip(actual, expected, strict=False):
        if isinstance(b, np.ndarray) and b.dtype.kind in "biuf":
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=case.name)
