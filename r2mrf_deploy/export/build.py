"""`r2mrf build`: an ONNX file becomes a file of another format, checked against it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from r2mrf_deploy import runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import UsageError, no_file
from r2mrf_deploy.export import exporter
from r2mrf_deploy.export.base import Exported, refuse_unsupported
from r2mrf_deploy.export.chain import export_graph
from r2mrf_deploy.export.check import Check
from r2mrf_deploy.export.options import FormatOptions
from r2mrf_deploy.progress import ProgressCallback, silent
from r2mrf_deploy.runtimes.base import Runner
from r2mrf_deploy.runtimes.tensorrt.options import BuildOptions


def build_artifact(
    model: Path | str,
    output: Path | str | None = None,
    *,
    gpus: Sequence[str] = (),
    options: BuildOptions | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    progress: ProgressCallback = silent,
) -> Exported:
    """Build a file of another format from an ONNX file.

    Args:
        model: the ONNX file. Where a manifest lies beside it, the two must match. The new file inherits its contract.
        output: `.plan` for TensorRT (by default beside the model), `.xml` for OpenVINO, `.pt2` for AOTInductor.
        gpus: GPU classes to build a plan for; see `export.tensorrt.TensorRTExporter`.
        options: trtexec's options, for a plan.
        device: what a `.pt2` is compiled for.
        progress: called from other threads too.

    Raises:
        InputError: no such model.
        UsageError: a name, suffix or shape means nothing, or an option is not for this format.
        ArtifactError: the model does not match its manifest, or the output computes something else or cannot be written.
        GraphError: the model is damaged.
        BuildError: the file cannot or must not be built: for that GPU, with that option, from that node.
        RuntimeUnavailable: the builder is not installed, or needs a device and there is none.
    """
    wanted, model = FormatOptions(tuple(gpus), device, options or BuildOptions()), Path(model)
    if not model.is_file():
        raise no_file(model)
    path = Path(output) if output else model.with_suffix(".plan")
    if model.suffix.lower() != ".onnx":
        raise UsageError(f"{model}: a file is built from an .onnx file; make one with `r2mrf export`")
    if path.suffix == ".onnx":
        raise UsageError(
            f"{path}: `output` is another format than ONNX; `r2mrf convert` and `r2mrf optimize` write .onnx"
        )
    writer, source = exporter(path), Artifact.open(model)
    refuse_unsupported([writer], source.precision, wanted)

    def reference() -> Runner:
        return runtimes.nearest(source.precision).open(source)

    return export_graph(source, path, writer, wanted, Check(reference, model.name, progress), progress)
