"""ONNX files: the graph with its contract inside."""

from __future__ import annotations

import shutil
from pathlib import Path

import onnx

from r2mrf_deploy import formats
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.export.base import Exporter, Written
from r2mrf_deploy.export.options import FormatOptions
from r2mrf_deploy.graph import cost, files, interface
from r2mrf_deploy.graph.inference import Shapes
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.progress import ProgressCallback
from r2mrf_deploy.runtimes.base import Availability


class OnnxExporter(Exporter):
    suffix = ".onnx"
    title = "ONNX"

    def availability(self) -> Availability:
        return Availability(True, onnx.__version__)

    def write(self, source: Artifact, file: Path, options: FormatOptions, progress: ProgressCallback) -> Written:
        shutil.copyfile(source.path, file)
        return source.contract or describe(files.read(file)), ""


def write(model: onnx.ModelProto, contract: Contract, file: Path) -> Contract:
    """Write a graph with its contract inside.

    Raises:
        GraphError: the graph is not valid, or over 2 GB.
    """
    entries = {p.key: p.value for p in model.metadata_props} | {formats.KEY: contract.embedded()}
    onnx.helper.set_model_props(model, entries)
    file.write_bytes(files.serialized(model))
    return contract


def describe(model: onnx.ModelProto) -> Contract:
    """The contract of a graph that has none: what the graph says of itself."""
    return Contract(
        kind="onnx",
        inputs=[interface.spec(v) for v in interface.inputs(model)],
        outputs=[interface.spec(v) for v in model.graph.output],
        opset=opset(model),
        parameters=parameters(model),
        multiply_adds=multiply_adds(model),
    )


def parameters(model: onnx.ModelProto) -> int | None:
    """`cost.parameters`; None for a model that onnx_ir cannot read."""
    try:
        return cost.parameters(model)
    except GraphError:
        return None


def multiply_adds(model: onnx.ModelProto, shapes: Shapes | None = None) -> int | None:
    """`cost.multiply_adds_per_image`; None where it depends on a free size."""
    try:
        return cost.multiply_adds_per_image(model, shapes)
    except GraphError:
        return None


def opset(model: onnx.ModelProto) -> int | None:
    return next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), None)
