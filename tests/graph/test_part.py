"""Parts of graphs: what computes some tensors, and nothing else."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest

from r2mrf_deploy.graph.part import part

TEXT = """<ir_version: 8, opset_import: ["": 17]>
g (float[4] x, bool c) => (float[4] y, float[4] z) <float[4] two = {2, 2, 2, 2}, float[4] spare = {1, 1, 1, 1}> {
    a = Mul(x, two)
    b = If(c) <then_branch = t () => (float[4] p) { p = Add(a, two) }, else_branch = e () => (float[4] q) { q = Neg(x) }>
    y = Relu(b)
    z = Add(y, spare)
}"""


@pytest.fixture
def model() -> onnx.ModelProto:
    return onnx.parser.parse_model(TEXT)


def test_what_is_not_needed_is_left_out(model: onnx.ModelProto) -> None:
    graph = part(model, ["y"]).graph
    assert [n.op_type for n in graph.node] == ["Mul", "If", "Relu"]
    assert [i.name for i in graph.initializer] == ["two"] and [v.name for v in graph.input] == ["x", "c"]


def test_what_is_given_is_not_computed(model: onnx.ModelProto) -> None:
    graph = part(model, ["z"], ["b", "a"]).graph
    assert [n.op_type for n in graph.node] == ["Relu", "Add"] and [v.name for v in graph.input] == ["b"]


def test_graphs_inside_nodes_read_too(model: onnx.ModelProto) -> None:
    """The branches of the If read `a`, `x` and `two`, which its own inputs do not name."""
    done = part(model, ["b"])
    session = onnxruntime.InferenceSession(done.SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": np.arange(4, dtype=np.float32), "c": np.array(True)})
    assert found.tolist() == [2, 4, 6, 8]


def test_a_tensor_that_nothing_computes_is_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(KeyError):
        part(model, ["nothing"])
