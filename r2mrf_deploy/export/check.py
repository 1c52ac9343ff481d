"""The comparison with a reference that stands between a new artifact and its publication."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import runtimes
from r2mrf_deploy.artifact import Artifact, publish
from r2mrf_deploy.errors import ArtifactError, CheckFailed, RuntimeUnavailable
from r2mrf_deploy.export.base import Exported
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.parity.compare import Parity, Tolerance, compare, judge, not_run, photographs_for, sample_inputs
from r2mrf_deploy.parity.whole_path import whole_path
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.progress import Progress, ProgressCallback
from r2mrf_deploy.runtimes import Runner
from r2mrf_deploy.runtimes.base import Arrays

ODD = ((117, 235), (234, 118), (97, 129))
"""(height, width) at which sides round up and down, for artifacts with free sizes."""


@dataclass(frozen=True)
class Check:
    """Compares new artifacts with a reference, on photographs."""

    reference: Callable[[], Runner]
    """Opens the reference; called only when the artifact can be run here."""
    name: str
    """What messages call the reference."""
    progress: ProgressCallback
    photographs: int = 1
    """How many of scikit-image's three to use."""
    per_step: bool = False
    """Also compare every side output."""
    exact: Callable[[], Runner] | None = None
    """Opens the reference in FP64; called only if an FP32 artifact is not near enough to the reference."""
    tolerance: Tolerance | None = None
    """How far a compressed network may be from the reference, which is not."""
    allow_failed_parity: bool = False
    """Publish an artifact that fails; its evidence says that this was allowed."""

    def publish(self, path: Path, write: Callable[[Path], Contract]) -> Exported:
        """Write an artifact, and publish it unless the comparison shows that it is wrong.

        An artifact that cannot be run here is published with the verdict "not run".

        Raises:
            CheckFailed: the artifact does not compute what the reference does, and that is not allowed, or a map is not
                finite.
        """
        parity: Parity | None = None

        def evidence(artifact: Artifact) -> list[dict[str, Any]]:
            nonlocal parity
            self.progress(Progress(f"comparing {artifact.path.name} with {self.name}"))
            parity = self.compare(artifact)
            if parity is None:
                return []
            parity.reference = self.name
            self._judge(parity)
            return [parity.evidence()]

        made = publish(path, write, evidence)
        return Exported(made, parity, warnings=_warnings(parity))

    def _judge(self, parity: Parity) -> None:
        if not np.isfinite(parity.map.largest):
            raise CheckFailed(f"{parity.artifact} was not written: its map is not finite; {parity.reason}")
        if parity.verdict != "fail":
            return
        if not self.allow_failed_parity:
            reduced = parity.precision != "fp32"
            what = f"it is too far from {self.name}" if reduced else f"it does not compute what {self.name} computes"
            search = "set `max_drop` to find the nodes to keep in higher precision, or " if reduced else ""
            raise CheckFailed(
                f"{parity.artifact} was not written: {what}; {parity.reason}; {search}set `allow_failed_parity` to write it "
                "all the same"
            )
        parity.allowed = True

    def compare(self, artifact: Artifact) -> Parity | None:
        """Compare an artifact with the reference; None if it does not take a photograph."""
        contract = artifact.contract
        if contract is None or len(contract.inputs) != 1 or contract.inputs[0].layout is None:
            return None
        (spec,) = contract.inputs
        if not (runtime := judge(artifact)):
            return not_run(artifact, "none", f"no runtime opens {artifact.path.suffix} files")
        try:
            candidate = runtimes.open(artifact, runtime)
        except RuntimeUnavailable as e:
            return not_run(artifact, runtime, str(e))
        except ArtifactError:
            here = runtimes.get(runtime).availability().details.get("compute_capability")
            if contract.target is None or here in (None, *contract.target.compute_capabilities):
                raise
            return not_run(artifact, runtime, f"it was not built for this machine's GPU, of compute capability {here}")
        found = photographs_for(None)[: self.photographs]
        with Remembering(candidate) as candidate, Remembering(self.reference()) as reference:
            profile = contract.profile(spec.name)
            optimum = {"max": profile["opt"]} if profile else {}
            inputs = sample_inputs(candidate.inputs[0], contract.preprocess, found, optimum)
            if not spec.static and artifact.precision == "fp32":
                odd = [np.ascontiguousarray(found[0][:height, :width]) for height, width in ODD]
                inputs += sample_inputs(candidate.inputs[0], contract.preprocess, odd, profile)
            parity = compare(
                artifact,
                candidate,
                reference,
                inputs,
                per_step=self.per_step,
                exact=self.exact,
                tolerance=self.tolerance,
            )
            if reference.preprocess is not None and np.isfinite(parity.map.largest):
                parity.whole_path = whole_path(Predictor.of(candidate, contract), Predictor.of(reference), found)
            return parity


class Remembering(Runner):
    """A runner that does not compute again what it has just computed: the whole path of the first photograph often begins
    with the input that parity compared.

    It repeats of the runner only what a comparison reads: not `streams`, `in_flight`, `most_batch` and `on_gpu`, nor how it
    profiles and submits. The last input alone is remembered. So it serves neither to time a runner nor to see whether that
    computes the same twice.
    """

    def __init__(self, runner: Runner) -> None:
        self.runtime, self.device, self.emulates = runner.runtime, runner.device, runner.emulates
        self.tf32 = runner.tf32
        self.inputs, self.outputs, self.preprocess = runner.inputs, runner.outputs, runner.preprocess
        self._runner = runner
        self._last: tuple[Arrays, Arrays] | None = None

    def _run(self, arrays: Arrays) -> Arrays:
        if self._last is None or not _equal(self._last[0], arrays):
            self._last = {name: array.copy() for name, array in arrays.items()}, self._runner.run(arrays)
        return {name: array.copy() for name, array in self._last[1].items()}

    def close(self) -> None:
        self._last = None
        self._runner.close()


def _equal(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def _warnings(parity: Parity | None) -> tuple[str, ...]:
    """What a comparison tells the artifact's user."""
    if parity is None or parity.passed:
        return ()
    what = {"not run": f"not compared with {parity.reference}: ", "fail": "written although parity fails: "}
    return (what.get(parity.verdict, "") + parity.reason,)
