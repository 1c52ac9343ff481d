"""What the tests of the rewrites share: models from ONNX's text form, and what "the same function" means."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, numpy_helper, parser
from onnx.reference import ReferenceEvaluator

from r2mrf_deploy.graph.rewrites import pipeline
from r2mrf_deploy.graph.rewrites.editor import Rewrite
from tests.graph.sessions import unoptimised

Arrays = dict[str, np.ndarray]
RNG_SEED = 7

FLOAT64_TOLERANCE = 1e-9
"""Relative. Sums of a few thousand products, reordered, differ by about 1e-13; anything inexact differs by far more."""
FLOAT32_TOLERANCE = 1e-5
"""Relative to the output's largest value: the same sums in float32, about 1e-6."""


@pytest.fixture(scope="session")
def graph() -> Callable[..., onnx.ModelProto]:
    """`graph(text, opset=20, **weights)`: a float64 model. A weight is an array, or a shape to fill with random numbers."""

    def build(text: str, opset: int = 20, **weights: np.ndarray | tuple[int, ...]) -> onnx.ModelProto:
        rng = np.random.default_rng(RNG_SEED)
        model = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]> {text}')
        for name, weight in weights.items():
            array = rng.normal(size=weight) if isinstance(weight, tuple) else weight
            model.graph.initializer.append(numpy_helper.from_array(array, name))
        onnx.checker.check_model(model, full_check=True)
        return model

    return build


@pytest.fixture(scope="session")
def same_function() -> Callable[..., None]:
    """`same_function(rewrite, model, shapes={}, informative=True)`: assert that `rewrite` does not change what a float64
    model computes: in float64 by ONNX's reference, and as a float32 model in ONNX Runtime."""

    def check(
        rewrite: Callable[[onnx.ModelProto], onnx.ModelProto],
        model: onnx.ModelProto,
        shapes: Mapping[str, tuple[int, ...]] | None = None,
        informative: bool = True,
        reference: bool = True,
    ) -> None:
        feeds = _feeds(model, shapes or {})
        after = rewrite(model)
        onnx.checker.check_model(after, full_check=True)
        _assert_same_interface(model, after)
        if reference:
            _assert_close(_reference(model, feeds), _reference(after, feeds), FLOAT64_TOLERANCE, informative)
        single = as_float32(model)
        narrow = {
            name: array.astype(np.float32) if array.dtype == np.float64 else array for name, array in feeds.items()
        }
        _assert_close(_runtime(single, narrow), _runtime(rewrite(single), narrow), FLOAT32_TOLERANCE, informative)

    return check


@pytest.fixture(scope="session")
def node_cases() -> list[Any]:
    """ONNX's own tests of its operators: each has a name, a model, and sets of inputs and outputs. Not to be changed."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the cases overflow on purpose
        return [case for case in collect_testcases(None) if case.model is not None]


@dataclass(frozen=True)
class Applied:
    """What one pass of a rewrite made of a model."""

    count: int
    refusals: tuple[str, ...]
    model: onnx.ModelProto

    def ops(self) -> list[str]:
        return [node.op_type for node in self.model.graph.node]


@pytest.fixture(scope="session")
def apply() -> Callable[..., Applied]:
    """`apply(rewrite, model)`: one pass of one rewrite, whether or not the pipeline would have run it."""

    def run(rewrite: Rewrite, model: onnx.ModelProto) -> Applied:
        editor = pipeline._editor(model)
        outcome = rewrite(editor)
        return Applied(outcome.count, outcome.refusals, ir.to_proto(editor.model))

    return run


@pytest.fixture(scope="session")
def exact(apply: Callable[..., Applied], same_function: Callable[..., None]) -> Callable[..., Applied]:
    """`exact(rewrite, model, shapes={}, reference=True)`: as `apply`, and the function must stay what it is."""

    def run(rewrite: Rewrite, model: onnx.ModelProto, shapes: Any = None, reference: bool = True) -> Applied:
        same_function(lambda m: apply(rewrite, m).model, model, shapes, reference=reference)
        return apply(rewrite, model)

    return run


def as_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A float64 model with every tensor in float32."""
    single = onnx.ModelProto()
    single.CopyFrom(model)
    for tensor in single.graph.initializer:
        if tensor.data_type == TensorProto.DOUBLE:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))
    for value in [*single.graph.input, *single.graph.output, *single.graph.value_info]:
        if value.type.tensor_type.elem_type == TensorProto.DOUBLE:
            value.type.tensor_type.elem_type = TensorProto.FLOAT
    for node in single.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.i == TensorProto.DOUBLE:
                attribute.i = TensorProto.FLOAT
    return single


def _feeds(model: onnx.ModelProto, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    rng = np.random.default_rng(RNG_SEED + 1)
    initialised = {tensor.name for tensor in model.graph.initializer}
    return {
        value.name: rng.normal(size=shapes.get(value.name) or [d.dim_value for d in value.type.tensor_type.shape.dim])
        for value in model.graph.input
        if value.name not in initialised
    }


def _assert_same_interface(before: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """The same names and types, and the same shapes where they were declared."""
    for graph_part in ("input", "output"):
        for old, new in zip(getattr(before.graph, graph_part), getattr(after.graph, graph_part), strict=True):
            assert (new.name, new.type.tensor_type.elem_type) == (old.name, old.type.tensor_type.elem_type)
            for a, b in zip(old.type.tensor_type.shape.dim, new.type.tensor_type.shape.dim, strict=True):
                assert (b.dim_value, b.dim_param) == (a.dim_value, a.dim_param) or a.WhichOneof("value") is None


def _reference(model: onnx.ModelProto, feeds: Arrays) -> list[np.ndarray]:
    """By ONNX's reference, at opset 15 or later: before, it takes BatchNormalization to be in training. Nothing else that
    these models hold changed its meaning between 13 and 20."""
    later = onnx.ModelProto()
    later.CopyFrom(model)
    later.opset_import[0].version = max(15, model.opset_import[0].version)
    return list(ReferenceEvaluator(later).run(None, feeds))


def _runtime(model: onnx.ModelProto, feeds: Arrays) -> list[np.ndarray]:
    return list(unoptimised(model).run(None, feeds))


def _assert_close(before: list[np.ndarray], after: list[np.ndarray], tolerance: float, informative: bool) -> None:
    assert len(before) == len(after)
    for a, b in zip(before, after, strict=True):
        assert a.shape == b.shape
        assert np.isfinite(a).all()
        assert not informative or a.std() > 1e-3, "a flat output would prove nothing"
        np.testing.assert_allclose(b, a, rtol=0, atol=tolerance * max(np.abs(a).max(), 1e-6))
