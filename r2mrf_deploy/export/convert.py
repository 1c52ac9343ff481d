"""`r2mrf convert`, and `r2mrf export `precision``: an FP32 ONNX artifact becomes an FP16, BF16 or INT8 one."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_package

from r2mrf_deploy import environment, images, runtimes
from r2mrf_deploy.artifact import Artifact, publish
from r2mrf_deploy.errors import InputError, UsageError
from r2mrf_deploy.export import onnx
from r2mrf_deploy.export.base import Exported
from r2mrf_deploy.export.check import Check, warnings
from r2mrf_deploy.export.options import RECOMMENDED, Method, PrecisionOptions
from r2mrf_deploy.files import sha256
from r2mrf_deploy.graph import files, precision, quantize
from r2mrf_deploy.manifest import Contract, Preprocess
from r2mrf_deploy.parity import node_search
from r2mrf_deploy.parity.compare import photographs_for, sample_inputs
from r2mrf_deploy.parity.node_search import Drop, Search
from r2mrf_deploy.progress import Progress, ProgressCallback, silent
from r2mrf_deploy.runtimes import Runner

ENOUGH = 20
"""Photographs to calibrate on, under which there is a warning."""
METHOD: Method = "percentile"
EVALUATED = 16
"""Photographs of the calibration that a search for nodes to keep looks at."""
FP16_MARGIN = 0.5
"""Share of FP16's largest number, 65504, over which a tensor counts as overflowing: photographs differ."""


def convert_artifact(
    model: Path | str, output: Path | str, options: PrecisionOptions, *, progress: ProgressCallback = silent
) -> Exported:
    """Reduce the precision of an ONNX artifact.

    Args:
        model: an FP32 ONNX file. Where a manifest lies beside it, the two must match.
        output: the `.onnx` to write.

    Raises:
        InputError: no such model, no photographs, or one that cannot be read.
        UsageError: the graph is not FP32, a name or an option means nothing.
        GraphError: the model is damaged, or has weights that are not finite.
        CheckFailed: `max_drop` cannot be met.
        ArtifactError: the result computes what is not finite, or cannot be written; nothing is written then.
    """
    model, output = Path(model), Path(output)
    if output.suffix != ".onnx":
        raise UsageError(
            f"{output}: a graph of reduced precision ends in .onnx; `r2mrf build` makes other formats from it"
        )
    source = Artifact.open(model)
    if output.resolve() == model.resolve():
        raise UsageError(f"`output` {output} would replace the FP32 graph that it is made from: name another file")
    return reduce_precision(source, output, options, progress)


def reduce_precision(source: Artifact, path: Path, options: PrecisionOptions, progress: ProgressCallback) -> Exported:
    """Write an FP32 ONNX artifact in another precision, compared with it. Raises as `convert_artifact`."""
    graph = files.read(source.path)
    precision.refuse_unless_fp32(graph)
    files.refuse_not_finite(graph)
    if options.precision == "fp32":
        raise UsageError("the graph is FP32 already: set `precision` to fp16, bf16 or int8")
    keep = precision.nodes_of(graph, options.keep)
    job = _Conversion(source, graph, options, progress)
    lowered, search = job.run(keep)
    kept = [*keep, *(k.node for k in search.kept)] if search else keep
    contract = job.contract.model_copy(
        update={
            "source_sha256": sha256(source.path),
            "precision": options.precision,
            "kept": kept,
            "calibration": job.calibration(search),
            "opset": onnx.opset(lowered),
            "tools": job.contract.tools
            | environment.tool_versions("r2mrf-deploy", "onnx", "onnxruntime-gpu", "onnxruntime"),
        }
    )
    check = Check(job.reference, "FP32", progress, photographs=3)
    made = publish(path, lambda file: onnx.write(lowered, contract, file), check)
    return Exported(made, check.parity, "", warnings(job.warnings, check.warnings), search)


class _Conversion:
    """One conversion: the graph, the photographs, and what runs them."""

    def __init__(
        self, source: Artifact, graph: onnx_package.ModelProto, options: PrecisionOptions, progress: ProgressCallback
    ) -> None:
        self.source, self.graph, self.options, self.progress = source, graph, options, progress
        self.contract: Contract = source.contract or onnx.describe(graph)
        self.reference = partial(runtimes.get("onnxruntime").open, source)
        self.warnings: list[str] = []
        self.photographs = 0
        self._feeds: list[dict[str, np.ndarray]] | None = None

    def run(self, keep: list[str]) -> tuple[onnx_package.ModelProto, Search | None]:
        """The graph in the precision asked for. What else has to be kept is added to `keep`."""
        if self.options.precision == "int8":
            return self._int8(keep)
        half: precision.Half = "fp16" if self.options.precision == "fp16" else "bf16"
        if half == "fp16":
            keep += self._overflowing()
        self.progress(Progress("converting"))
        if self.options.max_drop is None:
            return precision.to_half(self.graph, half, keep), None

        def lower(more: Collection[str]) -> onnx_package.ModelProto:
            kept = [*keep, *more]
            return precision.to_half(self.graph, half, [*kept, *precision.carried(self.graph, kept)])

        nodes = [name for name in precision.computing(self.graph) if name not in set(keep)]
        search = self._search(nodes, lower)
        found = [k.node for k in search.kept]
        keep += precision.carried(self.graph, [*keep, *found])
        return lower(found), search

    def _int8(self, keep: list[str]) -> tuple[onnx_package.ModelProto, Search | None]:
        feeds = self.feeds()
        ranges = quantize.calibrate(self.graph, feeds, self.options.method or METHOD, self.progress)
        self.progress(Progress("quantising"))
        if not self.options.quantize_ends:
            keep += quantize.ends(self.graph)
        whole = quantize.quantize(self.graph, ranges)
        able = quantize.quantizable(self.graph)
        if set(able) <= set(keep):
            raise UsageError("nothing is left to quantise: `keep` fewer nodes")
        if self.options.max_drop is None:
            return quantize.restore(whole, self.graph, keep), None
        nodes = [name for name in able if name not in set(keep)]
        search = self._search(nodes, lambda more: quantize.restore(whole, self.graph, [*keep, *more]))
        return quantize.restore(whole, self.graph, [*keep, *(k.node for k in search.kept)]), search

    def calibration(self, search: Search | None) -> dict[str, Any]:
        """What the contract says of it."""
        found: dict[str, Any] = {"photographs": self.photographs} if self.photographs else {}
        if self.options.precision == "int8":
            found["method"] = self.options.method or METHOD
        if search:
            found |= {"max_drop": self.options.max_drop, "drop": {"mae": search.after.mae, "f": search.after.f}}
        return found

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
            self._feeds = self._inputs(self._read(found))
        return self._feeds

    def _read(self, found: Sequence[Path]) -> Iterator[np.ndarray]:
        """Photographs one after another: hundreds of them at their full size do not fit into memory."""
        for number, file in enumerate(found, 1):
            self.progress(Progress("reading photographs", number, len(found)))
            try:
                yield images.read(file)
            except InputError as e:
                raise InputError(f"{e}: remove it from the photographs to calibrate on, or repair it") from None

    def _inputs(self, photographs: Iterable[np.ndarray]) -> list[dict[str, np.ndarray]]:
        with self.reference() as runner:
            name = runner.inputs[0].name
            limit = self.contract.profiles.get(name, {}).get("opt", [])
            preprocess = self.contract.preprocess or Preprocess(mean=(0, 0, 0), std=(1, 1, 1))
            return [{name: array} for array in sample_inputs(runner, preprocess, photographs, limit)]

    def _overflowing(self) -> list[str]:
        self.progress(Progress("looking for overflow"))
        feeds = self._inputs(photographs_for(None)) if self.options.calibration is None else self.feeds()
        found = quantize.overflowing(self.graph, feeds, FP16_MARGIN)
        if found:
            self.warnings.append(
                f"{len(found)} nodes stay in FP32, since FP16 would overflow: {', '.join(found[:3])} ..."
            )
        return found

    def _search(self, nodes: list[str], lower: Callable[[frozenset[str]], onnx_package.ModelProto]) -> Search:
        assert self.options.max_drop is not None
        feeds = self.feeds()
        chosen = feeds[:: max(len(feeds) // EVALUATED, 1)][:EVALUATED]
        computed = "fp32" if self.options.precision == "bf16" else self.options.precision
        runtime = runtimes.nearest(computed)
        described = self.contract.model_copy(update={"precision": computed, "kept": []})
        with self.reference() as reference:
            wanted = _maps(reference, chosen)

        def evaluate(kept: frozenset[str]) -> Drop:
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "trial.onnx"
                # a CPU with BF16 computes all of a graph in it, kept nodes too: it cannot tell what these are worth
                trial = precision.rounded(lower(kept)) if self.options.precision == "bf16" else lower(kept)
                onnx_package.save(trial, file)
                with runtime.open(Artifact(file, contract=described)) as runner:
                    return node_search.drop(_maps(runner, chosen), wanted)

        options = self.options
        subject: dict[str, Any] = {
            "model": sha256(self.source.path),
            "options": [options.precision, options.method or METHOD, options.keep, options.quantize_ends],
            "photographs": [hashlib.sha256(a.tobytes()).hexdigest() for feed in feeds for a in feed.values()],
            "runtime": [runtime.name, runtime.availability().version],
        }
        cache = node_search.EvaluationCache(options.resume, subject)
        bound = Drop(self.options.max_drop, self.options.max_drop)
        return node_search.keep_fewest(nodes, cache.remember(evaluate), bound, self.progress)


def _maps(runner: Runner, feeds: Sequence[dict[str, np.ndarray]]) -> list[np.ndarray]:
    return [runner.run(feed)["map"] for feed in feeds]
