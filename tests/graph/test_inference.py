"""The inference of types: what it remembers."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from r2mrf_deploy.graph import inference


def test_large_constants_are_not_remembered() -> None:
    """Their nodes would stay in memory after their graph."""
    inference._inferred.cache_clear()
    for number in range(3):
        tensors = {"a": np.full(10_000, number, np.float32), "b": np.full(2, number, np.float32)}
        nodes = [helper.make_node("Constant", [], [n], value=numpy_helper.from_array(t)) for n, t in tensors.items()]
        nodes.append(helper.make_node("Mul", ["a", "x"], ["y"]))
        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [10_000]) for n in "xy"]
        graph = helper.make_graph(nodes, "g", ends[:1], ends[1:])
        loaded, types = inference.infer(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        )
        assert [types[v].shape for n in loaded.graph for v in n.outputs] == [(10_000,), (2,), (10_000,)]
    assert inference._inferred.cache_info().currsize == 4  # the small constants, and one product
