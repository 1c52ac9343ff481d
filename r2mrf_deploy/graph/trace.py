"""Trace a network into a static ONNX graph: recurrence unrolled, simplified, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import onnx

from r2mrf_deploy.errors import GraphError, UsageError, first_line
from r2mrf_deploy.graph import apart, naming
from r2mrf_deploy.graph import opset as opsets
from r2mrf_deploy.graph.tidy import foldable, tidy
from r2mrf_deploy.manifest import side_outputs
from r2mrf_deploy.progress import quiet

if TYPE_CHECKING:
    from r2mrf_deploy.networks.deployed import Deployed

MAX_BYTES = 2**31 - 1  # protobuf's limit
FREE = ("batch", "height", "width")
DEFAULT_OPSET = 17
"""Every TensorRT since 8.6 reads it; nothing in the networks needs a later one."""


def trace(
    deployed: Deployed, size: tuple[int, int], *, batch: int = 1, dynamic: bool = False, opset: int = DEFAULT_OPSET
) -> onnx.ModelProto:
    """Trace `deployed` with torch.export into a checked, simplified ONNX model.

    Args:
        deployed: the network with its preprocessing, in evaluation mode.
        size: (height, width) in pixels; with `dynamic`, only an example.
        batch: images at once.
        dynamic: leave batch, height and width free, named `batch`, `height`, `width`.
        opset: 17 to 23.

    Raises:
        UsageError: the opset or the size is out of range.
        GraphError: the graph cannot be written in this opset, is over 2 GB, or fails onnx's checks.
    """
    import onnxsim
    import torch

    if not opsets.LOWEST <= opset <= opsets.HIGHEST:
        raise UsageError(f"opset {opset} is out of range: {opsets.LOWEST} to {opsets.HIGHEST}")
    if min(size) < 32 or batch < 1:
        raise UsageError(f"{size[0]}x{size[1]}, batch {batch} is too small: give at least 32x32 and batch 1")
    # in a dynamic example every free dimension differs from the others and from 1, so that none is taken for a constant
    example = deployed.example(2, size[0], size[1] + 64) if dynamic else deployed.example(batch, *size)
    spatial = (1, 2) if deployed.io == "image" else (2, 3)
    shapes = ({0: "batch", spatial[0]: "height", spatial[1]: "width"},) if dynamic else None
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            deployed.eval(),
            (example,),
            dynamo=True,
            opset_version=max(opset, opsets.LOWEST_TRACED),
            input_names=[deployed.io],
            output_names=deployed.output_names,
            dynamic_shapes=shapes,
            custom_translation_table=translations(),
            external_data=False,
            verbose=False,
            optimize=False,
        )
        tidy(program.model)
        weights = apart.Weights()
        weights.take_back(program.model, without=foldable(program.model.graph))
        model = program.model_proto
        if (size_of_all := weights.nbytes + model.ByteSize()) > MAX_BYTES:
            raise GraphError(f"the graph is {size_of_all / 1e9:.1f} GB: a single ONNX file holds at most 2.1 GB")
        naming.name_nodes(model, deployed.network.scope)
        _drop_notes(model)
        light, _ = onnxsim.simplify(apart.inputs(model, large=apart.is_placeholder))
    if opset < opsets.LOWEST_TRACED:
        light = opsets.lower(light)
    if dynamic:
        _name_free_dimensions(light)
    model = apart.initializers(checked(light), model, large=apart.is_placeholder)
    weights.put(model)
    return model


def checked(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with every shape inferred, after onnx's full check.

    Raises:
        GraphError: the check or strict shape inference fails.
    """
    try:
        light = onnx.shape_inference.infer_shapes(
            apart.inputs(model), check_type=True, strict_mode=True, data_prop=True
        )
        onnx.checker.check_model(light, full_check=True)
        for tensor in filter(apart.is_large, model.graph.initializer):
            onnx.checker.check_tensor(tensor)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise GraphError(f"the graph is not valid ONNX: {first_line(e)}") from None
    return apart.initializers(light, model)


def translations() -> dict[Any, Callable[..., Any]]:
    """The translations to ONNX of the operators that `networks` defines, as torch.onnx.export takes them."""
    import torch
    from onnxscript import opset18 as op

    import r2mrf_deploy.networks.crop
    import r2mrf_deploy.networks.upsample  # noqa: F401  all define operators
    from r2mrf_deploy.networks import same

    def resize(x, height, width):  # type: ignore[no-untyped-def]
        size = op.Concat(op.Shape(x, start=0, end=2), op.Reshape(height, [1]), op.Reshape(width, [1]), axis=0)
        return op.Resize(x, None, None, size, mode="linear", coordinate_transformation_mode="half_pixel")

    def slice_(x, height, width):  # type: ignore[no-untyped-def]
        ends = op.Concat(op.Reshape(height, [1]), op.Reshape(width, [1]), axis=0)
        return op.Slice(x, [0, 0], ends, [2, 3])

    def conv(x, weight, bias, strides, groups):  # type: ignore[no-untyped-def]
        sides = x.shape[2:]
        if not all(isinstance(side, int) for side in sides):
            return op.Conv(x, weight, bias, auto_pad="SAME_UPPER", strides=strides, group=groups)
        begins, ends = zip(*map(same.pads, sides, weight.shape[2:], strides), strict=True)
        return op.Conv(x, weight, bias, pads=(*begins, *ends), strides=strides, group=groups)

    operators = torch.ops.r2mrf
    return {
        operators.upsample_bilinear.default: resize,
        operators.crop.default: slice_,
        operators.conv_same.default: conv,
    }


def _drop_notes(model: onnx.ModelProto) -> None:
    """Drop the exporter's metadata: it contains paths of the machine that traced the network."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:], model.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    model.graph.name = "r2mrf-deploy"


def _name_free_dimensions(model: onnx.ModelProto) -> None:
    for output in model.graph.output:
        dims = output.type.tensor_type.shape.dim
        dims[0].dim_param = "batch"
        if not side_outputs([output.name]):
            dims[2].dim_param, dims[3].dim_param = "height", "width"
