"""FP16 and BF16 graphs: valid, typed as they say, FP32 where it matters, and near enough."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from r2mrf_deploy import images, sample_photographs
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.graph import naming
from r2mrf_deploy.graph.precision import Half, ends, nodes_of, precisions, to_half
from r2mrf_deploy.graph.quantize import overflowing

BITS = {"fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}


def photograph(height: int, width: int) -> np.ndarray:
    return images.resize(sample_photographs.sample("chelsea"), (height, width))[None].copy()


def run(model: onnx.ModelProto, **feed: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[
        0
    ]


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_every_convolution_is_in_the_type_and_the_ends_are_not(exported: Path, precision: Half) -> None:
    plain = onnx.load(exported)
    half = to_half(plain, precision)
    assert precisions(half) == [precision] and precisions(plain) == []
    types = {v.name: v.type.tensor_type.elem_type for v in half.graph.value_info}
    types |= {i.name: i.data_type for i in half.graph.initializer}
    for node in half.graph.node:
        if node.op_type == "Conv":
            assert {types[name] for name in node.input} == {BITS[precision]}, node.name
    assert [v.type.tensor_type.elem_type for v in half.graph.input] == [TensorProto.UINT8]
    assert {v.type.tensor_type.elem_type for v in half.graph.output} == {TensorProto.FLOAT}
    kept = ends(plain)
    assert kept[0].endswith("Cast") and kept[-1] == "output/Sigmoid" and "output/Resize" in kept
    by_name = {n.name: n for n in half.graph.node}
    for name in kept:
        assert types.get(by_name[name].output[0], TensorProto.FLOAT) == TensorProto.FLOAT, name
    # the converter's casts have the network's scopes too, and nothing is rounded and widened again between kept nodes
    casts = [n for n in half.graph.node if n.op_type == "Cast"]
    assert all(naming.scope(n.name) != "other" for n in half.graph.node)
    assert len(casts) == 3 + sum(1 for o in half.graph.output if o.name != "map")


def test_fp16_is_near_on_a_photograph(exported: Path) -> None:
    plain = onnx.load(exported)
    image = photograph(96, 128)
    wanted, found = run(plain, image=image), run(to_half(plain, "fp16"), image=image)
    assert wanted.std() > 0.05
    # weights and activations are rounded to 11 bits; untrained weights pass such errors on more than trained ones
    assert 1e-7 < np.abs(found - wanted).mean() < 2e-3


def test_weights_of_bf16_are_rounded_once(exported: Path) -> None:
    plain = onnx.load(exported)
    half = {i.name: i for i in to_half(plain, "bf16").graph.initializer}
    for tensor in plain.graph.initializer:
        if tensor.name in half and half[tensor.name].data_type == TensorProto.BFLOAT16:
            exact = numpy_helper.to_array(tensor)
            found = numpy_helper.to_array(half[tensor.name]).astype(np.float32)
            np.testing.assert_allclose(found, exact, rtol=2**-8)  # 8 bits; by way of FP16, small ones would be lost


def test_kept_nodes_read_and_write_fp32(exported: Path) -> None:
    plain = onnx.load(exported)
    (name, *_) = [n.name for n in plain.graph.node if naming.scope(n.name) == "step2.branch3" and n.op_type == "Conv"]
    half = to_half(plain, "fp16", [name])
    types = {v.name: v.type.tensor_type.elem_type for v in half.graph.value_info}
    types |= {i.name: i.data_type for i in half.graph.initializer}
    node = next(n for n in half.graph.node if n.name == name)
    assert {types[v] for v in (*node.input, *node.output)} == {TensorProto.FLOAT}
    weight = {i.name: i for i in plain.graph.initializer}[next(n for n in plain.graph.node if n.name == name).input[1]]
    kept = next(i for i in half.graph.initializer if i.name == node.input[1])
    np.testing.assert_array_equal(numpy_helper.to_array(kept), numpy_helper.to_array(weight))


def test_names_may_be_parts(exported: Path) -> None:
    plain = onnx.load(exported)
    part = nodes_of(plain, ["step2.branch3"])
    assert len(part) > 8 and {naming.scope(n) for n in part} == {"step2.branch3"}
    assert nodes_of(plain, ["fusion/Conv", "fusion"])[0] == "fusion/Conv"
    with pytest.raises(UsageError, match=r"no node 'fusion/Cov'.*did you mean"):
        nodes_of(plain, ["fusion/Cov"])
    with pytest.raises(UsageError, match="no node 'nowhere'"):
        to_half(plain, "fp16", ["nowhere"])


def test_reduced_graphs_are_not_reduced_again(exported: Path, tiny_onnx: Callable[..., Path]) -> None:
    half = to_half(onnx.load(exported), "fp16")
    with pytest.raises(UsageError, match="FP16 already"):
        to_half(half, "bf16")
    with pytest.raises(UsageError, match="BF16 already"):
        to_half(onnx.load(tiny_onnx(precision="bf16")), "fp16")


def scaled(factor: float, weight: float = 1.0) -> onnx.ModelProto:
    """Conv, then a factor, then back, then a second Conv."""
    kernel = np.full((1, 1, 1, 1), weight, np.float32)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"),
        helper.make_node("Mul", ["a", "up"], ["b"], name="large"),
        helper.make_node("Mul", ["b", "down"], ["c"], name="small"),
        helper.make_node("Conv", ["c", "w"], ["y"], name="second"),
    ]
    constants = {"w": kernel, "up": np.float32(factor), "down": np.float32(1 / factor)}
    ends_ = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 1, 4, 4]) for n in "xy"]
    initialisers = [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", ends_[:1], ends_[1:], initialisers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_what_would_overflow_is_found_and_kept() -> None:
    x = np.full((1, 1, 4, 4), 2.0, np.float32)
    assert overflowing(scaled(100), [{"x": x}], 0.5) == []
    model = scaled(1e5)
    found = overflowing(model, [{"x": x}], 0.5)
    assert found == ["large", "small"]
    plain = run(model, x=x)
    assert not np.allclose(run(to_half(model, "fp16"), x=x), plain, rtol=1e-2)
    np.testing.assert_allclose(run(to_half(model, "fp16", found), x=x), plain, rtol=1e-3)
    assert "first" in overflowing(scaled(1, weight=7e4), [{"x": x / 1e6}], 0.5)  # the weight


def _graph(nodes: list[onnx.NodeProto], inside: str, outside: str) -> onnx.ModelProto:
    """A model from x to y, each [1, 3, H, W] with the given sides, and a pointwise weight w."""
    text = f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[1,3,{inside}] x) => (float[1,3,{outside}] y) {{ y = Identity(x) }}"""
    model = onnx.parser.parse_model(text)
    model.graph.node[0].CopyFrom(nodes[0])
    model.graph.node.extend(nodes[1:])
    model.graph.initializer.append(numpy_helper.from_array(np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1), "w"))
    return model


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_two_kept_nodes_may_read_one_tensor(precision: Half) -> None:
    """As a network does whose streams each scale the image."""
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["s"], name="scale"),
        *(helper.make_node("MaxPool", ["s"], [f"p{i}"], name=f"pool{i}", kernel_shape=[1, 1]) for i in range(2)),
        *(helper.make_node("Conv", [i, "w"], [f"c{i}"], name=f"conv{i}") for i in ("s", "p0", "p1")),
        helper.make_node("Sum", ["cs", "cp0", "cp1"], ["y"], name="sum"),
    ]
    plain = _graph(nodes, "4,4", "4,4")
    plain.graph.initializer.append(numpy_helper.from_array(np.float32(2), "two"))
    assert {"scale", "pool0", "pool1"} <= set(ends(plain))
    half = to_half(plain, precision)
    assert len({n.name for n in half.graph.node}) == len(half.graph.node) and precisions(half) == [precision]
    x = np.arange(48, dtype=np.float32).reshape(1, 3, 4, 4)  # small whole numbers are exact
    (found,) = ReferenceEvaluator(half).run(None, {"x": x})
    np.testing.assert_allclose(found, 6 * x, rtol=2**-7)


def test_bf16_keeps_transposed_convolutions_which_tensorrt_does_not_build_in_it() -> None:
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="conv"),
        helper.make_node("ConvTranspose", ["a", "w"], ["b"], name="up", strides=[2, 2]),
        helper.make_node("Conv", ["b", "w"], ["y"], name="last"),
    ]
    plain = _graph(nodes, "4,4", "7,7")
    for precision, kept in (("fp16", False), ("bf16", True)):
        half = to_half(plain, precision)  # type: ignore[arg-type]
        weight = next(n.input[1] for n in half.graph.node if n.name == "up")
        kind = next(i.data_type for i in half.graph.initializer if i.name == weight)
        assert (kind == TensorProto.FLOAT) == kept


@pytest.mark.parametrize("op", ["HardSwish", "HardSigmoid"])
def test_bf16_spells_out_what_tensorrt_does_not_take(op: str) -> None:
    attributes = {"alpha": 0.25, "beta": 0.4} if op == "HardSigmoid" else {}
    weight = np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], name="c1"),
        helper.make_node(op, ["a"], ["b"], name="act", **attributes),
        helper.make_node("Conv", ["b", "w"], ["y"], name="c2"),
    ]
    ends_ = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, 3, 4, 4]) for n in "xy"]
    graph = helper.make_graph(nodes, "g", ends_[:1], ends_[1:], [numpy_helper.from_array(weight, "w")])
    plain = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    half = to_half(plain, "bf16")
    assert op not in {n.op_type for n in half.graph.node}
    x = np.random.default_rng(0).uniform(-4, 4, (1, 3, 4, 4)).astype(np.float32)
    (wanted,) = ReferenceEvaluator(plain).run(None, {"x": x})
    (found,) = ReferenceEvaluator(half).run(None, {"x": x})
    np.testing.assert_allclose(np.asarray(found, np.float32), wanted, atol=0.04)  # 8 bits of numbers up to 4
