"""ONNX files are refused with errors that a user can act on."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph import files


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(wrong: float) -> None:
    model = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 20]> g (float[2] x) => (float[2] y) { a = Add(x, good) y = Add(a, bad) }'
    )
    for name, values in (("good", [0.0, 1.0]), ("bad", [0.0, 1.0])):
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.array(values, np.float32), name))
    files.refuse_not_finite(model)
    model.graph.initializer[1].CopyFrom(onnx.numpy_helper.from_array(np.array([0, wrong], np.float32), "bad"))
    with pytest.raises(GraphError, match="bad has values that are not finite"):
        files.refuse_not_finite(model)
