"""Equal nodes are computed once, and only equal ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from r2mrf_deploy.graph.rewrites.cse import cse

Graph = Callable[..., onnx.ModelProto]
TWO = "g (double[1,3,5,5] x) => (double[1,4,5,5] y) {{ a = Conv{}(x, {}) b = Conv{}(x, {}) r = Relu(b) y = Add(a, r) }}"


def test_weights_are_compared_by_content(graph: Graph, exact: Any) -> None:
    w = np.random.default_rng(0).normal(size=(4, 3, 1, 1))
    done = exact(cse, graph(TWO.format("", "v", "", "w"), v=w, w=w.copy()))
    assert (done.count, done.ops().count("Conv")) == (1, 1)


def test_defaults_that_are_spelled_out_make_no_difference(graph: Graph, exact: Any) -> None:
    spelled = '<strides=[1,1], pads=[0,0,0,0], group=1, kernel_shape=[1,1], auto_pad="NOTSET">'
    done = exact(cse, graph(TWO.format("", "w", spelled, "w"), w=(4, 3, 1, 1)))
    assert done.ops().count("Conv") == 1


def test_what_follows_from_equal_nodes_is_equal_too(graph: Graph, exact: Any) -> None:
    text = """g (double[1,3,5,5] x) => (double[1,8,5,5] y) {
        a = Conv(x, w) b = Conv(x, w) c = Relu(a) d = Relu(b) y = Concat<axis=1>(c, d) }"""
    done = exact(cse, graph(text, w=(4, 3, 1, 1)))
    assert done.ops() == ["Conv", "Relu", "Concat"]


@pytest.mark.parametrize(
    ("first", "second"),
    [("<pads=[1,1,1,1]>", '<auto_pad="SAME_UPPER", dilations=[1,1]>'), ("<pads=[2,2,0,0]>", "<pads=[1,1,1,1]>")],
)
def test_other_attributes_are_another_convolution(graph: Graph, apply: Any, first: str, second: str) -> None:
    assert apply(cse, graph(TWO.format(first, "w", second, "w"), w=(4, 3, 3, 3))).count == 0


def test_other_weights_are_another_convolution(graph: Graph, apply: Any) -> None:
    v = np.random.default_rng(0).normal(size=(4, 3, 1, 1))
    w = v.copy()
    w[3, 2, 0, 0] = np.nextafter(w[3, 2, 0, 0], 1)
    assert apply(cse, graph(TWO.format("", "v", "", "w"), v=v, w=w)).count == 0


def test_weights_that_a_caller_may_replace_are_not_compared_by_content(graph: Graph, apply: Any) -> None:
    text = """g (double[1,3,5,5] x, double[4,3,1,1] v, double[4,3,1,1] w) => (double[1,4,5,5] y) {
        a = Conv(x, v) b = Conv(x, w) y = Add(a, b) }"""
    model = graph(text)
    equal = np.ones((4, 3, 1, 1))
    model.graph.initializer.extend(numpy_helper.from_array(equal, name) for name in "vw")
    assert apply(cse, model).count == 0


def test_random_numbers_are_drawn_anew(graph: Graph, apply: Any) -> None:
    text = "g (double[8] x) => (double[8] y) { a = RandomNormalLike(x) b = RandomNormalLike(x) y = Sub(a, b) }"
    done = apply(cse, graph(text))
    assert done.count == 0 and "nodes of RandomNormalLike are never merged" in done.refusals[0]


def test_each_quantised_operator_keeps_its_own_dequantisation(graph: Graph, apply: Any) -> None:
    text = """g (float[1,2,4,4] x) => (float[1,3,4,4] y) {
        v = DequantizeLinear(q, s) w = DequantizeLinear(q, s) a = Conv(x, v) r = Relu(x) b = Conv(r, w) y = Add(a, b) }"""
    assert apply(cse, graph(text, q=np.ones((3, 2, 1, 1), np.int8), s=np.array(0.1, np.float32))).count == 0


def test_two_equal_outputs_keep_their_names(graph: Graph, exact: Any) -> None:
    text = "g (double[1,3,5,5] x) => (double[1,4,5,5] y, double[1,4,5,5] z) { y = Conv(x, w) z = Conv(x, w) }"
    done = exact(cse, graph(text, w=(4, 3, 1, 1)))
    assert done.ops() == ["Conv", "Identity"]


def test_an_output_equal_to_an_inner_tensor_keeps_its_name(graph: Graph, exact: Any) -> None:
    text = (
        "g (double[1,3,5,5] x) => (double[1,4,5,5] s, double[1,4,5,5] z) { y = Conv(x, w) s = Relu(y) z = Conv(x, w) }"
    )
    assert exact(cse, graph(text, w=(4, 3, 1, 1))).ops() == ["Conv", "Relu"]
