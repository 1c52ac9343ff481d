"""Weights stored as FP16 in a graph that computes in FP32: half the file, at the same speed.

Runtimes fold the casts when they load the graph. Every weight is rounded once, to 11 bits, and nothing else is.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from r2mrf_deploy.graph.trace import checked

_WORTH_IT = 256
"""Number of values from which on a weight is stored as FP16: scales and biases are few, and lose as much."""


def store_half(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with its large FP32 initialisers as FP16, each followed by a Cast; one that FP16 cannot hold stays."""
    model = deepcopy(model)
    casts = []
    overridable = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        values = numpy_helper.to_array(tensor)
        largest = np.abs(values).max(initial=0) if tensor.data_type == TensorProto.FLOAT else np.inf
        if values.size < _WORTH_IT or tensor.name in overridable or not largest < np.finfo(np.float16).max:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), f"{name}/fp16"))
        casts.append(helper.make_node("Cast", [tensor.name], [name], f"{name}/cast", to=TensorProto.FLOAT))
    for number, cast in enumerate(casts):
        model.graph.node.insert(number, cast)
    return checked(model)
