"""Channels that are left out: exact where the others tell them, refused where something needs them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
import onnxruntime
import pytest

from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.compression.changes import Choice, Compressible
from r2mrf_deploy.graph.compression.channels import groups
from r2mrf_deploy.graph.compression.low_rank import Ranks
from r2mrf_deploy.graph.compression.network import Network
from r2mrf_deploy.graph.trace import checked

RNG = np.random.default_rng(0)
FEEDS = [{"x": RNG.standard_normal((1, 3, 16, 16), np.float32)} for _ in range(6)]


def model(nodes: str, weights: Mapping[str, np.ndarray], outputs: str = "map") -> onnx.ModelProto:
    """A graph from `x` [1, 3, 16, 16]; its nodes are called after their outputs."""
    ends = ", ".join(f"float[1, N{i}, 16, 16] {name}" for i, name in enumerate(outputs.split()))
    made = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["": 17]> g (float[1, 3, 16, 16] x) => ({ends}) {{ {nodes} }}'
    )
    made.graph.initializer.extend(onnx.numpy_helper.from_array(array, name) for name, array in weights.items())
    for node in made.graph.node:
        node.name = node.output[0]
    return checked(made)


def weights(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def run(made: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(["map"], feed)[0] for feed in FEEDS])


def twins(filters: int, channels: int, kernel: int) -> np.ndarray:
    """Weights of which the second half of the filters repeats the first."""
    half = weights(filters // 2, channels, kernel, kernel)
    return np.concatenate([half, half])


def same(a: onnx.ModelProto, b: onnx.ModelProto) -> bool:
    """Whether two graphs compute the same up to FP32's rounding and the damping of the moments (1e-6)."""
    found, wanted = run(a), run(b)
    return bool(np.abs(found - wanted).max() < 1e-3 * wanted.std())


CHAIN = "a = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(a) map = Conv<pads = [2, 2, 2, 2]>(r, v)"


def test_channels_that_others_tell_are_left_out_exactly() -> None:
    made = model(CHAIN, {"w": twins(8, 3, 3), "v": weights(2, 8, 5, 5)})
    subject = Compressible(made, FEEDS)
    (group,) = subject.groups.values()
    order, left = subject.order(group)
    assert (
        len({int(c) % 4 for c in order[:4]}) == 4 and left[3] < 1e-9 < left[2]
    )  # one of each pair, then nothing is left
    narrow = subject.changed(Choice(channels={"r": 4}))
    assert same(narrow, made)
    assert cost.multiply_adds(narrow) * 2 == cost.multiply_adds(made)


def test_a_channel_that_is_read_more_is_needed_more() -> None:
    reads = weights(2, 8, 1, 1)
    reads[:, 3] *= 100
    made = model(
        "a = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(a) map = Conv(r, v)", {"w": weights(8, 3, 3, 3), "v": reads}
    )
    subject = Compressible(made, FEEDS)
    assert subject.order(subject.groups["r"])[0][0] == 3


@pytest.mark.parametrize(
    "nodes",
    [
        "a = Conv(x, w) r = Relu(a) map = Conv(r, v) other = Relu(r)",  # something else reads it
        "a = Conv(x, w) r = Softmax<axis = 1>(a) map = Conv(r, v)",  # every channel depends on every other
        "y = Conv(x, w) r = Conv<group = 2>(y, g) map = Conv(r, v)",  # the groups would have other sizes
        "a = Conv(x, w) c = Conv(a, q) r = Add(a, c) map = Conv(r, v)",  # c reads all of a
        "a = Conv(x, h) c = Relu(a) r = Concat<axis = 1>(a, c) map = Conv(r, v)",  # the halves need other channels of a
        "a = Conv(x, h) r = Concat<axis = 1>(a, a) map = Conv(r, v)",
        "a = Conv(x, w) m = Conv(x, one) r = Mul(a, m) map = Conv(r, v)",  # m has one channel for all
        "a = Conv(x, big) r, o = Split<axis = 1>(a) map_ = Conv(r, v) n = Conv(o, v) map = Add(map_, n)",  # no sizes
    ],
)
def test_what_needs_all_channels_keeps_them(nodes: str) -> None:
    outputs = "map other" if "other" in nodes else "map"
    arrays = {
        "w": weights(8, 3, 1, 1), "v": weights(1, 8, 1, 1), "g": weights(8, 4, 1, 1), "q": weights(8, 8, 1, 1),
        "h": weights(4, 3, 1, 1), "one": weights(1, 3, 1, 1), "big": weights(16, 3, 1, 1),
    }  # fmt: skip
    read = {name for part in nodes.replace(")", ",").replace("(", ",").split(",") if (name := part.strip()) in arrays}
    made = model(nodes, {name: arrays[name] for name in read}, outputs)
    reach = {t for g in groups(Network(made)) for t in g.tensors}
    assert "r" not in reach and "a" not in reach


def test_rows_that_are_split_are_no_channels() -> None:
    made = model(
        "a = Conv(x, w) p, q = Split<axis = 2>(a, sizes) s = Concat<axis = 2>(p, q) map = Conv(s, v)",
        {"w": weights(16, 3, 1, 1), "v": weights(1, 16, 1, 1), "sizes": np.array([4, 12])},
    )
    subject = Compressible(made, FEEDS)
    assert not subject.groups
    assert same(subject.changed(Choice(ranks={"a": Ranks(out=3)})), made)  # 3 colours have no more directions


def test_what_a_subgraph_reads_is_read() -> None:
    """The body of an If reads all channels of a tensor, whose other reader is a convolution."""
    body = onnx.parser.parse_graph("body () => (float[1, 8, 16, 16] y) { y = Relu(r) }")
    made = model(
        "a = Conv(x, w) r = Relu(a) m = Conv(r, v) s = ReduceSum<keepdims = 0>(x) b = Cast<to = 9>(s) "
        "i = Identity(r) j = ReduceSum<keepdims = 1>(i, ax) map = Add(m, j)",
        {"w": weights(8, 3, 1, 1), "v": weights(1, 8, 1, 1), "ax": np.array([1])},
    )
    assert "r" not in {t for g in groups(Network(made)) for t in g.tensors}
    node = next(n for n in made.graph.node if n.name == "i")
    node.CopyFrom(onnx.helper.make_node("If", ["b"], ["i"], name="i", then_branch=body, else_branch=body))
    assert "r" not in {t for g in groups(Network(made)) for t in g.tensors}
    assert any(n.name == "r" for n in Network(made).model().graph.node)


def test_a_sum_and_a_split_and_a_depthwise_convolution_become_narrower_together() -> None:
    pair = twins(8, 3, 1)
    made = model(
        "m = Conv(x, w) p, q = Split<axis = 1>(m, sizes) o = Conv(x, u) s = Add(p, o) b = Add(s, k) "
        "d = Conv<group = 8, pads = [1, 1, 1, 1]>(b, g) r = Relu(d) z = Conv(q, y) map_ = Conv(r, v) map = Add(map_, z)",
        {
            "w": np.concatenate([pair, weights(4, 3, 1, 1)]), "u": twins(8, 3, 1), "sizes": np.array([8, 4]),
            "k": np.tile(weights(4).reshape(1, 4, 1, 1), (1, 2, 1, 1)), "g": np.tile(weights(4, 1, 3, 3), (2, 1, 1, 1)),
            "v": weights(2, 8, 1, 1), "y": weights(2, 4, 1, 1),
        },
    )  # fmt: skip
    subject = Compressible(made, FEEDS)
    narrow = subject.changed(Choice(channels={"r": 4}))
    assert same(narrow, made)
    sizes = {i.name: i.dims for i in narrow.graph.initializer}
    shapes = {n.name: sizes[n.input[1]][0] for n in narrow.graph.node if n.op_type == "Conv"}
    assert shapes["m"] == 8 and shapes["o"] == 4 and shapes["d"] == 4  # of m, four for the sum and all four of q


def test_a_branch_that_the_fusion_does_not_need_goes_with_all_that_only_it_needs() -> None:
    shared = weights(1, 6, 1, 1)
    made = model(
        "m = Conv(x, w) r = Relu(m) p, q = Split<axis = 1>(r, sizes) a = Conv(p, a1) b = Conv(q, b1) c = Conv(x, c1) "
        "t = Concat<axis = 1>(a, b, c) map = Conv(t, f)",
        {
            "w": weights(12, 3, 1, 1), "sizes": np.array([6, 6]), "a1": shared, "b1": weights(1, 6, 1, 1),
            "c1": weights(1, 3, 1, 1), "f": np.array([1.0, 1e-6, 0.5], np.float32).reshape(1, 3, 1, 1),
        },
    )  # fmt: skip
    subject = Compressible(made, FEEDS)
    narrow = subject.changed(Choice(channels={"t": 2}))
    names = {n.name for n in narrow.graph.node}
    assert {"a", "c"} <= names and "b" not in names
    sizes = {i.name: i.dims for i in narrow.graph.initializer}
    assert sizes[next(n for n in narrow.graph.node if n.name == "m").input[1]][0] == 6  # q has no reader any more
    assert same(narrow, made)


def test_layers_with_the_same_weights_stay_one_layer() -> None:
    made = model(
        "a = Conv<pads = [1, 1, 1, 1]>(x, w) r = Relu(a) b = Conv<pads = [1, 1, 1, 1]>(r, v) s = Relu(b) "
        "c = Conv<pads = [1, 1, 1, 1]>(s, v) t = Relu(c) map = Conv(t, u)",
        {"w": weights(16, 3, 3, 3), "v": weights(16, 16, 3, 3), "u": weights(1, 16, 1, 1)},
    )
    subject = Compressible(made, FEEDS)
    assert subject.layers["b"].nodes == ("b", "c")
    changed = subject.changed(Choice(ranks={"b": Ranks(into=8)}))
    factors = [n for n in changed.graph.node if "/factor" in n.name]
    assert {n.name for n in factors} == {"b/factor1", "b/factor2", "c/factor1", "c/factor2"}
    assert len({n.input[1] for n in factors}) == 2  # each factor's weights once


def test_layers_with_the_same_weights_part_where_only_one_becomes_narrower() -> None:
    pair = weights(8, 8, 1, 1)
    made = model(
        "a = Conv(x, w) r = Relu(a) b = Conv(r, v) s = Relu(b) c = Conv(s, v) t = Relu(c) map = Conv(t, u)",
        {"w": twins(16, 3, 1), "v": np.tile(pair, (2, 2, 1, 1)), "u": weights(1, 16, 1, 1)},
    )
    subject = Compressible(made, FEEDS)
    group = next(g for g in subject.groups.values() if set(g.tensors) == {"r", "s"})
    narrow = subject.changed(Choice({group.name: 8}))  # b makes half of s, and c still all of t
    assert same(narrow, made)
    sizes = {i.name: i.dims for i in narrow.graph.initializer}
    assert [sizes[n.input[1]][:2] for n in narrow.graph.node if n.name in "bc"] == [[8, 8], [16, 8]]


def test_a_factored_layer_that_became_narrower_is_fitted_to_what_is_left() -> None:
    made = model(CHAIN, {"w": twins(32, 3, 3), "v": weights(16, 32, 5, 5)})
    subject = Compressible(made, FEEDS)
    both = subject.changed(Choice({"r": 16}, {"map": Ranks(into=16)}))
    assert same(both, made)  # 16 of 32 channels tell all
    assert not any("/factor1" in n.name for n in both.graph.node)  # 16 of 16 is no factor: nothing is gained
