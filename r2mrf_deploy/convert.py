"""`r2mrf convert`, and `r2mrf export --precision`: an FP32 ONNX artifact becomes an FP16, BF16 or INT8 one."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx

from r2mrf_deploy import environment, gpus, images, runtimes
from r2mrf_deploy.errors import ArtifactError, InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.files import sha256, write_atomically
from r2mrf_deploy.graph import files, precision, quantize
from r2mrf_deploy.manifest import Manifest, Preprocess
from r2mrf_deploy.parity import node_search
from r2mrf_deploy.parity.compare import Parity, compare, photographs_for, sample_inputs
from r2mrf_deploy.parity.node_search import Drop, Search
from r2mrf_deploy.runtimes import Runner

Precision = Literal["fp32", "fp16", "bf16", "int8"]
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
ENOUGH, RECOMMENDED = 20, 300
"""Photographs to calibrate on."""
METHOD: quantize.Method = "percentile"
"""The extremes of a hundred photographs are too wide; percentile lost least."""
EVALUATED = 16
"""Photographs of the calibration that a search for nodes to keep looks at."""
FP16_MARGIN = 0.5
"""Share of FP16's largest number, 65504, over which a tensor counts as overflowing: photographs differ."""

Phase = Callable[[str], None]


@dataclass(frozen=True)
class PrecisionOptions:
    """How to reduce precision."""

    precision: Precision = "fp32"
    calibration: Path | None = None
    """Folder of photographs like those to come. INT8 needs one; FP16 looks there for what would overflow, by default in
    three photographs of scikit-image's."""
    method: quantize.Method | None = None
    """How INT8 finds ranges; by default `METHOD`."""
    keep: tuple[str, ...] = ()
    """Nodes, or parts by the network's scopes, that stay in higher precision."""
    quantize_ends: bool = False
    """INT8 for the first convolution and the last layers too."""
    max_drop: float | None = None
    """Search for the fewest nodes to keep for which MAE and F against FP32 drop by no more than this."""
    resume: Path | None = None
    """A file that keeps what the search has found, to go on with."""
    gpus: tuple[str, ...] = ()
    """GPU classes that it is for: one that cannot compute in this precision is refused."""

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"no precision {self.precision!r}: choose from {', '.join(PRECISIONS)}")
        for gpu in map(gpus.get, self.gpus):
            if refusal := gpus.precision_refusal(gpu, self.precision):
                raise UsageError(refusal)
        if self.precision == "int8" and self.calibration is None:
            raise UsageError(f"INT8 needs photographs to calibrate on: give --calibration DIR, {RECOMMENDED} are well")
        asked = {"--max-drop": self.max_drop is not None, "--keep": bool(self.keep), "--calibration": self.calibration}
        if self.precision == "fp32" and (named := [k for k, v in asked.items() if v]):
            raise UsageError(f"{named[0]} is for a reduced precision: give --precision fp16, bf16 or int8")
        of_int8 = {"--method": self.method is not None, "--quantize-ends": self.quantize_ends}
        if self.precision != "int8" and (named := [k for k, v in of_int8.items() if v]):
            raise UsageError(f"{named[0]} is for INT8: leave it out, or give --precision int8")
        if self.resume is not None and self.max_drop is None:
            raise UsageError("--resume goes on with a search: give --max-drop too, or leave it out")
        if self.max_drop is not None and not 0 < self.max_drop < 1:
            raise UsageError(f"--max-drop {self.max_drop:g} must be between 0 and 1, as 0.005")
        if self.max_drop is not None and self.calibration is None:
            raise UsageError("--max-drop needs photographs to look at: give --calibration DIR")


@dataclass(frozen=True)
class Converted:
    """An artifact of reduced precision, how it compares with the FP32 one, and what its user has to know."""

    path: Path
    manifest: Manifest
    parity: Parity | None
    """None where nothing here runs it."""
    search: Search | None = None
    warnings: tuple[str, ...] = field(default=())


def convert_artifact(
    model: Path | str,
    output: Path | str,
    options: PrecisionOptions,
    *,
    phase: Phase | None = None,
) -> Converted:
    """Reduce the precision of an ONNX artifact.

    Args:
        model: an FP32 ONNX file. Where a manifest lies beside it, the two must match, and the output inherits it.
        output: the `.onnx` to write, with a manifest where the model has one.
        phase: called with what is being done.

    Raises:
        InputError: no such model, no photographs, or one that cannot be read.
        UsageError: the graph is not FP32, a name or an option means nothing.
        GraphError: the model is damaged.
        CheckFailed: `max_drop` cannot be met.
        ArtifactError: the result computes what is not finite, or cannot be written; nothing is written then.
    """
    say = phase or (lambda _: None)
    model, output = Path(model), Path(output)
    if output.suffix != ".onnx":
        raise UsageError(
            f"{output}: a graph of reduced precision ends in .onnx; `r2mrf build` makes .plan and .xml from it"
        )
    graph, manifest = files.read(model), Manifest.beside(model)
    if output.resolve() == model.resolve():
        raise UsageError(f"-o {output} would replace the FP32 graph that it is made from: name another file")
    precision.refuse_unless_fp32(graph)
    if options.precision == "fp32":
        raise UsageError("the graph is FP32 already: choose --precision fp16, bf16 or int8")
    keep = precision.nodes_of(graph, options.keep)
    job = _Job(model, graph, manifest, options, say)
    lowered, search = job.run(keep)
    kept = [*keep, *(k.node for k in search.kept)] if search else keep
    warnings = job.warnings
    checks: list[Parity | None] = []

    def write_checked(temporary: Path) -> None:
        temporary.write_bytes(lowered.SerializeToString())
        checks.append(job.check(temporary, output.name, kept))

    write_atomically(output, write_checked)
    parity = checks[0]
    if parity is not None and parity.verdict in ("fail", "uninformative"):
        warnings.append(parity.reason + ("; --max-drop keeps what must be kept" if parity.verdict == "fail" else ""))
    described = _describe(output, manifest, options, kept, search, job, parity) if manifest else None
    if described:
        described.save(output)
    return Converted(output, described or _bare(output, lowered, options), parity, search, tuple(warnings))


class _Job:
    """One conversion: the graph, the photographs, and what runs them."""

    def __init__(
        self, file: Path, graph: onnx.ModelProto, manifest: Manifest | None, options: PrecisionOptions, say: Phase
    ) -> None:
        self.file, self.graph, self.manifest, self.options, self.say = file, graph, manifest, options, say
        self.warnings: list[str] = []
        self.photographs = 0
        self._feeds: list[dict[str, np.ndarray]] | None = None

    def run(self, keep: list[str]) -> tuple[onnx.ModelProto, Search | None]:
        if self.options.precision == "int8":
            return self._int8(keep)
        half: precision.Half = "fp16" if self.options.precision == "fp16" else "bf16"
        if half == "fp16":
            keep += self._overflowing()
        self.say("converting")
        if self.options.max_drop is None:
            return precision.to_half(self.graph, half, keep), None

        def lower(more: Collection[str]) -> onnx.ModelProto:
            kept = [*keep, *more]
            return precision.to_half(self.graph, half, [*kept, *precision.carried(self.graph, kept)])

        nodes = [name for name in precision.computing(self.graph) if name not in set(keep)]
        search = self._search(nodes, lower)
        found = [k.node for k in search.kept]
        keep += precision.carried(self.graph, [*keep, *found])
        return lower(found), search

    def _int8(self, keep: list[str]) -> tuple[onnx.ModelProto, Search | None]:
        feeds = self.feeds()
        ranges = quantize.calibrate(
            self.graph, feeds, self.options.method or METHOD, lambda n, of: self.say(f"calibrating {n}/{of}")
        )
        self.say("quantising")
        if not self.options.quantize_ends:
            keep += quantize.ends(self.graph)
        whole = quantize.quantize(self.graph, ranges)
        able = quantize.quantizable(self.graph)
        if set(able) <= set(keep):
            raise UsageError("nothing is left to quantise: keep fewer nodes")
        if self.options.max_drop is None:
            return quantize.restore(whole, self.graph, keep), None
        nodes = [name for name in able if name not in set(keep)]
        search = self._search(nodes, lambda more: quantize.restore(whole, self.graph, [*keep, *more]))
        return quantize.restore(whole, self.graph, [*keep, *(k.node for k in search.kept)]), search

    def feeds(self) -> list[dict[str, np.ndarray]]:
        """The photographs of the calibration as inputs."""
        if self._feeds is None:
            assert self.options.calibration is not None
            found = images.find([self.options.calibration])
            self.photographs = len(found)
            if len(found) < ENOUGH:
                self.warnings.append(
                    f"calibrated on {len(found)} photographs: fewer than {ENOUGH} may miss what others hold; "
                    f"{RECOMMENDED} are recommended"
                )
            with self._open(self.file, "onnxruntime") as runner:
                name = runner.inputs[0].name
                self._feeds = [{name: array} for array in self._inputs(runner, self._read(found))]
        return self._feeds

    def _read(self, files: Sequence[Path]) -> Iterator[np.ndarray]:
        """Photographs one after another: hundreds of them at their full size do not fit into memory."""
        for number, file in enumerate(files, 1):
            self.say(f"reading photographs {number}/{len(files)}")
            try:
                yield images.read(file)
            except InputError as e:
                raise InputError(f"{e}: remove it from the photographs to calibrate on, or repair it") from None

    def _inputs(self, runner: Runner, photographs: Iterable[np.ndarray]) -> list[np.ndarray]:
        limit = self.manifest.profiles.get(runner.inputs[0].name, {}).get("opt", []) if self.manifest else []
        preprocess = self.manifest.preprocess if self.manifest else None
        return sample_inputs(runner, preprocess or Preprocess(mean=(0, 0, 0), std=(1, 1, 1)), photographs, limit)

    def _overflowing(self) -> list[str]:
        self.say("looking for overflow")
        if self.options.calibration is None:
            with self._open(self.file, "onnxruntime") as runner:
                inputs = self._inputs(runner, photographs_for(None))
                feeds = [{runner.inputs[0].name: array} for array in inputs]
        else:
            feeds = self.feeds()
        found = precision.overflowing(self.graph, feeds, FP16_MARGIN)
        if found:
            self.warnings.append(
                f"{len(found)} nodes stay in FP32, since FP16 would overflow: {', '.join(found[:3])} ..."
            )
        return found

    def _search(self, nodes: list[str], lower: Callable[[frozenset[str]], onnx.ModelProto]) -> Search:
        assert self.options.max_drop is not None
        feeds = self.feeds()
        chosen = feeds[:: max(len(feeds) // EVALUATED, 1)][:EVALUATED]
        computed = "fp32" if self.options.precision == "bf16" else self.options.precision
        runtime = runtimes.nearest(computed)
        with self._open(self.file, "onnxruntime") as reference:
            wanted = [reference.run(feed)["map"] for feed in chosen]

        def evaluate(kept: frozenset[str]) -> Drop:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "trial.onnx"
                # a CPU with BF16 computes all of a graph in it, kept nodes too: it cannot tell what these are worth
                trial = precision.rounded(lower(kept)) if self.options.precision == "bf16" else lower(kept)
                onnx.save(trial, file)
                with runtimes.open_nearest(file, self._described(file, computed)) as runner:
                    return node_search.drop([runner.run(feed)["map"] for feed in chosen], wanted)

        subject: dict[str, Any] = {
            "model": sha256(self.file),
            "options": [
                self.options.precision,
                self.options.method or METHOD,
                self.options.keep,
                self.options.quantize_ends,
            ],
            "photographs": [hashlib.sha256(a.tobytes()).hexdigest() for feed in feeds for a in feed.values()],
            "runtime": [runtime.name, runtime.availability().version],
        }
        cache = node_search.EvaluationCache(self.options.resume, subject)
        return node_search.keep_fewest(
            nodes,
            cache.remember(evaluate),
            Drop(self.options.max_drop, self.options.max_drop),
            lambda s: self.say(
                f"search: {s.done}/{s.total} trials, {s.what}, {s.kept} of {len(nodes)} kept: {s.found}"
            ),
        )

    def _described(self, file: Path, computed: str, kept: Sequence[str] = ()) -> Manifest:
        source = self.manifest or _bare(file, onnx.load(file), self.options)
        return source.model_copy(update={"precision": computed, "kept": list(kept)})

    def check(self, file: Path, name: str, kept: Sequence[str]) -> Parity | None:
        """Compare what was made with the FP32 graph on photographs."""
        self.say("comparing with FP32")
        photographs = photographs_for(None)
        try:
            low = runtimes.open_nearest(file, self._described(file, self.options.precision, kept))
        except RuntimeUnavailable as e:
            self.warnings.append(f"not compared with FP32: {e}")
            return None
        with low, self._open(self.file, "onnxruntime") as reference:
            inputs = self._inputs(reference, photographs)
            found = compare(reference, low, inputs, artifact=name, precision=self.options.precision)
        if not np.isfinite(found.map.largest):
            raise ArtifactError(f"{name} was not written: its map is not finite")
        return found

    def _open(self, file: Path, runtime: str) -> Runner:
        return runtimes.get(runtime).open(file, self.manifest)


def _describe(
    output: Path,
    source: Manifest,
    options: PrecisionOptions,
    kept: Sequence[str],
    search: Search | None,
    job: _Job,
    parity: Parity | None,
) -> Manifest:
    calibration: dict[str, Any] = {"photographs": job.photographs} if job.photographs else {}
    if options.precision == "int8":
        calibration["method"] = options.method or METHOD
    if search:
        calibration |= {"max_drop": options.max_drop, "drop": {"mae": search.after.mae, "f": search.after.f}}
    model = files.read(output)
    return source.model_copy(
        update={
            "file": output.name,
            "sha256": sha256(output),
            "bytes": output.stat().st_size,
            "source_sha256": source.sha256,
            "precision": options.precision,
            "kept": list(kept),
            "calibration": calibration,
            "opset": next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx")),
            "parity": [parity.to_dict()] if parity else [],
            "latency": [],
            "tools": source.tools | environment.tool_versions("r2mrf-deploy", "onnx", "onnxruntime-gpu", "onnxruntime"),
        }
    )


def _bare(output: Path, model: onnx.ModelProto, options: PrecisionOptions) -> Manifest:
    """What is known of a graph that has no manifest."""
    return Manifest(
        file=output.name,
        sha256="",
        bytes=output.stat().st_size if output.exists() else 0,
        kind="onnx",
        inputs=[],
        outputs=[],
        precision=options.precision,
        opset=model.opset_import[0].version,
    )
