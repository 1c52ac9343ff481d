"""Lowering to opset 17: the same function, or an error that names what opset 17 does not have."""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx import parser

from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph import opset
from tests.graph.sessions import unoptimised


def model(nodes: str, inputs: str = "float[2, 6, 7, 5] x", constants: str = "") -> onnx.ModelProto:
    head = '<ir_version: 8, opset_import: ["" : 18]>'
    return parser.parse_model(f"{head} g ({inputs}) => (float[d0, d1, d2, d3] y) <{constants}> {{ {nodes} }}")


@pytest.mark.parametrize(
    ("nodes", "constants"),
    [
        (
            'y = Resize <antialias = 0, keep_aspect_ratio_policy = "stretch", mode = "linear"> (x, , , sizes)',
            "int64[4] sizes = {2, 6, 11, 9}",
        ),
        ("y = ReduceMean <noop_with_empty_axes = 0> (x, axes)", "int64[2] axes = {2, 3}"),
        ("y = ReduceMax (x, axes)", "int64[1] axes = {-1}"),
        ("y = ReduceMin (x, axes)", "int64[0] axes = {}"),
        ("y = ReduceL2 (x)", ""),
        ("a, b = Split <axis = 1, num_outputs = 2> (x) y = Sub (b, a)", ""),
        ("a, b = Split <axis = 1> (x, parts) y = Mul (b, b)", "int64[2] parts = {4, 2}"),
        ("y = Pad (x, pads, value)", "int64[8] pads = {0, 0, 1, 2, 0, 0, 3, 0}, float value = {0.5}"),
        ('z = ScatterND <reduction = "none"> (x, at, values) y = Identity (z)', "int64[1, 1] at = {1}"),
        (
            "z = ReduceMean (x, axes) n = Cast <to = 1> (axes) m = ReduceMax (n) y = Add (z, m)",
            "int64[2] axes = {2, 3}",
        ),
    ],
    ids=lambda text: text.partition(" = ")[2].partition(" ")[0] or None,
)
def test_it_computes_the_same(nodes: str, constants: str) -> None:
    inputs = "float[2, 6, 7, 5] x" + (", float[1, 6, 7, 5] values" if "values" in nodes else "")
    given = model(nodes, inputs, constants)
    before = given.SerializeToString()
    lowered = opset.lower(given)
    assert given.SerializeToString() == before
    assert lowered.opset_import[0].version == 17
    draw = np.random.default_rng(0).random
    shapes = {"x": (2, 6, 7, 5), "values": (1, 6, 7, 5)}
    feed = {value.name: draw(shapes[value.name], np.float32) for value in given.graph.input}
    (expected,), (found,) = (unoptimised(m).run(["y"], feed) for m in (given, lowered))
    assert np.array_equal(found, expected) and np.all(found.any(axis=(2, 3)))


@pytest.mark.parametrize(
    ("nodes", "constants", "why"),
    [
        ("y = Mish (x)", "", "it has Mish"),
        ('y = Resize <antialias = 1, mode = "linear"> (x, , , to)', "int64[4] to = {2, 6, 3, 3}", "the antialias 1"),
        ('y = Resize <axes = [2, 3], mode = "linear"> (x, , , to)', "int64[2] to = {3, 3}", "axes"),
        ("s = Size (x) one = Reshape (s, shape) y = ReduceMean (x, one)", "int64[1] shape = {1}", "axes of ReduceMean"),
        ("y = ReduceSumSquare <noop_with_empty_axes = 1> (x)", "", "the noop_with_empty_axes 1"),
        ("y, b, c = Split <axis = 1, num_outputs = 4> (x)", "", "the num_outputs 4"),
        ("y = Pad (x, pads, , axes)", "int64[2] pads = {1, 2}, int64[1] axes = {2}", "Pad"),
        ('y = ScatterND <reduction = "max"> (x, at, x)', "int64[2, 1] at = {1, 0}", "the reduction b'max'"),
    ],
    ids=["Mish", "antialias", "Resize-axes", "computed-axes", "noop", "Split", "Pad-axes", "ScatterND"],
)
def test_what_opset_17_lacks_is_named(nodes: str, constants: str, why: str) -> None:
    with pytest.raises(GraphError, match=rf"at opset 17: .*{re.escape(why)}.*; give `opset` 18"):
        opset.lower(model(nodes, constants=constants))
