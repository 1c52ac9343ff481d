"""An operator is taken for the standard one only in the standard domain, in a known version and with known attributes."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from onnx import helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.inference import evaluate
from r2mrf_deploy.graph.rewrites import operators, optimize, pipeline
from r2mrf_deploy.graph.rewrites.cleanup import FOLDED, cleanup
from r2mrf_deploy.graph.rewrites.editor import Editor
from r2mrf_deploy.graph.rewrites.products import convolve_products
from tests.graph.rewrites.conftest import as_float32
from tests.graph.rewrites.test_properties import COMMON, PER_BYTE, graphs

pytestmark = pytest.mark.artifact

DOMAIN = "look.alike"
SIZES = np.array([2, 4, 10, 8], np.int64)
NORM = {"g": (4,), "h": (4,), "m": (4,), "v": np.linspace(0.5, 2, 4)}
X, Z = "double[2,4,5,4] x", "double[2,4,5,4] z"

PATTERNS: dict[str, tuple[str, dict[str, Any]]] = {
    "affine": (
        f"g ({X}) => (double[2,4,5,4] y) {{ a = Conv(x, w, b) n = BatchNormalization(a, g, h, m, v) s = Mul(n, c)"
        " d = Div(s, c) e = Sub(d, c) y = Add(e, c) }",
        {"w": (4, 4, 1, 1), "b": (4,), "c": np.linspace(0.5, 2, 4).reshape(4, 1, 1), **NORM},
    ),
    "transposed": (
        f"g ({X}) => (double[2,4,?,?] y) {{ a = ConvTranspose(x, w) y = BatchNormalization(a, g, h, m, v) }}",
        {"w": (4, 4, 2, 2), **NORM},
    ),
    "sums of convolutions": (
        f"g ({X}) => (double[2,4,5,4] y) {{ a = Conv(x, w) b = Conv(x, v) c = Add(a, b) y = Add(c, z) }}",
        {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1), "z": (4, 1, 1)},
    ),
    "sums of averages": (
        f"""g ({X}, {Z}) => (double[2,4,10,8] y) {{
            a = Resize<mode="linear">(x, , , s) b = Resize<mode="linear">(z, , , s) y = Add(a, b) }}""",
        {"s": SIZES},
    ),
    "pointwise": (
        f"g ({X}) => (double[2,4,3,2] y) {{ a = Conv(x, w) y = Conv(a, v) }}",
        {"w": (4, 4, 1, 1), "v": (4, 4, 3, 3)},
    ),
    "commute": (
        f"""g ({X}) => (double[2,1,10,8] y) {{
            u = Resize<mode="linear">(x, , , s) y = Conv(u, w) }}""",
        {"s": SIZES, "w": (1, 4, 1, 1)},
    ),
    "pool first": (
        f"""g ({X}) => (double[2,4,2,2] y, double[2,4,1,1] z) {{
            a = Conv(x, w) y = AveragePool<kernel_shape=[2,2], strides=[2,2]>(a) b = Conv(x, v)
            z = GlobalAveragePool(b) }}""",
        {"w": (4, 4, 1, 1), "v": (4, 4, 1, 1)},
    ),
    **{
        f"{op} of copies": (
            f'g ({X}) => (double[2,4,10,8] y) {{ u = Resize<mode="nearest">(x, , , s) y = {op}(u) }}',
            {"s": SIZES},
        )
        for op in ("Relu", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Elu", "Softplus", "Neg", "Abs")
    },
    "interpolate last": (
        f"""g ({X}, double[2,2,20,16] p) => (double[2,1,20,16] y) {{
            u = Resize<mode="linear">(x, , , s) c = Concat<axis=1>(p, u) y = Conv<pads=[1,1,1,1]>(c, w, b) }}""",
        {"s": np.array([2, 4, 20, 16], np.int64), "w": (1, 6, 3, 3), "b": (1,)},
    ),
    "split and share": (
        f"""g ({X}, {Z}) => (double[2,4,5,4] y) {{
            c = Concat<axis=1>(x, z) a = Conv<pads=[1,1,1,1]>(c, w) d = Concat<axis=1>(x, a)
            y = Conv<pads=[1,1,1,1]>(d, w) }}""",
        {"w": (4, 8, 3, 3)},
    ),
    "merge": (
        "g (double[2,16,5,4] x) => (double[2,1,5,4] y, double[2,1,5,4] z) { y = Conv(x, w) z = Conv(x, v) }",
        {"w": (1, 16, 1, 1), "v": (1, 16, 1, 1)},
    ),
    "equal": (
        f"g ({X}) => (double[2,4,5,4] y) {{ a = Relu(x) b = Relu(x) c = Tanh(b) y = Mul(a, c) }}",
        {},
    ),
    "bypassed": (
        f"""g ({X}) => (double[2,4,5,4] y) {{
            a = Identity(x) b = Dropout(a) c = Concat<axis=1>(b) d = Cast<to=11>(c) e = Resize(d, , , s) y = Relu(e) }}""",
        {"s": np.array([2, 4, 5, 4], np.int64)},
    ),
}
"""A graph for every rewrite, with every operator that it reads."""

FOLDS = sorted(FOLDED - {"ConstantOfShape", "Range", "CastLike"} | {"Constant"})


def look_alike(model: onnx.ModelProto, i: int) -> onnx.ModelProto:
    """The model with its i-th node in another domain, and every shape that it had before."""
    changed = onnx.shape_inference.infer_shapes(model, data_prop=True)
    changed.graph.node[i].domain = DOMAIN
    changed.opset_import.append(helper.make_opsetid(DOMAIN, 1))
    return changed


def values(model: onnx.ModelProto, new_ops: list[type[OpRun]]) -> list[np.ndarray]:
    """The outputs for random inputs; a look-alike computes the operator of its name and then another thing."""
    rng = np.random.default_rng(3)
    feeds = {
        value.name: rng.normal(size=[d.dim_value for d in value.type.tensor_type.shape.dim])
        for value in model.graph.input
    }
    later = onnx.ModelProto()
    later.CopyFrom(model)
    later.opset_import[0].version = max(15, model.opset_import[0].version)
    return list(ReferenceEvaluator(later, new_ops=new_ops).run(None, feeds))


def _run(self: OpRun, *arrays: Any, **_: Any) -> tuple[np.ndarray, ...]:
    node = onnx.NodeProto()
    node.CopyFrom(self.onnx_node)
    node.domain = ""
    names = (name for name in node.input if name)
    feeds = dict(zip(names, (array for array in arrays if array is not None), strict=True))
    return tuple(_twist(y) for y in evaluate(node, feeds, 20))


def _twist(y: np.ndarray) -> np.ndarray:
    """Something that no rewrite could move past, nor take for the operator itself."""
    if y.dtype.kind != "f":
        return y
    ramp = np.arange(y.size).reshape(y.shape)
    return y * (1 + 0.3 * np.sin(ramp)) + 0.1 * np.cos(ramp) + 0.05 * y**2


def twins(model: onnx.ModelProto) -> list[type[OpRun]]:
    ops = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    return [type(op, (OpRun,), {"op_domain": DOMAIN, "_run": _run}) for op in ops]


def unbounded(model: onnx.ModelProto) -> tuple[onnx.ModelProto, int]:
    """After the pipeline's rewrites, whatever the peak memory, and the number of those that did something."""
    editor = pipeline._editor(model)
    records, _ = pipeline._to_fixpoint(editor, pipeline.REWRITES)
    return ir.to_proto(editor.model), len(records)


def assert_same(before: list[np.ndarray], after: list[np.ndarray]) -> None:
    for a, b in zip(before, after, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-9 * np.abs(a).max())


@pytest.mark.parametrize("per_byte", PER_BYTE)
@pytest.mark.parametrize("name", PATTERNS)
def test_a_look_alike_keeps_its_function(graph: Any, name: str, per_byte: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "MULTIPLY_ADDS_PER_BYTE", per_byte)
    text, weights = PATTERNS[name]
    model = graph(text, **weights)
    for i, node in enumerate(model.graph.node):
        changed = look_alike(model, i)
        new_ops = twins(changed)
        expected = values(changed, new_ops)
        assert not all(np.allclose(a, b) for a, b in zip(values(model, []), expected, strict=True)), node.op_type
        assert_same(expected, values(unbounded(changed)[0], new_ops))


def test_the_patterns_have_every_operator_that_a_rewrite_reads_and_fire(
    graph: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the test above would say nothing."""
    asked: set[str] = set()
    has, held = Editor.has, set()
    monkeypatch.setattr(Editor, "has", lambda self, node, *ops: asked.update(ops) or has(self, node, *ops))
    for name, (text, weights) in PATTERNS.items():
        model, fired = graph(text, **weights), 0
        held |= {node.op_type for node in model.graph.node}
        for per_byte in PER_BYTE:
            monkeypatch.setattr(cost, "MULTIPLY_ADDS_PER_BYTE", per_byte)
            fired += unbounded(model)[1]
        assert fired, name
    assert asked - held - set(FOLDS) == set()  # folding has a test of its own below


def test_a_product_of_another_domain_does_not_become_a_convolution(graph: Any, apply: Any) -> None:
    model = as_float32(graph(f"g ({X}) => (double[2,4,5,3] y) {{ y = MatMul(x, w) }}", w=(4, 3)))
    assert apply(convolve_products, model).count == 1
    assert apply(convolve_products, look_alike(model, 0)).count == 0


@pytest.mark.parametrize("op", FOLDS)
def test_a_look_alike_of_constants_is_not_folded(op: str, apply: Any) -> None:
    node = helper.make_node(op, ["a", "b"][: 0 if op == "Constant" else 2], ["y"], "n", domain=DOMAIN)
    weights = [onnx.numpy_helper.from_array(np.ones(2, np.float32), name) for name in ("a", "b")]
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [2]) for name in ("x", "y"))
    last = helper.make_node("Add", ["x", "y"], ["z"])
    out = helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, [2])
    body = helper.make_graph([node, last], "g", [x], [out], [] if op == "Constant" else weights, value_info=[y])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(DOMAIN, 1)]
    done = apply(cleanup, helper.make_model(body, opset_imports=opsets, ir_version=8))
    assert [n.op_type for n in done.model.graph.node] == [op, "Add"]


@settings(COMMON, max_examples=30)
@given(model=graphs(), per_byte=st.sampled_from(PER_BYTE), data=st.data())
def test_look_alikes_in_random_graphs_keep_their_function(
    model: onnx.ModelProto, per_byte: int, data: st.DataObject
) -> None:
    changed = look_alike(model, data.draw(st.integers(0, len(model.graph.node) - 1)))
    for i in data.draw(st.sets(st.integers(0, len(model.graph.node) - 1), max_size=2)):
        changed.graph.node[i].domain = DOMAIN
    new_ops = twins(changed)
    expected = values(changed, new_ops)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "MULTIPLY_ADDS_PER_BYTE", per_byte)
        assert_same(expected, values(unbounded(changed)[0], new_ops))


CONV_AND_NORM = "g (double[2,4,5,4] x) => (double[2,4,5,4] y) { a = Conv(x, w) y = BatchNormalization(a, g, h, m, v) }"


@pytest.fixture
def conv_and_norm(graph: Any) -> onnx.ModelProto:
    return graph(CONV_AND_NORM, w=(4, 4, 1, 1), **NORM)


@pytest.mark.parametrize("i", [0, 1])
def test_an_attribute_that_the_standard_does_not_have_is_kept(conv_and_norm: onnx.ModelProto, i: int) -> None:
    """ONNX's checker lets it through."""
    conv_and_norm.graph.node[i].attribute.append(helper.make_attribute("__fused_activation", "Relu"))
    result = optimize(conv_and_norm)
    assert result.records == [] and result.model == conv_and_norm


def test_a_version_that_onnx_does_not_know_is_left_alone(conv_and_norm: onnx.ModelProto) -> None:
    conv_and_norm.opset_import[0].version = onnx.defs.onnx_opset_version() + 1
    assert optimize(conv_and_norm).records == []


def test_an_operator_that_changed_after_the_rewrites_were_written_is_left_alone(
    conv_and_norm: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [r.name for r in optimize(conv_and_norm).records] == ["fold affine"]
    monkeypatch.setattr(operators, "LATEST", 14)  # BatchNormalization changed with opset 15
    operators._attributes.cache_clear()
    try:
        assert optimize(conv_and_norm).records == []
    finally:
        operators._attributes.cache_clear()


def test_the_standard_domain_by_its_other_name(conv_and_norm: onnx.ModelProto) -> None:
    expected = values(conv_and_norm, [])
    conv_and_norm.opset_import[0].domain = "ai.onnx"
    result = optimize(conv_and_norm)
    assert [r.name for r in result.records] == ["fold affine"]
    result.model.opset_import[0].domain = ""  # ONNX's reference knows no other
    assert_same(expected, values(result.model, []))
