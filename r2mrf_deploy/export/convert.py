"""`r2mrf convert` and `r2mrf export --precision`: an FP32 ONNX artifact becomes an FP16, BF16 or INT8 one."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx as onnx_package

from r2mrf_deploy import environment, images, runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import CheckFailed, GraphError, InputError, UsageError
from r2mrf_deploy.export import onnx
from r2mrf_deploy.export.base import Exported, derived
from r2mrf_deploy.export.check import Check
from r2mrf_deploy.export.options import RECOMMENDED, Method, PrecisionOptions
from r2mrf_deploy.files import sha256
from r2mrf_deploy.graph import files, precision, quantize
from r2mrf_deploy.graph.achieved import Achieved, achieved
from r2mrf_deploy.graph.prepare import prepared
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.parity import node_search
from r2mrf_deploy.parity.compare import photographs_for, sample_inputs
from r2mrf_deploy.parity.node_search import Drop, Search
from r2mrf_deploy.progress import Progress, ProgressCallback, silent, timed
from r2mrf_deploy.wording import count, first

_LOG = logging.getLogger(__name__)
ENOUGH = 20
"""With fewer photographs to calibrate on, there is a warning."""
METHOD: Method = "percentile"
EVALUATED = 16
"""How many of those photographs a search for nodes to keep measures on."""
ENOUGH_REDUCED = 0.9
"""The share of the multiply-adds that must be in the precision asked for, unless kept nodes explain the rest."""
FP16_MARGIN = 0.5
"""A tensor overflows above this share of FP16's largest number, 65504: other photographs may give larger values."""

Lower = Callable[[Collection[str]], onnx_package.ModelProto]
"""Makes the graph of reduced precision in which these nodes are kept."""


def convert_artifact(
    model: Artifact | Path | str,
    output: Path | str,
    options: PrecisionOptions,
    *,
    allow_failed_parity: bool = False,
    progress: ProgressCallback = silent,
) -> Exported:
    """Reduce the precision of an ONNX artifact, and compare the result with it.

    Args:
        model: an FP32 ONNX file. A manifest beside it must match it.
        output: the `.onnx` to write.
        allow_failed_parity: write it also if its maps are further from the FP32 ones than its precision explains; the
            manifest says so.

    Raises:
        InputError: there is no such model, there are no photographs, or one cannot be read.
        UsageError: the graph is not FP32, or a name or an option is invalid.
        GraphError: the model is damaged, or has weights that are not finite.
        CheckFailed: `max_drop` cannot be met, parity fails, or under 90 % of the multiply-adds are in the precision although
            no node is kept. Nothing is written.
        ArtifactError: the file cannot be written.
    """
    options.refuse_uncalibrated()
    output = Path(output)
    if output.suffix != ".onnx":
        raise UsageError(f"{output}: `output` must end in .onnx; `r2mrf build` makes other formats from such a file")
    source = Artifact.open(model)
    if output.resolve() == source.path.resolve():
        raise UsageError(f"`output` {output} would overwrite the FP32 graph that it is made from: name another file")
    graph = files.read(source.path)
    precision.refuse_unless_fp32(graph)
    graph = prepared(graph)
    files.refuse_not_finite(graph)
    if options.precision == "fp32":
        raise UsageError("the graph is FP32 already: set `precision` to fp16, bf16 or int8")
    job = _Conversion(source, graph, options, progress)
    lowered, search = job.run()
    share = job.verified(lowered)
    contract = derived(
        source, job.contract, environment.tool_versions("r2mrf-deploy", "onnx", "onnxruntime-gpu", "onnxruntime"),
        precision=options.precision, share=share, kept=job.keep, calibration=job.calibration(search),
        opset=onnx.opset(lowered),
    )  # fmt: skip
    reference = partial(runtimes.get("onnxruntime").open, source)
    check = Check(reference, "FP32", progress, photographs=3, allow_failed_parity=allow_failed_parity)
    done = check.publish(output, lambda file: onnx.write(lowered, contract, file))
    return replace(done, warnings=(*job.warnings, *done.warnings), search=search)


class _Conversion:
    """One conversion: the graph, the photographs, the nodes to keep, and the warnings that came up."""

    def __init__(
        self, source: Artifact, graph: onnx_package.ModelProto, options: PrecisionOptions, progress: ProgressCallback
    ) -> None:
        self.source, self.graph, self.options, self.progress = source, graph, options, progress
        self.contract: Contract = source.contract or onnx.describe(graph)
        self.keep = precision.nodes_of(graph, options.keep)
        self.method = options.method or METHOD
        self.by_design: list[str] = []
        """The nodes that are never reduced."""
        self.warnings: list[str] = []
        self.photographs = 0

    def run(self) -> tuple[onnx_package.ModelProto, Search | None]:
        """The graph in the precision asked for. Any further nodes that must be kept are added to `keep`."""
        candidates, lower = self._int8() if self.options.precision == "int8" else self._half()
        if self.options.max_drop is None:
            with timed(_LOG, "converted to %s, with %s kept", self.options.precision, count(len(self.keep), "node")):
                return lower(self.keep), None
        kept = set(self.keep)
        search = self._search(
            [name for name in candidates if name not in kept],
            lambda more: lower(self._completed([*self.keep, *more])),
        )
        self.keep = self._completed([*self.keep, *(k.node for k in search.kept)])
        return lower(self.keep), search

    def _half(self) -> tuple[list[str], Lower]:
        """The nodes that can be kept, and what lowers the others."""
        half: precision.Half = "fp16" if self.options.precision == "fp16" else "bf16"
        if half == "fp16":
            self.keep += self._overflowing()
        self.by_design = precision.always_fp32(self.graph, half)
        self.progress(Progress("converting"))
        return precision.computing(self.graph), lambda kept: precision.to_half(self.graph, half, kept)

    def _int8(self) -> tuple[list[str], Lower]:
        """The nodes that can be kept, and what quantises the others."""
        candidates = quantize.quantizable(self.graph)
        if not candidates:
            raise UsageError("the graph has nothing to quantise: no convolution or Gemm with constant weights")
        if not self.options.quantize_ends:
            self.keep += quantize.ends(self.graph)
        if set(candidates) <= set(self.keep):
            raise UsageError("nothing is left to quantise: `keep` fewer nodes")
        self.by_design = quantize.depthwise(self.graph)
        with timed(_LOG, "found ranges by %s", self.method):
            ranges = quantize.calibrate(self.graph, self.feeds, self.method, self.progress)
        self.progress(Progress("quantising"))
        whole = quantize.quantize(self.graph, ranges)
        return candidates, lambda kept: quantize.restore(whole, self.graph, kept)

    def _completed(self, kept: list[str]) -> list[str]:
        """Kept nodes, and in FP16 and BF16 those that only pass on what kept nodes compute."""
        return kept if self.options.precision == "int8" else [*kept, *precision.carried(self.graph, kept)]

    def verified(self, lowered: onnx_package.ModelProto) -> float | None:
        """The share of the multiply-adds that is in the precision by the graph's types; None if it cannot be known.

        Raises:
            CheckFailed: it is too small, and the nodes that were to be kept do not explain it.
        """
        shapes = {name: profile["opt"] for name, profile in self.contract.profiles.items()}
        try:
            found = achieved(lowered, self.options.precision, shapes)
        except GraphError as e:
            self.warnings.append(f"what share of the multiply-adds is reduced is not known: {e}")
            return None
        _refuse_too_little(found, {*self.keep, *self.by_design})
        return round(found.share, 4)

    def calibration(self, search: Search | None) -> dict[str, Any]:
        """What the contract records of the calibration."""
        found: dict[str, Any] = {"photographs": self.photographs} if self.photographs else {}
        if self.options.precision == "int8":
            found["method"] = self.method
        if search:
            found |= {"max_drop": self.options.max_drop, "drop": {"mae": search.after.mae, "f": search.after.f}}
        return found

    @cached_property
    def feeds(self) -> list[dict[str, np.ndarray]]:
        """The photographs to calibrate on, as inputs."""
        assert self.options.calibration is not None
        found = images.find([self.options.calibration])
        self.photographs = len(found)
        if len(found) < ENOUGH:
            self.warnings.append(
                f"calibrated on {count(len(found), 'photograph')}: fewer than {ENOUGH} may not cover the range of later "
                f"images; {RECOMMENDED} are recommended"
            )
        return self._inputs(self._read(found))

    def _read(self, found: Sequence[Path]) -> Iterator[np.ndarray]:
        """Photographs one after another: hundreds at full size do not fit into memory."""
        for number, file in enumerate(found, 1):
            self.progress(Progress("reading photographs", number, len(found)))
            try:
                yield images.read(file)
            except InputError as e:
                raise InputError(f"{e}: remove it from the photographs to calibrate on, or repair it") from None

    def _inputs(self, photographs: Iterable[np.ndarray]) -> list[dict[str, np.ndarray]]:
        spec = self.contract.inputs[0]
        takes_bytes = spec.dtype == "uint8" and spec.shape[3:] == [3]  # which need no word on how
        if len(self.contract.inputs) > 1 or (spec.layout is None and not takes_bytes):
            path = self.source.path
            raise UsageError(f"{path} does not say how its input takes a photograph: run `r2mrf adopt` on it first")
        profile = self.contract.profile(spec.name)
        optimum = {"max": profile["opt"]} if profile else {}
        return [{spec.name: a} for a in sample_inputs(spec, self.contract.preprocess, photographs, optimum)]

    def _overflowing(self) -> list[str]:
        self.progress(Progress("looking for overflow"))
        feeds = self._inputs(photographs_for(None)) if self.options.calibration is None else self.feeds
        found = quantize.overflowing(self.graph, feeds, FP16_MARGIN)
        if found:
            self.warnings.append(f"FP16 would overflow in {count(len(found), 'node')}, kept in FP32: {first(found, 3)}")
        return found

    def _search(self, nodes: Sequence[str], lower: Lower) -> Search:
        options = self.options
        assert options.max_drop is not None
        feeds = self.feeds[:: max(len(self.feeds) // EVALUATED, 1)][:EVALUATED]
        described = self.contract.model_copy(update={"precision": options.precision})
        evaluate = node_search.trials(self.graph, described, feeds, lower)
        runtime = node_search.evaluator(options.precision)
        subject: dict[str, Any] = {
            "model": sha256(self.source.path),
            "options": [options.precision, self.method, options.keep, options.quantize_ends],
            "weight_bits": quantize.WEIGHT_BITS,
            "photographs": [hashlib.sha256(a.tobytes()).hexdigest() for feed in self.feeds for a in feed.values()],
            "runtime": [runtime.name, runtime.availability().version],
        }
        evaluate = node_search.resumable(evaluate, options.resume, subject)
        return node_search.keep_fewest(nodes, evaluate, Drop(options.max_drop, options.max_drop), self.progress)


def _refuse_too_little(found: Achieved, meant: Collection[str]) -> None:
    """Refuse a graph of which too little is in its precision.

    Args:
        meant: the nodes that were to stay in another one.
    """
    if not found.multiply_adds:
        raise UsageError(f"the graph has no convolution and no matrix product to compute in {found.precision.upper()}")
    missed = found.unexplained(meant)
    if sum(missed.values()) > (1 - ENOUGH_REDUCED) * found.multiply_adds:
        raise CheckFailed(
            f"only {found.share:.0%} of the multiply-adds would be in {found.precision.upper()}: the precision of "
            f"{count(len(missed), 'node')} ({first(missed, 3)}) cannot be changed; run `r2mrf optimize` first, which turns "
            "computed weights into constants, or name these nodes in `keep` if they are to stay"
        )
