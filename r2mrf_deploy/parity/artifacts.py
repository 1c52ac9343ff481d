"""`r2mrf parity`: compare artifacts with the checkpoint they were made from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from r2mrf_deploy import runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError
from r2mrf_deploy.manifest import side_outputs
from r2mrf_deploy.parity.compare import (
    Parity,
    compare,
    compressed_tolerance,
    judge,
    not_run,
    photographs_for,
    sample_inputs,
)
from r2mrf_deploy.parity.whole_path import whole_path
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.progress import Progress, ProgressCallback, item_by_item, silent
from r2mrf_deploy.runtimes import Runner
from r2mrf_deploy.runtimes.served import Connection, connect

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.checkpoint_files import Loading


@item_by_item
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
    server: Connection | None = None,
    progress: ProgressCallback = silent,
    **loading: Unpack[Loading],
) -> Iterator[Parity]:
    """Compare artifacts with a checkpoint run by PyTorch in FP32, on photographs.

    Args:
        folder: a folder of photographs; by default three that scikit-image ships.
        bisect: if an artifact fails, find the fewest nodes whose precision explains it.
        record: store the results in the artifacts' manifests.
        runtime: runs the artifacts; by default as `judge` says.
        server: of a served model, which is compared too. If the server does not know its contract, that of the first
            artifact is taken.
        loading: as for `Checkpoint.load`.

    Returns:
        A list: one result per artifact; "not run" if its runtime is not available here.

    Raises:
        InputError, CheckpointError, ArtifactError, UsageError: an argument is wrong.
        RuntimeUnavailable: the server is away.
    """
    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.parity import bisect as bisection

    if server and bisect:
        raise UsageError("`bisect` searches the nodes of a file, not of a served model: compare the artifact itself")
    opened = [Artifact.open(a) for a in artifacts]
    with ExitStack() as stack:
        served = []
        if server:
            own = next((a.contract for a in opened if a.contract), None)
            runner = connect(server, contract=own, photographs=True)
            stack.push(runner)
            served = [(Artifact(Path(runner.model), None, runner.contract), runner)]
        contracts = [a.contract for a in (*opened, *(artifact for artifact, _ in served)) if a.contract]
        steps = [str(c.config["steps"]) for c in contracts if "steps" in c.config]
        defaults = {"steps": steps[0]} if steps else None
        loaded = Checkpoint.load(checkpoint, defaults=defaults, **loading)
        photographs = photographs_for(folder)
        for artifact in opened:
            chosen = runtime or judge(artifact)
            try:
                opening = runtimes.open(artifact, chosen, trust=trust)
            except RuntimeUnavailable as e:
                yield not_run(artifact, chosen, str(e))
                continue
            with opening as local:
                found = _compared(artifact, local, loaded, photographs, per_step, progress)
            if bisect and found.verdict == "fail":
                found.bisect = bisection.bisect(checkpoint, artifact.path, folder, progress=progress, **loading)
            if record:
                found.not_recorded = artifact.record(parity=[found.evidence()])
            yield found
        for artifact, runner in served:
            yield _compared(artifact, runner, loaded, photographs, per_step, progress)


def _compared(
    artifact: Artifact,
    runner: Runner,
    loaded: Checkpoint,
    photographs: Sequence[np.ndarray],
    per_step: bool,
    progress: ProgressCallback,
) -> Parity:
    from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner

    contract = artifact.contract
    steps = contract.config.get("steps") if contract else None
    pytorch = partial(
        PyTorchRunner,
        loaded,
        io="image" if runner.inputs[0].dtype == "uint8" else "tensor",
        steps=(contract.compression.get("full_steps") or steps) if contract else None,
        all_steps=bool(side_outputs(s.name for s in runner.outputs)),
    )
    reference = pytorch()
    profile = contract.profile(runner.inputs[0].name) if contract else {}
    preprocess = (contract.preprocess if contract else None) or loaded.preprocess
    inputs = sample_inputs(runner.inputs[0], preprocess, photographs, profile)
    progress(Progress(f"comparing {artifact.path.name} on {runner.runtime}"))
    found = compare(
        artifact, runner, reference, inputs, per_step=per_step, exact=partial(pytorch, double=True),
        tolerance=compressed_tolerance(contract),
    )  # fmt: skip
    if math.isfinite(found.map.largest):
        found.whole_path = whole_path(Predictor(runner, preprocess, profile), Predictor.of(reference), photographs)
    return found
