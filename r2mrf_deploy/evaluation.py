"""Evaluate maps on photographs with masks: the papers' figures, curves and ablation tables.

Everything that computes a map is a `Method`: an artifact on any runtime, a checkpoint, each of its recurrent steps or side
outputs, a baseline. All get the same photographs, prepared as `r2mrf predict` prepares them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from r2mrf_deploy import images
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.checkpoint_files import Loading, is_checkpoint
from r2mrf_deploy.datasets import Dataset
from r2mrf_deploy.environment import now
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.files import scratch
from r2mrf_deploy.fitting import stretched_in_words
from r2mrf_deploy.manifest import NEUTRAL, side_outputs
from r2mrf_deploy.metrics import Curves, Positive, Scores, average, judge
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.progress import Interrupted, Progress, ProgressCallback, silent
from r2mrf_deploy.protocols import Protocol
from r2mrf_deploy.runtimes import OpenOptions
from r2mrf_deploy.runtimes.base import changed

if TYPE_CHECKING:
    from typing_extensions import Unpack

Maps = Callable[[np.ndarray], dict[str, np.ndarray]]

WORST = 6
"""Number of photographs on a contact sheet."""


@dataclass(frozen=True)
class Method:
    """A way to compute one or more maps of a photograph.

    `maps` takes uint8 [H, W, 3] and returns float32 [H, W] in [0, 1] by title, 1 = in focus.
    """

    maps: Maps
    runtime: str
    size: str = ""
    """Of the input that the photographs lie in, in words; empty if it is not known."""
    computed_by: str | None = None
    """The network or the baseline, if it is known."""
    artifact: Path | None = None
    """The artifact that computes the map, where its manifest can keep the scores."""


@dataclass(frozen=True)
class Evaluation:
    """One row of the table."""

    name: str
    method: int
    """Index of the method."""
    runtime: str
    size: str
    """Of the input that the photographs lay in, in words."""
    computed_by: str | None
    """The network or the baseline, if it is known."""
    scores: Scores
    curves: Curves
    photographs: dict[str, Scores]
    """The scores of each photograph, by its name."""

    def worst(self, count: int = WORST) -> list[str]:
        """The photographs with the largest mean absolute error, the worst first."""
        return sorted(self.photographs, key=lambda name: -self.photographs[name].mae)[:count]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "runtime": self.runtime, "input": self.size, **self.scores.to_dict()}


def evaluate(
    methods: Sequence[Method],
    dataset: Dataset,
    *,
    positive: Positive = "sharp",
    progress: ProgressCallback = silent,
) -> list[Evaluation]:
    """Score every map of every method.

    Args:
        methods: at least one.
        dataset: photographs and masks.
        positive: the class of precision and recall; MAE does not depend on it.

    Raises:
        UsageError: there is no method.
        InputError: a photograph or a mask cannot be read, or their sizes differ.
        Interrupted: Ctrl-C, with the rows of the photographs that every method has done.
    """
    if not methods:
        raise UsageError("nothing to evaluate: give an artifact, a checkpoint or `baselines`")
    dataset.check_sizes()
    rows: dict[tuple[int, str], dict[str, tuple[Scores, Curves]]] = {}
    try:
        for number, pair in enumerate(dataset.pairs):
            image, truth = dataset.image(number), dataset.truth(number)
            judged = {}
            for index, method in enumerate(methods):
                for title, found in method.maps(image).items():
                    judged[index, title] = judge(found, truth, positive)
            for row, scores in judged.items():
                rows.setdefault(row, {})[pair.name] = scores
            progress(Progress("evaluating photographs", number + 1, len(dataset)))
    except KeyboardInterrupt:
        raise Interrupted(_averaged(rows, methods)) from None
    return _averaged(rows, methods)


def _averaged(
    rows: Mapping[tuple[int, str], Mapping[str, tuple[Scores, Curves]]], methods: Sequence[Method]
) -> list[Evaluation]:
    evaluations = []
    for (index, title), row in rows.items():
        photographs = {name: scores for name, (scores, _) in row.items()}
        method = methods[index]
        averaged = average(list(row.values()))
        about = (method.runtime, method.size, method.computed_by)
        evaluations.append(Evaluation(title, index, *about, *averaged, photographs))
    return evaluations


def doubt(rows: Sequence[Evaluation], dataset: Dataset) -> str:
    """What makes the scores doubtful as a whole; empty if nothing does."""
    best = max(row.scores.auc for row in rows)
    if best >= 0.5:
        return ""
    other = "blurred" if dataset.white == "sharp" else "sharp"
    return (
        f"every AUC is under 0.5 (at most {best:.2f}): are the masks the other way round? They were read with "
        f"`white` {dataset.white}; if white means {other} in them, give `white` {other}"
    )


def record(
    rows: Sequence[Evaluation],
    methods: Sequence[Method],
    dataset: Dataset,
    positive: Positive,
    protocol: Protocol | None = None,
) -> list[str]:
    """Record the scores in the artifacts' manifests, with the name of the protocol.

    Returns:
        For each row that could not be recorded, the reason.
    """
    data = {"dataset": dataset.folder.name, "photographs": len(dataset), "white": dataset.white, "positive": positive}
    if protocol is not None:
        data |= {"protocol": protocol.name}
    reasons = []
    for row in rows:
        if (file := methods[row.method].artifact) is not None:
            found = data | {"runtime": row.runtime, "scores": row.scores.to_dict(), "date": now()}
            reasons.append(Artifact.open(file).record(accuracy=[found]))
    return list(filter(None, reasons))


@contextmanager
def opened(
    sources: Sequence[Path],
    *,
    runtime: str | None = None,
    baselines: Sequence[str] = (),
    steps: bool = False,
    branches: bool = False,
    trust: bool = False,
    size: tuple[int, int] | None = None,
    flip: bool = False,
    **loading: Unpack[Loading],
) -> Iterator[list[Method]]:
    """Open artifacts, checkpoints and baselines as methods, and close them on exit.

    Args:
        sources: artifacts and checkpoints.
        runtime: runs all sources. A checkpoint for ONNX Runtime or OpenVINO is exported temporarily, with the
            default options.
        baselines: names, see `r2mrf_deploy.baselines`.
        steps: for a checkpoint, evaluate the map after each recurrent step 1 .. T or, if the network cannot stop early, its
            map and the side output of each step. An artifact has a fixed number of steps, so only its map is evaluated.
        branches: also evaluate each side output of the last step, of a checkpoint or of an artifact exported with
            `all_steps`.
        trust: see `runtimes.open`.
        size: height and width that every photograph is stretched to; None: as each method takes it.
        flip: as for `Predictor`. The names of the rows say so, and no manifest keeps their scores: they are not those of
            the artifact alone. Baselines do without.
        loading: for the checkpoints among the sources, as for `Checkpoint.load`.

    Raises:
        UsageError: options do not go together, or an input cannot have the size.
    """
    chosen = OpenOptions.of(loading)
    prepared = partial(_prepared, size=size, flip=flip)
    if (given := [f"`{name}`" for name in changed(chosen)]) and not any(map(is_checkpoint, sources)):
        raise UsageError(f"only checkpoints take {' and '.join(given)}, and none is given: leave it out")
    if flip and not sources:
        raise UsageError("only artifacts and checkpoints take `flip`, and none is given: leave it out")
    with ExitStack() as stack:
        methods = []
        for source in sources:
            name = source.name if len({s.name for s in sources}) == len(sources) else str(source)
            name += " with flip" if flip else ""
            if is_checkpoint(source) and (steps or branches):
                methods += _ablations(stack, source, name, runtime, steps, branches, chosen, prepared)
                continue
            predictor = prepared(stack.enter_context(_predictor(stack, source, runtime, trust, chosen, size)), source)
            file = None if is_checkpoint(source) or steps or branches or flip else source
            about = (predictor.runner.runtime, predictor.size, predictor.network)
            methods.append(Method(_alone(name, predictor), *about, file))
            if branches:
                if not (sides := _of_last_step(predictor)):
                    raise UsageError(f"{source} has no side outputs: export it with `all_steps`, or give a checkpoint")
                methods.append(Method(_sides(name, predictor, sides), *about))
        if baselines:
            from r2mrf_deploy import baselines as registry

            own = f"at most {NEUTRAL.longest_side}x{NEUTRAL.longest_side}"
            words = own if size is None else stretched_in_words(size)
            for name in baselines:
                how = "learned" if name in registry.LEARNED else "no training"
                methods.append(Method(_alone(name, _resized(registry.get(name), size)), how, words, name))
        yield methods


def _alone(title: str, call: Callable[[np.ndarray], np.ndarray]) -> Maps:
    return lambda image: {title: call(image)}


def _resized(
    call: Callable[[np.ndarray], np.ndarray], size: tuple[int, int] | None
) -> Callable[[np.ndarray], np.ndarray]:
    """Stretch photographs for a baseline, or reduce them, as for a network, for a fair comparison."""

    def focus(image: np.ndarray) -> np.ndarray:
        own = image.shape[:2]
        found = call(images.resize(image, size or images.within(own, (NEUTRAL.longest_side, NEUTRAL.longest_side))))
        return np.clip(images.resize(found, own), 0, 1)

    return focus


def _prepared(predictor: Predictor, source: Path, size: tuple[int, int] | None, flip: bool) -> Predictor:
    """A predictor that stretches photographs to a size, if there is one, and averages two maps, if asked to."""
    try:
        return replace(predictor if size is None else predictor.stretched(size), flip=flip)
    except UsageError as e:
        raise UsageError(f"{source}: {e}") from None


def _predictor(
    stack: ExitStack, source: Path, runtime: str | None, trust: bool, chosen: OpenOptions, size: tuple[int, int] | None
) -> Predictor:
    if is_checkpoint(source) and runtime in ("onnxruntime", "openvino"):
        from r2mrf_deploy.export.chain import export_artifact
        from r2mrf_deploy.export.options import ExportOptions

        target = stack.enter_context(scratch()) / f"{source.stem}.onnx"
        source = export_artifact(source, target, ExportOptions(size=size), **chosen.loading).path
    return Predictor.open(source, runtime, trust=trust, options=chosen if is_checkpoint(source) else None)


def _ablations(
    stack: ExitStack,
    source: Path,
    name: str,
    runtime: str | None,
    steps: bool,
    branches: bool,
    chosen: OpenOptions,
    prepared: Callable[[Predictor, Path], Predictor],
) -> list[Method]:
    """A checkpoint's map, or the map after each of its steps, and its side outputs."""
    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner

    if runtime not in (None, "pytorch"):
        raise UsageError(f"`steps` and `branches` of a checkpoint run on PyTorch, not on {runtime}")
    checkpoint = Checkpoint.load(source, **chosen.loading)
    predictor = prepared(Predictor.of(stack.enter_context(PyTorchRunner(checkpoint, all_steps=True))), source)
    network = checkpoint.module()
    made, sides, about = [], [], ("pytorch", predictor.size, predictor.network)
    if steps and 1 in network.steps_range:
        for t in range(1, network.default_steps + 1):
            runner = stack.enter_context(PyTorchRunner(checkpoint, steps=t))
            made.append(Method(_alone(f"{name} T = {t}", prepared(Predictor.of(runner), source)), *about))
    else:
        made.append(Method(_alone(name, predictor), *about))
        named = [o.name for o in predictor.runner.outputs]
        sides = [n for n in named if steps and re.fullmatch(r"[a-z][^_]*\d", n)]  # crl1, crl2, ...; not step1_branch5
        if steps and not sides:
            raise UsageError(f"{source}: {checkpoint.network} has no recurrent steps")
    if branches:
        sides += [side for side in _of_last_step(predictor) if side not in sides]
    return [*made, Method(_sides(name, predictor, sides), *about)] if sides else made


def _of_last_step(predictor: Predictor) -> list[str]:
    """The side outputs of the last recurrent step, or all of them if their names have no step numbers."""
    names = side_outputs(o.name for o in predictor.runner.outputs)
    last = max((int(m[1]) for n in names if (m := re.match(r"step(\d+)_", n))), default=None)
    return [n for n in names if last is None or n.startswith(f"step{last}_")]


def _sides(name: str, predictor: Predictor, chosen: Sequence[str]) -> Maps:
    def maps(image: np.ndarray) -> dict[str, np.ndarray]:
        found = predictor.sides(image)
        return {f"{name} {side}": found[side] for side in chosen}

    return maps
