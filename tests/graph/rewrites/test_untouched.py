"""What the rewrites were not made for comes back as it was; around it they do their work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.rewrites import optimize
from r2mrf_deploy.inspection import inspect
from tests.graph.sessions import unoptimised

NODE = helper.make_node
FLOATS = helper.make_tensor_type_proto(TensorProto.FLOAT, (2, 3))


def value(
    name: str, shape: Sequence[int | str | None] | None = (2, 3), dtype: int = TensorProto.FLOAT
) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, shape)


def model(
    nodes: list[onnx.NodeProto],
    outputs: list[onnx.ValueInfoProto],
    inputs: Sequence[onnx.ValueInfoProto] = (value("x"),),
    **constants: np.ndarray,
) -> onnx.ModelProto:
    """The nodes after a copy `q` of `x`, which a rewrite can remove."""
    given = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    copy = [NODE("Identity", ["x"], ["q"])] if any(i.name == "x" for i in inputs) else []
    graph = helper.make_graph(copy + nodes, "g", list(inputs), outputs, given)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8)


def optional(name: str) -> onnx.ValueInfoProto:
    return helper.make_value_info(name, helper.make_optional_type_proto(FLOATS))


def sequence(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_sequence_value_info(name, TensorProto.FLOAT, (2, 3))


def strings() -> onnx.ModelProto:
    text = NODE("Constant", [], ["c"], value_string="dé".encode())
    return model(
        [text, NODE("StringConcat", ["c", "c"], ["t"]), NODE("Relu", ["q"], ["y"])],
        [value("t", (), TensorProto.STRING), value("y")],
    )


def chained(inner: str) -> onnx.ModelProto:
    names = ["q", *(f"t{i}" for i in range(1500))]
    sums = [NODE("Add", [a, inner], [b]) for a, b in pairwise(names)]
    return model([*sums, NODE("Relu", [names[-1]], ["y"])], [value("y")], c=np.ones(3, np.float32))


REWRITTEN: dict[str, Callable[[], onnx.ModelProto]] = {
    "a sequence made": lambda: model(
        [NODE("Relu", ["q"], ["r"]), NODE("SequenceConstruct", ["r", "x"], ["s"])], [sequence("s")]
    ),
    "a sequence read": lambda: model(
        [
            NODE("Identity", ["s"], ["t"]),
            NODE("SequenceAt", ["t", "i"], ["r"]),
            NODE("Identity", ["r"], ["u"]),
            NODE("Relu", ["u"], ["y"]),
        ],
        [value("y")],
        [sequence("s")],
        i=np.array(0),
    ),
    "two optionals": lambda: model(
        [
            NODE("Optional", ["q"], ["a"]),
            NODE("Optional", ["q"], ["b"]),
            NODE("OptionalGetElement", ["a"], ["c"]),
            NODE("OptionalGetElement", ["b"], ["d"]),
            NODE("Add", ["c", "d"], ["y"]),
        ],
        [value("y")],
    ),
    "two optional outputs": lambda: model(
        [NODE("Optional", ["q"], ["a"]), NODE("Optional", ["q"], ["b"])], [optional("a"), optional("b")]
    ),
    "strings that are not ASCII": strings,
    "1,500 sums of a tensor": lambda: chained("x"),
    "1,500 sums of a constant": lambda: chained("c"),
}


@pytest.mark.parametrize(
    "what", [pytest.param(w, marks=pytest.mark.slow) if w == "1,500 sums of a tensor" else w for w in REWRITTEN]
)
def test_what_is_no_image_stays_what_it_is(what: str) -> None:
    source = REWRITTEN[what]()
    unoptimised(source)  # it loads
    result = optimize(source)
    assert result.records and not result.warnings
    unoptimised(result.model)  # it loads
    assert list(result.model.graph.output) == list(source.graph.output)
    assert optimize(result.model).model == result.model


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ([sequence("y")], "y: sequence"),
        ([optional("y")], "y: optional"),
        ([value("y", None)], "y: float of any shape"),
        ([value("y", ("n", None))], "y: float [n, ?]"),
        ([onnx.ValueInfoProto(name="y")], "y: of no type"),
    ],
)
def test_inspect_reads_what_runtimes_take(outputs: list[onnx.ValueInfoProto], words: str, tmp_path: Path) -> None:
    kind = words.split()[1]
    node = {"sequence": "SequenceConstruct", "optional": "Optional"}.get(kind, "Relu")
    made = model([NODE(node, ["q"], ["y"])], outputs)
    unoptimised(made)  # it loads
    onnx.save(made, tmp_path / "x.onnx")
    assert inspect(tmp_path / "x.onnx")["outputs"] == [words]


def sparse(name: str = "") -> onnx.SparseTensorProto:
    values = numpy_helper.from_array(np.ones(1, np.float32), name)
    return helper.make_sparse_tensor(values, numpy_helper.from_array(np.array([1]), "i"), [3])


def sparse_constant() -> onnx.ModelProto:
    return model([NODE("Constant", [], ["c"], sparse_value=sparse()), NODE("Add", ["q", "c"], ["y"])], [value("y")])


def sparse_initializer() -> onnx.ModelProto:
    made = model([NODE("Add", ["q", "w"], ["y"])], [value("y")])
    made.graph.sparse_initializer.append(sparse("w"))
    return made


def annotated() -> onnx.ModelProto:
    made = model([NODE("Relu", ["q"], ["y"])], [value("y")], scale=np.array(1, np.float32))
    annotation = made.graph.quantization_annotation.add(tensor_name="q")
    annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="scale")
    return made


def trained() -> onnx.ModelProto:
    made = model([NODE("Relu", ["q"], ["y"])], [value("y")])
    made.training_info.add().algorithm.name = "step"
    return made


def mapped() -> onnx.ModelProto:
    zipped = NODE("ZipMap", ["q"], ["z"], domain="ai.onnx.ml", classlabels_int64s=[1, 2, 3])
    made = model([zipped], [value("z")])
    made.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    kind = made.graph.output[0].type.sequence_type.elem_type.map_type
    kind.key_type, kind.value_type.tensor_type.elem_type = TensorProto.INT64, TensorProto.FLOAT
    return made


def bytes_that_are_no_text() -> onnx.ModelProto:
    nodes = [NODE("Constant", [], ["c"], value_strings=[b"\xe9", b"a"]), NODE("StringConcat", ["c", "c"], ["y"])]
    return model(nodes, [value("y", (2,), TensorProto.STRING)])


UNTOUCHED = {
    "sparse constant": (sparse_constant, "Sparse tensors are not supported"),
    "sparse initializer": (sparse_initializer, "sparse weights"),
    "quantization annotations": (annotated, "quantization annotations"),
    "training graph": (trained, "a training graph"),
    "map": (mapped, "Map types are not supported"),
    "bytes": (bytes_that_are_no_text, "can't decode byte 0xe9"),
}


@pytest.mark.parametrize("what", UNTOUCHED)
def test_what_would_be_lost_is_left_as_it_is_and_said(what: str) -> None:
    make, why = UNTOUCHED[what]
    source = make()
    result = optimize(source)
    assert result.model == source and result.records == []
    (warning,) = result.warnings
    assert warning.startswith("the model is left as it is, because ") and why in warning


def test_outputs_without_a_shape_or_a_type_stay_without() -> None:
    """onnx's checker refuses them, but runtimes load them."""
    shapeless, typeless = (model([NODE("Relu", ["q"], ["y"])], [value("y")]) for _ in range(2))
    shapeless.graph.output[0].type.tensor_type.ClearField("shape")
    typeless.graph.output[0].ClearField("type")
    for source in (shapeless, typeless):
        result = optimize(source)
        unoptimised(result.model)  # it loads
        assert [r.name for r in result.records] == ["cleanup"]
        assert list(result.model.graph.output) == list(source.graph.output)


@pytest.mark.parametrize("stale", [value("r", (7, 3)), value("r", (7,)), value("r", ("n", 3), TensorProto.INT64)])
def test_what_a_file_states_wrongly_of_inner_tensors_is_not_believed(stale: onnx.ValueInfoProto) -> None:
    nodes = [NODE("Relu", ["q"], ["r"]), NODE("Shape", ["r"], ["s"]), NODE("Reshape", ["x", "s"], ["y"])]
    source = model(nodes, [value("y", ("n", 3))], [value("x", ("n", 3))])
    source.graph.value_info.append(stale)
    result = optimize(source).model
    assert [node.op_type for node in result.graph.node] == ["Relu", "Shape", "Reshape"], "the 7 was folded"
    onnx.checker.check_model(result, full_check=True)


def test_what_only_the_file_knows_is_believed() -> None:
    """Of a custom operator's result nothing can be inferred."""
    nodes = [NODE("Mine", ["q"], ["r"], domain="mine"), NODE("Shape", ["r"], ["s"]), NODE("Reshape", ["x", "s"], ["y"])]
    source = model(nodes, [value("y", (3, 2))])
    source.opset_import.append(helper.make_opsetid("mine", 1))
    source.graph.value_info.append(value("r", (3, 2)))
    assert [node.op_type for node in optimize(source).model.graph.node] == ["Reshape"]


def test_free_dimensions_keep_their_names_and_stay_free() -> None:
    source = model([NODE("Relu", ["q"], ["r"]), NODE("Abs", ["r"], ["y"])], [value("y", ("rows", None))])
    source.graph.value_info.append(value("r", ("m", 3)))
    result = optimize(source).model
    assert list(result.graph.output) == list(source.graph.output)
    source = model(
        [NODE("Relu", ["q"], ["r"]), NODE("Abs", ["r"], ["y"])], [value("y", ("a", 3))], [value("x", (None, 3))]
    )
    source.graph.value_info.append(value("r", ("inner", 3)))
    named = {v.name: v.type.tensor_type.shape.dim[0].dim_param for v in optimize(source).model.graph.value_info}
    assert named["r"] == "inner"  # runtimes tell by the names which shapes are equal


def test_costs_are_computed_without_a_change_to_the_model() -> None:
    source = model(
        [NODE("Constant", [], ["c"], value=numpy_helper.from_array(np.ones(3, np.float32)))], [value("c", (3,))], []
    )
    before = source.SerializeToString(deterministic=True)
    assert cost.multiply_adds_per_image(source) == 0
    optimize(source)
    assert source.SerializeToString(deterministic=True) == before


def test_what_cannot_be_read_is_not_called_invalid() -> None:
    with pytest.raises(GraphError, match="onnx_ir cannot read this ONNX model: Sparse tensors"):
        cost.cost(sparse_constant())
