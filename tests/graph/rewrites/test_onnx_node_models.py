"""ONNX's node models, each as a graph of its own, through the pipeline.

Whatever an operator takes or gives, the result loads where the model does, has the same types and shapes, and computes the
same."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph.rewrites import optimize
from tests.graph.sessions import unoptimised

pytestmark = pytest.mark.artifact

EVERY = 30
"""A sample of one model in so many, in a fixed order."""

Values = list[Any]


def test_a_sample_is_what_it_was(node_cases: list[Any]) -> None:
    counts = sweep(node_cases[::EVERY])
    assert counts["rewritten"] > len(node_cases) // EVERY // 2
    assert counts["values compared"] > len(node_cases) // EVERY // 2


@pytest.mark.slow
def test_all_are_what_they_were(node_cases: list[Any]) -> None:
    counts = sweep(node_cases)
    print(dict(counts))
    assert counts["refused"] < 0.1 * len(node_cases)
    assert counts["rewritten"] > 0.7 * len(node_cases)
    assert counts["values compared"] > 0.8 * len(node_cases)


def sweep(cases: Sequence[Any]) -> Counter[str]:
    """Rewrite every case as it is and with copies around its node and constants for all inputs but the first; returns how
    many went which way."""
    counts: Counter[str] = Counter()
    for case in cases:
        for model, inputs in ((case.model, case.data_sets[0][0]), surrounded(case)):
            counts[check(model, inputs, case.name, counts)] += 1
    return counts


def check(model: onnx.ModelProto, inputs: Sequence[Any], name: str, counts: Counter[str]) -> str:
    before = model.SerializeToString(deterministic=True)
    try:
        result = optimize(model)
    except GraphError as e:
        assert "too old" in str(e) or "IR version 3" in str(e), (name, e)
        return "refused"
    assert model.SerializeToString(deterministic=True) == before, f"{name}: optimize changed its input"
    assert not any("left out" in warning for warning in result.warnings), (name, result.warnings)
    assert optimize(result.model).model.SerializeToString(deterministic=True) == result.model.SerializeToString(
        deterministic=True
    ), f"{name}: a second run is not the same"
    assert list(result.model.graph.input) == list(model.graph.input), name
    assert list(result.model.graph.output) == list(model.graph.output), name
    if result.records:
        values = (run(model, inputs), run(result.model, inputs))
        if values[0] is not None:
            assert values[1] is not None, f"{name}: the result does not run"
            if same(values[0], run(model, inputs) or []):  # not random
                assert same(*values), f"{name}: the values differ"
                counts["values compared"] += 1
        return "rewritten"
    assert result.model.SerializeToString(deterministic=True) == before, name
    return "left as it is, with a warning" if result.warnings else "nothing to rewrite"


def surrounded(case: Any) -> tuple[onnx.ModelProto, list[Any]]:
    """The case's model with copies of its first input and its outputs, where these are tensors, and constants for its other
    inputs."""
    model, inputs = onnx.ModelProto(), []
    model.CopyFrom(case.model)
    model.ir_version = max(8, model.ir_version)
    if not any(opset.domain == "" for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid("", 21))
    given = zip(case.model.graph.input, case.data_sets[0][0], strict=True)
    for i, (value, array) in enumerate(given):
        tensor = numpy_helper.from_array(array, value.name) if isinstance(array, np.ndarray) else None
        declared = value.type.tensor_type
        fits = tensor is not None and tensor.data_type == declared.elem_type and array.dtype.kind in "biuf"
        if i and fits and value.type.HasField("tensor_type"):
            model.graph.initializer.append(tensor)
            model.graph.input.remove(value)
        else:
            inputs.append(array)
    copies = []
    for value in model.graph.output:
        if value.type.HasField("tensor_type"):
            inner = f"{value.name}/inner"
            for node in model.graph.node:
                node.output[:] = [inner if name == value.name else name for name in node.output]
                node.input[:] = [inner if name == value.name else name for name in node.input]
            copies.append(helper.make_node("Identity", [inner], [value.name]))
    model.graph.node.extend(copies)
    return model, inputs


def run(model: onnx.ModelProto, inputs: Sequence[Any]) -> Values | None:
    """By ONNX Runtime without its optimisations; by ONNX's reference where that lacks the operator; None if both do."""
    feeds = dict(zip([value.name for value in model.graph.input], inputs, strict=True))
    try:
        return list(unoptimised(model, log_severity=4).run(None, feeds))
    except Exception:  # it does not implement every case, nor take every type from Python
        pass
    try:
        return list(ReferenceEvaluator(model).run(None, dict(feeds)))
    except Exception:
        return None


def same(before: Any, after: Any) -> bool:
    """Whether two results have the same types, shapes and values; floats as two libraries compute them."""
    if isinstance(before, (list, tuple)):
        return len(before) == len(after) and all(map(same, before, after))
    if not isinstance(before, np.ndarray):
        return type(before) is type(after)
    if before.dtype != after.dtype or before.shape != after.shape:
        return False
    if before.dtype.kind == "f":
        tolerance = 1e-3 if before.dtype == np.float16 else 1e-5
        return np.allclose(after, before, rtol=tolerance, atol=tolerance, equal_nan=True)
    return bool((before == after).all())
