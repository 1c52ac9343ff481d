"""How the rewrites' work grows with the number of recurrent steps: it is counted, not timed."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from r2mrf_deploy.graph.rewrites import optimize
from r2mrf_deploy.graph.rewrites.editor import Editor

WIDTH = 64


def unrolled(steps: int) -> onnx.ModelProto:
    """A recurrence as detectors have it: each step convolves the state together with features that all steps share, by
    weights that they share too, and merges a map of half the size by a pointwise convolution of its own."""
    rng = np.random.default_rng(0)
    weights = {
        "shared": rng.normal(size=(WIDTH, 2 * WIDTH, 3, 3)),
        **{f"merge{t}": rng.normal(size=(WIDTH, 2 * WIDTH, 1, 1)) for t in range(steps)},
    }
    nodes, state = [], "x"
    for t in range(steps):
        nodes += [
            helper.make_node("Concat", [state, "features"], [f"a{t}"], axis=1),
            helper.make_node("Conv", [f"a{t}", "shared"], [f"b{t}"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", [f"b{t}"], [f"c{t}"]),
            helper.make_node("MaxPool", [f"c{t}"], [f"d{t}"], kernel_shape=[2, 2], strides=[2, 2]),
            helper.make_node("Resize", [f"d{t}", "", "scales"], [f"e{t}"], mode="linear"),
            helper.make_node("Concat", [f"c{t}", f"e{t}"], [f"f{t}"], axis=1),
            helper.make_node("Conv", [f"f{t}", f"merge{t}"], [f"g{t}"]),
            helper.make_node("Relu", [f"g{t}"], [f"state{t}"]),
        ]
        state = f"state{t}"
    nodes[-1].output[0] = "y"
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()]
    tensors.append(numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "scales"))
    maps = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, WIDTH, 32, 32]) for n in ("x", "features", "y")]
    graph = helper.make_graph(nodes, "unrolled", maps[:2], maps[2:], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def test_the_rewrites_look_at_nodes_in_proportion_to_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, has = 0, Editor.has

    def counted(editor: Editor, node: object, *ops: str) -> bool:
        nonlocal looks
        looks += 1
        return has(editor, node, *ops)  # type: ignore[arg-type]

    monkeypatch.setattr(Editor, "has", counted)
    counts = []
    for steps in (6, 12, 24):
        looks = 0
        done = optimize(unrolled(steps))
        split = next(record for record in done.records if record.name == "split concat")
        assert split.count >= steps  # each step has something to rewrite, so the work is not trivial
        counts.append(looks)
    # in proportion, the slopes are equal; when the graph was read again after each split, they were 816 and 1078
    slopes = [(counts[1] - counts[0]) / 6, (counts[2] - counts[1]) / 12]
    assert slopes[1] < 1.05 * slopes[0], counts


def test_a_weight_is_hashed_once_however_many_runs_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[tuple[int, ...]] = []
    constant = Editor.digest

    def counted(editor: Editor, value: object, part: object = None) -> bytes | None:
        before = len(editor.weights.digests)
        found = constant(editor, value, part)  # type: ignore[arg-type]
        if len(editor.weights.digests) > before and part is None:
            read.append(editor.constant(value).shape)  # type: ignore[arg-type, union-attr]
        return found

    monkeypatch.setattr(Editor, "digest", counted)
    optimize(unrolled(3))
    assert read.count((WIDTH, 2 * WIDTH, 3, 3)) == 1
