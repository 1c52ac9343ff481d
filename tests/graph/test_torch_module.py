"""A graph as a PyTorch module: what ONNX Runtime computes, free sizes stay free, what is not known is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from r2mrf_deploy import sample_photographs
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph.rewrites import optimize
from r2mrf_deploy.graph.torch_module import OPERATORS, to_module
from r2mrf_deploy.graph.trace import checked, trace
from r2mrf_deploy.images import resize
from r2mrf_deploy.networks.deployed import Deployed
from tests.conftest import SMALL

CAT = sample_photographs.sample("chelsea")
RNG = np.random.default_rng(0)
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
W, B = np.float32(RNG.standard_normal((4, 2, 3, 3))), np.float32(RNG.standard_normal(4))
SIDES = {"strides": [2, 2], "pads": [0, 1, 2, 1], "dilations": [1, 1], "kernel_shape": [3, 3], "auto_pad": "NOTSET"}
POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}
LINEAR = {"mode": "linear", "coordinate_transformation_mode": "half_pixel", "nearest_mode": "floor"}


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# operator, attributes, inputs after x [2, 4, 11, 14]: at least one case of each of the table's operators on tensors
CASES: list[tuple[str, dict[str, Any], list[np.ndarray | None]]] = [
    ("Abs", {}, []),
    ("Add", {}, [B[:, None, None]]),
    ("AveragePool", POOL, []),
    ("AveragePool", POOL | {"pads": [1, 0, 0, 1], "count_include_pad": 1}, []),
    ("BatchNormalization", {"epsilon": 1e-3, "momentum": 0.9}, [B, B - 1, B / 2, B**2]),
    ("Cast", {"to": TensorProto.FLOAT16}, []),
    ("Clip", {}, [np.float32(-0.5), np.float32(0.2)]),
    ("Clip", {}, [np.float32(-0.5)]),
    ("Concat", {"axis": 1}, [np.float32(RNG.standard_normal((2, 1, 11, 14)))]),
    ("Conv", SIDES | {"group": 2}, [W, B]),
    ("Conv", {"pads": [1, 1, 1, 1], "dilations": [2, 1], "group": 2}, [W]),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2], "group": 2}, [W]),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [1, 3], "group": 2}, [W, B]),
    ("ConvTranspose", {"strides": [2, 2], "pads": [1, 0, 1, 0], "output_padding": [1, 0]}, [W[:, :, :2]]),
    ("Div", {}, [np.float32(3)]),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, []),
    ("HardSigmoid", {}, []),
    ("HardSwish", {}, []),
    ("Identity", {}, []),
    ("MatMul", {}, [np.float32(RNG.standard_normal((14, 5)))]),
    ("MatMul", {}, [np.float32(RNG.standard_normal((2, 4, 14, 5)))]),
    ("MaxPool", SIDES, []),
    ("MaxPool", POOL | {"ceil_mode": 1, "storage_order": 0}, []),
    ("MaxPool", {"kernel_shape": [4, 4], "strides": [4, 4], "ceil_mode": 1}, []),
    ("Mul", {}, [B[:, None, None]]),
    ("PRelu", {}, [B[:, None, None]]),
    ("ReduceMean", {"axes": [2, 3], "keepdims": 1}, []),
    ("ReduceMean", {"axes": [1], "keepdims": 0}, []),
    ("Relu", {}, []),
    ("Reshape", {}, [ints(0, 2, -1, 14)]),
    ("Resize", LINEAR, [None, None, ints(2, 4, 23, 9)]),
    ("Sigmoid", {}, []),
    ("Slice", {}, [ints(1, 2), ints(2**63 - 1, -3), ints(2, -1)]),
    ("Slice", {}, [ints(1), ints(2)]),
    ("Split", {"axis": 1}, [ints(1, 3)]),
    ("Squeeze", {}, [ints(0)]),
    ("Sub", {}, [B[:, None, None]]),
    ("Transpose", {"perm": [0, 2, 3, 1]}, []),
    ("Unsqueeze", {}, [ints(0, 3)]),
]


def model(nodes: list[onnx.NodeProto], constants: dict[str, np.ndarray], outputs: list[str], **inputs: Any) -> Any:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return onnx.shape_inference.infer_shapes(made, strict_mode=True, data_prop=True)


def in_onnxruntime(graph: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {graph.graph.input[0].name: x})


def in_pytorch(module: torch.nn.Module, x: np.ndarray) -> list[np.ndarray]:
    with torch.no_grad():
        return [y.numpy() for y in module(torch.from_numpy(x))]


@pytest.mark.parametrize(("op", "attributes", "more"), CASES, ids=[f"{c[0]}-{i}" for i, c in enumerate(CASES)])
def test_an_operator_computes_what_onnxruntime_computes(
    op: str, attributes: dict[str, Any], more: list[np.ndarray | None]
) -> None:
    x = np.float32(RNG.standard_normal((1 if op == "Squeeze" else 2, 4, 11, 14)))
    constants = {f"c{i}": value for i, value in enumerate(more) if value is not None}
    names = ["x", *("" if value is None else f"c{i}" for i, value in enumerate(more))]
    outputs = ["y", "z"] if op == "Split" else ["y"]
    graph = model([helper.make_node(op, names, outputs, **attributes)], constants, outputs, x=(FLOAT, list(x.shape)))
    found, wanted = in_pytorch(to_module(graph), x), in_onnxruntime(graph, x)
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.dtype == theirs.dtype and mine.shape == theirs.shape and np.ptp(theirs) > 0
        np.testing.assert_allclose(mine, theirs, atol=1e-5)  # sums of 18 products in another order


def shapes() -> onnx.ModelProto:
    """x [N, C, H, W] resized to [N, C, ceil(H / 2) + 1, W], times the columns' positions in [0, 2], pooled rounding up."""
    steps = [
        ("Shape", ["x"], "batch_channels", {"start": 0, "end": 2}),
        ("Shape", ["x"], "height1", {"start": 2, "end": 3}),
        ("Squeeze", ["height1"], "height", {}),
        ("Add", ["height", "one"], "more", {}),
        ("Div", ["more", "two"], "half", {}),
        ("Add", ["half", "one"], "new", {}),
        ("Reshape", ["new", "list"], "new1", {}),
        ("Shape", ["x"], "width1", {"start": 3, "end": 4}),
        ("Concat", ["batch_channels", "new1", "width1"], "sizes", {"axis": 0}),
        ("Slice", ["sizes", "at2", "at4"], "space", {}),
        ("Concat", ["batch_channels", "space"], "again", {"axis": 0}),
        ("Resize", ["x", "", "", "again"], "resized", {"mode": "linear"}),
        ("Squeeze", ["width1"], "width", {}),
        ("Range", ["zero", "width", "one"], "columns", {}),
        ("Mul", ["columns", "twos"], "even", {}),
        ("Sub", ["even", "one"], "odd", {}),
        ("Clip", ["odd", "zero", "width"], "clipped", {}),
        ("Unsqueeze", ["clipped", "at0"], "row", {}),
        ("Cast", ["row"], "floats", {"to": FLOAT}),
        ("Cast", ["width"], "float_width", {"to": FLOAT}),
        ("Div", ["floats", "float_width"], "positions", {}),
        ("Mul", ["resized", "positions"], "scaled", {}),
        ("MaxPool", ["scaled"], "y", {"kernel_shape": [4, 4], "strides": [4, 4], "ceil_mode": 1}),
    ]
    constants = {"zero": np.int64(0), "one": np.int64(1), "two": np.int64(2), "twos": ints(2), "list": ints(-1)}
    constants |= {"at0": ints(0), "at2": ints(2), "at4": ints(4)}
    nodes = [helper.make_node(op, inputs, [output], **attributes) for op, inputs, output, attributes in steps]
    return model(nodes, {k: np.asarray(v) for k, v in constants.items()}, ["y"], x=(FLOAT, ["n", 3, "h", "w"]))


def test_every_operator_has_a_case() -> None:
    assert {op for op, _, _ in CASES} | {n.op_type for n in shapes().graph.node} == set(OPERATORS)


def test_the_arithmetic_of_shapes_stays_free_through_torch_export() -> None:
    graph = shapes()
    dims = {
        axis: torch.export.Dim(name, min=1 if axis == 0 else 8, max=64) for axis, name in ((0, "n"), (2, "h"), (3, "w"))
    }
    module = to_module(graph)
    program = torch.export.export(module, (torch.zeros(2, 3, 13, 21),), dynamic_shapes=((dims,),), strict=False)
    for shape in ((1, 3, 8, 9), (2, 3, 13, 21), (3, 3, 30, 64)):
        x = np.float32(RNG.standard_normal(shape) - 3)  # padding with zeros would show
        (wanted,) = in_onnxruntime(graph, x)
        for form in (module, program.module()):
            np.testing.assert_allclose(in_pytorch(form, x)[0], wanted, atol=1e-5)


@pytest.mark.parametrize("kernel", [3, 4, 5])
def test_padding_by_auto_pad_stays_free_through_torch_export(kernel: int) -> None:
    """Where the padding of a side begins depends on whether the side is even."""
    weight = np.float32(RNG.standard_normal((2, 2, kernel, kernel)))
    node = helper.make_node("Conv", ["x", "w"], ["y"], "same", auto_pad="SAME_UPPER", strides=[2, 2])
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 2, "h", "w"])],
        [helper.make_tensor_value_info("y", FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    dims = {axis: torch.export.Dim(name, min=8, max=64) for axis, name in ((2, "h"), (3, "w"))}
    example = torch.zeros(1, 2, 13, 21)
    module = torch.export.export(to_module(model), (example,), dynamic_shapes=((dims,),), strict=False).module()
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for height, width in ((8, 8), (9, 16), (12, 33), (31, 11)):
        x = np.float32(RNG.standard_normal((1, 2, height, width)))
        (wanted,) = session.run(None, {"x": x})
        np.testing.assert_allclose(module(torch.from_numpy(x))[0].numpy(), wanted, rtol=0, atol=1e-5)


def test_what_xnnpack_does_not_have_is_written_as_what_it_has() -> None:
    """Limits as tensors, splits and products by a repeated matrix would each cut a network in two (see `executorch`)."""
    nodes = [
        helper.make_node("Clip", ["x", "zero", "six"], ["clipped"]),
        helper.make_node("MatMul", ["clipped", "matrix"], ["product"]),
        helper.make_node("Split", ["product", "sizes"], ["y", "z"], axis=1),
    ]
    matrix = np.float32(RNG.standard_normal((5, 3)))
    constants = {"zero": np.float32(0), "six": np.float32(6), "matrix": matrix, "sizes": ints(1, 3)}
    graph = model(nodes, constants, ["y", "z"], x=(FLOAT, [2, 4, 6, 5]))
    program = torch.export.export(to_module(graph), (torch.zeros(2, 4, 6, 5),), strict=False).run_decompositions()
    targets = {str(n.target) for n in program.graph.nodes if n.op == "call_function"}
    assert {"aten.clamp.default", "aten.mm.default", "aten.slice.Tensor"} <= targets
    assert not targets & {
        "aten.clamp.Tensor",
        "aten.bmm.default",
        "aten.expand.default",
        "aten.split_with_sizes.default",
    }


def test_what_is_not_in_the_table_is_refused_by_name() -> None:
    for node, reason in (
        (
            helper.make_node("Einsum", ["x"], ["y"], "head/sum", equation="nchw->n"),
            "head/sum: the operator Einsum cannot",
        ),
        (helper.make_node("Relu", ["x"], ["y"], "odd", domain="custom"), "odd: the operator Relu cannot"),
        (helper.make_node("Conv", ["x", "x"], ["y"], "c", auto_pad="SAME_LOWER"), "Conv .* auto_pad = SAME_LOWER"),
        (helper.make_node("MaxPool", ["x"], ["y"], "m", kernel_shape=[2, 2], auto_pad="SAME_UPPER"), "= SAME_UPPER"),
        (helper.make_node("Resize", ["x", "", "x"], ["y"], "r", mode="linear"), "r: .*Resize .* missing"),
        (helper.make_node("Resize", ["x", "", "", "x"], ["y"], "r", mode="cubic"), "Resize .* mode = cubic"),
        (helper.make_node("Sigmoid", ["x"], ["y"], "s", new=1), "s: the operator Sigmoid .* unexpected keyword .*new"),
    ):
        graph = helper.make_graph([node], "g", [helper.make_tensor_value_info("x", FLOAT, [1, 1, 4, 4])], [])
        with pytest.raises(GraphError, match=reason):
            to_module(helper.make_model(graph))
    overlapping = helper.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)
    with pytest.raises(GraphError, match="rounds up and overlaps"):
        to_module(model([overlapping], {}, ["y"], x=(FLOAT, [1, 1, 8, 8])))(torch.zeros(1, 1, 8, 8))


def test_weights_are_buffers_of_their_own_precision() -> None:
    half = helper.make_tensor("w", TensorProto.BFLOAT16, [4], np.arange(4.0))
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [4])],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [4])],
        [half],
    )
    module = to_module(helper.make_model(graph))
    assert [b.dtype for b in module.buffers()] == [torch.bfloat16]
    assert module(torch.ones(4, dtype=torch.bfloat16))[0].tolist() == [0, 1, 2, 3]


def test_a_rewritten_network_computes_what_it_did(small: Path, exported: Path) -> None:
    image = resize(CAT, (96, 128))[None]
    checkpoint = Checkpoint.load(small)
    deployed = Deployed(checkpoint.module(), checkpoint.preprocess, all_steps=True).eval()
    graph = onnx.load(exported)
    found = in_pytorch(to_module(graph), image)
    for wanted in (in_pytorch(deployed, image), in_onnxruntime(graph, image)):
        close(found, wanted)


def close(found: list[np.ndarray], wanted: list[np.ndarray]) -> None:
    for mine, theirs in zip(found, wanted, strict=True):
        assert theirs.std() > 0.02, "a flat map proves nothing"
        np.testing.assert_allclose(mine, theirs, atol=1e-4 * theirs.std())  # sums in another order


NARROW = {"br2net": {"width": "16"}, "btb": {"width": "0.25"}, "defusionnet": {"width": "8"}, "r2mrf": SMALL}
PRESETS = (
    *("r2mrf", "r2mrf-r50", "r2mrf-vgg16", "r2mrf-densenet161", "r2mrf-edge", "r2mrf-lite"),
    *("br2net", "br2net-vgg16", "defusionnet", "btbnet", "btbnet-1s", "btbcrl"),
)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["static", "dynamic", "tensor"])
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_computes_what_pytorch_and_onnxruntime_compute(preset: str, form: str) -> None:
    checkpoint = Checkpoint.init(preset, next(v for k, v in NARROW.items() if preset.startswith(k)))
    io: Any = "tensor" if form == "tensor" else "image"
    deployed = Deployed(checkpoint.module(), checkpoint.preprocess, io=io, all_steps=True).eval()
    dynamic = form == "dynamic"
    traced = trace(deployed, (96, 128), dynamic=dynamic)
    image = resize(CAT, (101, 143) if dynamic else (96, 128))[None]
    x = np.float32(image.transpose(0, 3, 1, 2) / 128 - 1) if io == "tensor" else image
    wanted = in_pytorch(deployed, x)
    for graph in (traced, checked(optimize(traced).model)):
        found = in_pytorch(to_module(graph), x)
        close(found, wanted)
        close(found, in_onnxruntime(graph, x))
