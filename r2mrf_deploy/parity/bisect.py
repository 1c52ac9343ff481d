"""`r2mrf parity --bisect`: the fewest nodes whose precision explains why an artifact differs from PyTorch.

The FP32 graph is traced again from the checkpoint with the export options in the artifact's manifest. Then as few nodes of
the artifact as possible are restored to FP32 so that the maps agree within the precision's tolerance.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import onnx

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, UsageError
from r2mrf_deploy.graph import files, precision, quantize
from r2mrf_deploy.graph.rewrites import optimize
from r2mrf_deploy.graph.trace import checked, trace
from r2mrf_deploy.manifest import Manifest
from r2mrf_deploy.networks.deployed import Deployed
from r2mrf_deploy.parity import node_search
from r2mrf_deploy.parity.compare import TOLERANCES, photographs_for, sample_inputs
from r2mrf_deploy.parity.node_search import Drop, Search
from r2mrf_deploy.progress import Progress, ProgressCallback, silent

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from r2mrf_deploy.checkpoint_files import Loading


def bisect(
    checkpoint: Path,
    artifact: Path,
    folder: Path | None = None,
    *,
    progress: ProgressCallback = silent,
    **loading: Unpack[Loading],
) -> Search:
    """Find the fewest nodes whose reduced precision explains a difference; none if the artifact is within tolerance.

    Args:
        checkpoint: the one that the artifact was exported from.
        folder: a folder of photographs; by default three that scikit-image ships.
        loading: as for `Checkpoint.load`.

    Raises:
        UsageError: the artifact is not an ONNX file of reduced precision with a manifest.
        ArtifactError: it does not match its manifest, or was not made from this checkpoint.
        CheckFailed: the precision does not explain the difference, which remains in FP32.
    """
    manifest = Artifact.open(artifact).manifest if artifact.suffix == ".onnx" else None
    if manifest is None or manifest.precision not in ("fp16", "bf16", "int8"):
        raise UsageError(f"{artifact}: `bisect` needs an FP16, BF16 or INT8 .onnx file with its manifest")
    progress(Progress("tracing"))
    original = _original(checkpoint, manifest, loading)
    lowered = files.read(artifact)
    spec = manifest.inputs[0]
    inputs = sample_inputs(spec, manifest.preprocess, photographs_for(folder), manifest.profile(spec.name))
    feeds = [{spec.name: array} for array in inputs]
    evaluate = node_search.trials(original, manifest, feeds, partial(_with, original, lowered, manifest))
    tolerance = TOLERANCES[manifest.precision]
    nodes = _reduced(original, lowered, manifest)
    return node_search.keep_fewest(nodes, evaluate, Drop(tolerance.mean, tolerance.f), progress)


def _original(checkpoint: Path, manifest: Manifest, loading: Loading) -> onnx.ModelProto:
    """The FP32 graph that the artifact was made from."""
    from r2mrf_deploy.checkpoint import Checkpoint

    steps = manifest.config.get("steps")
    defaults = {"steps": str(steps)} if steps else None
    loaded = Checkpoint.load(checkpoint, defaults=defaults, **loading)
    if manifest.checkpoint_sha256 and loaded.sha256 != manifest.checkpoint_sha256:
        raise ArtifactError(
            f"{manifest.file} was not made from {checkpoint} (SHA-256 differs): give the original checkpoint"
        )
    asked = manifest.export
    if not asked:
        raise ArtifactError(f"{manifest.file} does not record its export options: export it again")
    deployed = Deployed(
        loaded.module(), loaded.preprocess, io=asked["io"], steps=asked["steps"], all_steps=asked["all_steps"]
    )
    height, width = asked["size"]
    traced = trace(deployed, (height, width), batch=asked["batch"], dynamic=asked["dynamic"], opset=asked["opset"])
    return checked(optimize(traced).model) if asked["optimize"] else traced


def _reduced(original: onnx.ModelProto, lowered: onnx.ModelProto, manifest: Manifest) -> list[str]:
    """The nodes that are in reduced precision in the artifact."""
    if manifest.precision != "int8":
        return [name for name in precision.computing(original) if name not in set(manifest.kept)]
    makers = {output: node.op_type for node in lowered.graph.node for output in node.output}
    able = set(quantize.quantizable(original))
    return [n.name for n in lowered.graph.node if n.name in able and makers.get(n.input[0]) == "DequantizeLinear"]


def _with(
    original: onnx.ModelProto, lowered: onnx.ModelProto, manifest: Manifest, kept: frozenset[str]
) -> onnx.ModelProto:
    """The artifact with some of its nodes restored to FP32."""
    if manifest.precision == "int8":
        return quantize.restore(lowered, original, kept)
    half: precision.Half = "fp16" if manifest.precision == "fp16" else "bf16"
    found = [*manifest.kept, *kept]
    return precision.to_half(original, half, [*found, *precision.carried(original, found)])
