"""The search for nodes to keep: few, enough, none of them spare, and resumable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy.errors import CheckFailed, InputError
from r2mrf_deploy.parity.node_search import Drop, drop, keep_fewest, resumable
from r2mrf_deploy.progress import Progress

NODES = [
    f"step{t}.branch{b}/{op}" for t in (1, 2) for b in range(1, 6) for op in ("Conv", "Conv_2", "Conv_3", "Conv_4")
]
BOUND = Drop(0.005, 0.005)


def costing(costs: dict[str, float], asked: list[frozenset[str]] | None = None):  # type: ignore[no-untyped-def]
    """A graph whose drop is what its reduced nodes cost, added up."""

    def evaluate(kept: frozenset[str]) -> Drop:
        if asked is not None:
            asked.append(kept)
        cost = sum(v for k, v in costs.items() if k not in kept)
        return Drop(cost, cost / 2)

    return evaluate


def test_nothing_is_kept_where_nothing_needs_to_be() -> None:
    found = keep_fewest(NODES, costing({NODES[3]: 0.004}), BOUND)
    assert found.kept == () and found.before.mae == 0.004 and found.evaluations == 1


def test_exactly_the_costly_nodes_are_kept() -> None:
    costly = {NODES[3]: 0.03, NODES[17]: 0.02, NODES[18]: 0.006, NODES[30]: 0.001}
    found = keep_fewest(NODES, costing(costly), BOUND)
    assert {k.node for k in found.kept} == {NODES[3], NODES[17], NODES[18]}
    assert found.after.mae == pytest.approx(0.001) and found.before.mae == pytest.approx(0.057)
    reasons = {k.node: k.without.mae for k in found.kept}
    assert reasons[NODES[3]] == pytest.approx(0.031) and reasons[NODES[18]] == pytest.approx(0.007)
    assert found.kept[0].scope == "step1.branch1"


@pytest.mark.parametrize("seed", range(8))
def test_none_of_those_kept_is_spare(seed: int) -> None:
    generator = np.random.default_rng(seed)
    costs = dict(zip(NODES, generator.exponential(0.002, len(NODES)), strict=True))
    evaluate = costing(costs)
    found = keep_fewest(NODES, evaluate, BOUND)
    kept = frozenset(k.node for k in found.kept)
    assert evaluate(kept).within(BOUND)
    assert not any(evaluate(kept - {node}).within(BOUND) for node in kept)
    assert found.evaluations < 4 * len(NODES)


def test_a_search_says_how_far_it_is() -> None:
    costly = {NODES[3]: 0.03, NODES[17]: 0.02, NODES[18]: 0.006, NODES[30]: 0.001}
    steps: list[Progress] = []
    found = keep_fewest(NODES, costing(costly), BOUND, steps.append)
    assert [s.done for s in steps] == list(range(1, found.evaluations + 1))
    totals = [s.total or 0 for s in steps]
    assert all(s.done < total for s, total in zip(steps[:-1], totals, strict=False)) and steps[-1].done == totals[-1]
    assert totals[0] < 3 * found.evaluations


def test_both_figures_are_bounded() -> None:
    def evaluate(kept: frozenset[str]) -> Drop:
        return Drop(0.0, 0.0 if NODES[7] in kept else 0.1)

    assert [k.node for k in keep_fewest(NODES, evaluate, BOUND).kept] == [NODES[7]]


def test_a_bound_that_cannot_be_met_is_said() -> None:
    with pytest.raises(CheckFailed, match="with every node, 40 in all, in higher precision"):
        keep_fewest(NODES, lambda kept: Drop(0.1, 0.1), BOUND)


def test_drop_is_of_the_maps() -> None:
    wanted = np.array([[0.9, 0.6], [0.1, 0.2]], np.float32)
    assert drop([wanted], [wanted]) == Drop(0.0, 0.0)
    found = drop([wanted - np.float32(0.2)], [wanted])
    assert found.mae == pytest.approx(0.2)
    # one of the two in focus is left: precision 1, recall 1/2
    assert found.f == pytest.approx(1 - 1.3 * 0.5 / (0.3 + 0.5))


def test_a_search_goes_on_where_it_was(tmp_path: Path) -> None:
    costs = {NODES[3]: 0.03, NODES[18]: 0.006}
    file = tmp_path / "search.json"
    asked: list[frozenset[str]] = []
    whole = keep_fewest(NODES, costing(costs), BOUND)

    class Interrupted(Exception):
        pass

    def failing(kept: frozenset[str]) -> Drop:
        if len(asked) == 9:
            raise Interrupted
        return costing(costs, asked)(kept)

    with pytest.raises(Interrupted):
        keep_fewest(NODES, resumable(failing, file, {"model": "a"}), BOUND)
    later: list[frozenset[str]] = []
    found = keep_fewest(NODES, resumable(costing(costs, later), file, {"model": "a"}), BOUND)
    assert found == whole
    assert not set(later) & set(asked) and len(set(later)) == len(later)


def test_another_search_s_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "search.json"
    resumable(costing({}), file, {"model": "a"})(frozenset())
    with pytest.raises(InputError, match="another model"):
        resumable(costing({}), file, {"model": "b"})
    file.write_text("{")
    with pytest.raises(InputError, match="not a stored search"):
        resumable(costing({}), file, {"model": "a"})
