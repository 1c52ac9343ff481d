"""`r2mrf compress`: a checkpoint or an ONNX file becomes the cheapest graph whose maps stay within a bound."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from r2mrf_deploy import checkpoint_files, environment, images, runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.compression import costs as costing
from r2mrf_deploy.compression.curve import Curve, Point
from r2mrf_deploy.compression.judging import AgainstMaps, AgainstMasks
from r2mrf_deploy.compression.search import METHOD, Search, Structure, held
from r2mrf_deploy.datasets import Dataset
from r2mrf_deploy.errors import CheckFailed, InputError, UsageError
from r2mrf_deploy.export import onnx
from r2mrf_deploy.export.base import Exported, derived
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.check import Check
from r2mrf_deploy.export.options import ExportOptions
from r2mrf_deploy.files import refuse_unwritable, scratch, sha256
from r2mrf_deploy.graph import cost, files, precision
from r2mrf_deploy.graph.achieved import achieved
from r2mrf_deploy.graph.prepare import prepared
from r2mrf_deploy.graph.rewrites import optimize
from r2mrf_deploy.graph.trace import checked
from r2mrf_deploy.manifest import NEUTRAL, Contract
from r2mrf_deploy.parity.compare import ELSEWHERE, compressed_tolerance, photographs_for, sample_inputs
from r2mrf_deploy.parity.measurements import Measurements, digest
from r2mrf_deploy.parity.node_search import Drop
from r2mrf_deploy.progress import Interrupted, Progress, ProgressCallback, silent
from r2mrf_deploy.wording import count

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from r2mrf_deploy.checkpoint_files import Loading

EVALUATED = 16
"""On how many photographs maps are compared at most."""
FITTED = 64
"""To how many others factors are fitted, and ranges calibrated, at most."""
PROBED = 4
"""Of the photographs that maps are compared on, every so-many-th is one that each change is tried on alone."""
ENOUGH = 24
"""With fewer photographs, the same ones serve for both, and there is a warning."""


@dataclass(frozen=True)
class CompressionOptions:
    """What to trade, and how far."""

    max_drop: float = 0.005
    """How much MAE and F may get worse, each."""
    costs: str | None = None
    """What time is saved on: a runtime (`costs.MEASURED`), a class of devices, or None for the cost model."""
    precision: str = "int8"
    """"int8" also computes parts of the network in INT8, where that pays; "fp32" does not."""
    finetune: int = 0
    """Iterations of distillation."""
    size: tuple[int, int] | None = None
    """(height, width) to export a checkpoint at."""
    steps: int | None = None
    """Recurrent steps of the full network, if not those that the weights were trained with."""
    resume: Path | None = None
    """A file that stores what the search has found, so that it can be resumed."""
    allow_failed_parity: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.max_drop < 1:
            raise UsageError(f"`max_drop` must be between 0 and 1, for example 0.005, not {self.max_drop:g}")
        if self.precision not in ("fp32", "int8"):
            raise UsageError(f"`precision` must be fp32 or int8, not {self.precision}")
        if self.finetune < 0:
            raise UsageError(f"`finetune` must not be negative, but it is {self.finetune}")


@dataclass(frozen=True)
class Compressed(Exported):
    """A compressed artifact, and the curve that it is a point of."""

    curve: Curve = field(kw_only=True)

    @property
    def point(self) -> Point:
        assert self.curve.chosen is not None
        return self.curve.points[self.curve.chosen]


def curve_file(output: Path) -> Path:
    """Where the curve of an output is written."""
    return output.with_suffix(".pareto.json")


def compress_artifact(
    source: Path | str,
    output: Path | str,
    photographs: Path | str,
    options: CompressionOptions | None = None,
    *,
    dataset: Dataset | None = None,
    point: int | None = None,
    progress: ProgressCallback = silent,
    **loading: Unpack[Loading],
) -> Compressed:
    """Search for the cheapest form of a network whose maps stay within a bound, and write it as an ONNX artifact.

    The curve of everything that was tried is written beside it (`curve_file`), also if nothing is within the bound.

    Args:
        source: a checkpoint, or an FP32 ONNX file of one static size, whose number of steps stays.
        output: the `.onnx` to write.
        photographs: a folder of photographs like those that the network will see.
        dataset: photographs with masks: the bound is then on what is lost of MAE and F against these.
        point: write this point, from 1, of the curve that is already beside `output`, without a search.
        loading: as for `Checkpoint.load`.

    Raises:
        InputError: a file or folder is missing or wrong, or the stored search or curve is of something else.
        UsageError: an option does not fit, or the graph has free sizes.
        CheckFailed: nothing cheaper than the full network is within the bound. The curve is written, the artifact is not.
        CheckpointError, GraphError, ArtifactError, RuntimeUnavailable: as in `export_artifacts` and `convert_artifact`.
        Interrupted: Ctrl-C, with the best that was found until then, which is written.
    """
    options = options or CompressionOptions()
    source, output = Path(source), Path(output)
    if output.suffix != ".onnx":
        raise UsageError(f"{output}: `output` must end in .onnx; `r2mrf build` makes other formats from such a file")
    if output.exists() and source.exists() and output.samefile(source):
        raise UsageError(f"`output` {output} would overwrite the graph that it is made from: name another file")
    refuse_unwritable(output)
    refuse_unwritable(curve_file(output))
    if options.resume is not None and options.resume.resolve() in (output.resolve(), curve_file(output).resolve()):
        raise UsageError(f"`resume` {options.resume} would be overwritten by the result: name another file")
    if point is not None and options.finetune:
        raise UsageError("`point` says whether it is fine-tuned: leave `finetune` out")
    known = Curve.read(curve_file(output)) if point is not None else None
    with _opened(source, options, progress, loading) as job:
        job.prepare(Path(photographs), dataset)
        if known is not None and point is not None:
            return job.remake(known, point, output)
        return job.search(output)


@contextmanager
def _opened(source: Path, options: CompressionOptions, progress: ProgressCallback, loading: Any) -> Iterator[_Job]:
    with scratch() as folder:
        yield _Job(source, options, progress, loading, folder)


class _Job:
    """One compression: the source, the photographs, and the search."""

    def __init__(
        self, source: Path, options: CompressionOptions, progress: ProgressCallback, loading: Any, folder: Path
    ) -> None:
        self.source, self.options, self.progress, self.loading, self.folder = source, options, progress, loading, folder
        self.warnings: list[str] = []
        self.checkpoint = checkpoint_files.is_checkpoint(source)
        self.structures = self._of_checkpoint() if self.checkpoint else [self._of_graph]
        self.full = self.structures[0]()

    def _of_checkpoint(self) -> list[Callable[[], Structure]]:
        """The network with all its steps, and then with ever fewer."""
        defaults = {"steps": str(self.options.steps)} if self.options.steps else {}
        network = Checkpoint.load(self.source, defaults=defaults, **self.loading).module()
        most = network.check_steps(self.options.steps)
        fewer = [t for t in reversed(network.steps_range) if t <= most] or [most]
        return [partial(self._exported, steps) for steps in fewer]

    def _exported(self, steps: int) -> Structure:
        file = self.folder / f"{steps}" / f"{checkpoint_files.stem(self.source)}.onnx"
        if not file.exists():
            file.parent.mkdir()
            options = ExportOptions(
                size=self.options.size, steps=steps or None, allow_failed_parity=self.options.allow_failed_parity
            )
            export_artifact(self.source, file, options, progress=self.progress, **self.loading)
        return _structure(Artifact.open(file), steps or None)

    def _of_graph(self) -> Structure:
        if self.options.size or self.options.steps:
            raise UsageError("`size` and `steps` are for a checkpoint: an ONNX file has them already")
        artifact = Artifact.open(self.source)
        graph = files.read(artifact.path)
        precision.refuse_unless_fp32(graph)
        files.refuse_not_finite(graph)
        if artifact.contract and artifact.contract.compression:
            raise UsageError(
                f"{self.source} is compressed already: compress the full network, with a larger `max_drop`"
            )
        structure = _structure(artifact, None)
        spec = self.contract_of(structure).inputs[0]
        if not spec.static:
            raise UsageError(
                f"{self.source} has free sizes: export it with `size`, so that it is known what costs how much"
            )
        return structure

    def contract_of(self, structure: Structure) -> Contract:
        """A structure's contract. Of a file that has none, the place of the three colours tells the layout."""
        if structure.artifact.contract:
            return structure.artifact.contract
        found = onnx.describe(structure.model)
        axes = [i for spec in found.inputs for i, d in enumerate(spec.shape) if d == 3 and len(spec.shape) == 4]
        layout = {1: "NCHW", 3: "NHWC"}[axes[0]] if axes in ([1], [3]) else None
        return found.model_copy(
            update={
                "inputs": [spec.model_copy(update={"layout": layout}) for spec in found.inputs],
                "preprocess": NEUTRAL.model_copy(update={"inside": layout == "NHWC"}),
            }
        )

    def prepare(self, folder: Path, dataset: Dataset | None) -> None:
        """Read the photographs, and draw up the search."""
        contract = self.contract_of(self.full)
        spec = contract.inputs[0]
        ends = [", ".join(map(str, specs)) for specs in (contract.inputs, contract.outputs)]
        if [o.name for o in contract.outputs] != ["map"] or len(contract.inputs) != 1 or spec.layout is None:
            raise UsageError(
                f"{self.source} cannot be compressed: a graph must take one photograph, of 3 channels, and give one output, "
                f"`map`; this one takes {ends[0]} and gives {ends[1]}"
            )
        feeds = [{spec.name: a} for a in sample_inputs(spec, contract.preprocess, self._read(images.find([folder])))]
        judged, fitting = self._divided(feeds)
        options = self.options
        subject = {
            "source": sha256(self.source), "loading": {k: v for k, v in self.loading.items() if v},
            "options": [options.max_drop, options.costs, options.precision, options.size, options.steps],
            "photographs": [hashlib.sha256(a.tobytes()).hexdigest() for feed in feeds for a in feed.values()],
            "masks": None if dataset is None else [[sha256(p.mask) for p in dataset.pairs], dataset.white],
        }  # fmt: skip
        tools = {
            "tools": environment.tool_versions("r2mrf-deploy", "onnxruntime-gpu", "onnxruntime", "openvino", "numpy"),
        }  # fmt: skip
        measured: Measurements[float | Drop] = Measurements(options.resume, subject | tools, float | Drop)
        self.costs = costing.find(options.costs, measured)
        self.maps = AgainstMaps(self.full.model, contract, judged)
        others = [{spec.name: a} for a in sample_inputs(spec, contract.preprocess, photographs_for(None))]
        self.elsewhere = AgainstMaps(self.full.model, contract, others)
        judge = self.maps if dataset is None else AgainstMasks(self.full.model, contract, dataset)
        probe = partial(AgainstMaps, contract=contract, feeds=judged[::PROBED], whose="its own")
        whole = Point(
            steps=self.full.steps, precision="fp32", cost=self.costs.total(self.full.model),
            multiply_adds=cost.multiply_adds(self.full.model), parameters=cost.parameters(self.full.model),
            mae=0.0, f=0.0, within=True,
        )  # fmt: skip
        curve = Curve(
            source=self.source.name, subject=digest(subject), costs=self.costs.name, unit=self.costs.unit,
            judged=judge.what, max_drop=options.max_drop, full=whole,
        )  # fmt: skip
        precision = options.precision
        if precision == "int8" and not self.costs.pays("int8"):
            precision = "fp32"
            self.warnings.append(f"nothing is computed in INT8, which costs no less than FP32 on {self.costs.name}")
        self.job = Search(
            self.structures, self.full.model, judge, probe, self.costs, fitting, measured, precision, curve, self.progress
        )  # fmt: skip

    def _read(self, found: Sequence[Path]) -> Iterator[np.ndarray]:
        chosen = _spaced(found, EVALUATED + FITTED)
        for number, file in enumerate(chosen, 1):
            self.progress(Progress("reading photographs", number, len(chosen)))
            yield images.read(file)

    def _divided(self, feeds: list[Any]) -> tuple[list[Any], list[Any]]:
        """The photographs that maps are compared on, and those that are fitted to."""
        if len(feeds) < ENOUGH:
            self.warnings.append(
                f"there are only {count(len(feeds), 'photograph')}: the same ones are fitted to and judged on, so the loss "
                f"on others may be larger; give at least {ENOUGH}, better {EVALUATED + FITTED}"
            )
            if self.options.finetune:
                raise UsageError(f"`finetune` needs at least {ENOUGH} photographs, so that it is judged on others")
            return feeds[:EVALUATED], feeds
        judged = _spaced(feeds, min(EVALUATED, len(feeds) // 3))
        apart = {id(feed) for feed in judged}
        return judged, [feed for feed in feeds if id(feed) not in apart]

    def search(self, output: Path) -> Compressed:
        curve = self.job.curve
        try:
            self.job.run(self.options.finetune)
        except KeyboardInterrupt:
            if curve.points:
                curve.write(curve_file(output))
            best = curve.cheapest()
            if best is None:
                raise
            raise Interrupted(self.publish(best, output)) from None
        curve.write(curve_file(output))
        best = curve.cheapest()
        if best is None:
            raise CheckFailed(f"nothing was written: {_unmet(curve)}; {curve_file(output)} has every point")
        return self.publish(best, output)

    def remake(self, known: Curve, number: int, output: Path) -> Compressed:
        """Write a point, from 1, of a known curve."""
        wanted = known.point(number)
        if known.subject != self.job.curve.subject:
            raise InputError(
                f"{curve_file(output)} is of another network, other options or other photographs: give the same, or search "
                "again without `point`"
            )
        self.job.curve = known
        if wanted.steps not in {None, self.full.steps, *range(self.full.steps or 0)}:
            raise InputError(
                f"{curve_file(output)} has a point with {wanted.steps} steps, which the network cannot run"
            )
        return self.publish(number - 1, output)

    def publish(self, number: int, output: Path) -> Compressed:
        """Write a point, from 0, and say in the curve that it was written."""
        try:
            made = self.write(self.job.curve.points[number], output)
        except CheckFailed as e:
            raise CheckFailed(f"{e}; or write another point of {curve_file(output)} with `point`") from None
        self.job.curve.chosen = number
        self.job.curve.write(curve_file(output))
        return Compressed(**vars(made), curve=self.job.curve)

    def write(self, point: Point, output: Path) -> Exported:
        """Make a point's graph, and publish it."""
        structure = self.job.structure(point.steps)
        self.progress(Progress("making the compressed graph"))
        changed = self.job.single(structure, point.plan, point.finetune)
        optimized = optimize(changed)
        graph = checked(optimized.model)
        reduced = self.job.lowered(graph, point.plan)
        drop = self.job.judge.drop(reduced, point.precision)
        if point.within and not drop.within(self.job.bound):  # sums in another order round INT8 otherwise
            graph, reduced = changed, self.job.lowered(changed, point.plan)
            drop = self.job.judge.drop(reduced, point.precision)
        own, elsewhere = (maps.drop(reduced, point.precision) for maps in (self.maps, self.elsewhere))
        tools = environment.tool_versions("r2mrf-deploy", "onnx", "onnxruntime-gpu", "onnxruntime")
        done = derived(
            self.full.artifact, self.contract_of(structure), tools,
            precision=point.precision, compression=self._stated(point, drop, own, elsewhere),
            multiply_adds=cost.multiply_adds(graph), parameters=cost.parameters(graph), opset=onnx.opset(reduced),
            **self._reduced(point, graph, reduced),
        )  # fmt: skip
        check = Check(
            partial(runtimes.get("onnxruntime").open, self.full.artifact), "the full network", self.progress, photographs=3,
            tolerance=compressed_tolerance(done), allow_failed_parity=self.options.allow_failed_parity,
        )  # fmt: skip
        made = check.publish(output, lambda file: onnx.write(reduced, done, file))
        warnings = (*self.warnings, *self._strays(own, elsewhere), *optimized.warnings, *made.warnings)
        return replace(made, warnings=warnings)

    def _reduced(self, point: Point, graph: Any, reduced: Any) -> dict[str, Any]:
        """What the contract says of INT8."""
        if point.precision == "fp32":
            return {}
        calibration = {"photographs": len(self.job.fitting), "method": METHOD}
        return {
            "share": round(achieved(reduced, "int8").share, 4),
            "kept": sorted(held(graph, point.plan)),
            "calibration": calibration,
        }

    def _strays(self, own: Drop, elsewhere: Drop) -> list[str]:
        """A warning if the map differs much more on photographs of another kind."""
        if elsewhere.mae <= ELSEWHERE * max(own.mae, self.options.max_drop):
            return []
        return [
            f"the map differs from the full network's by {own.mae:.4f} on photographs given, but by {elsewhere.mae:.4f} on "
            "sample photographs of other scenes: give photographs of every kind that it will see"
        ]

    def _stated(self, point: Point, drop: Drop, own: Drop, elsewhere: Drop) -> dict[str, Any]:
        """The bound, and what the search measured, for the manifest."""
        curve = self.job.curve
        return {
            "max_drop": curve.max_drop,
            "judged": curve.judged,
            "drop": {"mae": drop.mae, "f": drop.f},
            "map": {"mae": own.mae, "f": own.f},
            "elsewhere": {"mae": elsewhere.mae, "f": elsewhere.f},
            "full_steps": curve.full.steps,
            "costs": curve.costs,
            "cost": point.cost / curve.full.cost,
            "multiply_adds": curve.full.multiply_adds,
            "precision": point.precision,
            "finetune": point.finetune,
            "point": point.model_dump(mode="json", include={"steps", "channels", "ranks", "int8"}),
        }


def _structure(artifact: Artifact, steps: int | None) -> Structure:
    return Structure(steps, artifact, checked(prepared(files.read(artifact.path))))


def _spaced(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many items, evenly spaced."""
    if len(items) <= most:
        return list(items)
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _unmet(curve: Curve) -> str:
    nearest = curve.nearest()
    if nearest is None:
        return f"no change that was tried saves anything on {curve.costs}"
    saved = 1 - nearest.cost / curve.full.cost
    return (
        f"nothing cheaper than the full network is within {curve.max_drop:g}; the nearest, {saved:.0%} cheaper, "
        f"loses {nearest.drop}"
    )
