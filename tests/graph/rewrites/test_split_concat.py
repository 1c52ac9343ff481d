"""Convolutions over concatenations are split where a part can be shared, commuted or merged, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest

from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.rewrites.cse import cse
from r2mrf_deploy.graph.rewrites.editor import Editor, Outcome
from r2mrf_deploy.graph.rewrites.split_concat import split_concat

Graph = Callable[..., onnx.ModelProto]


def split_and_share(editor: Editor) -> Outcome:
    outcome = split_concat(editor)
    cse(editor)
    return outcome


def recurrence(
    graph: Graph, *, attributes: str = "", first: str = "w", size: int = 64, axis: int = 1
) -> onnx.ModelProto:
    """Two steps of a 3×3 convolution with a bias over a state of one channel and a map of `size`."""
    text = f"""g (double[1,1,8,8] s, double[1,{size},8,8] m) => (double[1,8,8,8] y, double[1,8,8,8] z) {{
        c = Concat<axis={axis}>(s, m) a = Conv<pads=[1,1,1,1] {attributes}>(c, {first}, b) y = Relu(a)
        t = ReduceMean<axes=[1]>(y)
        d = Concat<axis={axis}>(t, m) z = Conv<pads=[1,1,1,1] {attributes}>(d, w, b) }}"""
    return graph(text, opset=17, w=(8, size + 1, 3, 3), v=(8, size + 1, 3, 3), b=(8,))


def pyramid(graph: Graph, kernel: int = 1) -> onnx.ModelProto:
    """A convolution over a map of 16 channels and one of 48, upsampled by four."""
    text = """g (double[1,16,16,16] f, double[1,48,4,4] h) => (double[1,16,?,?] y) {
        u = Resize<mode="linear">(h, , s) c = Concat<axis=1>(f, u) y = Conv(c, w, b) }"""
    return graph(text, w=(16, 64, kernel, kernel), b=(16,), s=np.array([1, 1, 4, 4], np.float32))


def test_the_part_that_every_step_convolves_alike_is_convolved_once(graph: Graph, exact: Any) -> None:
    model = recurrence(graph)
    done = exact(split_and_share, model)
    assert done.count == 2
    once, both = 8 * 64 * 9 * 64, 8 * 64 * 9 * 65 * 2
    assert cost.multiply_adds(model) == both
    assert cost.multiply_adds(done.model) == both - once


def test_a_step_whose_state_is_the_last_convolution_itself_is_split_too(graph: Graph, exact: Any) -> None:
    text = """g (double[1,8,8,8] s, double[1,64,8,8] m) => (double[1,8,8,8] y) {
        c = Concat<axis=1>(s, m) t = Conv<pads=[1,1,1,1]>(c, w) d = Concat<axis=1>(t, m) y = Conv<pads=[1,1,1,1]>(d, w) }"""
    assert exact(split_and_share, graph(text, w=(8, 72, 3, 3))).count == 2


def test_parts_that_go_together_keep_their_order(graph: Graph, exact: Any) -> None:
    """Two parts stay and two are taken out, in the order of each concatenation."""
    text = """g (double[1,1,8,8] s, double[1,2,8,8] t, double[1,40,8,8] m, double[1,24,8,8] n)
        => (double[1,8,8,8] y, double[1,8,8,8] z) {
        c = Concat<axis=1>(m, s, n, t) y = Conv<pads=[1,1,1,1]>(c, w) a = Relu(s) b = Sigmoid(t)
        d = Concat<axis=1>(m, a, n, b) z = Conv<pads=[1,1,1,1]>(d, w) }"""
    done = exact(split_and_share, graph(text, w=(8, 67, 3, 3)))
    assert (done.count, done.ops().count("Conv")) == (2, 3)


def test_a_tensor_concatenated_with_itself_is_split_with_the_right_weights(graph: Graph, exact: Any) -> None:
    text = """g (double[1,64,8,8] m, double[1,1,8,8] s) => (double[1,8,8,8] y, double[1,8,8,8] z) {
        c = Concat<axis=1>(m, m) y = Conv<pads=[1,1,1,1]>(c, v) d = Concat<axis=1>(s, m) z = Conv<pads=[1,1,1,1]>(d, u) }"""
    v = np.random.default_rng(0).normal(size=(8, 128, 3, 3))
    u = np.concatenate([np.random.default_rng(1).normal(size=(8, 1, 3, 3)), v[:, 64:]], axis=1)
    assert exact(split_and_share, graph(text, v=v, u=u)).count == 2


def test_an_upsampled_part_of_a_pointwise_convolution_is_taken_out(graph: Graph, exact: Any) -> None:
    done = exact(split_concat, pyramid(graph))
    assert done.count == 1
    assert sorted(done.ops()) == ["Add", "Conv", "Conv", "Resize"]


def test_a_wide_part_that_many_convolutions_read_is_taken_out_of_all(graph: Graph, exact: Any) -> None:
    steps = " ".join(f"c{i} = Concat<axis=1>(s{i}, m) y{i} = Conv(c{i}, w{i})" for i in range(3))
    states = ", ".join(f"double[1,1,8,8] s{i}" for i in range(3))
    outputs = ", ".join(f"double[1,2,8,8] y{i}" for i in range(3))
    model = graph(
        f"g ({states}, double[1,32,8,8] m) => ({outputs}) {{ {steps} }}", **{f"w{i}": (2, 33, 1, 1) for i in range(3)}
    )
    assert exact(split_concat, model).count == 3


GROUPED = """g (double[1,2,8,8] s, double[1,32,8,8] m) => (double[1,8,8,8] y, double[1,8,8,8] z) {
    c = Concat<axis=1>(s, m) a = Conv<group=2>(c, w) y = Relu(a)
    d = Concat<axis=1>(m, s) b = Conv<group=2>(d, w) z = Relu(b) }"""
STACKED = """g (double[1,32,4,8] s, double[1,32,4,8] m) => (double[1,8,8,8] y, double[1,8,8,8] z) {
    c = Concat<axis=2>(s, m) y = Conv(c, w) d = Concat<axis=2>(m, s) z = Conv(d, w) }"""
GIVEN = """g (double[1,1,8,8] s, double[1,32,8,8] m, double[8,33,1,1] w) => (double[1,8,8,8] y) {
    c = Concat<axis=1>(s, m) y = Conv(c, w) }"""


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda graph: recurrence(graph, first="v", size=16), "with different weights"),
        (lambda graph: pyramid(graph, kernel=3), None),
        (lambda graph: recurrence(graph, size=1), "would cost"),
        (lambda graph: graph(GROUPED, w=(8, 17, 1, 1)), "2 groups"),
        (lambda graph: graph(STACKED, w=(8, 32, 1, 1)), "not along the channels"),
        (lambda graph: graph(GIVEN), "not constant"),
    ],
    ids=["other weights", "neighbours", "too small to pay", "groups", "other axis", "weights from outside"],
)
def test_nothing_is_split_that_no_other_rewrite_can_use(
    graph: Graph, apply: Any, build: Any, reason: str | None
) -> None:
    done = apply(split_concat, build(graph))
    assert done.count == 0
    assert reason is None or any(reason in refusal for refusal in done.refusals)
