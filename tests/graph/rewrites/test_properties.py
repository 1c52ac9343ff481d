"""Random graphs keep their function under the whole pipeline and under each rewrite forced upon them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis.errors import NoSuchExample
from onnx import TensorProto, helper, numpy_helper

from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.rewrites import optimize, pipeline

pytestmark = pytest.mark.artifact

SIZES = ((6, 5), (3, 3), (4, 7))
LARGE = (24, 20)
"""Large enough beside `SIZES` for a convolution to be cheaper before its input is enlarged to it."""
MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric")
PER_BYTE = (0, 8)
"""With 0 a byte costs nothing, so whatever saves arithmetic fires, however small the graph."""


@dataclass
class Builder:
    """A graph that grows one node at a time; every tensor is [2, C, H, W] in float64."""

    draw: Callable[[st.SearchStrategy[Any]], Any]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    pool: list[tuple[str, tuple[int, int, int]]] = field(default_factory=list)
    convs: list[tuple[list[str], dict[str, Any], tuple[int, ...]]] = field(default_factory=list)

    def constant(self, array: np.ndarray) -> str:
        name = f"w{len(self.weights)}"
        self.weights[name] = array
        return name

    def random(self, *shape: int, low: float = -1.0) -> np.ndarray:
        seed = self.draw(st.integers(0, 3))  # few seeds: equal weights under different names are common
        return np.random.default_rng(seed).uniform(low, 1.5, shape)

    def add(self, op: str, inputs: list[str], shape: tuple[int, int, int], **attributes: Any) -> str:
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, inputs, [name], name=f"n{len(self.nodes)}", **attributes))
        self.pool.append((name, shape))
        return name

    def pick(self, like: tuple[int, int, int] | None = None, space: tuple[int, int] | None = None) -> Any:
        fitting = [p for p in self.pool if (like is None or p[1] == like) and (space is None or p[1][1:] == space)]
        return self.draw(st.sampled_from(fitting))

    def conv(self) -> None:
        x, (c, h, w) = self.pick()
        known = [conv for conv in self.convs if conv[2][1] == c and conv[1].get("group", 1) == 1]
        if known and self.draw(st.booleans()):  # the same convolution again, of this or another tensor
            inputs, attributes, weight = self.draw(st.sampled_from(known))
            self._conv(x, (c, h, w), inputs, attributes, weight)
            return
        group = self.draw(st.sampled_from([g for g in (1, 1, 1, 2) if c % g == 0]))
        k = self.draw(st.sampled_from((1, 1, 2, 3)))
        out = group * self.draw(st.integers(1, 3))
        attributes = {"group": group} if group > 1 else {}
        padding = self.draw(st.sampled_from(("none", "same", "explicit", "lower")))
        if padding in ("same", "lower"):
            attributes["auto_pad"] = "SAME_UPPER" if padding == "same" else "SAME_LOWER"
        elif padding == "explicit":
            attributes["pads"] = self.draw(st.lists(st.integers(0, 2), min_size=4, max_size=4))
        if self.draw(st.integers(0, 3)) == 0:
            attributes["strides"] = [1, 2]
        if self.draw(st.integers(0, 3)) == 0 and "auto_pad" not in attributes:
            attributes["dilations"] = [2, 1]
        weight = (out, c // group, k, k)
        inputs = [self.constant(self.random(*weight) / np.sqrt(c * k))]
        if self.draw(st.booleans()):
            inputs.append(self.constant(self.random(out)))
        self.convs.append((inputs, attributes, weight))
        self._conv(x, (c, h, w), inputs, attributes, weight)

    def _conv(
        self,
        x: str,
        shape: tuple[int, int, int],
        inputs: list[str],
        attributes: dict[str, Any],
        weight: tuple[int, ...],
    ) -> None:
        space = []
        for i in (0, 1):
            stride, dilation = attributes.get("strides", [1, 1])[i], attributes.get("dilations", [1, 1])[i]
            pads = attributes.get("pads", [0] * 4)
            if "auto_pad" in attributes:
                space.append(-(-shape[i + 1] // stride))
            else:
                space.append((shape[i + 1] + pads[i] + pads[i + 2] - dilation * (weight[2] - 1) - 1) // stride + 1)
        if min(space) > 0:
            self.add("Conv", [x, *inputs], (weight[0], space[0], space[1]), **attributes)

    def concat(self) -> None:
        _, (_, h, w) = self.pick()
        parts = [self.pick(space=(h, w)) for _ in range(self.draw(st.integers(2, 3)))]
        self.add("Concat", [name for name, _ in parts], (sum(s[0] for _, s in parts), h, w), axis=1)

    def resize(self) -> None:
        x, (c, h, w) = self.pick()
        size = self.draw(st.sampled_from(SIZES))
        mode = self.draw(st.sampled_from(("linear", "linear", "nearest")))
        attributes = {"mode": mode, "coordinate_transformation_mode": self.draw(st.sampled_from(MODES))}
        if self.draw(st.booleans()):
            sizes = self.constant(np.array([2, c, *size], np.int64))
            self.add("Resize", [x, "", "", sizes], (c, *size), **attributes)
        elif max(h, w) <= 7:
            scales = self.constant(np.array([1, 1, 2, 2], np.float32))
            self.add("Resize", [x, "", scales], (c, 2 * h, 2 * w), **attributes)

    def arithmetic(self) -> None:
        x, shape = self.pick()
        op = self.draw(st.sampled_from(("Add", "Add", "Sub", "Mul", "Div")))
        dims = self.draw(st.sampled_from(((), (1,), (shape[0], 1, 1), (1, shape[0], 1, 1), (shape[2],))))
        operands = [x, self.constant(self.random(*dims, low=0.5))]
        self.add(op, operands[:: self.draw(st.sampled_from((1, -1))) if op != "Div" else 1], shape)

    def addition(self) -> None:
        x, shape = self.pick()
        self.add("Add", [x, self.pick(like=shape)[0]], shape)

    def batch_norm(self) -> None:
        x, shape = self.pick()
        constants = [self.constant(self.random(shape[0], low=low)) for low in (0.5, -1, -1, 0.5)]
        self.add("BatchNormalization", [x, *constants], shape)

    def unary(self) -> None:
        x, shape = self.pick()
        self.add(self.draw(st.sampled_from(("Relu", "Sigmoid", "Identity"))), [x], shape)

    def pool_average(self) -> None:
        x, (c, h, w) = self.pick()
        include, pad = self.draw(st.booleans()), self.draw(st.sampled_from((0, 1)))
        attributes: dict[str, Any] = {"kernel_shape": [2, 2], "strides": [2, 2], "count_include_pad": int(include)}
        space = tuple((n + 2 * pad - 2) // 2 + 1 for n in (h, w))
        if self.draw(st.booleans()):
            attributes["auto_pad"] = self.draw(st.sampled_from(("SAME_UPPER", "SAME_LOWER")))
            space = (-(-h // 2), -(-w // 2))
        else:
            attributes["pads"] = [pad] * 4
        if min(h, w) >= 2:
            self.add("AveragePool", [x], (c, space[0], space[1]), **attributes)

    def recurrence(self) -> None:
        """What the rewrites are for: a convolution with the same weights over changing states and constant maps."""
        constants = [self.pick()]
        _, (_, h, w) = constants[0]
        constants += [self.pick(space=(h, w))] if self.draw(st.booleans()) else []
        states = [self.pick(space=(h, w))]
        s = states[0][1][0]
        states += [self.pick(like=(s, h, w))] if self.draw(st.booleans()) else []
        order = self.draw(st.permutations(range(len(states) + len(constants))))
        channels = sum(shape[0] for _, shape in states + constants)
        weight = self.constant(self.random(s, channels, 3, 3) / (3 * np.sqrt(channels)))
        for _ in range(self.draw(st.integers(2, 3))):
            parts = [name for name, _ in states + constants]
            joined = self.add("Concat", [parts[i] for i in order], (channels, h, w), axis=1)
            state = self.add("Conv", [joined, weight], (s, h, w), pads=[1] * 4)
            if self.draw(st.booleans()):
                state = self.add("Relu", [state], (s, h, w))
            states = [*states[1:], (state, (s, h, w))]

    def pyramid(self) -> None:
        """And a pointwise convolution over maps of several resolutions."""
        parts = []
        for _ in range(2):
            x, (c, *_) = self.pick()
            sizes = self.constant(np.array([2, c, *SIZES[0]], np.int64))
            parts.append((self.add("Resize", [x, "", "", sizes], (c, *SIZES[0]), mode="linear"), c))
        channels = sum(c for _, c in parts)
        joined = self.add("Concat", [name for name, _ in parts], (channels, *SIZES[0]), axis=1)
        weight, bias = self.constant(self.random(2, channels, 1, 1)), self.constant(self.random(2))
        self.add("Conv", [joined, weight, bias], (2, *SIZES[0]))

    def enlarged(self) -> None:
        """And a convolution with a neighbourhood over a map that was enlarged, alone or beside others."""
        x, (c, *_) = self.pick()
        sizes = self.constant(np.array([2, c, *LARGE], np.int64))
        name = self.add("Resize", [x, "", "", sizes], (c, *LARGE), mode="linear")
        if self.draw(st.booleans()):
            other, (more, *_) = self.pick(space=LARGE)
            c += more
            name = self.add("Concat", [other, name], (c, *LARGE), axis=1)
        self.add("Conv", [name, self.constant(self.random(1, c, 3, 3) / 3)], (1, *LARGE), pads=[1] * 4)

    def normalised(self) -> None:
        """A convolution and what training frameworks put after it."""
        before = len(self.nodes)
        self.conv()
        for _ in range(self.draw(st.integers(1, 2)) if len(self.nodes) > before else 0):
            pool, self.pool = self.pool, self.pool[-1:]
            self.draw(st.sampled_from((self.batch_norm, self.arithmetic)))()
            self.pool = pool + self.pool[1:]

    def sums(self) -> None:
        """Sums with terms alike: of convolutions of one tensor, of resized tensors, of constants."""
        x, (c, h, w) = self.pick()
        kind = self.draw(st.sampled_from(("Conv", "Resize", "Add")))
        shape = {"Conv": (2, h, w), "Resize": (c, *SIZES[2]), "Add": (c, h, w)}[kind]
        total = ""
        for i in range(self.draw(st.integers(2, 3))):
            if kind == "Conv":
                term = self.add("Conv", [x, self.constant(self.random(2, c, 1, 1))], shape)
            elif kind == "Resize":
                y = self.add("Relu", [x], (c, h, w)) if i else x
                sizes = self.constant(np.array([2, c, *SIZES[2]], np.int64))
                term = self.add("Resize", [y, "", "", sizes], shape, mode="linear")
            else:
                term = self.constant(self.random(c, 1, 1)) if i else x
            total = self.add("Add", [total, term], shape) if i else term

    def parallel(self) -> None:
        """And several convolutions of one tensor."""
        x, (c, h, w) = self.pick()
        for _ in range(self.draw(st.integers(2, 3))):
            self.add("Conv", [x, self.constant(self.random(1, c, 1, 1))], (1, h, w))


@st.composite
def graphs(draw: Callable[[st.SearchStrategy[Any]], Any]) -> onnx.ModelProto:
    """A model over one or two inputs with random operators, sharing, outputs and opset."""
    b = Builder(draw)
    inputs = [("x", (4, *SIZES[0])), ("z", (2, *SIZES[1]))]
    b.pool += inputs
    steps = [b.conv, b.conv, b.concat, b.resize, b.arithmetic, b.addition, b.batch_norm, b.unary, b.pool_average]
    steps += [b.recurrence, b.pyramid, b.enlarged, b.parallel, b.normalised, b.sums]
    for _ in range(draw(st.integers(2, 8))):
        draw(st.sampled_from(steps))()
    made = b.pool[2:] or [(b.add("Relu", ["x"], inputs[0][1]), inputs[0][1])]
    used = {name for node in b.nodes for name in node.input}
    outputs = [p for p in made if p[0] not in used or draw(st.integers(0, 9)) == 0]
    model = helper.make_model(
        helper.make_graph(
            b.nodes,
            "g",
            [helper.make_tensor_value_info(name, TensorProto.DOUBLE, (2, *shape)) for name, shape in inputs],
            [helper.make_tensor_value_info(name, TensorProto.DOUBLE, (2, *shape)) for name, shape in outputs],
            [numpy_helper.from_array(array, name) for name, array in b.weights.items() if name in used],
        ),
        opset_imports=[helper.make_opsetid("", draw(st.integers(13, 20)))],
        ir_version=8,
    )
    onnx.checker.check_model(model, full_check=True)
    return model


COMMON = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@settings(COMMON, max_examples=150)
@given(model=graphs(), per_byte=st.sampled_from(PER_BYTE))
def test_the_pipeline_keeps_the_function_and_costs_no_more(
    same_function: Callable[..., None], model: onnx.ModelProto, per_byte: int
) -> None:
    untouched = model.SerializeToString(deterministic=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "MULTIPLY_ADDS_PER_BYTE", per_byte)
        result = optimize(model)
        same_function(lambda m: result.model if m is model else optimize(m).model, model, informative=False)
        again = optimize(result.model)
    assert model.SerializeToString(deterministic=True) == untouched
    assert again.records == [] and again.model == result.model
    before, after = cost.cost(model), cost.cost(result.model)
    assert after.multiply_adds <= before.multiply_adds
    assert after.peak_activation_bytes <= before.peak_activation_bytes
    if result.records:
        saved = sum(r.multiply_adds_before - r.multiply_adds_after for r in result.records)
        assert saved == before.multiply_adds - after.multiply_adds


@settings(COMMON, max_examples=150)
@given(model=graphs(), per_byte=st.sampled_from(PER_BYTE))
def test_the_rewrites_keep_the_function_where_memory_is_no_object(
    same_function: Callable[..., None], model: onnx.ModelProto, per_byte: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "MULTIPLY_ADDS_PER_BYTE", per_byte)
        same_function(_unbounded, model, informative=False)


def _unbounded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The pipeline without its check of the peak memory, which small graphs often fail."""
    return ir.to_proto(_run(model)[0])


def _run(model: onnx.ModelProto) -> tuple[ir.Model, set[str]]:
    editor = pipeline._editor(model)
    records, _ = pipeline._to_fixpoint(editor, pipeline.REWRITES)
    return editor.model, {record.name for record in records}


@pytest.mark.parametrize("name", pipeline.REWRITES)
def test_the_random_graphs_reach_every_rewrite(name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cost, "MULTIPLY_ADDS_PER_BYTE", 8 if name in ("merge parallel", "fold sums") else 0)
        try:
            find(
                graphs(),
                lambda model: name in _run(model)[1],
                settings=settings(COMMON, max_examples=200, phases=["generate"]),
            )
        except NoSuchExample:
            pytest.fail(f"no random graph makes {name!r} fire, so the properties say nothing about it")
