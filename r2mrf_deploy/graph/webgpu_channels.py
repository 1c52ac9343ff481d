"""Fills up the channels of convolutions that ONNX Runtime Web computes wrongly on WebGPU, with zeros: nothing else changes.

Its shader reads three channels at a time where their number is a multiple of three and not of four, and then leaves some
out (github.com/microsoft/onnxruntime/issues/29651). Found by trying 1 to 64 channels with version 1.30.0: wrong is every
convolution of one group that has such a number of channels above three, gives a multiple of four, and is not pointwise.
R2MRF's refinement is one, with 8 or 32 channels of features and one of the map.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import onnx
from onnx import helper, numpy_helper

from r2mrf_deploy.graph.trace import checked


def fill_channels(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the inputs and weights of such convolutions filled up to a multiple of four channels; the same graph if
    there is none. The weights' part is folded when a runtime loads the graph."""
    shapes = _shapes(model)
    wrong = {index for index, node in enumerate(model.graph.node) if _is_wrong(node, shapes)}
    if not wrong:
        return model
    model = deepcopy(model)
    nodes, made = [], set[str]()
    for index, node in enumerate(model.graph.node):
        if index in wrong:
            missing = -shapes[node.input[1]][1] % 4
            for place in (0, 1):
                name = node.input[place]
                node.input[place] = filled = f"{name}/filled"
                if filled not in made:  # a weight or a feature map may be read by several
                    nodes.append(helper.make_node("Pad", [name, _amount(model, missing)], [filled], filled))
                    made.add(filled)
        nodes.append(node)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return checked(model)


def _is_wrong(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> bool:
    if node.op_type != "Conv" or len(weights := shapes.get(node.input[1], [])) != 4:
        return False
    attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    out, channels, *kernel = weights
    pointwise = kernel == [1, 1] and list(attributes.get("strides", [1, 1])) == [1, 1]
    one_group = attributes.get("group", 1) == 1
    return one_group and not pointwise and channels > 3 and channels % 3 == 0 and channels % 4 != 0 and out % 4 == 0


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """The shapes of constants, and of what is computed from them alone."""
    inferred = onnx.shape_inference.infer_shapes(model)
    found = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in inferred.graph.value_info}
    return found | {t.name: list(t.dims) for t in model.graph.initializer}


def _amount(model: onnx.ModelProto, channels: int) -> str:
    """The constant that says to Pad how many channels to add at the end."""
    name = f"filled with {channels}"
    if all(tensor.name != name for tensor in model.graph.initializer):
        amounts = np.array([0, 0, 0, 0, 0, channels, 0, 0], np.int64)
        model.graph.initializer.append(numpy_helper.from_array(amounts, name))
    return name
