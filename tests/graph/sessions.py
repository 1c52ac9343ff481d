"""ONNX Runtime on a graph as it is written."""

from __future__ import annotations

import onnx
import onnxruntime


def unoptimised(model: onnx.ModelProto, log_severity: int = 3) -> onnxruntime.InferenceSession:
    """A session on one thread, without the runtime's own fusions, which would hide what the graph says."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = log_severity
    options.intra_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
