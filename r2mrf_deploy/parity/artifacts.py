"""`r2mrf parity`: compare artifacts with the checkpoint, or the graph, that they were made from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from r2mrf_deploy import checkpoint_files, formats, runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError
from r2mrf_deploy.manifest import NEUTRAL, Contract, Preprocess, side_outputs
from r2mrf_deploy.parity import exact
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
from r2mrf_deploy.web import file_of

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
    """Compare artifacts with a reference on photographs: a checkpoint run by PyTorch in FP32, or another artifact.

    Args:
        checkpoint: the reference. An artifact is run as `judge` says; what it was made from is not looked at.
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
        RuntimeUnavailable: the server is away, or no runtime for the reference is here.
    """
    from r2mrf_deploy.parity import bisect as bisection

    if server and bisect:
        raise UsageError("`bisect` searches the nodes of a file, not of a served model: compare the artifact itself")
    of_checkpoint = not _is_artifact(checkpoint)
    if bisect and not of_checkpoint:
        raise UsageError(f"`bisect` compares with a checkpoint, and {checkpoint} is none")
    opened = [Artifact.open(a) for a in artifacts]
    with ExitStack() as stack:
        served = []
        if server:
            own = next((a.contract for a in opened if a.contract), None)
            runner = connect(server, contract=own, photographs=True)
            stack.push(runner)
            served = [(Artifact(Path(runner.model), None, runner.contract), runner)]
        contracts = [a.contract for a in (*opened, *(artifact for artifact, _ in served)) if a.contract]
        if of_checkpoint:
            from r2mrf_deploy.checkpoint import Checkpoint

            steps = [str(c.config["steps"]) for c in contracts if "steps" in c.config]
            defaults = {"steps": steps[0]} if steps else None
            reference: _Reference = _OfCheckpoint(Checkpoint.load(checkpoint, defaults=defaults, **loading))
        else:
            reference = _OfArtifact(Artifact.open(checkpoint), trust)
        photographs = photographs_for(folder)
        for artifact in opened:
            chosen = runtime or judge(artifact)
            try:
                opening = runtimes.open(artifact, chosen, trust=trust)
            except RuntimeUnavailable as e:
                yield not_run(artifact, chosen, str(e))
                continue
            with opening as local:
                found = _compared(artifact, local, reference, photographs, per_step, progress)
            if bisect and found.verdict == "fail":
                found.bisect = bisection.bisect(checkpoint, artifact.path, folder, progress=progress, **loading)
            if record:
                found.not_recorded = artifact.record(parity=[found.evidence()])
            yield found
        for artifact, runner in served:
            yield _compared(artifact, runner, reference, photographs, per_step, progress)


def _is_artifact(path: Path | str) -> bool:
    path = file_of(Path(path))
    suffix = path.suffix.lower()
    known = suffix in formats.KINDS or suffix in {*runtimes.known_suffixes()} - {*checkpoint_files.SUFFIXES}
    return known and not checkpoint_files.is_checkpoint(path)


class _Reference(Protocol):
    """What artifacts are compared with."""

    name: str
    preprocess: Preprocess | None

    def open(self, contract: Contract | None, runner: Runner) -> tuple[Runner, Callable[[], Runner] | None]:
        """The reference for an artifact of this contract, and what opens it in FP64, if that is possible."""


class _OfCheckpoint:
    """A checkpoint, run by PyTorch as an artifact of it is exported."""

    name = "PyTorch"

    def __init__(self, loaded: Checkpoint) -> None:
        self.preprocess: Preprocess | None = loaded.preprocess
        self._loaded = loaded

    def open(self, contract: Contract | None, runner: Runner) -> tuple[Runner, Callable[[], Runner] | None]:
        from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner

        steps = contract.config.get("steps") if contract else None
        pytorch = partial(
            PyTorchRunner,
            self._loaded,
            io="image" if runner.inputs[0].dtype == "uint8" else "tensor",
            steps=(contract.compression.get("full_steps") or steps) if contract else None,
            all_steps=bool(side_outputs(s.name for s in runner.outputs)),
        )
        return pytorch(), partial(pytorch, double=True)


class _OfArtifact:
    """Another artifact, such as the graph that the others were made from."""

    def __init__(self, artifact: Artifact, trust: bool) -> None:
        self.name = artifact.path.name
        self._artifact, self._trust = artifact, trust
        contract = artifact.contract
        if contract is None or len(contract.inputs) != 1 or contract.inputs[0].layout is None:
            raise UsageError(
                f"{artifact.path} does not say how its input takes a photograph: run `r2mrf adopt` on it first"
            )
        self.preprocess = contract.preprocess

    def open(self, contract: Contract | None, runner: Runner) -> tuple[Runner, Callable[[], Runner] | None]:
        reference = runtimes.open(self._artifact, judge(self._artifact), trust=self._trust)
        mine, its = reference.inputs[0], runner.inputs[0]
        fixed = [(m, i) for m, i in zip(mine.shape, its.shape, strict=False) if isinstance(m, int)]
        if (mine.dtype, mine.layout) != (its.dtype, its.layout) or any(m != i for m, i in fixed):
            reference.close()
            raise UsageError(f"{self.name} takes {mine}, which is not what the artifact takes: {its}")
        graph = self._artifact.path.suffix.lower() == ".onnx" and self._artifact.precision == "fp32"
        return reference, partial(exact.of_graph, self._artifact) if graph else None


def _compared(
    artifact: Artifact,
    runner: Runner,
    against: _Reference,
    photographs: Sequence[np.ndarray],
    per_step: bool,
    progress: ProgressCallback,
) -> Parity:
    contract = artifact.contract
    reference, in_fp64 = against.open(contract, runner)
    with reference:
        profile = contract.profile(runner.inputs[0].name) if contract else {}
        preprocess = (contract.preprocess if contract else None) or against.preprocess or NEUTRAL
        inputs = sample_inputs(runner.inputs[0], preprocess, photographs, profile)
        progress(Progress(f"comparing {artifact.path.name} on {runner.runtime}"))
        found = compare(
            artifact, runner, reference, inputs, per_step=per_step, exact=in_fp64,
            tolerance=compressed_tolerance(contract),
        )  # fmt: skip
        found.reference = against.name
        if math.isfinite(found.map.largest):
            own = Predictor(reference, against.preprocess or NEUTRAL, profile)
            found.whole_path = whole_path(Predictor(runner, preprocess, profile), own, photographs)
    return found
