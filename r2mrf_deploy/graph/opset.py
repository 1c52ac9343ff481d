"""Lower a graph to opset 17, the last that TensorRT 8.6 (and so a GTX 1080 Ti) reads.

PyTorch's exporter writes opset 18 and later. onnx's version converter does the lowering, but it fails on attributes that
opset 17 does not have, even if they only state a default. Those are removed before and after.
"""

from __future__ import annotations

from copy import deepcopy

import onnx
from onnx import version_converter

from r2mrf_deploy.errors import GraphError, first_line

LOWEST, LOWEST_TRACED, HIGHEST = 17, 18, 23

# operator -> attributes that opset 18 added, with the value for which opset 17 does the same
_NEW_IN_18: dict[str, dict[str, int | bytes]] = {
    **{op: {"noop_with_empty_axes": 0} for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin")},
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
}


def lower(model: onnx.ModelProto, opset: int) -> onnx.ModelProto:
    """The model at a lower opset.

    Raises:
        GraphError: it uses something that the lower opset does not have.
    """
    lowered = deepcopy(model)
    _drop_defaults(lowered)
    try:
        lowered = version_converter.convert_version(lowered, opset)
        _drop_defaults(lowered)
        onnx.checker.check_model(lowered)
    except Exception as e:  # the converter's exceptions and the checker's share no base class
        raise GraphError(f"this network cannot be written at opset {opset}: {first_line(e)}") from None
    return lowered


def _drop_defaults(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        defaults = _NEW_IN_18.get(node.op_type, {})
        kept = [a for a in node.attribute if defaults.get(a.name) != onnx.helper.get_attribute_value(a)]
        del node.attribute[:]
        node.attribute.extend(kept)
