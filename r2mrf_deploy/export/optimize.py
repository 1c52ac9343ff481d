"""`r2mrf optimize`: the exact rewrites on any ONNX file."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from r2mrf_deploy import environment, runtimes
from r2mrf_deploy.artifact import Artifact, publish
from r2mrf_deploy.errors import GraphError, UsageError
from r2mrf_deploy.export import onnx
from r2mrf_deploy.export.base import Exported
from r2mrf_deploy.export.check import Check
from r2mrf_deploy.graph import cost, files
from r2mrf_deploy.graph.rewrites import Optimized, optimize
from r2mrf_deploy.progress import Progress, ProgressCallback, silent


@dataclass(frozen=True)
class OptimizedArtifact(Exported):
    """A rewritten model that was written, and the account of it."""

    optimized: Optimized = field(kw_only=True)


def optimize_artifact(
    model: Path | str, output: Path | str, *, explain: bool = False, progress: ProgressCallback = silent
) -> OptimizedArtifact:
    """Rewrite an ONNX file without changing its function.

    Args:
        model: any ONNX file of opset 13 or later. Where a manifest lies beside it, the two must match.
        output: the file to write; it may be `model`.
        explain: say why rewrites left alone what they nearly changed.

    Raises:
        InputError: no such file.
        UsageError: the output is not an .onnx file.
        GraphError: the model is damaged, holds what the rewrites cannot read, or is over 2 GB.
        ArtifactError: the model does not match its manifest, or the output computes something else or cannot be written.
    """
    path = Path(output)
    if path.suffix != ".onnx":
        raise UsageError(f"{path}: a rewritten graph ends in .onnx")
    source = Artifact.open(model)
    progress(Progress("rewriting"))
    graph = files.read(source.path)
    optimized = optimize(graph, explain=explain)
    contract = source.contract or onnx.describe(graph)
    shapes = {name: profile["opt"] for name, profile in contract.profiles.items()}
    try:
        work = cost.multiply_adds_per_image(optimized.model, shapes or None)
    except GraphError:  # it depends on the input's size
        work = None
    contract = contract.model_copy(
        update={
            "rewrites": [*contract.rewrites, *optimized.records],
            "multiply_adds": work,
            "tools": contract.tools | environment.tool_versions("r2mrf-deploy", "onnx"),
        }
    )
    check = Check(partial(runtimes.nearest(source.precision).open, source), source.path.name, progress)
    made = publish(path, lambda file: onnx.write(optimized.model, contract, file), check)
    return OptimizedArtifact(made, check.parity, "", check.warnings, optimized=optimized)
