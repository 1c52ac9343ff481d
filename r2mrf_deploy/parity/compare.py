"""Parity: does an artifact compute what PyTorch FP32 computes?

Runners are compared on photographs, output by output, and with `per_step` also by side output. Names are compared first,
then dtypes, ranks, shapes and values: the first difference is reported. A nearly flat reference map proves nothing, so the
verdict is then "uninformative" instead of "pass".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from r2mrf_deploy import images, runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.environment import now
from r2mrf_deploy.errors import GraphError, RuntimeUnavailable, UsageError
from r2mrf_deploy.fitting import as_input
from r2mrf_deploy.manifest import NEUTRAL, Contract, Preprocess, TensorSpec, side_outputs
from r2mrf_deploy.metrics import agreement
from r2mrf_deploy.parity.node_search import Search
from r2mrf_deploy.parity.whole_path import WholePath
from r2mrf_deploy.progress import timed
from r2mrf_deploy.runtimes import Runner
from r2mrf_deploy.wording import count

_LOG = logging.getLogger(__name__)
FLAT = 0.02
"""Standard deviation below which a reference map is called flat."""
LOGIT_LIMIT = float(np.log(999))
"""Logits are recovered from maps between 0.001 and 0.999. Outside that range a float32 map has lost too many digits."""

Verdict = Literal["pass", "emulated", "fail", "uninformative", "not run"]
"""emulated: within tolerance, but not computed in the artifact's own precision, which proves little."""


@dataclass(frozen=True)
class Tolerance:
    map: float
    """Largest absolute difference of a map."""
    logits: float
    """Largest difference of the logits, relative to the reference's standard deviation."""
    mean: float = 1.0
    """Mean absolute difference (MAE) of a map."""
    f: float = 1.0
    """1 - F (β² = 0.3) of the in-focus region of one map against the other's."""


TOLERANCES = {
    # Another order of summation changes a few units in the last place per layer. Measured: 1e-5 to 5e-5 of the logits'
    # spread over all presets, up to 1.4e-4 with very few channels. Every fault that was tried gave 1e-2 or more.
    "fp32": Tolerance(map=1e-4, logits=5e-4),
    # Reduced precision rounds every activation: single pixels at the edge of the in-focus region may flip, so the bounds
    # are on the averages that the task is judged by. FP16 has 11 bits, BF16 8: with trained weights the maps differ by 5e-5
    # and 1e-3 on average, and by 1e-3 and 2e-2 at most. INT8 has one scale per activation: 0.02 on average.
    # The bound on the logits applies to the side outputs, which show drift along the recurrence.
    "fp16": Tolerance(map=0.02, logits=0.05, mean=0.002, f=0.005),
    "tf32": Tolerance(map=0.02, logits=0.05, mean=0.002, f=0.005),  # the operands have FP16's 11 bits
    "bf16": Tolerance(map=0.25, logits=0.5, mean=0.005, f=0.02),
    "int8": Tolerance(map=1.0, logits=2.0, mean=0.03, f=0.06),
}

ELSEWHERE, SINGLE = 2.0, 8.0
"""How many times what was measured a compressed network may lose on other photographs: on average, and of F on the worst of
them."""


def compressed_tolerance(contract: Contract | None) -> Tolerance | None:
    """How far a compressed network may be from the full one by its contract; None for a network that is not compressed.

    What it loses was measured on photographs like those that it was fitted to, and on the sample photographs
    (`photographs_for`), of which neither the fitting nor the search knew anything: the larger loss counts. A file in a lower
    precision than the compression itself chose may differ by that precision's tolerance in addition.
    """
    stated = contract.compression if contract else {}
    if contract is None or not stated:
        return None
    reduced = contract.precision not in ("fp32", stated["precision"])
    further = TOLERANCES[contract.precision] if reduced else Tolerance(0, 0, 0, 0)
    mae, f = (max(stated["max_drop"], stated["map"][name], stated["elsewhere"][name]) for name in ("mae", "f"))
    return Tolerance(1.0, np.inf, ELSEWHERE * mae + further.mean, SINGLE * max(mae, f) + further.f)


OWN = 3.0
"""In FP32, an artifact may be this many times as far from FP64 as the reference itself is: both are off by roundings of the
same size, each with its own luck at the worst pixel. Measured with random weights: 0.02 to 2.2 times."""
FAULT = 5e-3
"""But its logits may be off by no more of their spread than this: a fault may show only twice as much (see `TOLERANCES`)."""


@dataclass
class Difference:
    """How one output differs from the reference, over all photographs."""

    largest: float = 0.0
    """Largest absolute difference."""
    mean: float = 0.0
    """Mean absolute difference: for the map, the MAE between the two maps."""
    relative: float = 0.0
    """Largest difference divided by the reference's standard deviation, per photograph; for the map, of its logits."""


@dataclass
class Parity:
    """The comparison of one artifact with the reference."""

    artifact: str
    runtime: str
    device: str
    precision: str
    verdict: Verdict
    reason: str
    photographs: int
    shapes: list[list[int]] = field(default_factory=list)
    """Of the inputs, each once."""
    reference_spread: float = 0.0
    """The smallest standard deviation of a reference map."""
    map: Difference = field(default_factory=Difference)
    f_measure: float = 1.0
    """F (β² = 0.3) of the artifact's map at 0.5 against the reference's at 0.5, the minimum over the photographs."""
    steps: dict[str, Difference] = field(default_factory=dict)
    """For each side output, the difference of the logits."""
    emulates: str = ""
    """How the precision of the computation differs from the artifact's."""
    reference: str = "PyTorch"
    """What the artifact was compared with."""
    fp64: dict[str, Difference] = field(default_factory=dict)
    """How far the maps of the "artifact" and of the "reference" are from FP64, where FP32 could not tell."""
    allowed: bool = False
    """Whether it was published although it fails."""
    bisect: Search | None = None
    """The nodes whose precision explains a failure, if they were searched for."""
    rounding: str = "fp32"
    """What selects the tolerance: see `Artifact.rounding` and `Runner.tf32`."""
    stated: Tolerance | None = None
    """The tolerance instead, if the artifact is compressed and the reference is not."""
    whole_path: WholePath | None = None
    """How far the map of a photograph, at its size, is from the checkpoint's own."""
    drift: str | None = None
    """The first side output, in the order of computation, whose relative difference exceeds the tolerance."""
    not_recorded: str = ""
    """Why the result was not recorded in the manifest."""

    @property
    def passed(self) -> bool:
        return self.verdict in ("pass", "emulated")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def evidence(self) -> dict[str, Any]:
        """The summary that a manifest keeps."""
        left_out = ("artifact", "bisect", "not_recorded", "shapes", "stated")
        return {k: v for k, v in asdict(self).items() if k not in left_out} | {"date": now()}


def compare(
    artifact: Artifact,
    candidate: Runner,
    reference: Runner,
    inputs: Sequence[np.ndarray],
    *,
    per_step: bool = False,
    exact: Callable[[], Runner] | None = None,
    tolerance: Tolerance | None = None,
) -> Parity:
    """Compare an artifact with a reference on the same inputs. The artifact's `rounding` selects the tolerance, or the
    runner's TF32.

    Args:
        candidate: runs the artifact.
        reference: PyTorch in FP32, or another runner with every output of `candidate`.
        inputs: arrays that both accept; a static batch above 1 holds copies.
        per_step: also compare every side output.
        exact: opens the reference in FP64. It is called if an FP32 artifact exceeds the tolerance; then both are compared
            with it, and the artifact passes if it is about as near to it as the reference is.
        tolerance: instead of that of the artifact's precision, see `compressed_tolerance`.

    Raises:
        UsageError: there are no inputs, or `per_step` is set and the artifact has no side outputs.
    """
    if not len(inputs):
        raise UsageError("parity needs at least one photograph")
    names = [s.name for s in candidate.outputs]
    if per_step and not side_outputs(names):
        raise UsageError(
            f"{artifact.path.name} only outputs {', '.join(names)}; export it with `all_steps` to compare steps"
        )
    about = (artifact.path.name, candidate.runtime, candidate.device, artifact.precision)
    shapes = [list(shape) for shape in dict.fromkeys(array.shape for array in inputs)]
    rounding = "tf32" if candidate.tf32 and artifact.rounding == "fp32" else artifact.rounding
    result = Parity(*about, "pass", "", len(inputs), shapes, emulates=candidate.emulates, rounding=rounding)
    result.stated = tolerance
    with timed(_LOG, "compared %s on %s with %s, on %s", *about[:2], reference.runtime, count(len(inputs), "input")):
        result.reason = _structure(reference, candidate) or _measure([(result, candidate)], reference, inputs, per_step)
    if result.reason:
        return replace(result, verdict="fail")
    _judge(result, *_failures(result))
    if result.verdict == "fail" and result.rounding == "fp32" and tolerance is None and exact is not None:
        try:
            opened = exact()
        except (GraphError, RuntimeUnavailable) as e:
            result.reason += f"; it could not be compared in FP64: {e}"
            return result
        with opened:
            _judge_by_fp64(result, opened, reference, candidate, inputs, per_step)
    return result


def _measure(
    candidates: Sequence[tuple[Parity, Runner]], reference: Runner, inputs: Sequence[np.ndarray], per_step: bool
) -> str:
    """Measure how candidates differ from a reference, each into its result. The reference runs once for each input.

    Returns:
        The first output of another shape, in words; empty if there is none.
    """
    logits, spreads = [Difference() for _ in candidates], []
    for array in inputs:
        wanted = reference.run({reference.inputs[0].name: array})
        spreads.append(float(wanted["map"].std()))
        for (result, candidate), of_logits in zip(candidates, logits, strict=True):
            names = [s.name for s in candidate.outputs]
            got = candidate.run({candidate.inputs[0].name: array})
            for name in names:
                if got[name].shape != wanted[name].shape:
                    return f"{name} is {list(got[name].shape)}, the reference's is {list(wanted[name].shape)}"
            _add(result.map, wanted["map"], got["map"], len(inputs))
            _add(of_logits, logit(wanted["map"]), logit(got["map"]), len(inputs))
            result.f_measure = min(result.f_measure, agreement(got["map"], wanted["map"]))
            if per_step:
                for name in side_outputs(names):
                    _add(result.steps.setdefault(name, Difference()), wanted[name], got[name], len(inputs))
    for (result, _), of_logits in zip(candidates, logits, strict=True):
        result.map.relative, result.reference_spread = of_logits.relative, min(spreads)
    return ""


def _judge_by_fp64(
    result: Parity, exact: Runner, reference: Runner, candidate: Runner, inputs: Sequence[np.ndarray], per_step: bool
) -> None:
    """Judge an FP32 artifact again: by its distance from FP64, and the reference's own."""
    artifact, own = (replace(result, map=Difference(), f_measure=1.0, steps={}) for _ in range(2))
    _measure([(artifact, candidate), (own, reference)], exact, inputs, per_step)
    result.fp64 = {"artifact": artifact.map, "reference": own.map}
    failures, drift = _failures(artifact, own)
    found, itself = artifact.map.relative, own.map.relative
    said = f"its logits are {found:.1e} of their spread from FP64, the reference's own {itself:.1e}"
    _judge(result, [*failures, said] if failures else [], drift)
    result.reason = result.reason or said


def _structure(reference: Runner, candidate: Runner) -> str:
    """The first structural difference, in words; empty where there is none."""
    wanted = {s.name: s for s in reference.outputs}
    for spec in candidate.outputs:
        if spec.name not in wanted:
            return f"it has an output {spec.name!r} that the reference does not have"
        if spec.dtype != wanted[spec.name].dtype:
            return f"{spec.name} is {spec.dtype}, not {wanted[spec.name].dtype}"
        if len(spec.shape) != len(wanted[spec.name].shape):
            return f"{spec.name} has rank {len(spec.shape)}, not {len(wanted[spec.name].shape)}"
    return "" if any(s.name == "map" for s in candidate.outputs) else "it has no output 'map'"


def _add(difference: Difference, wanted: np.ndarray, got: np.ndarray, count: int) -> None:
    wanted, got = wanted.astype(np.float64), got.astype(np.float64)
    error = np.abs(got - wanted)
    # a non-finite value counts as an unbounded difference
    largest = float(error.max()) if np.isfinite(error).all() else float("inf")
    difference.largest = max(difference.largest, largest)
    difference.mean += float(error.mean()) / count if np.isfinite(largest) else float("inf")
    difference.relative = max(difference.relative, largest / max(float(wanted.std()), 1e-12))


def logit(focus: np.ndarray) -> np.ndarray:
    """The logits of a map, float64, within `LOGIT_LIMIT`; NaN where it is not finite."""
    p = np.clip(focus.astype(np.float64), 0, 1)  # a runtime's sigmoid may exceed 1 by a rounding; NaN stays
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.isfinite(p), np.clip(np.log(p / (1 - p)), -LOGIT_LIMIT, LOGIT_LIMIT), np.nan)


def _failures(found: Parity, own: Parity | None = None) -> tuple[list[str], str | None]:
    """What exceeds the tolerance, in words, and the first side output that does.

    Args:
        own: how far the reference is from what the artifact was compared with, unless that was the reference.
    """
    tolerance = found.stated or TOLERANCES[found.rounding]
    own = own or replace(found, map=Difference(), steps={})

    def bound(of_reference: Difference) -> float:
        return max(tolerance.logits, min(OWN * of_reference.relative, FAULT))

    largest, mean, f, logits = found.map.largest, found.map.mean, found.f_measure, found.map.relative
    most = max(tolerance.map, OWN * own.map.largest)
    bounds = [
        (largest, most, f"the map differs by up to {largest:.1e} (allowed: {most:.0e})"),
        (mean, tolerance.mean, f"the map differs by {mean:.1e} on average (allowed: {tolerance.mean:g})"),
        (1 - f, tolerance.f, f"F against the reference is {f:.4f} (allowed: {1 - tolerance.f:g})"),
    ]
    flat = found.reference_spread < FLAT  # differences relative to the spread mean nothing then
    if not flat and found.rounding == "fp32" and found.stated is None:
        share = f"{logits:.1e} of their spread (allowed: {bound(own.map):.0e})"
        bounds.append((logits, bound(own.map), f"the logits differ by up to {share}"))
    failures = [words for figure, limit, words in bounds if not figure <= limit]  # NaN fails too
    drift = next((n for n, d in found.steps.items() if not d.relative <= bound(own.steps.get(n, Difference()))), None)
    if drift and not flat:
        failures.append(f"it exceeds the tolerance from {drift} on")
    return failures, drift


def _judge(result: Parity, failures: Sequence[str], drift: str | None) -> None:
    result.verdict, result.reason, result.drift = "pass", "", drift
    if failures:
        result.verdict, result.reason = "fail", "; ".join([*failures, *filter(None, [result.emulates])])
    elif result.reference_spread < FLAT:
        result.verdict = "uninformative"
        result.reason = (
            f"the reference's own map is nearly flat (standard deviation {result.reference_spread:.4f} < {FLAT}), so "
            "agreement proves nothing: use trained weights, for a checkpoint those of `r2mrf init`, or other photographs"
        )
    elif result.emulates:
        result.verdict = "emulated"
        result.reason = f"{result.emulates}: this does not prove what a device with that precision computes"


def judge(artifact: Artifact) -> str:
    """The name of the runtime that an artifact is compared on; empty if none opens such files.

    For an ONNX file of reduced precision it is the one that comes nearest to that precision, otherwise the file's default.
    """
    if not runtimes.suitable(artifact.path):
        return ""
    reduced = artifact.precision != "fp32" and artifact.path.suffix == ".onnx"
    return (runtimes.nearest(artifact.precision) if reduced else runtimes.default(artifact)).name


def not_run(artifact: Artifact, runtime: str, reason: str) -> Parity:
    """The result for an artifact that cannot be run here."""
    return Parity(artifact.path.name, runtime, "", artifact.precision, "not run", reason, 0)


def sample_inputs(
    spec: TensorSpec,
    preprocess: Preprocess | None,
    photographs: Iterable[np.ndarray],
    profile: Mapping[str, Sequence[int]] | None = None,
) -> list[np.ndarray]:
    """Convert photographs, uint8 [H, W, 3], as `as_input` does."""
    return [as_input(p, spec, preprocess or NEUTRAL, profile) for p in photographs]


def photographs_for(folder: Path | str | None) -> list[np.ndarray]:
    """The photographs to compare on: those in a folder, or three that scikit-image ships.

    Raises:
        InputError: the folder has no photographs, or one cannot be read.
        RuntimeUnavailable: there is no folder, and scikit-image is not installed.
    """
    if folder is not None:
        return [images.read(p) for p in images.find([folder])]
    from r2mrf_deploy import sample_photographs

    return [sample_photographs.sample(name) for name in (sample_photographs.DEMO, "coffee", "astronaut")]
