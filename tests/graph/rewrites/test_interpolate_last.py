"""A convolution with any kernel runs before the interpolation of what it reads, where it is exact and pays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.rewrites.interpolate_last import interpolate_last

Graph = Callable[..., onnx.ModelProto]
SIZES = np.array([2, 64, 15, 22], np.int64)
WEIGHTS: dict[str, Any] = {"w": (4, 64, 3, 3), "b": (4,), "s": SIZES}


def as_floats(**shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def upsampled(graph: Graph, conv: str = "<pads=[1,1,1,1]>", resize: str = 'mode="linear"', **weights: Any) -> Any:
    """Sizes that are no multiples of one another: 4 × 7 to 15 × 22."""
    text = f"g (double[2,64,4,7] x) => (double[2,4,?,?] y) {{ u = Resize<{resize}>(x, , , s) y = Conv{conv}(u, w, b) }}"
    return graph(text, **(WEIGHTS | weights))


@pytest.mark.parametrize(
    ("conv", "kernel"),
    [
        ("<pads=[1,1,1,1]>", (3, 3)),
        ("<pads=[2,2,2,2]>", (5, 5)),
        ("", (3, 3)),
        ("<pads=[0,2,1,0]>", (2, 3)),
        ("<pads=[1,1,1,1], strides=[2,1]>", (3, 3)),
        ("<pads=[2,2,2,2], dilations=[2,2]>", (3, 3)),
    ],
)
def test_taps_are_interpolated_and_summed(graph: Graph, exact: Any, conv: str, kernel: tuple[int, int]) -> None:
    model = upsampled(graph, conv, w=(4, 64, *kernel))
    done = exact(interpolate_last, model)
    assert done.count == 1 and done.ops().count("MatMul") == 2 and "Resize" not in done.ops()
    assert cost.multiply_adds(done.model) < cost.multiply_adds(model) / 2


def test_only_the_interpolated_part_of_a_concatenation_is_taken_out(graph: Graph, exact: Any) -> None:
    text = """g (double[2,64,4,7] x, double[2,1,15,22] p, double[2,2,15,22] q) => (double[2,4,15,22] y) {
        u = Resize<mode="linear">(x, , , s) c = Concat<axis=1>(p, u, q) y = Conv<pads=[1,1,1,1]>(c, w, b) }"""
    done = exact(interpolate_last, graph(text, **(WEIGHTS | {"w": (4, 67, 3, 3)})))
    assert done.count == 1 and "Resize" not in done.ops()
    rest = next(n for n in done.model.graph.node if n.name.endswith("/rest"))
    assert next(t.dims for t in done.model.graph.initializer if t.name == rest.input[1])[1] == 3


def test_several_interpolated_parts_of_one_convolution(graph: Graph, exact: Any) -> None:
    text = """g (double[2,64,4,7] x, double[2,32,5,5] p) => (double[2,4,15,22] y) {
        u = Resize<mode="linear">(x, , , s) v = Resize<mode="linear">(p, , , t)
        c = Concat<axis=1>(u, v) y = Conv<pads=[1,1,1,1]>(c, w, b) }"""
    sizes = np.array([2, 32, 15, 22], np.int64)
    done = exact(interpolate_last, graph(text, **(WEIGHTS | {"w": (4, 96, 3, 3), "t": sizes})))
    assert done.count == 2 and "Resize" not in done.ops()


def test_a_free_batch_stays_free(graph: Graph, exact: Any) -> None:
    text = """g (double[n,64,4,7] x) => (double[n,4,12,21] y) {
        u = Resize<mode="linear">(x, , k) y = Conv<pads=[1,1,1,1]>(u, w, b) }"""
    model = graph(text, w=(4, 64, 3, 3), b=(4,), k=np.array([1, 1, 3, 3], np.float32))
    assert exact(interpolate_last, model, {"x": (3, 64, 4, 7)}).count == 1


@pytest.mark.parametrize(
    ("channels", "operands", "s"),
    [
        (64, ", k", np.array([2, 1, 3, 3], np.float32)),
        (32, ", k", np.array([1, 2, 3, 3], np.float32)),
        (32, ", k", np.array([3, 2, 3, 3], np.float32)),
        (64, ", , k", np.array([4, 64, 12, 21], np.int64)),
        (32, ", , k", np.array([2, 64, 12, 21], np.int64)),
    ],
)
def test_a_resizing_of_the_batch_or_the_channels_stays(
    graph: Graph, apply: Any, channels: int, operands: str, s: np.ndarray
) -> None:
    text = f"""g (double[2,{channels},4,7] x) => (double[?,4,12,21] y) {{
        u = Resize<mode="linear">(x, {operands}) y = Conv<pads=[1,1,1,1]>(u, w, b) }}"""
    done = apply(interpolate_last, graph(text, w=(4, 64, 3, 3), b=(4,), k=s))
    assert done.count == 0 and "may change the" in done.refusals[0]


@pytest.mark.parametrize(
    ("sizes", "stays"),
    [
        ("i = Shape(x) h = Slice(i, zero, two) s = Concat<axis=0>(h, space)", True),
        ("i = Shape<start=0, end=2>(x) s = Concat<axis=0>(i, space)", True),
        ("i = Shape(x) h = Gather(i, zero) s = Concat<axis=0>(h, channels, space)", True),
        ("i = Shape(x) h = Slice(i, zero, two) d = Mul(h, t) s = Concat<axis=0>(d, space)", False),
        ("i = Shape(p) h = Slice(i, zero, two) s = Concat<axis=0>(h, space)", False),
        ("i = Shape<start=0, end=0>(x) h = Shape(p) k = Slice(h, zero, two) s = Concat<axis=0>(i, k, space)", False),
    ],
)
def test_a_free_batch_must_be_seen_to_stay_the_same(
    graph: Graph, exact: Any, apply: Any, sizes: str, stays: bool
) -> None:
    """The name of the result's batch proves nothing."""
    text = f"""g (double[n,64,4,7] x, double[m,64,4,7] p) => (double[?,4,12,21] y) {{
        {sizes} u = Resize<mode="linear">(x, , , s) y = Conv<pads=[1,1,1,1]>(u, w, b) }}"""
    lists = {"zero": [0], "two": [2], "channels": [64], "space": [12, 21], "t": [2, 1]}
    ints = {name: np.array(i, np.int64) for name, i in lists.items()}
    model = graph(text, w=(4, 64, 3, 3), b=(4,), **ints)
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("u", onnx.TensorProto.DOUBLE, ["n", 64, 12, 21]))
    assert apply(interpolate_last, model).count == stays
    if stays:
        exact(interpolate_last, model, {"x": (3, 64, 4, 7), "p": (6, 64, 4, 7)})


def test_an_empty_batch_stays_empty(graph: Graph, apply: Any) -> None:
    text = """g (float[n,64,4,7] x) => (float[n,4,12,21] y) {
        u = Resize<mode="linear">(x, , k) y = Conv<pads=[1,1,1,1]>(u, w, b) }"""
    model = graph(text, **as_floats(w=(4, 64, 3, 3), b=(4,)), k=np.array([1, 1, 3, 3], np.float32))
    done = apply(interpolate_last, model)
    assert done.count == 1
    for each in (model, done.model):
        session = onnxruntime.InferenceSession(each.SerializeToString(), providers=["CPUExecutionProvider"])
        assert session.run(None, {"x": np.zeros((0, 64, 4, 7), np.float32)})[0].shape == (0, 4, 12, 21)


OLD = tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 24)  # the newest for Python 3.10 is 1.23
NEGATIVE = pytest.param([-2], [3], marks=pytest.mark.skipif(OLD, reason="this ONNX Runtime knows no negative axes"))


@pytest.mark.parametrize(("axes", "scales"), [([2], [2]), ([3], [3]), ([3, 2], [2, 3]), NEGATIVE])
def test_scales_of_some_axes(graph: Graph, exact: Any, axes: list[int], scales: list[float]) -> None:
    text = f"""g (double[1,64,8,9] x) => (double[1,4,?,?] y) {{
        u = Resize<mode="linear", axes={axes}>(x, , k) y = Conv<pads=[1,1,1,1]>(u, w) }}"""
    model = graph(text, w=(4, 64, 3, 3), k=np.array(scales, np.float32))
    assert exact(interpolate_last, model, reference=min(axes) > 0).count == 1  # ONNX's reference knows no negative axes


def test_a_convolution_without_a_bias(graph: Graph, exact: Any) -> None:
    text = 'g (double[2,64,4,7] x) => (double[2,4,?,?] y) { u = Resize<mode="linear">(x, , , s) y = Conv(u, w) }'
    assert exact(interpolate_last, graph(text, w=(4, 64, 3, 3), s=SIZES)).count == 1


def test_free_sizes_are_refused_with_the_reason(graph: Graph, apply: Any) -> None:
    text = """g (double[2,64,h,7] x) => (double[2,4,?,?] y) {
        u = Resize<mode="linear">(x, , k) y = Conv<pads=[1,1,1,1]>(u, w, b) }"""
    done = apply(interpolate_last, graph(text, w=(4, 64, 3, 3), b=(4,), k=np.array([1, 1, 3, 3], np.float32)))
    assert done.count == 0 and any("free" in refusal for refusal in done.refusals)


@pytest.mark.parametrize(
    ("conv", "resize", "weights", "reason"),
    [
        ("", 'mode="nearest"', {}, "nearest"),
        ("", 'mode="cubic"', {}, "cubic"),
        ("", 'mode="linear", coordinate_transformation_mode="align_corners"', {}, "align_corners"),
        ("", 'mode="linear", coordinate_transformation_mode="pytorch_half_pixel"', {}, "pytorch_half_pixel"),
        ("", 'mode="linear", antialias=1', {}, "filters"),
        ("<group=2>", 'mode="linear"', {"w": (4, 32, 3, 3)}, "2 groups"),
        ('<auto_pad="SAME_UPPER">', 'mode="linear"', {}, "auto_pad"),
    ],
)
def test_what_is_another_function_stays_and_says_why(
    graph: Graph, apply: Any, conv: str, resize: str, weights: Any, reason: str
) -> None:
    done = apply(interpolate_last, upsampled(graph, conv, resize, **weights))
    assert done.count == 0 and reason in done.refusals[0]


def test_pointwise_convolutions_are_left_to_commuting(graph: Graph, apply: Any) -> None:
    done = apply(interpolate_last, upsampled(graph, "", 'mode="linear"', w=(4, 64, 1, 1)))
    assert (done.count, done.refusals) == (0, ())


def test_a_downsampling_comes_first(graph: Graph, apply: Any) -> None:
    done = apply(interpolate_last, upsampled(graph, s=np.array([2, 64, 2, 3], np.int64)))
    assert done.count == 0 and any("cost more" in refusal for refusal in done.refusals)


def test_what_has_another_reader_is_weighed_too(graph: Graph, apply: Any) -> None:
    text = """g (double[2,2,4,7] x) => (double[2,4,15,22] y, double[2,2,15,22] z) {
        u = Resize<mode="linear">(x, , , s) y = Conv<pads=[1,1,1,1]>(u, w, b) z = Relu(u) }"""
    sizes = np.array([2, 2, 15, 22], np.int64)
    assert apply(interpolate_last, graph(text, w=(4, 2, 3, 3), b=(4,), s=sizes)).count == 0
