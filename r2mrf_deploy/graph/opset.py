"""Lower a graph from opset 18 to 17, the last that TensorRT 8.6 (and so a GTX 1080 Ti) reads.

PyTorch's exporter writes opset 18 and later. onnx's own version converter lowers a Resize only since onnx 1.23, and that of
onnx 1.18 loses the axes of a ReduceMean. Few operators differ between the two opsets, and of those the networks use what is
in both.
"""

from __future__ import annotations

from copy import deepcopy

import onnx
from onnx import helper, numpy_helper

from r2mrf_deploy.errors import GraphError, first_line

LOWEST, LOWEST_TRACED, HIGHEST = 17, 18, 23

_REDUCTIONS = {
    f"Reduce{which}" for which in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean", "Min", "Prod", "SumSquare")
}
"""Their axes are an attribute in opset 17, and an input in opset 18."""
# operator that opset 18 changed -> attributes that it added, with the value for which opset 17 does the same
_ADDED: dict[str, dict[str, int | bytes]] = {
    **{name: {"noop_with_empty_axes": 0} for name in _REDUCTIONS},
    "Pad": {},
    "Resize": {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"},
    "ScatterElements": {"reduction": b"none"},
    "ScatterND": {"reduction": b"none"},
    "Split": {},  # and the number of its outputs
}


def lower(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model at opset 17.

    Args:
        model: at opset 18, without nested graphs.

    Raises:
        GraphError: it uses something that opset 17 does not have.
    """
    lowered = deepcopy(model)
    (standard,) = (each for each in lowered.opset_import if not each.domain)
    standard.version = LOWEST
    constants = {tensor.name: tensor for tensor in lowered.graph.initializer}
    moved = set()
    for node in lowered.graph.node:
        if node.op_type in _ADDED:
            _drop_defaults(node)
        elif not node.domain and onnx.defs.get_schema(node.op_type, LOWEST_TRACED).since_version == LOWEST_TRACED:
            raise _refused(f"it has {node.op_type}")
        if node.op_type in _REDUCTIONS and len(node.input) > 1 and (name := node.input.pop()):
            if name not in constants:
                raise _refused(f"the axes of {node.op_type} are computed")
            axes = numpy_helper.to_array(constants[name]).tolist()
            node.attribute.append(helper.make_attribute("axes", axes, attr_type=onnx.AttributeProto.INTS))
            moved.add(name)
    for name in moved.difference(*(node.input for node in lowered.graph.node)):
        lowered.graph.initializer.remove(constants[name])
    try:
        onnx.checker.check_model(lowered)  # it finds what else opset 18 added: attributes and inputs
    except onnx.checker.ValidationError as e:
        raise _refused(first_line(e)) from None
    return lowered


def _drop_defaults(node: onnx.NodeProto) -> None:
    defaults = {"num_outputs": len(node.output)} if node.op_type == "Split" else _ADDED[node.op_type]
    for attribute in [a for a in node.attribute if a.name in defaults]:
        if (value := helper.get_attribute_value(attribute)) != defaults[attribute.name]:
            raise _refused(f"{node.op_type} has the {attribute.name} {value!r}")
        node.attribute.remove(attribute)


def _refused(why: str) -> GraphError:
    return GraphError(f"this network cannot be written at opset {LOWEST}: {why}; give `opset` {LOWEST_TRACED}")
