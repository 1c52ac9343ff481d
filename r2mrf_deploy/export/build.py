"""`r2mrf build`: an ONNX file becomes an artifact of another format, compared with it."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from r2mrf_deploy import runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import UsageError, no_file
from r2mrf_deploy.export import destination, exporter
from r2mrf_deploy.export.base import Exported, refuse_unsupported
from r2mrf_deploy.export.chain import export_graph, made_from
from r2mrf_deploy.export.check import Check
from r2mrf_deploy.export.convert import convert_artifact
from r2mrf_deploy.export.options import FormatOptions, PrecisionOptions
from r2mrf_deploy.files import refuse_unwritable
from r2mrf_deploy.parity import exact
from r2mrf_deploy.progress import ProgressCallback, silent
from r2mrf_deploy.runtimes.tensorrt.options import BuildOptions


def build_artifact(
    model: Path | str,
    output: Path | str | None = None,
    *,
    gpus: Sequence[str] = (),
    options: BuildOptions | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    precision: PrecisionOptions | None = None,
    allow_failed_parity: bool = False,
    progress: ProgressCallback = silent,
) -> Exported:
    """Build a file of another format from an ONNX file.

    Args:
        model: the ONNX file. A manifest beside it must match it. The new file inherits the contract.
        output: `.plan` for TensorRT (by default beside the model), `.xml` for OpenVINO, `.pt2` for AOTInductor, `.pte`
            for ExecuTorch, a folder for a web page.
        gpus: GPU classes to build a plan for; see `export.tensorrt.TensorRTExporter`.
        options: trtexec's build options, for a plan.
        device: what to compile a `.pt2` for.
        precision: first convert the graph, as `convert_artifact` does and with its checks, unless it is in this precision
            already; by default it stays as it is.
        allow_failed_parity: write the file also if it computes something else; its manifest says so.
        progress: may be called from other threads.

    Raises:
        InputError: no such model.
        UsageError: a name, suffix or shape is invalid, or the format does not support an option.
        ArtifactError: the model does not match its manifest, or the output cannot be written.
        CheckFailed: the output computes something else; or see `convert_artifact`.
        GraphError: the model is damaged.
        BuildError: the file cannot be built for this GPU, with this option or from one of the nodes.
        RuntimeUnavailable: the builder is not installed, or it needs a device and there is none.
    """
    wanted, model = FormatOptions(tuple(gpus), device, options or BuildOptions()), Path(model)
    if not model.is_file():
        raise no_file(model)
    path = destination(output) if output else model.with_suffix(".plan")
    if model.suffix.lower() != ".onnx":
        raise UsageError(f"{model} is not an .onnx file: make one with `r2mrf export`")
    if path.suffix == ".onnx":
        raise UsageError(f"{path}: `output` cannot be .onnx; `r2mrf convert` and `r2mrf optimize` write such files")
    writer, source = exporter(path), Artifact.open(model)
    precision = precision or PrecisionOptions(source.precision)  # type: ignore[arg-type]
    as_it_is = precision == PrecisionOptions(source.precision, gpus=precision.gpus)  # type: ignore[arg-type]
    refuse_unsupported([writer], precision.precision, wanted)
    refuse_unwritable(path)
    check = Check(
        partial(runtimes.nearest(source.precision).open, source), model.name, progress,
        exact=partial(exact.of_graph, source), allow_failed_parity=allow_failed_parity,
    )  # fmt: skip
    if as_it_is:
        return export_graph(source, path, writer, wanted, check)
    with tempfile.TemporaryDirectory() as scratch:
        graph = convert_artifact(
            source, Path(scratch) / model.name, precision, allow_failed_parity=allow_failed_parity, progress=progress
        )
        return made_from(graph, export_graph(graph.artifact, path, writer, wanted, check))
