"""Whether a new artifact computes what it should, before anybody sees it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from r2mrf_deploy import runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, RuntimeUnavailable
from r2mrf_deploy.manifest import Preprocess
from r2mrf_deploy.parity.compare import Parity, compare, photographs_for, sample_inputs
from r2mrf_deploy.progress import Progress, ProgressCallback
from r2mrf_deploy.runtimes import Runner

ODD = ((117, 235), (234, 118), (97, 129))
"""Sizes at which sides round up and down, for artifacts with free sizes."""


class Check:
    """Compare new artifacts with a reference, on photographs.

    Args:
        reference: opens what they are compared with; it is asked only where the artifact can be run.
        named: what the reference is called in messages.
        photographs: how many of scikit-image's three.
        per_step: compare every side output too.
    """

    def __init__(
        self,
        reference: Callable[[], Runner],
        named: str,
        progress: ProgressCallback,
        *,
        photographs: int = 1,
        per_step: bool = False,
    ) -> None:
        self._reference, self._named, self._progress = reference, named, progress
        self._photographs, self._per_step = photographs, per_step
        self.parity: Parity | None = None
        """Of the last artifact."""

    def __call__(self, artifact: Artifact) -> list[dict[str, Any]]:
        """The evidence for one artifact; what cannot be run here is "not run".

        Raises:
            ArtifactError: an FP32 artifact computes something else, or a map is not finite.
        """
        self._progress(Progress(f"comparing {artifact.path.name} with {self._named}"))
        self.parity = self._compare(artifact)
        if self.parity is None:
            return []
        self.parity.reference = self._named
        wrong = self.parity.verdict == "fail" and artifact.precision == "fp32"
        if wrong or not np.isfinite(self.parity.map.largest):
            what = "its map is not finite" if not wrong else f"it does not compute what {self._named} computes"
            raise ArtifactError(f"{artifact.path.name} was not written: {what}; {self.parity.reason}")
        return [self.parity.evidence()]

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user of the last artifact has to know."""
        if self.parity is None or self.parity.verdict in ("pass", "emulated"):
            return ()
        cure = "; `max_drop` keeps what must be kept" if self.parity.verdict == "fail" else ""
        unproved = f"not compared with {self._named}: " if self.parity.verdict == "not run" else ""
        return (unproved + self.parity.reason + cure,)

    def _compare(self, artifact: Artifact) -> Parity | None:
        contract = artifact.contract
        if contract is None or len(contract.inputs) != 1 or contract.inputs[0].layout is None:
            return None  # it takes no photograph
        name, precision, (spec,) = artifact.path.name, contract.precision, contract.inputs
        if not runtimes.suitable(artifact.path):
            reason = f"no runtime opens {artifact.path.suffix} files"
            return Parity(name, "none", "", precision, "not run", reason, 0)
        reduced = precision != "fp32" and artifact.path.suffix == ".onnx"
        runtime = runtimes.nearest(precision) if reduced else runtimes.default(artifact)
        try:
            candidate = runtimes.open(artifact, runtime.name)
        except RuntimeUnavailable as e:
            return Parity(name, runtime.name, "", precision, "not run", str(e), 0)
        except ArtifactError:
            here = runtime.availability().details.get("compute_capability")
            if contract.target is None or here in (None, *contract.target.compute_capabilities):
                raise
            reason = f"it is not built for the GPU at hand, of compute capability {here}"
            return Parity(name, runtime.name, "", precision, "not run", reason, 0)
        preprocess = contract.preprocess or Preprocess(mean=(0, 0, 0), std=(1, 1, 1))
        found = photographs_for(None)[: self._photographs]
        with candidate, self._reference() as reference:
            inputs = sample_inputs(candidate, preprocess, found, contract.profiles.get(spec.name, {}).get("opt", []))
            if not spec.static and precision == "fp32":
                odd = [np.ascontiguousarray(found[0][:height, :width]) for height, width in ODD]
                inputs += sample_inputs(candidate, preprocess, odd, contract.limit(spec.name))
            return compare(reference, candidate, inputs, artifact=name, precision=precision, per_step=self._per_step)


def warnings(*found: Sequence[str]) -> tuple[str, ...]:
    """Each warning once."""
    return tuple(dict.fromkeys(w for some in found for w in some))
