"""`r2mrf optimize`: the exact rewrites on any ONNX model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from r2mrf_deploy import environment
from r2mrf_deploy.errors import UsageError, no_file
from r2mrf_deploy.files import sha256, write_atomically
from r2mrf_deploy.graph import cost, files
from r2mrf_deploy.graph.rewrites import Optimized, optimize
from r2mrf_deploy.manifest import Manifest


@dataclass(frozen=True)
class OptimizedFile:
    """A rewritten model that was written, and the account of it."""

    path: Path
    optimized: Optimized
    manifest: Manifest | None
    """Where the model had one."""


def optimize_file(model: Path | str, output: Path | str, *, explain: bool = False) -> OptimizedFile:
    """Rewrite an ONNX file without changing its function.

    Args:
        model: any ONNX file of opset 13 or later. Where a manifest lies beside it, the two must match, and the output gets
            one too.
        output: the file to write; it may be `model`.
        explain: say why rewrites left alone what they nearly changed.

    Raises:
        InputError: no such file.
        UsageError: the output is not an .onnx file.
        GraphError: the model is damaged, holds what the rewrites cannot read, or is over 2 GB.
        ArtifactError: the model does not match its manifest, or the output cannot be written.
    """
    model, output = Path(model), Path(output)
    if output.suffix != ".onnx":
        raise UsageError(f"{output}: a rewritten graph ends in .onnx")
    if not model.is_file():
        raise no_file(model)
    manifest = Manifest.beside(model)
    optimized = optimize(files.read(model), explain=explain)
    write_atomically(output, files.serialized(optimized.model))
    if manifest is None:
        Manifest.path_for(output).unlink(missing_ok=True)  # of a file that is no more
    else:
        shapes = {name: profile["opt"] for name, profile in manifest.profiles.items()}
        known = {
            "file": output.name,
            "sha256": sha256(output),
            "bytes": output.stat().st_size,
            "rewrites": [*manifest.rewrites, *optimized.records],
            "multiply_adds": cost.multiply_adds(optimized.model, shapes or None),
            "parity": [],  # of the model before
            "latency": [],
            "tools": manifest.tools | environment.tool_versions("r2mrf-deploy", "onnx"),
        }
        manifest = manifest.model_copy(update=known)
        manifest.save(output)
    return OptimizedFile(output, optimized, manifest)
