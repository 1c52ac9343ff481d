"""What computes nothing goes; what only looks like it stays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from r2mrf_deploy.graph.rewrites.cleanup import cleanup

Graph = Callable[..., onnx.ModelProto]


@pytest.mark.parametrize(
    ("body", "ops"),
    [
        ("a = Identity(x) y = Relu(a)", ["Relu"]),
        ("a = Relu(x) y = Identity(a)", ["Relu"]),
        ("a, m = Dropout(x) y = Relu(a)", ["Relu"]),
        ("a = Cast<to=11>(x) y = Relu(a)", ["Relu"]),
        ("a = Concat<axis=1>(x) y = Relu(a)", ["Relu"]),
        ("a = Sigmoid(x) y = Relu(x)", ["Relu"]),
        ('a = Resize<mode="linear">(x, , ones) y = Relu(a)', ["Relu"]),
        ('a = Resize<mode="cubic", coordinate_transformation_mode="align_corners">(x, , , same) y = Relu(a)', ["Relu"]),
        ("s = Shape<start=2>(x) t = Concat<axis=0>(head, s) y = Reshape(x, t)", ["Reshape"]),
        ("c = Constant<value_float=2.0>() d = CastLike(c, x) y = Mul(x, d)", ["Mul"]),
        ("c = Constant<value_float=2.0>() d = Cast<to=11>(c) e = Neg(d) y = Mul(x, e)", ["Mul"]),
    ],
)
def test_what_computes_nothing_goes(graph: Graph, exact: Any, body: str, ops: list[str]) -> None:
    constants = {
        "ones": np.ones(4, np.float32),
        "same": np.array([1, 2, 4, 4], np.int64),
        "head": np.array([1, 2], np.int64),
    }
    model = graph(f"g (double[1,2,4,4] x) => (double[1,2,4,4] y) {{ {body} }}", **constants)
    assert exact(cleanup, model).ops() == ops


@pytest.mark.parametrize(
    "body",
    [
        "a, m = Dropout(x, half, yes) y = Relu(a)",
        "a = Cast<to=1>(x) y = Cast<to=11>(a)",
        'a = Resize<mode="linear">(x, , more) y = Slice(a, zero, four, two)',
        'a = Resize<mode="nearest", coordinate_transformation_mode="tf_half_pixel_for_nn">(x, , ones) y = Relu(a)',
        'a = Resize<mode="linear", coordinate_transformation_mode="tf_crop_and_resize">(x, roi, , same) y = Relu(a)',
    ],
)
def test_what_only_looks_like_nothing_stays(graph: Graph, apply: Any, body: str) -> None:
    constants = {
        "half": np.array(0.5, np.float32),
        "yes": np.array(True),
        "ones": np.ones(4, np.float32),
        "more": np.array([1, 1, 1, 1.2], np.float32),  # the same size, but not the same pixels
        "same": np.array([1, 2, 4, 4], np.int64),
        "roi": np.array([0, 0, 0, 0, 1, 1, 0.5, 0.5]),
        "zero": np.array([0]),
        "four": np.array([4]),
        "two": np.array([2]),
    }
    used = {name: value for name, value in constants.items() if name in body}
    text = f"g (double[1,2,4,4] x) => (double[1,2,4,4] y) {{ {body} }}"
    assert apply(cleanup, graph(text.replace("double[1,2,4,4] y", "double[1,2,?,?] y"), **used)).count == 0


def test_an_identity_keeps_two_names_apart(graph: Graph, exact: Any) -> None:
    text = "g (double[9] x) => (double[9] a, double[9] b, double[9] c) { a = Relu(x) b = Identity(a) c = Identity(x) }"
    assert exact(cleanup, graph(text)).ops() == ["Relu", "Identity", "Identity"]


def test_quantised_weights_stay_quantised(graph: Graph, apply: Any) -> None:
    text = """g (float[1,2,4,4] x) => (float[1,3,4,4] y) { w = DequantizeLinear(q, s) y = Conv(x, w) }"""
    model = graph(text, q=np.ones((3, 2, 1, 1), np.int8), s=np.array(0.1, np.float32))
    assert apply(cleanup, model).ops() == ["DequantizeLinear", "Conv"]


def test_a_free_size_is_not_taken_for_its_nominal_value(graph: Graph, apply: Any) -> None:
    text = (
        "g (float[1,2,h,w] x) => (float[?,?] y) { s = Shape(x) e = Cast<to=1>(s) t = Mul(e, e) y = Unsqueeze(t, zero) }"
    )
    assert apply(cleanup, graph(text, zero=np.array([0]))).count == 0


def test_dimensions_of_one_name_are_not_taken_to_be_equal(graph: Graph, apply: Any) -> None:
    """Exporters give an enlarged output the names of the input's dimensions."""
    text = (
        'g (double[1,2,h,w] x, int64[4] s) => (double[1,2,h,w] y) { a = Resize<mode="linear">(x, , , s) y = Relu(a) }'
    )
    model = graph(text)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("a", onnx.TensorProto.DOUBLE, (1, 2, "h", "w")))
    assert apply(cleanup, model).count == 0


def test_whole_numbers_below_zero_are_not_divided_here(graph: Graph, apply: Any) -> None:
    """-7 / 2 is -3 on a processor and -4 in numpy."""
    text = "g (int64[1] x) => (int64[1] y) { d = Div(a, b) y = Add(x, d) }"
    assert apply(cleanup, graph(text, a=np.array([-7]), b=np.array([2]))).count == 0


@pytest.mark.parametrize(
    ("body", "constants", "reason"),
    [
        (
            "d = Div(a, b) c = Cast<to=11>(d) y = Add(x, c)",
            {"a": np.array([-7]), "b": np.array([2])},
            "negative integers",
        ),
        ("e = Expand(o, n) y = Add(x, e)", {"o": np.ones(1), "n": np.array([5000])}, "5000 elements"),
        ("d = Dropout(x, h, t) y = Relu(d)", {"h": np.array(0.5), "t": np.array(True)}, "training mode"),
        ("y = Add(o, p)", {"o": np.ones(1), "p": np.ones(1)}, "but it is an output"),
    ],
)
def test_what_nearly_goes_says_why_it_stays(graph: Graph, apply: Any, body: str, constants: Any, reason: str) -> None:
    refusals = apply(cleanup, graph(f"g (double[1] x) => (double[?] y) {{ {body} }}", **constants)).refusals
    assert len(refusals) == 1 and reason in refusals[0]
