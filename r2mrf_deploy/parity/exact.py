"""References in FP64, for weights that pass rounding on.

How far an FP32 artifact may be from PyTorch in FP32 depends on the weights: where they pass rounding on, PyTorch is itself
far from what the network computes in exact arithmetic, which FP64 tells to nine digits more.
"""

from __future__ import annotations

import onnx
from onnx import TensorProto, numpy_helper

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import RuntimeUnavailable
from r2mrf_deploy.graph import files
from r2mrf_deploy.runtimes.base import Runner
from r2mrf_deploy.runtimes.pytorch.eager import ProgramRunner, PyTorch, doubles, widened


def of_graph(artifact: Artifact) -> Runner:
    """An FP32 ONNX artifact with a contract, run by PyTorch in FP64.

    Raises:
        GraphError: PyTorch lacks one of the graph's operators.
        RuntimeUnavailable: PyTorch is not installed.
    """
    if not (state := PyTorch().availability()).ok:
        raise RuntimeUnavailable(f"{state.reason}: {state.cure}")
    from r2mrf_deploy.graph.torch_module import to_module

    contract = artifact.contract
    assert contract is not None
    module = to_module(_in_double(files.read(artifact.path)))
    inputs, outputs = tuple(contract.inputs), doubles(contract.outputs)
    return ProgramRunner("pytorch", widened(module), inputs, outputs, "eager FP64", None)


def _in_double(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with FP64 weights and arithmetic, for `to_module` only: ONNX has no FP64 for every operator."""
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(float), tensor.name))
    for node in model.graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = TensorProto.DOUBLE
    return model
