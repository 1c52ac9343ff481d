"""The ranges of a graph's tensors over photographs, one photograph in memory at a time.

The rules are those of ONNX Runtime's calibrators, which run the graph without optimisations, so do we: the ranges are equal
to the bit. They differ in the cost. The extremes are reduced in the graph, on the runtime's threads. Histograms are of those
tensors alone that are asked for, each is read once, by several threads, and counted only as far as the result depends on it:

- A percentile of 99.999 depends on the largest values. Once enough of them are known, no smaller one can be the result,
  however many follow; they are only compared. (Where the share of 99.999 % ends exactly between two bins, ONNX Runtime's
  choice between them depends on how its sums were rounded. Only then can ours be another, of the same share.)
- The entropy depends on all values. Numpy's histogram finds each bin twice, to round correctly; this one looks again only
  at values near an edge.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, Protocol

import numpy as np
import onnx

from r2mrf_deploy import environment
from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph.part import part, reads
from r2mrf_deploy.progress import no_stdout

Feed = Mapping[str, np.ndarray]
Range = tuple[np.ndarray, np.ndarray]
"""The lowest and the highest value, float32 []."""
Told = Callable[[int], None]
"""Called with the number of photographs that are done."""

PERCENTILE = 99.999
_BINS = {"percentile": 2048, "entropy": 128}
"""ONNX Runtime's numbers of bins, to begin with."""
_LEVELS = 128
"""The values of 8 bits, as its entropy method counts them."""
_PIECE = 1 << 14
"""Values that are worked on at once: few enough to stay in a core's cache."""


def extremes(model: onnx.ModelProto, names: Collection[str], feeds: Sequence[Feed], told: Told) -> dict[str, Range]:
    """The smallest and the largest value of each of these tensors; NaN where one of its values is."""
    names = list(names)
    if not names:
        return {}
    reduced = part(model, names)
    taken = {name for node in reduced.graph.node for name in (*reads(node), *node.output)} | {*names}
    del reduced.graph.output[:]
    for number, name in enumerate(names):
        for operator in ("ReduceMin", "ReduceMax", "ReduceSum"):  # only the sum tells of NaN
            output = f"{operator}/{number}"
            while output in taken:
                output += "'"
            reduced.graph.node.append(onnx.helper.make_node(operator, [name], [output]))
            reduced.graph.output.append(onnx.ValueInfoProto(name=output))
    session = _session(reduced)
    lows, highs = np.full(len(names), np.inf, np.float32), np.full(len(names), -np.inf, np.float32)
    for number, feed in enumerate(feeds, 1):
        found = np.array([value.item() for value in session.run(None, _read(session, feed))], np.float32)
        nan = np.where(np.isnan(found[2::3]), found[2::3], np.float32(0))
        lows, highs = np.minimum(lows, found[::3] + nan), np.maximum(highs, found[1::3] + nan)
        told(number)
    return {name: (low, high) for name, low, high in zip(names, map(np.array, lows), map(np.array, highs), strict=True)}


def by_histogram(
    model: onnx.ModelProto,
    names: Collection[str],
    feeds: Sequence[Feed],
    method: Literal["percentile", "entropy"],
    told: Told,
) -> dict[str, Range]:
    """The range of each of these tensors that a method finds in the histogram of its values.

    Raises:
        GraphError: a tensor has values that are not finite.
    """
    names = list(names)
    if not names:
        return {}
    photographs = _foreseen(feeds)
    counted: dict[str, Counted] = {name: Whole() if method == "entropy" else Tail(photographs) for name in names}
    _count(model, counted, feeds, told)
    if any(isinstance(tail, Tail) and tail.missed for tail in counted.values()):
        counted = {name: Tail(np.inf) for name in names}  # counts all
        _count(model, counted, feeds, told)
    return _chosen({name: one.histogram for name, one in counted.items()}, method)


def not_finite(name: str) -> GraphError:
    """The error of a tensor that has no range."""
    return GraphError(
        f"{name} has values that are not finite, so the graph cannot be calibrated: check the weights and the photographs"
    )


def _foreseen(feeds: Sequence[Feed]) -> float:
    """A bound on the values of all photographs, in those of the first. Tensors grow with the photographs, but not exactly in
    proportion: twice is safe."""
    sizes = [sum(array.size for array in feed.values()) for feed in feeds]
    return 2 * sum(sizes) / sizes[0]


def _session(model: onnx.ModelProto) -> Any:
    """A session that computes every node as it is, like ONNX Runtime's calibrators."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 4  # exceptions say it too
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _read(session: Any, feed: Feed) -> Feed:
    """The inputs that are left in a part of the graph."""
    return {i.name: feed[i.name] for i in session.get_inputs()}


def _count(model: onnx.ModelProto, counted: Mapping[str, Counted], feeds: Sequence[Feed], told: Told) -> None:
    """Count the values of the tensors on photographs, each tensor by one thread."""
    inputs = {v.name for v in model.graph.input}
    computed = [name for name in counted if name not in inputs]
    session = _session(part(model, computed)) if computed else None
    with ThreadPoolExecutor(environment.cores()) as pool:
        for number, feed in enumerate(feeds, 1):
            found = dict(zip(computed, session.run(computed, _read(session, feed)), strict=True)) if session else {}

            def add(name: str, found: dict[str, np.ndarray] = found, feed: Feed = feed) -> None:
                values = found.pop(name) if name in found else feed[name]  # freed as soon as it is counted
                try:
                    counted[name].add(values.reshape(-1))
                except FloatingPointError:
                    raise not_finite(name) from None

            list(pool.map(add, list(counted)))
            told(number)


def _chosen(histograms: Mapping[str, tuple[Any, ...]], method: Literal["percentile", "entropy"]) -> dict[str, Range]:
    """What ONNX Runtime makes of histograms."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    bins = _BINS[method]
    collector = HistogramCollector(method, True, bins, _LEVELS, PERCENTILE, "same")
    collector.histogram_dict = dict(histograms)
    with no_stdout():  # it prints its progress
        found = collector.compute_collection_result()
    return {name: (np.array(low, np.float32), np.array(high, np.float32)) for name, (low, high, *_) in found.items()}


class Counted(Protocol):
    """A histogram of a tensor's values, that grows."""

    def add(self, values: np.ndarray) -> None:
        """Add the values of one photograph, float32 [n].

        Raises:
            FloatingPointError: one is not finite.
        """

    @property
    def histogram(self) -> tuple[Any, ...]:
        """As ONNX Runtime's `HistogramCollector` keeps it."""


class Tail:
    """The largest absolute values, in the bins that ONNX Runtime's percentile calibrator would use.

    The bins are fixed by the first photograph; larger values of later ones add bins of the same width. Bins below `_floor`
    are not counted one by one: there are so many values above it already that the percentile is above it too.
    """

    def __init__(self, photographs: float) -> None:
        """
        Args:
            photographs: a bound on the number of values of all photographs, in those of the first; infinite: count all.
        """
        self._photographs = photographs
        self._edges = self._counts = np.empty(0)
        self._floor = 0  # the first bin that is counted
        self._total = 0
        self._enough = np.inf
        self._low, self._high = np.float32(np.inf), np.float32(-np.inf)

    def add(self, values: np.ndarray) -> None:
        if not values.size:
            return
        low, high = _bounds(values)
        self._low, self._high = np.fmin(self._low, low), np.fmax(self._high, high)
        if not self._edges.size:
            self._begin(values, low, high)
        else:
            self._widen(np.fmax(abs(low), abs(high)))
            kept = _largest(values, self._edges[self._floor])
            counts, _ = np.histogram(kept, bins=self._edges[self._floor :])
            self._counts[self._floor :] += counts
            # of those that are not kept, the bins begin above some, and may end below the largest by a rounding
            below = values.size - len(kept) if self._floor == 0 else _below(values, self._edges[0], low)
            self._total += values.size - below - (len(kept) - int(counts.sum()))
            self._edges = self._edges.astype(np.float32)
        self._raise_floor()

    def _begin(self, values: np.ndarray, low: np.float32, high: np.float32) -> None:
        smallest = low if low >= 0 else min(float(np.abs(p).min()) for p in _pieces(values))
        span = (np.float32(smallest), np.fmax(abs(low), abs(high)))
        self._enough = values.size * self._photographs * (1 - PERCENTILE / 100) + 1
        floor = _guess(values, self._enough / values.size)
        kept = _largest(values, floor)
        if len(kept) < self._enough:
            floor, kept = np.float32(0), _largest(values, np.float32(0))
        self._counts, self._edges = np.histogram(kept, bins=_BINS["percentile"], range=span)
        self._edges = self._edges.astype(np.float32)
        self._total = values.size
        if floor > self._edges[0]:
            self._floor = min(int(np.searchsorted(self._edges, floor)), len(self._counts) - 1)
            if self._counts[self._floor :].sum() < self._enough:  # its bin is cut in two
                self._floor = 0
                self._counts, _ = np.histogram(_largest(values, np.float32(0)), bins=len(self._counts), range=span)

    def _widen(self, largest: np.float32) -> None:
        if largest > self._edges[-1]:
            width = self._edges[1] - self._edges[0]
            more = np.arange(self._edges[-1] + width, largest + width, width)
            self._edges = np.hstack((self._edges, more))  # float64: ONNX Runtime counts before it rounds
            self._counts = np.concatenate((self._counts, np.zeros(len(more), self._counts.dtype)))

    def _raise_floor(self) -> None:
        above = np.cumsum(self._counts[self._floor :][::-1])[::-1]
        self._floor += max(int(np.count_nonzero(above >= self._enough)) - 1, 0)

    @property
    def missed(self) -> bool:
        """Whether the percentile may be below what was counted: there were more values than was foreseen."""
        return self._floor > 0 and self._counts[self._floor :].sum() <= self._total * (1 - PERCENTILE / 100)

    @property
    def histogram(self) -> tuple[Any, ...]:
        counts = self._counts.copy()
        if self._floor:
            counts[: self._floor] = 0
            counts[self._floor - 1] = self._total - counts.sum()
        return counts, self._edges, self._low, self._high


class Whole:
    """All values, in the bins that ONNX Runtime's entropy calibrator would use: symmetric about 0, and more of the same
    width where a later photograph has larger values."""

    def __init__(self) -> None:
        self._threshold = np.float32(0)
        self._counts = self._edges = np.empty(0)
        self._low, self._high = np.float32(np.inf), np.float32(-np.inf)

    def add(self, values: np.ndarray) -> None:
        low, high = _bounds(values) if values.size else (np.float32(0), np.float32(0))
        largest = np.fmax(abs(low), abs(high))
        bins, more = len(self._counts) or _BINS["entropy"], 0
        if largest > self._threshold:
            if self._threshold == 0:
                self._threshold = largest
            else:
                width = 2 * self._threshold / bins
                more = int((largest - self._threshold) // width + 1)
                self._threshold = more * width + self._threshold
            bins += 2 * more
        _, edges = np.histogram(values[:0], bins, range=(-self._threshold, self._threshold))
        counts = _binned(values, edges)
        if self._counts.size:
            counts[more : bins - more] += self._counts
        self._counts, self._edges = counts, edges
        self._low, self._high = np.fmin(self._low, low), np.fmax(self._high, high)

    @property
    def histogram(self) -> tuple[Any, ...]:
        return self._counts, self._edges, self._low, self._high, self._threshold


def _pieces(values: np.ndarray) -> Iterator[np.ndarray]:
    return (values[start : start + _PIECE] for start in range(0, values.size, _PIECE))


def _bounds(values: np.ndarray) -> tuple[np.float32, np.float32]:
    low, high = np.float32(values.min()), np.float32(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise FloatingPointError
    return low, high


def _largest(values: np.ndarray, floor: np.float32) -> np.ndarray:
    """The absolute values that are not below `floor`."""
    sizes = map(np.abs, _pieces(values))
    return np.concatenate([s[s >= floor] for s in sizes])


def _below(values: np.ndarray, edge: np.float32, low: np.float32) -> int:
    """How many absolute values are below an edge."""
    return 0 if edge <= np.fmax(low, 0) else sum(int(np.count_nonzero(np.abs(p) < edge)) for p in _pieces(values))


def _guess(values: np.ndarray, share: float) -> np.float32:
    """A number that more than this share of the absolute values exceed, most probably: by a sample of them."""
    sample = np.abs(values[:: max(values.size // _PIECE, 1)])
    rank = 2 * share * sample.size + 16
    return np.float32(0) if rank >= sample.size else np.partition(sample, -int(rank))[-int(rank)]


def _binned(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """`np.histogram(values, edges)` for edges of equal distance."""
    bins = len(edges) - 1
    first, last = edges[0], edges[-1]
    scale = np.float32(bins / (float(last) - float(first)))
    # The place of a value is rounded three times, and so is an edge: by 6e-8 of up to `bins` each time.
    doubtful = np.float32(bins * 2.0**-20)
    found = np.zeros(bins + 2, np.intp)  # below the first edge, the bins, above the last
    for piece in _pieces(values):
        place = (piece - first) * scale
        near = np.abs(place - np.rint(place)) < doubtful
        zero = piece == 0  # of which there may be many, and the edge in the middle is near
        near &= ~zero
        place += 1
        index = place.astype(np.intp)
        if near.any():
            index[near] = _bin_of(piece[near], edges)
        found += np.bincount(index, minlength=bins + 2)
        if zeros := int(np.count_nonzero(zero)):
            found[index[zero.argmax()]] -= zeros
            found[_bin_of(np.zeros(1, np.float32), edges)] += zeros
    return found[1:-1]


def _bin_of(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """The number of the bin of each value, counted from 1; the last bin includes its end."""
    index = np.searchsorted(edges, values, side="right")
    index[values == edges[-1]] = len(edges) - 1
    return index
