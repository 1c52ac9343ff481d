"""Variants of a graph piece by piece: the same maps, less work, bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest

from r2mrf_deploy import images, sample_photographs
from r2mrf_deploy.export import onnx as exported_onnx
from r2mrf_deploy.graph import precision, quantize
from r2mrf_deploy.graph.prepare import prepared
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.parity import node_search, pieces
from r2mrf_deploy.parity.node_search import Drop, Evaluate, Search
from r2mrf_deploy.runtimes.base import Arrays, Runner

pytestmark = pytest.mark.artifact

FEEDS = [{"image": images.resize(p, (96, 128))[None].copy()} for p in sample_photographs.sharp()[:3]]
Variants = Callable[[frozenset[str]], onnx.ModelProto]


@pytest.fixture(scope="module")
def plain(exported: Path) -> onnx.ModelProto:
    return prepared(onnx.load(exported))


def contract(plain: onnx.ModelProto, kind: str) -> Contract:
    return exported_onnx.describe(plain).model_copy(update={"precision": kind})


@pytest.fixture(scope="module")
def int8(plain: onnx.ModelProto) -> Variants:
    whole = quantize.quantize(plain, quantize.calibrate(plain, FEEDS))
    return lambda kept: quantize.restore(whole, plain, [*quantize.ends(plain), *kept])


def bf16(plain: onnx.ModelProto) -> Variants:
    return lambda kept: precision.to_half(plain, "bf16", [*kept, *precision.carried(plain, kept)])


def candidates(plain: onnx.ModelProto) -> list[str]:
    """Few, so that a search is short."""
    able = [name for name in quantize.quantizable(plain) if name not in quantize.ends(plain)]
    return able[-6:]


@pytest.mark.parametrize("kind", ["int8", "bf16"])
def test_a_search_that_shares_finds_what_one_that_does_not_finds(
    plain: onnx.ModelProto, int8: Variants, kind: str
) -> None:
    """Of few nodes, so that it is short: the others are kept, but those that BF16 does not need to keep."""
    lower = int8 if kind == "int8" else bf16(plain)
    able = quantize.quantizable(plain) if kind == "int8" else precision.computing(plain)
    nodes = candidates(plain)
    rest = frozenset(able) - {*nodes}
    found: dict[int, tuple[Search, list[Drop]]] = {}
    for bound in (pieces.BOUND, 0):
        drops: list[Drop] = []
        evaluate = node_search.trials(plain, contract(plain, kind), FEEDS, lower, bound)

        def noted(kept: frozenset[str], evaluate: Evaluate = evaluate, drops: list[Drop] = drops) -> Drop:
            drops.append(evaluate(kept | rest))
            return drops[-1]

        if not found:
            none = evaluate(rest)
            limit = max(none.mae, none.f) / 2
        found[bound] = node_search.keep_fewest(nodes, noted, Drop(limit, limit)), drops
    (shared, ours), (whole, theirs) = found.values()
    assert shared.kept and [k.node for k in shared.kept] == [k.node for k in whole.kept]
    assert shared.evaluations == whole.evaluations == len(ours) == len(theirs)
    # Sums in another order, and INT8 values that a fused node scales and rounds in one step: where a tensor crosses a cut,
    # single values may be rounded to the other side. The drops are of the order of 1e-2 (INT8) and 3e-4 (BF16).
    tolerance = 1e-4 if kind == "int8" else 1e-6
    for a, b in zip(ours, theirs, strict=True):
        assert abs(a.mae - b.mae) <= tolerance and abs(a.f - b.f) <= 10 * tolerance


def opened(plain: onnx.ModelProto, kind: str = "fp32") -> pieces.Open:
    return partial(node_search._opened, contract(plain, kind))


def test_pieces_compute_the_map_of_the_whole(plain: onnx.ModelProto) -> None:
    cut, whole = (pieces.Pieces(plain, FEEDS, opened(plain), bound=bound) for bound in (pieces.BOUND, 0))
    assert len(cut.split(plain)) > 3 and len(whole.split(plain)) == 1
    for found, wanted in zip(cut.maps(plain), whole.maps(plain), strict=True):
        assert wanted.std() > 0.02
        # FP32 in another layout sums in another order
        np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_what_was_computed_is_not_computed_again(plain: onnx.ModelProto, int8: Variants) -> None:
    computing = pieces.Pieces(plain, FEEDS, opened(plain, "int8"))
    first = computing.maps(int8(frozenset()))
    number = len(computing.split(int8(frozenset())))
    assert computing.computed == number * len(FEEDS)
    again = computing.maps(int8(frozenset()))
    assert computing.computed == number * len(FEEDS) and all(map(np.array_equal, first, again))
    last = [n for n in quantize.quantizable(plain) if n not in quantize.ends(plain)][-1]
    computing.maps(int8(frozenset([last])))
    assert computing.computed <= (number + 2) * len(FEEDS)  # a node near the end is in one of the last pieces


def test_what_is_kept_is_bounded(plain: onnx.ModelProto, int8: Variants) -> None:
    bound = 1 << 20
    computing = pieces.Pieces(plain, FEEDS, opened(plain, "int8"), bound=bound)
    unbounded = pieces.cuts(plain, FEEDS)
    assert len(pieces.cuts(plain, FEEDS, bound)) < len(unbounded)
    for name in candidates(plain):
        computing.maps(int8(frozenset([name])))
        arrays = [array for outputs in computing._outputs._kept.values() for array in outputs.values()]
        assert arrays and sum(array.nbytes for array in arrays) <= bound
        assert len(computing._runners._kept) <= 4 * (len(computing._cuts) + 1)


class Closing(Runner):
    """Says of which runners it is open."""

    def __init__(self, runner: Runner, still: list[Runner]) -> None:
        self.runtime, self.inputs, self._runner, self._open = runner.runtime, runner.inputs, runner, still
        still.append(self)

    def _run(self, arrays: Arrays) -> Arrays:
        assert self in self._open
        return self._runner.run(arrays)

    def close(self) -> None:
        self._open.remove(self)


@pytest.mark.parametrize("kind", ["int8", "fp16"])
def test_runners_are_closed(plain: onnx.ModelProto, int8: Variants, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    still: list[Runner] = []
    open_ = node_search._opened
    monkeypatch.setattr(node_search, "_opened", lambda c, graph: Closing(open_(c, graph), still))
    lower = int8 if kind == "int8" else lambda kept: precision.to_half(plain, "fp16", kept)
    evaluate = node_search.trials(plain, contract(plain, kind), FEEDS[:1], lower)
    assert not still  # the FP32 maps are computed
    most = 4 * (len(pieces.cuts(plain, FEEDS[:1])) + 1) if kind == "int8" else 1
    for name in candidates(plain)[:3]:
        evaluate(frozenset([name]))
        assert 0 < len(still) <= most
    del evaluate
    assert not still


def test_photographs_of_several_sizes_are_computed_whole(plain: onnx.ModelProto) -> None:
    assert not pieces.cuts(plain, [*FEEDS, {"image": FEEDS[0]["image"][:, :64]}])


def test_no_cut_parts_what_is_fused(plain: onnx.ModelProto) -> None:
    readers = [name for node in plain.graph.node for name in node.input]
    makers = {output: node.op_type for node in plain.graph.node for output in node.output}
    crossing = {name for cut in pieces.cuts(plain, FEEDS) for name in cut}
    assert crossing
    for name in crossing:
        if readers.count(name) == 1 and makers[name] not in pieces._SEPARATE:
            (reader,) = (n for n in plain.graph.node if name in n.input)
            assert reader.op_type in pieces._SEPARATE, name
