"""`r2mrf parity`: compare artifacts with the checkpoint that they were made from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from r2mrf_deploy import runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import RuntimeUnavailable
from r2mrf_deploy.manifest import side_outputs
from r2mrf_deploy.parity.compare import Parity, compare, photographs_for, sample_inputs
from r2mrf_deploy.progress import Progress, ProgressCallback, silent


def compare_artifacts(
    checkpoint: Path,
    artifacts: Sequence[Path],
    folder: Path | None = None,
    *,
    per_step: bool = False,
    bisect: bool = False,
    record: bool = False,
    runtime: str | None = None,
    trust: bool = False,
    network: str | None = None,
    settings: Mapping[str, str] | None = None,
    progress: ProgressCallback = silent,
) -> list[Parity]:
    """Compare artifacts with a checkpoint run by PyTorch in FP32, on photographs.

    Args:
        folder: folder of photographs; by default three that scikit-image ships.
        bisect: where an artifact fails, find the fewest nodes whose precision explains it.
        record: keep the results in the artifacts' manifests.
        runtime: runs the artifacts; by default the one that comes nearest to each artifact's precision.

    Returns:
        One result per artifact; "not run" where no runtime can run it here.

    Raises:
        InputError, CheckpointError, ArtifactError, UsageError: an argument is wrong.
    """
    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.parity import bisect as bisection
    from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner

    opened = [Artifact.open(a) for a in artifacts]
    steps = [str(a.contract.config["steps"]) for a in opened if a.contract and "steps" in a.contract.config]
    defaults = {"steps": steps[0]} if steps else None
    loaded = Checkpoint.load(checkpoint, network=network, settings=settings, defaults=defaults)
    photographs = photographs_for(folder)
    results = []
    for artifact in opened:
        precision, contract, name = artifact.precision, artifact.contract, artifact.path.name
        chosen = runtime or _judge_of(artifact)
        try:
            runner = runtimes.open(artifact, chosen, trust=trust)
        except RuntimeUnavailable as e:
            asked = chosen or runtimes.default(artifact).name
            results.append(Parity(name, asked, "", precision, "not run", str(e), 0))
            continue
        with runner:
            names = [s.name for s in runner.outputs]
            reference = PyTorchRunner(
                loaded,
                io="image" if runner.inputs[0].dtype == "uint8" else "tensor",
                steps=contract.config.get("steps") if contract else None,
                all_steps=bool(side_outputs(names)),
            )
            limit = contract.limit(runner.inputs[0].name) if contract else []
            inputs = sample_inputs(runner, loaded.preprocess, photographs, limit)
            progress(Progress(f"comparing {name} on {runner.runtime}"))
            found = compare(reference, runner, inputs, artifact=name, precision=precision, per_step=per_step)
        if bisect and found.verdict == "fail":
            found.bisect = bisection.bisect(
                checkpoint, artifact.path, folder, network=network, settings=settings, progress=progress
            )
        if record:
            found.not_recorded = artifact.record(parity=[found.evidence()])
        results.append(found)
    return results


def _judge_of(artifact: Artifact) -> str | None:
    """The runtime to judge an artifact on: in reduced precision, the one that `convert` used; else None, the default."""
    reduced = artifact.precision != "fp32" and artifact.path.suffix == ".onnx"
    return runtimes.nearest(artifact.precision).name if reduced else None
