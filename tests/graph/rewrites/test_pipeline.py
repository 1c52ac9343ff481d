"""The pipeline as a user meets it: its account, its refusals, its fixpoint."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.rewrites import optimize, pipeline
from r2mrf_deploy.graph.rewrites.editor import Editor, Outcome, Rewrite
from tests.graph.sessions import unoptimised

Graph = Callable[..., onnx.ModelProto]
STEPS = """g (double[1,1,8,8] s, double[1,64,8,8] m) => (double[1,8,8,8] y, double[1,8,8,8] z) {
    c = Concat<axis=1>(s, m) y = Conv<pads=[1,1,1,1]>(c, w) t = Slice(y, zero, one, one)
    d = Concat<axis=1>(t, m) z = Conv<pads=[1,1,1,1]>(d, v) }"""
WEIGHT = np.random.default_rng(0).normal(size=(8, 65, 3, 3))


def steps(graph: Graph) -> onnx.ModelProto:
    """Two steps with one weight under two names."""
    return graph(STEPS, w=WEIGHT, v=WEIGHT.copy(), zero=np.array([0]), one=np.array([1]))


def test_the_account_adds_up(graph: Graph, same_function: Any) -> None:
    model = steps(graph)
    result = optimize(model)
    assert [(r.name, r.count) for r in result.records] == [("split concat", 2), ("cse", 1)]
    first, last = result.records
    assert first.multiply_adds_before == first.multiply_adds_after == last.multiply_adds_before
    assert (first.multiply_adds_before, last.multiply_adds_after) == (
        cost.multiply_adds(model),
        cost.multiply_adds(result.model),
    )
    assert result.explanations == []
    same_function(lambda m: optimize(m).model, model)


def test_the_input_is_not_changed_and_the_result_is_a_fixpoint(graph: Graph) -> None:
    model = steps(graph)
    bytes_before = model.SerializeToString(deterministic=True)
    result = optimize(model)
    assert model.SerializeToString(deterministic=True) == bytes_before
    assert optimize(model).model == result.model
    again = optimize(result.model)
    assert again.records == []
    assert again.model == result.model


def test_a_model_without_anything_to_do_comes_back_as_it_was(graph: Graph) -> None:
    model = graph("g (double[1,3,8,8] x) => (double[1,4,8,8] y) { y = Conv(x, w) }", w=(4, 3, 1, 1))
    model.producer_name, model.doc_string = "somebody", "a note"
    result = optimize(model)
    assert result.model == model
    assert result.model is not model


def test_explanations_name_the_rewrite_the_place_and_the_reason(graph: Graph) -> None:
    body = "c = Concat<axis=1>(s, m) y = Conv<group=2>(c, w)"
    model = graph(f"g (double[1,1,8,8] s, double[1,33,8,8] m) => (double[1,8,8,8] y) {{ {body} }}", w=(8, 17, 1, 1))
    model.graph.node[0].name, model.graph.node[1].name = "joined", "refined"
    assert optimize(model).explanations == []
    (explanation,) = optimize(model, explain=True).explanations
    assert explanation == "split concat: refined over joined: the convolution has 2 groups"


def test_free_dimensions_are_weighed_at_a_nominal_size_and_stay_free(graph: Graph, same_function: Any) -> None:
    text = STEPS.replace("double[1,1,8,8] s", "double[n,1,h,w] s").replace("double[1,64,8,8] m", "double[n,64,h,w] m")
    text = text.replace("double[1,8,8,8]", "double[n,8,h,w]").replace("w)", "u)", 1)
    model = graph(text, u=WEIGHT, v=WEIGHT.copy(), zero=np.array([0]), one=np.array([1]))
    result = optimize(model)
    assert {r.name for r in result.records} == {"split concat", "cse"}
    assert result.records[0].multiply_adds_before == 2 * WEIGHT.size * 320 * 320
    same_function(lambda m: optimize(m).model, model, {"s": (2, 1, 5, 9), "m": (2, 64, 5, 9)})


def test_local_functions_are_written_out(graph: Graph) -> None:
    model = steps(graph)
    body = [helper.make_node("Relu", ["a"], ["b"]), helper.make_node("Identity", ["b"], ["c"])]
    function = helper.make_function("mine", "Twice", ["a"], ["c"], body, [helper.make_opsetid("", 20)])
    model.functions.append(function)
    model.opset_import.append(helper.make_opsetid("mine", 1))
    model.graph.node.append(helper.make_node("Twice", ["y"], ["r"], domain="mine"))
    model.graph.output.append(helper.make_tensor_value_info("r", TensorProto.DOUBLE, (1, 8, 8, 8)))
    result = optimize(model)
    onnx.checker.check_model(result.model, full_check=True)
    assert not result.model.functions
    assert [node.op_type for node in result.model.graph.node].count("Relu") == 1


def end_in_if(model: onnx.ModelProto, nodes: list[onnx.NodeProto]) -> None:
    """Add an output `o`: where the input `k` is true `r`, which `nodes` make, else `y`."""
    branch = helper.make_graph(nodes, "b", [], [_value("r")])
    other = helper.make_graph([helper.make_node("Identity", ["y"], ["q"])], "c", [], [_value("q")])
    model.graph.input.append(helper.make_tensor_value_info("k", TensorProto.BOOL, ()))
    model.graph.node.append(helper.make_node("If", ["k"], ["o"], then_branch=branch, else_branch=other))
    model.graph.output.append(_value("o"))


def test_what_a_subgraph_reads_is_kept(graph: Graph) -> None:
    model = steps(graph)
    for index in reversed(range(len(model.graph.output))):
        del model.graph.output[index]
    end_in_if(model, [helper.make_node("Relu", ["z"], ["r"])])
    result = optimize(model)
    assert result.records
    feeds = {
        name: np.random.default_rng(1).normal(size=shape) for name, shape in (("s", (1, 1, 8, 8)), ("m", (1, 64, 8, 8)))
    }
    for k in (True, False):
        before, after = (
            onnx.reference.ReferenceEvaluator(m).run(None, feeds | {"k": np.array(k)})[0] for m in (model, result.model)
        )
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-9 * np.abs(before).max())


def _value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.DOUBLE, (1, 8, 8, 8))


def branches(graph: Graph, tail: str) -> onnx.ModelProto:
    """Six convolutions of one tensor whose results are added up one after the other, and a last part."""
    lines = [f"a{i} = Conv(m, w{i}) r{i} = Relu(a{i}) t{i + 1} = Add(t{i}, r{i})" for i in range(6)]
    text = f"g (double[1,8,8,8] t0, double[1,64,8,8] m) => (double[1,8,8,8] y) {{ {' '.join(lines)} {tail} }}"
    return graph(text, **{f"w{i}": (8, 64, 1, 1) for i in range(6)}, one=np.array([1]))


def test_merging_is_given_up_where_it_would_raise_the_peak(graph: Graph) -> None:
    """All results at once need more memory than one after the other; it matters only where the peak is."""
    peaky = optimize(branches(graph, "y = Abs(t6)"), explain=True)
    assert peaky.records == []
    assert peaky.explanations[0] == "pipeline: the whole graph: merging would raise its peak memory"
    elsewhere = "c = Concat<axis=1>(m, m, m) p = ReduceSum<keepdims=1>(c, one) y = Add(t6, p)"
    assert [r.name for r in optimize(branches(graph, elsewhere)).records] == ["merge parallel"]


def test_old_opsets_are_refused(graph: Graph) -> None:
    model = steps(graph)
    model.opset_import[0].version = 12
    with pytest.raises(GraphError, match="opset 12 is too old"):
        optimize(model)


def test_a_format_without_constants_is_refused(graph: Graph) -> None:
    model = steps(graph)
    model.ir_version = 3
    with pytest.raises(GraphError, match="IR version 3"):
        optimize(model)


def test_weights_that_are_not_loaded_are_refused(graph: Graph) -> None:
    model = steps(graph)
    model.graph.initializer[0].data_location = TensorProto.EXTERNAL
    with pytest.raises(GraphError, match="load its external data"):
        optimize(model)


def test_a_damaged_model_is_refused(graph: Graph) -> None:
    model = steps(graph)
    model.graph.node[0].input[0] = "nobody"
    with pytest.raises(GraphError):
        optimize(model)


@pytest.mark.parametrize(
    ("body", "override"),
    [
        ('u = Resize<mode="linear">(x, , , z) y = Relu(u)', [1, 8, 8, 6]),
        ('u = Resize<mode="linear">(x, , , z) y = Conv<pads=[1,1,1,1]>(u, w)', [1, 8, 8, 6]),
        ("u = Reshape(x, z) s = Shape(u) y = Cast<to=11>(s)", [1, 4, 4, 8]),
        ('u = Resize<mode="linear">(x, , , z) s = Shape(u) y = Cast<to=11>(s)', [1, 8, 8, 6]),
        ("s = Shape(x) e = Add(s, z) y = Expand(one, e)", [1, 1, 1, 1]),
    ],
)
@pytest.mark.parametrize("inferred", [False, True])
def test_a_default_that_is_overridden_is_no_constant(
    graph: Graph, body: str, override: list[int], inferred: bool
) -> None:
    """Not in what is folded, and not in a shape that was inferred from it, here or before."""
    text = f"g (double[1,8,4,4] x, int64[4] z) => (double[?,?,?,?] y) {{ {body} }}"
    text = text.replace("[?,?,?,?]", "[?]") if "Cast" in body else text
    model = graph(text, z=np.array([1, 8, 4, 4]), w=(64, 8, 3, 3), one=np.ones((1, 1, 1, 1)))
    if inferred:
        known = onnx.shape_inference.infer_shapes(model, data_prop=True)
        model.graph.value_info.extend(known.graph.value_info)
    after = optimize(model).model
    x = np.random.default_rng(0).normal(size=(1, 8, 4, 4))
    for feeds in ({"x": x}, {"x": x, "z": np.array(override)}):
        before, now = (onnx.reference.ReferenceEvaluator(m).run(None, dict(feeds))[0] for m in (model, after))
        np.testing.assert_allclose(now, before, rtol=0, atol=1e-9)
    assert [t.name for t in after.graph.initializer if t.name == "z"] == ["z"]


def test_new_names_stay_clear_of_those_in_bodies(graph: Graph) -> None:
    model = steps(graph)
    model.graph.node[1].name = "refine"  # its parts become refine/rest and refine/part
    inner = [helper.make_node("Relu", ["z"], ["refine/rest/out"]), helper.make_node("Neg", ["refine/rest/out"], ["r"])]
    end_in_if(model, inner)
    result = optimize(model)
    assert result.records
    onnx.checker.check_model(result.model, full_check=True)


def shape_arithmetic(free: bool, size: str) -> onnx.ModelProto:
    """An enlargement between two convolutions, with its size computed node by node as PyTorch's older exporter writes it.

    Args:
        size: what takes the computed size: Resize, Slice or Reshape.
    """
    constants, nodes = {"zero": [0], "two": [2], "rows": 2, "columns": 3, "factor": 2}, []
    for axis in ("rows", "columns"):
        nodes += [
            helper.make_node("Shape", ["a"], [f"shape of {axis}"]),
            helper.make_node("Constant", [], [f"{axis} at"], value=numpy_helper.from_array(np.array(constants[axis]))),
            helper.make_node("Gather", [f"shape of {axis}", f"{axis} at"], [axis]),
            helper.make_node("Constant", [], [f"{axis} by"], value=numpy_helper.from_array(np.array(2))),
            helper.make_node("Mul" if size == "Resize" else "Div", [axis, f"{axis} by"], [f"{axis} scaled"]),
            helper.make_node("Unsqueeze", [f"{axis} scaled", "zero"], [f"{axis} alone"]),
        ]
    nodes.append(helper.make_node("Concat", ["rows alone", "columns alone"], ["space"], axis=0))
    if size == "Slice":
        nodes += [helper.make_node("Slice", ["a", "from", "space", "axes"], ["b"])]
    elif size == "Reshape":
        nodes.append(helper.make_node("Concat", ["zero", "minus", "space"], ["whole"], axis=0))
        nodes.append(helper.make_node("Reshape", ["a", "whole"], ["b"]))
    else:
        nodes.append(helper.make_node("Shape", ["a"], ["shape"]))
        nodes.append(helper.make_node("Slice", ["shape", "zero", "two", "zero"], ["front"]))
        nodes.append(helper.make_node("Concat", ["front", "space"], ["whole"], axis=0))
        nodes.append(helper.make_node("Resize", ["a", "", "", "whole"], ["b"], mode="linear"))
    first = helper.make_node("Conv", ["x", "w"], ["a"], pads=[1, 1, 1, 1])
    last = helper.make_node("Conv", ["b", "v"], ["y"], pads=[1, 1, 1, 1])
    rng = np.random.default_rng(0)
    channels = 64 if size != "Reshape" else 256
    weights = {
        "w": rng.normal(size=(64, 3, 3, 3)).astype(np.float32),
        "v": rng.normal(size=(4, channels, 3, 3)).astype(np.float32) / 24,
        "zero": np.array([0]), "two": np.array([2]), "minus": np.array([-1]),
        "from": np.array([0, 0]), "axes": np.array([2, 3]),
    }  # fmt: skip
    read = {name for node in (first, *nodes, last) for name in node.input}
    sides = {"Resize": 48, "Slice": 12, "Reshape": 12}
    graph = helper.make_graph(
        [first, *nodes, last],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ("n", 3, "h", "w") if free else (1, 3, 24, 24))],
        [
            helper.make_tensor_value_info(
                "y", TensorProto.FLOAT, ("n", 4, "p", "q") if free else (1, 4, sides[size], sides[size])
            )
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items() if name in read],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


@pytest.mark.parametrize("size", ["Resize", "Slice", "Reshape"])
@pytest.mark.parametrize("free", [False, True])
def test_sizes_that_are_computed_keep_their_rank_and_the_second_run_is_the_first(free: bool, size: str) -> None:
    """Folding makes no vector of a scalar, and what it folds is known to the other rewrites at once."""
    model = shape_arithmetic(free, size)
    result = optimize(model)
    assert not result.warnings
    onnx.checker.check_model(result.model, full_check=True)
    x = np.random.default_rng(1).normal(size=(1, 3, 24, 24)).astype(np.float32)
    before, after = (run(m, x) for m in (model, result.model))
    assert before.std() > 0.1, "a flat output would prove nothing"
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())
    again = optimize(result.model)
    assert again.records == []
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)
    if not free:
        assert "Gather" not in {node.op_type for node in result.model.graph.node}
        assert ("interpolate last" in {r.name for r in result.records}) == (size == "Resize")


def run(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    return unoptimised(model).run(None, {"x": x})[0]


def narrow(editor: Editor) -> Outcome:
    """Sums up what the first Relu reads, once."""
    node = next(node for node in editor.graph if node.op_type == "Relu")
    old = node.inputs[0]
    if editor.nodes("ReduceSum") or old is None:
        return Outcome()
    draft = editor.draft()
    total = draft.op("ReduceSum", [old], {"keepdims": 1}, name="sum")
    editor.graph.insert_before(node, draft.nodes)
    node.replace_input_with(0, total)
    return Outcome(1)


def crash(editor: Editor) -> Outcome:
    raise KeyError("a type of a library")


@pytest.mark.parametrize(
    ("faulty", "why"),
    [(narrow, "would contradict itself: .*dimension 0"), (crash, "it failed with KeyError: 'a type of a library'")],
)
def test_a_faulty_rewrite_is_named_and_left_out(
    graph: Graph, monkeypatch: pytest.MonkeyPatch, faulty: Rewrite, why: str
) -> None:
    """The others do their work."""
    monkeypatch.setattr(pipeline, "_ATTEMPTS", (("", pipeline.REWRITES | {"fold affine": faulty}),))
    model = graph("g (double[2,3] x) => (double[2,3] y) { q = Identity(x) y = Relu(q) }")
    result = optimize(model)
    (warning,) = result.warnings
    assert re.match(f"fold affine is left out, because .*{why}", warning)
    assert [r.name for r in result.records] == ["cleanup"]
    assert list(result.model.graph.output) == list(model.graph.output)
    onnx.checker.check_model(result.model, full_check=True)


def test_where_the_model_declares_a_wrong_shape_the_inferred_one_is_kept(
    graph: Graph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "_ATTEMPTS", (("", pipeline.REWRITES | {"fold affine": narrow}),))
    model = graph("g (double[2,3] x) => (double[2,3] y) { q = Identity(x) y = Relu(q) }")
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 9
    (warning,) = optimize(model).warnings
    assert "the output 'y' would be double [1, 1] instead of double [2, 3]" in warning
