"""Pointwise functions and spatial averages change places where it is exact and pays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.rewrites.commute import commute

Graph = Callable[..., onnx.ModelProto]
SCALES = np.array([1, 1, 3, 2], np.float32)
SIZES = np.array([1, 8, 12, 8], np.int64)


def upsampled(graph: Graph, resize: str, conv: str = "", opset: int = 20, **weights: Any) -> onnx.ModelProto:
    text = f"""g (double[1,8,4,4] x) => (double[1,4,?,?] y) {{ u = Resize<{resize}>(x, {weights.pop("operands", ", s")})
        y = Conv{conv}(u, w, b) }}"""
    return graph(text, opset=opset, **({"w": (4, 8, 1, 1), "b": (4,), "s": SCALES} | weights))


@pytest.mark.parametrize("mode", ["linear", "nearest"])
@pytest.mark.parametrize("coordinates", ["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize(("operands", "s"), [(", s", SCALES), (", , s", SIZES)], ids=["scales", "sizes"])
def test_a_convolution_runs_before_the_upsampling(
    graph: Graph, exact: Any, mode: str, coordinates: str, operands: str, s: np.ndarray
) -> None:
    resize = f'mode="{mode}", coordinate_transformation_mode="{coordinates}"'
    model = upsampled(graph, resize, operands=operands, s=s)
    done = exact(commute, model)
    assert done.ops() == ["Conv", "Resize"]
    assert cost.multiply_adds(model) == 6 * cost.multiply_adds(done.model)


@pytest.mark.parametrize("opset", [13, 15, 17, 18, 20])
def test_at_every_opset(graph: Graph, exact: Any, opset: int) -> None:
    assert exact(commute, upsampled(graph, 'mode="linear"', opset=opset)).count == 1


def test_with_sizes_of_the_spatial_axes_alone(graph: Graph, exact: Any) -> None:
    model = upsampled(graph, 'mode="linear", axes=[2,3]', operands=", , s", s=np.array([9, 7], np.int64))
    assert exact(commute, model).count == 1


@pytest.mark.parametrize("opset", [13, 18])
def test_with_a_size_that_the_graph_computes(graph: Graph, exact: Any, opset: int) -> None:
    text = """g (double[n,8,h,v] x, double[n,3,p,q] like) => (double[n,4,p,q] y) {
        t = Shape(like) i = Shape(x) head = Slice(i, zero, two) tail = Slice(t, two, four) s = Concat<axis=0>(head, tail)
        u = Resize<mode="linear">(x, , , s) y = Conv(u, w, b) }"""
    ints = {name: np.array([i], np.int64) for name, i in (("zero", 0), ("two", 2), ("four", 4))}
    model = graph(text, opset=opset, w=(4, 8, 1, 1), b=(4,), **ints)
    resize = next(node for node in model.graph.node if node.op_type == "Resize")
    model.graph.value_info.append(  # the channels are static, as an exporter says
        onnx.helper.make_tensor_value_info(resize.output[0], onnx.TensorProto.DOUBLE, ["n", 8, "p", "q"])
    )
    shapes = {"x": (2, 8, 4, 3), "like": (2, 3, 9, 10)}
    # costs are weighed at one nominal size for both inputs, where nothing is saved: make the upsampling visible
    for value, dim in zip(model.graph.input[0].type.tensor_type.shape.dim[2:], (4, 3), strict=True):
        value.dim_value = dim
    assert exact(commute, model, shapes).count == 1


@pytest.mark.parametrize(
    ("operator", "weights"),
    [
        ("Mul(u, c)", {"c": (8, 1, 1)}),
        ("Sub(c, u)", {"c": (1, 8, 1, 1)}),
        ("BatchNormalization(u, c, d, d, e)", {"c": (8,), "d": (8,), "e": np.linspace(0.5, 2, 8)}),
        ("Conv<group=4>(u, c)", {"c": (8, 2, 1, 1)}),
        ('Conv<auto_pad="SAME_UPPER">(u, c)', {"c": (8, 8, 1, 1)}),
    ],
)
def test_other_affine_functions_commute(graph: Graph, exact: Any, operator: str, weights: Any) -> None:
    text = f'g (double[1,8,4,4] x) => (double[1,8,?,?] y) {{ u = Resize<mode="linear">(x, , s) y = {operator} }}'
    assert exact(commute, graph(text, s=SCALES, **weights)).ops()[-1] == "Resize"


@pytest.mark.parametrize(("mode", "count"), [("nearest", 1), ("linear", 0)])
def test_a_nonlinear_function_commutes_with_copying_pixels_only(
    graph: Graph, exact: Any, mode: str, count: int
) -> None:
    text = f'g (double[1,8,4,4] x) => (double[1,8,?,?] y) {{ u = Resize<mode="{mode}">(x, , s) y = Relu(u) }}'
    assert exact(commute, graph(text, s=SCALES)).count == count


@pytest.mark.parametrize(
    ("resize", "weights", "reason"),
    [
        ('mode="cubic"', {}, "cubic"),
        ('mode="linear", antialias=1', {}, "weights that depend on the border"),
        ('mode="linear", keep_aspect_ratio_policy="not_larger"', {"operands": ", , s", "s": SIZES}, "aspect ratio"),
        ('mode="linear", axes=[1,2,3]', {"operands": ", , s", "s": SIZES[1:]}, "channels"),
        ('mode="linear", coordinate_transformation_mode="tf_crop_and_resize"', {"operands": "r, s"}, "tf_crop"),
        ('mode="linear"', {"s": np.array([1, 2, 2, 2], np.float32), "w": (4, 16, 1, 1)}, "channels"),
    ],
)
def test_resizings_that_are_no_spatial_mean_are_refused(
    graph: Graph, apply: Any, resize: str, weights: Any, reason: str
) -> None:
    if weights.get("operands") == "r, s":
        weights = weights | {"r": np.array([0, 0, 0, 0, 1, 1, 1.5, 1.5])}
    done = apply(commute, upsampled(graph, resize, **weights))
    assert done.count == 0
    assert any(reason in refusal for refusal in done.refusals)


@pytest.mark.parametrize(
    ("conv", "kernel"), [("<pads=[1,1,1,1]>", 1), ("<strides=[2,2]>", 1), ("", 2), ('<auto_pad="SAME_UPPER">', 3)]
)
def test_convolutions_that_are_not_pointwise_stay(graph: Graph, apply: Any, conv: str, kernel: int) -> None:
    assert apply(commute, upsampled(graph, 'mode="linear"', conv, w=(4, 8, kernel, kernel))).count == 0


def test_a_convolution_stays_after_a_downsampling(graph: Graph, apply: Any) -> None:
    half = np.array([1, 1, 0.5, 0.5], np.float32)
    assert apply(commute, upsampled(graph, 'mode="linear"', s=half)).count == 0


POOLED = "g (double[1,8,6,6] x) => (double[1,4,?,?] y{}) {{ c = Conv(x, w, b) y = {} {} }}"


@pytest.mark.parametrize(
    "pool",
    [
        "AveragePool<kernel_shape=[2,2], strides=[2,2]>(c)",
        "AveragePool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(c)",
        'AveragePool<kernel_shape=[3,3], strides=[2,2], auto_pad="SAME_UPPER">(c)',
        'AveragePool<kernel_shape=[2,2], strides=[2,2], auto_pad="VALID", count_include_pad=1>(c)',
        "GlobalAveragePool(c)",
        'Resize<mode="linear">(c, , s)',
    ],
)
def test_a_convolution_waits_for_the_average_that_shrinks_its_input(graph: Graph, exact: Any, pool: str) -> None:
    weights = {"s": np.array([1, 1, 0.5, 0.5], np.float32)} if "Resize" in pool else {}
    model = graph(POOLED.format("", pool, ""), w=(4, 8, 1, 1), b=(4,), **weights)
    done = exact(commute, model)
    assert done.ops()[-1] == "Conv"
    assert 4 * cost.multiply_adds(done.model) <= cost.multiply_adds(model)


@pytest.mark.parametrize("padding", ["pads=[1,1,1,1]", 'auto_pad="SAME_UPPER"', 'auto_pad="SAME_LOWER"'])
def test_an_average_that_counts_its_padding_is_refused(graph: Graph, apply: Any, padding: str) -> None:
    pool = f"AveragePool<kernel_shape=[3,3], strides=[2,2], {padding}, count_include_pad=1>(c)"
    assert apply(commute, graph(POOLED.format("", pool, ""), w=(4, 8, 1, 1), b=(4,))).count == 0


def test_a_convolution_that_others_read_stays(graph: Graph, apply: Any) -> None:
    text = POOLED.format(", double[1,4,6,6] z", "GlobalAveragePool(c)", "z = Relu(c)")
    assert apply(commute, graph(text, w=(4, 8, 1, 1), b=(4,))).count == 0
