"""ONNX Runtime's own format, `.ort`: a flatbuffer that its reduced builds for phones and small devices read.

The graph in it is already optimised, for CPUs of the kind that wrote it and no further than the level "extended", as ONNX
Runtime recommends for files that are used elsewhere.
"""

from __future__ import annotations

from pathlib import Path

from r2mrf_deploy import environment
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import BuildError
from r2mrf_deploy.export.base import Exporter, Written, derived
from r2mrf_deploy.export.options import FormatOptions
from r2mrf_deploy.progress import Progress, ProgressCallback
from r2mrf_deploy.runtimes.base import Availability
from r2mrf_deploy.runtimes.onnxruntime import OnnxRuntimeCPU, installed


class OrtExporter(Exporter):
    suffix = ".ort"
    title = "ONNX Runtime"
    precisions = ("fp32", "fp16", "int8")

    def availability(self) -> Availability:
        return installed()

    def write(self, source: Artifact, file: Path, options: FormatOptions, progress: ProgressCallback) -> Written:
        import onnxruntime

        if source.contract is None:
            raise BuildError(f"{source.path.name} does not say what it computes: export it again")
        progress(Progress("optimising the graph for ONNX Runtime"))
        session = onnxruntime.SessionOptions()
        session.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        session.optimized_model_filepath = str(file)
        session.add_session_config_entry("session.save_model_format", "ORT")
        onnxruntime.InferenceSession(source.path, session, providers=["CPUExecutionProvider"])
        tools = environment.tool_versions("onnxruntime", "onnxruntime-gpu")
        return derived(source, source.contract, tools, kind="ort"), "written by ONNX Runtime"


class OrtRuntime(OnnxRuntimeCPU):
    """ONNX Runtime on the CPU, as for `.onnx` files."""

    name = "onnxruntime-ort"
    title = "ONNX Runtime (.ort)"
    suffixes = (".ort",)
