"""Find the fewest nodes that must keep their precision so that the loss of accuracy stays within a bound.

The search assumes that keeping more nodes in floating point never makes a map worse. It first tries whole scopes of the
network; then it gives up nodes of the scopes that are needed, in ever smaller groups, until no single remaining node can
be given up (delta debugging: Zeller and Hildebrandt, IEEE TSE 28(2), 2002).
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import onnx

from r2mrf_deploy import runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import CheckFailed
from r2mrf_deploy.files import scratch
from r2mrf_deploy.graph import naming, precision
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.metrics import agreement
from r2mrf_deploy.parity.measurements import Measurements
from r2mrf_deploy.parity.pieces import BOUND, Pieces
from r2mrf_deploy.progress import Progress, ProgressCallback, silent
from r2mrf_deploy.runtimes.base import Arrays, Runner, Runtime
from r2mrf_deploy.wording import count


@dataclass(frozen=True)
class Drop:
    """How far maps in reduced precision are from the FP32 maps, over a set of photographs."""

    mae: float
    """Mean absolute difference."""
    f: float
    """1 - F (β² = 0.3) of one map at 0.5 against the other at 0.5, averaged over the photographs."""

    def within(self, bound: Drop) -> bool:
        return self.mae <= bound.mae and self.f <= bound.f

    def __str__(self) -> str:
        return f"MAE {self.mae:.4f}, F {-self.f:+.4f}"


@dataclass(frozen=True)
class Kept:
    """A node that keeps its precision, and why."""

    node: str
    scope: str
    without: Drop
    """The drop if, of the kept nodes, only this one were given up."""


@dataclass(frozen=True)
class Search:
    """The result of a search."""

    kept: tuple[Kept, ...]
    before: Drop
    """With no node kept."""
    after: Drop
    evaluations: int


Evaluate = Callable[[frozenset[str]], Drop]
"""The drop of the graph in which these nodes keep their precision."""


def evaluator(computed: str) -> Runtime:
    """The runtime that computes maps. BF16 is emulated in FP32, since CPUs with BF16 compute kept nodes in it too."""
    return runtimes.nearest("fp32" if computed == "bf16" else computed)


def trials(
    original: onnx.ModelProto,
    contract: Contract,
    feeds: Sequence[Arrays],
    lower: Callable[[frozenset[str]], onnx.ModelProto],
    bound: int = BOUND,
) -> Evaluate:
    """Evaluate nodes by the maps of `lower(nodes)`, of the contract's precision, against those of the FP32 original.

    Trials share what they have in common (see `pieces`). What is open is closed once nobody holds the result any longer.

    Args:
        feeds: inputs, one photograph each.
        lower: makes the graph in which these nodes keep their precision. Other nodes and tensors keep their names.
        bound: how many bytes of activations trials may share; 0: none. In FP16 they share none: ONNX Runtime emulates it
            on a CPU without rounding everywhere, so that a piece by itself computes something else.
    """
    fp32 = contract.model_copy(update={"precision": "fp32"})
    with closing(Pieces(original, feeds, partial(_opened, fp32), bound=0)) as whole:
        wanted = whole.maps(original)
    emulated = contract.precision == "bf16"
    bound = 0 if contract.precision == "fp16" else bound
    shared = Pieces(original, feeds, partial(_opened, fp32 if emulated else contract), bound=bound)

    def evaluate(kept: frozenset[str]) -> Drop:
        graph = lower(kept)
        return drop(shared.maps(precision.rounded(graph) if emulated else graph), wanted)

    weakref.finalize(evaluate, shared.close)
    return evaluate


def _opened(contract: Contract, graph: onnx.ModelProto) -> Runner:
    with scratch() as folder:
        file = folder / "trial.onnx"
        onnx.save(graph, file)
        return evaluator(contract.precision).open(Artifact(file, contract=contract))


def drop(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> Drop:
    """Compare maps, float [..., H, W], with the FP32 ones."""
    mae = [float(np.abs(a.astype(np.float64) - b).mean()) for a, b in zip(found, wanted, strict=True)]
    f = [agreement(a, b) for a, b in zip(found, wanted, strict=True)]
    return Drop(float(np.mean(mae)), 1 - float(np.mean(f)))


def keep_fewest(nodes: Sequence[str], evaluate: Evaluate, bound: Drop, progress: ProgressCallback = silent) -> Search:
    """Find as few of `nodes` to keep as possible, so that the drop is within a bound.

    Raises:
        CheckFailed: the drop exceeds the bound even with all nodes kept.
    """
    parts: dict[str, list[str]] = {}
    for node in nodes:
        parts.setdefault(naming.scope(node), []).append(node)
    tries, expected = 0, 3 + len(parts) + (len(parts) - 1).bit_length() + _passes(len(nodes))

    def tried(what: str, kept: Collection[str]) -> Drop:
        nonlocal tries
        tries += 1
        found = evaluate(frozenset(kept))
        kept_of = f"{len(kept)} of {count(len(nodes), 'node')} kept"
        total = tries if what == "the rest" else max(expected, tries + 1)
        progress(Progress(f"searching ({what}): {kept_of}, {found}", tries, total))
        return found

    before = tried("nothing", ())
    if before.within(bound):
        return Search((), before, before, tries)
    if not (least := tried("everything", nodes)).within(bound):
        raise CheckFailed(
            f"the map still differs ({least}) with every node, {len(nodes):,} in all, in higher precision: "
            "the bound cannot be met"
        )
    drops = {scope: tried(scope, members) for scope, members in parts.items()}
    best_first = sorted(parts, key=lambda scope: drops[scope].mae + drops[scope].f)
    kept = _enough([parts[scope] for scope in best_first], tried, bound)
    expected = tries + _passes(len(kept)) + 1
    kept, without = _fewest(kept, tried, bound)
    explained = tuple(Kept(node, naming.scope(node), without[node]) for node in kept)
    return Search(explained, before, tried("the rest", kept), tries)


Tried = Callable[[str, Collection[str]], Drop]
"""Takes a description of a trial, and the nodes kept in it; returns the drop."""


def _passes(nodes: int) -> int:
    """The evaluations of `_fewest` if no node can be given up: one pass for each group size."""
    sizes = [max(nodes // 2, 1)]
    while sizes[-1] > 1:
        sizes.append(sizes[-1] // 2)
    return sum(-(-nodes // size) for size in sizes)


def _enough(parts: list[list[str]], tried: Tried, bound: Drop) -> list[str]:
    """The nodes of the first parts that suffice, by bisection; all of them are known to suffice."""
    low, high = 0, len(parts)
    while high - low > 1:
        middle = (low + high) // 2
        enough = tried("fewer parts", list(chain.from_iterable(parts[:middle]))).within(bound)
        low, high = (low, middle) if enough else (middle, high)
    return list(chain.from_iterable(parts[:high]))


def _fewest(kept: list[str], tried: Tried, bound: Drop) -> tuple[list[str], dict[str, Drop]]:
    """Give up nodes in ever smaller groups. Returns the remaining nodes and the drop without each."""
    size = max(len(kept) // 2, 1)
    without: dict[str, Drop] = {}
    while True:
        given_up = False
        for start in reversed(range(0, len(kept), size)):
            rest = kept[:start] + kept[start + size :]
            found = tried("fewer nodes", rest)
            if found.within(bound):
                kept, given_up = rest, True
            elif size == 1:
                without[kept[start]] = found
        if size == 1 and not given_up:
            return kept, without
        size = max(size // 2, 1)


def resumable(evaluate: Evaluate, file: Path | None, subject: Mapping[str, object]) -> Evaluate:
    """Wrap `evaluate` so that a set of kept nodes is evaluated only once, even if a search is interrupted.

    Args:
        file: stores the evaluations; None stores nothing.
        subject: identifies the model and the options.

    Raises:
        InputError: the file is damaged, or it has another subject.
    """
    measured: Measurements[Drop] = Measurements(file, subject, Drop)

    def known(kept: frozenset[str]) -> Drop:
        return measured.get(hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest(), lambda: evaluate(kept))

    return known
