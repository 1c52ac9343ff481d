"""Costs against counts made by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph import cost


def model(text: str, **weights: tuple[int, ...]) -> onnx.ModelProto:
    """A model in ONNX's text form, with float32 initialisers of the given shapes."""
    parsed = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]> {text}')
    parsed.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.ones(shape, np.float32), name) for name, shape in weights.items()
    )
    return parsed


@pytest.mark.parametrize(
    ("node", "x", "w", "expected"),
    [
        # every output element takes one multiply-add for each weight of its filter
        ("Conv<pads=[1,1,1,1]>(x, w)", (2, 4, 8, 6), (3, 4, 3, 3), 2 * 3 * 8 * 6 * 4 * 9),
        ("Conv<strides=[2,2]>(x, w)", (1, 4, 9, 9), (3, 4, 3, 3), 3 * 4 * 4 * 4 * 9),
        ("Conv<group=2>(x, w)", (1, 4, 5, 5), (6, 2, 1, 1), 6 * 25 * 2),
        # every input element meets each weight of its channel
        ("ConvTranspose<strides=[2,2]>(x, w)", (1, 4, 5, 5), (4, 3, 4, 4), 4 * 25 * 3 * 16),
        ("Gemm<transA=1>(x, w)", (7, 5), (7, 3), 5 * 3 * 7),
        ("Gemm<transB=1>(x, w)", (5, 7), (3, 7), 5 * 3 * 7),
        ("MatMul(x, w)", (2, 5, 7), (7, 3), 2 * 5 * 3 * 7),
        ("MatMul(x, w)", (7,), (7, 3), 3 * 7),
        ("Add(x, w)", (5, 7), (5, 7), 0),
    ],
)
def test_multiply_adds_are_those_counted_by_hand(
    node: str, x: tuple[int, ...], w: tuple[int, ...], expected: int
) -> None:
    dims = ", ".join(map(str, x))
    assert cost.multiply_adds(model(f"g (float[{dims}] x) => (float[?] y) {{ y = {node} }}", w=w)) == expected


def test_bytes_are_those_of_the_tensors_read_and_written() -> None:
    m = model(
        "g (float[1,4,8,8] x) => (float16[4,64] z) { y = Conv(x, w) h = Cast<to=10>(y) z = Reshape(h, s) }",
        w=(4, 4, 1, 1),
    )
    m.graph.initializer.append(onnx.numpy_helper.from_array(np.array([4, 64]), "s"))
    conv, cast, reshape = cost.cost(m).nodes
    assert (conv.bytes_read, conv.bytes_written) == (4 * (256 + 16), 4 * 256)
    assert (cast.bytes_read, cast.bytes_written) == (4 * 256, 2 * 256)
    assert (reshape.bytes_read, reshape.bytes_written) == (0, 0)
    assert (conv.op, conv.shape, reshape.shape) == ("Conv", (1, 4, 8, 8), (4, 64))


def test_peak_is_the_most_that_is_alive_at_once() -> None:
    # x (64 floats) lives until b; while b is made x, a and b are alive; while c is made a, b and c are
    m = model("g (float[64] x) => (float[64] d) { a = Relu(x) b = Sigmoid(x) c = Concat<axis=0>(a, b) d = Add(a, b) }")
    assert cost.cost(m).peak_activation_bytes == 4 * (64 + 64 + 128)
    # a view is no second tensor, and keeps its source alive
    m = model("g (float[8,8] x) => (float[64] c) { a = Relu(x) b = Flatten<axis=0>(a) v = Squeeze(b) c = Abs(v) }")
    assert cost.cost(m).peak_activation_bytes == 4 * (64 + 64)


def test_an_output_stays_alive_to_the_end() -> None:
    m = model("g (float[64] x) => (float[64] a, float[64] c) { a = Relu(x) b = Abs(a) c = Neg(b) }")
    assert cost.cost(m).peak_activation_bytes == 4 * (64 * 3)


def test_a_graph_that_computes_its_sizes_is_counted() -> None:
    m = model(
        """g (float[n,3,h,w] x, float[n,3,p,q] like) => (float[n,5,p,q] y) {
            s = Shape<start=2>(like) nc = Shape<end=2>(x) size = Concat<axis=0>(nc, s)
            up = Resize<mode="linear">(x, , , size) y = Conv(up, w) }""",
        w=(5, 3, 1, 1),
    )
    assert cost.multiply_adds(m, {"x": (2, 3, 4, 4), "like": (2, 3, 9, 7)}) == 2 * 5 * 9 * 7 * 3


def test_a_free_batch_counts_as_one_and_other_free_dimensions_must_be_given() -> None:
    text = "g (float[n,3,{}] x) => (float[?] y) {{ y = Conv(x, w) }}"
    assert cost.multiply_adds(model(text.format("4,4"), w=(5, 3, 1, 1))) == 5 * 16 * 3
    free = model(text.format("h,w"), w=(5, 3, 1, 1))
    with pytest.raises(GraphError, match="give its shape"):
        cost.multiply_adds(free)
    with pytest.raises(GraphError, match="does not fit"):
        cost.multiply_adds(free, {"x": (1, 4, 8, 8)})
    with pytest.raises(GraphError, match="no input 'image'"):
        cost.multiply_adds(free, {"image": (1, 3, 8, 8)})


def test_multiply_adds_per_image_count_a_batch_as_one_image() -> None:
    text = "g (float[{},3,4,4] x) => (float[?] y) {{ y = Conv(x, w) }}"
    one = cost.multiply_adds(model(text.format(1), w=(5, 3, 1, 1)))
    assert one == 5 * 16 * 3
    assert cost.multiply_adds_per_image(model(text.format(4), w=(5, 3, 1, 1))) == one
    assert cost.multiply_adds_per_image(model(text.format("n"), w=(5, 3, 1, 1)), {"x": (4, 3, 4, 4)}) == one


def test_a_shape_that_depends_on_data_is_refused_not_guessed() -> None:
    m = model("g (float[4,3] x) => (float[?] y) { i = NonZero(x) f = Cast<to=1>(i) y = MatMul(f, x) }")
    with pytest.raises(GraphError, match="not known before the graph runs"):
        cost.multiply_adds(m)


def test_parameters_are_weights_each_once() -> None:
    m = model(
        """g (float[1,3,8,8] x) => (float[1,3,8,8] z) {
            n = Sub(x, mean) y = Conv(n, w, b) a = Conv(y, w, b) h = Cast<to=1>(half) t = PRelu(a, h) z = Mul(t, mean) }""",
        w=(3, 3, 1, 1),
        b=(3,),
        mean=(3, 1, 1),
        half=(3, 1, 1),
    )
    assert cost.parameters(m) == 9 + 3 + 3  # the mean is no weight, and w is used twice


def test_a_damaged_model_is_refused() -> None:
    m = model("g (float[4] x) => (float[4] y) { y = Relu(x) }")
    m.graph.node[0].input[0] = "nobody"
    with pytest.raises(GraphError):
        cost.cost(m)


def test_a_sequence_has_no_shape_and_is_no_error_of_a_library() -> None:
    m = model("g (seq(float[2,3]) s, int64 i) => (float[2,3] y) { r = SequenceAt(s, i) y = Relu(r) }")
    with pytest.raises(GraphError, match=r"input 's'|not known before the graph runs"):
        cost.cost(m)
