"""`r2mrf optimize`: the exact rewrites on any ONNX file."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from r2mrf_deploy import environment, runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.export import onnx
from r2mrf_deploy.export.base import Exported
from r2mrf_deploy.export.check import Check
from r2mrf_deploy.graph import files
from r2mrf_deploy.graph.rewrites import Optimized, optimize
from r2mrf_deploy.parity import exact
from r2mrf_deploy.progress import Progress, ProgressCallback, silent


@dataclass(frozen=True)
class OptimizedArtifact(Exported):
    """A rewritten model, and what was rewritten in it."""

    optimized: Optimized = field(kw_only=True)


def optimize_artifact(
    model: Path | str,
    output: Path | str,
    *,
    explain: bool = False,
    allow_failed_parity: bool = False,
    progress: ProgressCallback = silent,
) -> OptimizedArtifact:
    """Rewrite an ONNX file without changing its function.

    Args:
        model: any ONNX file of opset 13 or later. A manifest beside it must match it.
        output: the file to write; it may be `model`.
        explain: also report why rewrites that nearly applied did not.
        allow_failed_parity: write it also if it computes something else; its manifest says so.

    Raises:
        InputError: no such file.
        UsageError: the output is not an .onnx file.
        GraphError: the model is damaged, holds something that the rewrites cannot read, or is over 2 GB.
        ArtifactError: the model does not match its manifest, or the output cannot be written.
        CheckFailed: the output computes something else.
    """
    path = Path(output)
    if path.suffix != ".onnx":
        raise UsageError(f"{path}: the name of a rewritten graph must end in .onnx")
    source = Artifact.open(model)
    progress(Progress("rewriting"))
    graph = files.read(source.path)
    optimized = optimize(graph, explain=explain)
    contract = source.contract or onnx.describe(graph)
    contract = contract.model_copy(
        update={
            "rewrites": [*contract.rewrites, *optimized.records],
            "multiply_adds": onnx.multiply_adds(optimized.model, {n: p["opt"] for n, p in contract.profiles.items()}),
            "tools": contract.tools | environment.tool_versions("r2mrf-deploy", "onnx"),
        }
    )
    check = Check(
        partial(runtimes.nearest(source.precision).open, source), source.path.name, progress,
        exact=partial(exact.of_graph, source), allow_failed_parity=allow_failed_parity,
    )  # fmt: skip
    done = check.publish(path, lambda file: onnx.write(optimized.model, contract, file))
    done = replace(done, warnings=(*optimized.warnings, *done.warnings))
    return OptimizedArtifact(**vars(done), optimized=optimized)
