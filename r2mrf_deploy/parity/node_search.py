"""Find the fewest nodes that must keep their precision so that the loss of accuracy stays within a bound.

The search assumes that keeping more nodes in floating point never makes a map worse. It first tries whole scopes of the
network; then it gives up nodes of the scopes that are needed, in ever smaller groups, until no single remaining node can
be given up (delta debugging: Zeller and Hildebrandt, IEEE TSE 28(2), 2002).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from r2mrf_deploy.errors import CheckFailed, InputError
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.graph import naming
from r2mrf_deploy.metrics import agreement
from r2mrf_deploy.progress import Progress, ProgressCallback, silent


@dataclass(frozen=True)
class Drop:
    """The distance of maps in reduced precision from the FP32 ones, over a set of photographs."""

    mae: float
    """Mean absolute difference."""
    f: float
    """1 - F (β² = 0.3) of one map at 0.5 against the other at 0.5, averaged over the photographs."""

    def within(self, bound: Drop) -> bool:
        return self.mae <= bound.mae and self.f <= bound.f

    @property
    def sum(self) -> float:
        """Orders drops."""
        return self.mae + self.f

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


def drop(found: Sequence[np.ndarray], wanted: Sequence[np.ndarray]) -> Drop:
    """Compare maps, float [..., H, W], with the FP32 ones."""
    mae = [float(np.abs(a.astype(np.float64) - b).mean()) for a, b in zip(found, wanted, strict=True)]
    f = [agreement(a, b) for a, b in zip(found, wanted, strict=True)]
    return Drop(float(np.mean(mae)), 1 - float(np.mean(f)))


def keep_fewest(nodes: Sequence[str], evaluate: Evaluate, bound: Drop, progress: ProgressCallback = silent) -> Search:
    """Find as few nodes to keep as possible, so that the drop is within a bound.

    Args:
        nodes: candidates to be kept.
        evaluate: the drop for a set of kept nodes.
        bound: the drop that is allowed.
        progress: called after each evaluation.

    Raises:
        CheckFailed: the drop exceeds the bound even with all nodes kept.
    """
    count = 0

    def tried(what: str, kept: Collection[str], left: int) -> Drop:
        nonlocal count
        count += 1
        found = evaluate(frozenset(kept))
        kept_of = f"{len(kept)} of {len(nodes)} nodes kept"
        progress(Progress(f"searching ({what}): {kept_of}, {found}", count, count + left))
        return found

    parts: dict[str, list[str]] = {}
    for node in nodes:
        parts.setdefault(naming.scope(node), []).append(node)
    later = _bisections(len(parts)) + _passes(len(nodes)) + 1
    before = tried("nothing", (), 1 + len(parts) + later)
    if before.within(bound):
        return Search((), before, before, count)
    if not (least := tried("everything", nodes, len(parts) + later)).within(bound):
        raise CheckFailed(
            f"with all {len(nodes)} nodes in higher precision the map still differs ({least}): the bound cannot be met"
        )
    helps = {
        scope: tried(scope, members, len(parts) - number + later).sum
        for number, (scope, members) in enumerate(parts.items(), 1)
    }
    kept = _enough([parts[scope] for scope in sorted(parts, key=helps.__getitem__)], tried, bound)
    kept, without = _fewest(kept, tried, bound)
    found = tuple(Kept(node, naming.scope(node), without[node]) for node in kept)
    return Search(found, before, tried("the rest", kept, 0), count)


Tried = Callable[[str, Collection[str], int], Drop]
"""The drop with some nodes kept; it also takes a description and the least number of evaluations still to come."""


def _bisections(parts: int) -> int:
    return (parts - 1).bit_length()


def _passes(nodes: int, size: int | None = None) -> int:
    """The evaluations of `_fewest` where no node can be given up: one pass per group size."""
    size = max(nodes // 2, 1) if size is None else size
    return -(-nodes // size) + (_passes(nodes, size // 2) if size > 1 else 0)


def _enough(parts: list[list[str]], tried: Tried, bound: Drop) -> list[str]:
    """The shortest prefix of a list of parts that suffices, by bisection; the whole list is known to suffice."""
    low, high = 0, len(parts)
    while high - low > 1:
        middle = (low + high) // 2
        left = _bisections(max(middle - low, high - middle)) + _passes(sum(map(len, parts[:high]))) + 1
        enough = tried(f"{middle} parts", [n for part in parts[:middle] for n in part], left).within(bound)
        low, high = (low, middle) if enough else (middle, high)
    return [n for part in parts[:high] for n in part]


def _fewest(kept: list[str], tried: Tried, bound: Drop) -> tuple[list[str], dict[str, Drop]]:
    """Give up nodes in ever smaller groups. Returns the remaining nodes and the drop without each."""
    size = max(len(kept) // 2, 1)
    without: dict[str, Drop] = {}
    while True:
        given_up = False
        for start in reversed(range(0, len(kept), size)):
            rest = kept[:start] + kept[start + size :]
            left = start // size + (_passes(len(kept), size // 2) if size > 1 else 0) + 1
            found = tried("fewer nodes", rest, left)
            if found.within(bound):
                kept, given_up = rest, True
            elif size == 1:
                without[kept[start]] = found
        if size == 1 and not given_up:
            return kept, without
        size = max(size // 2, 1)


class EvaluationCache:
    """Evaluations kept in a file, so that an interrupted search can resume.

    Args:
        file: None stores nothing.
        subject: identifies the model and options; a file with another subject is refused.
    """

    def __init__(self, file: Path | None, subject: Mapping[str, object]) -> None:
        self._file = file
        self._subject = hashlib.sha256(json.dumps(subject, sort_keys=True, default=str).encode()).hexdigest()
        self._drops: dict[str, Drop] = {}
        if file is not None and file.exists():
            try:
                written = json.loads(file.read_text())
                subject_then, drops = written["subject"], {k: Drop(**v) for k, v in written["drops"].items()}
            except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
                raise InputError(f"{file} is not a stored search ({e}): delete it") from None
            if subject_then != self._subject:
                raise InputError(
                    f"{file} belongs to another model, calibration or option: delete it, or name another file"
                )
            self._drops = drops

    def remember(self, evaluate: Evaluate) -> Evaluate:
        """Wrap `evaluate` so that it is only called for sets that are not known."""

        def known(kept: frozenset[str]) -> Drop:
            key = hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()
            if key not in self._drops:
                self._drops[key] = evaluate(kept)
                if self._file is not None:
                    content = {"subject": self._subject, "drops": {k: asdict(v) for k, v in self._drops.items()}}
                    write_atomically(self._file, json.dumps(content).encode())
            return self._drops[key]

        return known
