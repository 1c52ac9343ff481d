"""The maps of many variants of one graph, computed piece by piece, so that what variants have in common is computed once.

A search for nodes to keep tries hundreds of graphs that differ in the precision of a few nodes. The FP32 graph that they
are made from is cut where few bytes cross, into pieces of about the same work. A variant's piece that computes the same
from the same as another variant's has the same outputs: these are kept, for each photograph, and so is the opened piece. A
trial therefore begins at the first piece that differs, and opens only pieces that are new. What is kept is bounded; what
was used longest ago is given up first, and computed again when it is needed.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import onnx
import onnx_ir as ir

from r2mrf_deploy.errors import GraphError
from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.inference import infer
from r2mrf_deploy.graph.part import part
from r2mrf_deploy.runtimes.base import Arrays, Runner

MAP = "map"
PIECES = 8
"""More pieces let a trial begin nearer to what it changes; each costs a copy of what crosses its ends."""
BOUND = 1 << 30
"""The bytes of outputs that are kept, of all photographs together."""

_SEPARATE = frozenset({"Concat", "Split", "Slice", "Reshape", "Transpose"})
"""Operators that runtimes do not fuse with what computes their inputs, or reads their outputs."""

Open = Callable[[onnx.ModelProto], Runner]


@dataclass(frozen=True)
class Piece:
    """What a variant computes between two cuts."""

    graph: onnx.ModelProto
    """Without the types of the tensors that other pieces compute."""
    content: bytes
    """A hash of the nodes and weights."""
    key: bytes
    """A hash of this content and of that of all pieces before it: equal keys, equal outputs."""
    reads: dict[str, int]
    """The inputs that other pieces compute, and the numbers of these pieces."""


def cuts(model: onnx.ModelProto, feeds: Sequence[Arrays], bound: int = BOUND) -> list[list[str]]:
    """Where to cut a graph on the way to its map: for each cut, the tensors that cross it.

    A cut parts no nodes that a runtime fuses: a fused chain rounds its values less often.
    None where the photographs differ in size, since pieces are opened for one size, or where sizes are not known.

    Args:
        bound: the tensors of two variants, for all photographs, take no more bytes than this.
    """
    shapes = [{name: array.shape for name, array in feed.items()} for feed in feeds]
    if not bound or any(other != shapes[0] for other in shapes):
        return []
    try:
        loaded, types = infer(part(model, [MAP]), shapes[0])
    except GraphError:
        return []
    nodes = list(loaded.graph)
    work = np.cumsum([cost.node_cost(node, types).effort for node in nodes])
    crossing = _crossing(nodes)
    sizes = [sum(types[value].nbytes for value in values) for values in crossing]
    found: set[int] = set()
    for number in range(1, PIECES):
        here = [i for i, done in enumerate(work[:-1]) if abs(done / work[-1] * PIECES - number) <= 0.5]
        near = [i for i in here if not any(map(_fused, crossing[i]))]
        if near:
            found.add(min(near, key=lambda i: sizes[i]))
    while found and 2 * len(feeds) * sum(types[v].nbytes for v in {v for i in found for v in crossing[i]}) > bound:
        found.remove(max(found, key=lambda i: sizes[i]))
    return [[value.name or "" for value in crossing[i]] for i in sorted(found)]


def _fused(value: ir.Value) -> bool:
    """Whether a runtime may fuse the node that makes a tensor with the one that reads it."""
    maker, readers = value.producer(), value.consumers()
    return len(readers) == 1 and not {maker and maker.op_type, readers[0].op_type} & _SEPARATE


def _crossing(nodes: Sequence[ir.Node]) -> list[list[ir.Value]]:
    """For each node, the tensors that it or an earlier one computes and a later one reads."""
    last = {value: i for i, node in enumerate(nodes) for value in node.inputs if value is not None}
    found: list[list[ir.Value]] = []
    alive: list[ir.Value] = []
    for i, node in enumerate(nodes):
        alive = [value for value in (*alive, *node.outputs) if last.get(value, -1) > i]
        found.append(alive)
    return found


class Pieces:
    """Computes the maps of variants of a graph."""

    def __init__(self, original: onnx.ModelProto, feeds: Sequence[Arrays], open_: Open, *, bound: int = BOUND) -> None:
        """
        Args:
            original: the FP32 graph that the variants are made from.
            feeds: its inputs, one photograph each.
            open_: opens a graph.
            bound: as for `cuts`; 0: every variant is computed whole.
        """
        self._feeds, self._open = feeds, open_
        self._cuts = cuts(original, feeds, bound)
        self._outputs = _Recent[tuple[bytes, int], Arrays](bound, lambda arrays: sum(a.nbytes for a in arrays.values()))
        # of a variant that is computed whole, nothing serves another one
        opened = 4 * (len(self._cuts) + 1) if self._cuts else 1
        self._runners = _Recent[bytes, Runner](opened, lambda _: 1, lambda runner: runner.close())
        self.computed = 0
        """How many pieces have been computed, each for one photograph."""

    def close(self) -> None:
        """Close the pieces that are open, and forget their outputs."""
        self._runners.clear()
        self._outputs.clear()

    def maps(self, variant: onnx.ModelProto) -> list[np.ndarray]:
        """The map of each photograph, float [..., H, W].

        Args:
            variant: the original with other precisions; its nodes and tensors keep their names.
        """
        pieces, photographs = self.split(variant), range(len(self._feeds))
        missing = [self._missing(pieces, photograph) for photograph in photographs]
        for number in range(
            len(pieces) - 1
        ):  # by pieces, because a runtime's threads stay awake for a while after a run
            for photograph in photographs:
                if number in missing[photograph]:
                    self._outputs_of(pieces, number, photograph)
        return [self._outputs_of(pieces, len(pieces) - 1, photograph)[MAP] for photograph in photographs]

    def _missing(self, pieces: Sequence[Piece], photograph: int) -> set[int]:
        """The pieces that have to be computed for the map of a photograph."""
        found, wanted = set[int](), [len(pieces) - 1]
        while wanted:
            number = wanted.pop()
            if number not in found and self._outputs.get((pieces[number].key, photograph)) is None:
                found.add(number)
                wanted += pieces[number].reads.values()
        return found

    def split(self, variant: onnx.ModelProto) -> list[Piece]:
        """A variant cut where the original was."""
        computed = {output for node in variant.graph.node for output in node.output}
        whose: dict[str, int] = {}
        pieces: list[Piece] = []
        for outputs in (*self._cuts, [MAP]):
            if new := [name for name in outputs if name in computed and name not in whose]:
                graph = part(variant, new, whose)
                reads = {v.name: whose[v.name] for v in graph.graph.input if v.name in whose}
                content = _content(graph)
                key = hashlib.sha256(content + b"".join(pieces[i].key for i in reads.values())).digest()
                pieces.append(Piece(graph, content, key, reads))
                whose |= dict.fromkeys(new, len(pieces) - 1)
        return pieces

    def _outputs_of(self, pieces: Sequence[Piece], number: int, photograph: int) -> Arrays:
        piece = pieces[number]
        known = self._outputs.get((piece.key, photograph))
        if known is None:
            feed, inputs = self._feeds[photograph], piece.graph.graph.input
            arrays = {v.name: feed[v.name] for v in inputs if v.name not in piece.reads}
            for name, source in piece.reads.items():
                arrays[name] = self._outputs_of(pieces, source, photograph)[name]
            known = self._runner(piece, arrays).run(arrays)
            self.computed += 1
            self._outputs.put((piece.key, photograph), known)
        return known

    def _runner(self, piece: Piece, arrays: Arrays) -> Runner:
        types = [(name, arrays[name].dtype.str, arrays[name].shape) for name in piece.reads]
        key = hashlib.sha256(piece.content + repr(types).encode()).digest()
        runner = self._runners.get(key)
        if runner is None:
            runner = self._open(_typed(piece.graph, arrays))
            self._runners.put(key, runner)
        return runner


def _content(graph: onnx.ModelProto) -> bytes:
    done = hashlib.sha256()
    for proto in (*graph.graph.node, *graph.graph.initializer, *graph.graph.output):
        done.update(proto.SerializeToString(deterministic=True))
    return done.digest()


def _typed(graph: onnx.ModelProto, arrays: Arrays) -> onnx.ModelProto:
    """The graph of a piece with the types of what other pieces compute."""
    done = onnx.ModelProto()
    done.CopyFrom(graph)
    for value in (v for v in done.graph.input if not v.HasField("type")):
        array = arrays[value.name]
        kind = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
        value.CopyFrom(onnx.helper.make_tensor_value_info(value.name, kind, array.shape))
    return done


K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class _Recent(Generic[K, V]):
    """What was used last, up to a bound on its size."""

    def __init__(self, bound: int, size: Callable[[V], int], drop: Callable[[V], None] = lambda _: None) -> None:
        self._bound, self._size, self._drop = bound, size, drop
        self._kept: OrderedDict[K, V] = OrderedDict()
        self._total = 0

    def get(self, key: K) -> V | None:
        if key in self._kept:
            self._kept.move_to_end(key)
        return self._kept.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep a value, which must be new."""
        self._kept[key] = value
        self._total += self._size(value)
        while self._total > self._bound:
            self._drop_oldest()

    def clear(self) -> None:
        """Keep nothing."""
        while self._kept:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        _, oldest = self._kept.popitem(last=False)
        self._total -= self._size(oldest)
        self._drop(oldest)
