"""The papers' figures, against their definitions written out."""

from __future__ import annotations

import numpy as np
import pytest

from r2mrf_deploy.metrics import agreement, f_at, f_measure, judge, score

RNG = np.random.default_rng(0)


def pair(height: int = 17, width: int = 23) -> tuple[np.ndarray, np.ndarray]:
    mask = RNG.random((height, width)) < 0.4
    return np.clip(0.5 * mask + 0.6 * RNG.random((height, width)), 0, 1).astype(np.float32), mask


def test_scores_are_their_definitions() -> None:
    pairs = [pair(), pair(9, 30), pair()]
    scores, curves = score(pairs)
    precision, recall, fpr = np.zeros(256), np.zeros(256), np.zeros(256)
    for found, mask in pairs:
        for k in range(256):
            positive = found.astype(np.float64) > k / 255
            true = (positive & mask).sum()
            precision[k] += true / max(positive.sum(), 1) / 3
            recall[k] += true / mask.sum() / 3
            fpr[k] += (positive & ~mask).sum() / (~mask).sum() / 3
    np.testing.assert_allclose(curves.precision, precision)
    np.testing.assert_allclose(curves.recall, recall)
    np.testing.assert_allclose(curves.false_positive_rate, fpr)
    assert scores.f_max == pytest.approx((1.3 * precision * recall / np.maximum(0.3 * precision + recall, 1e-12)).max())
    assert scores.mae == pytest.approx(np.mean([np.abs(f - m).mean() for f, m in pairs]))
    by_hand = []
    for found, mask in pairs:
        positive = found >= 1.5 * found.mean()
        true = (positive & mask).sum()
        p, r = true / positive.sum(), true / mask.sum()
        by_hand.append(1.3 * p * r / (0.3 * p + r))
    assert scores.f_adaptive == pytest.approx(np.mean(by_hand))
    assert scores.f_half == pytest.approx(np.mean([f_at(f, m, 0.5) for f, m in pairs]))


def test_a_perfect_and_a_wrong_map() -> None:
    mask = pair()[1]
    right, _ = score([(mask.astype(np.float32), mask)])
    wrong, _ = score([((~mask).astype(np.float32), mask)])
    assert (right.f_max, right.f_adaptive, right.f_half, right.mae, right.auc, right.ece) == (1, 1, 1, 0, 1, 0)
    assert (wrong.f_half, wrong.mae, wrong.ece) == (0, 1, 1) and wrong.auc == pytest.approx(0, abs=0.01)


def test_auc_is_the_chance_that_focus_scores_higher() -> None:
    found, mask = pair(40, 40)
    scores, _ = score([(found, mask)])
    inside, outside = found[mask], found[~mask]
    order = (inside[:, None] > outside[None]).mean() + 0.5 * (inside[:, None] == outside[None]).mean()
    assert scores.auc == pytest.approx(order, abs=2e-3)  # 256 thresholds of what is continuous


def test_the_calibration_error_is_its_definition() -> None:
    """Each photograph has the same weight, and a value on an edge is in the bin below it."""
    edges = np.arange(16) / 15
    on_edges = np.repeat(edges, 4).reshape(4, 16)
    pairs = [pair(), pair(9, 30), (on_edges, RNG.random(on_edges.shape) < 0.3)]
    scores, curves = score(pairs)
    values = np.concatenate([found.ravel().astype(np.float64) for found, _ in pairs])
    masks = np.concatenate([mask.ravel() for _, mask in pairs])
    weights = np.concatenate([np.full(mask.size, 1 / mask.size / len(pairs)) for _, mask in pairs])
    error = 0.0
    for b in range(15):
        inside = (values > edges[b]) & (values <= edges[b + 1]) | (b == 0) & (values == 0)
        weight = weights[inside].sum()
        probability = np.average(values[inside], weights=weights[inside])
        frequency = np.average(masks[inside], weights=weights[inside])
        error += weight * abs(probability - frequency)
        found = (curves.share[b], *(v[b] for v in curves.reliability))
        assert found == pytest.approx((weight, probability, frequency))
    assert scores.ece == pytest.approx(error) and curves.share.sum() == pytest.approx(1)


def test_the_calibration_error_tells_probabilities_from_what_orders_as_well() -> None:
    """Squared, probabilities have the same AUC and are too low by p - p², 1/6 on average."""
    p = RNG.random((300, 300))
    mask = RNG.random(p.shape) < p
    right, low = score([(p, mask)])[0], score([(p**2, mask)])[0]
    # a bin's frequency is of 6,000 pixels: its standard error is 0.0065 at most, and the error is the mean of 15 such
    assert right.ece < 0.01 and low.ece == pytest.approx(1 / 6, abs=0.01) and abs(right.auc - low.auc) < 0.01
    flat = score([(np.full((4, 5), 0.7), np.arange(20).reshape(4, 5) < 8)])[0]
    assert flat.ece == pytest.approx(0.7 - 0.4)
    assert judge(p**2, mask, "blurred")[0].ece == low.ece  # the same map


def test_empty_maps_and_masks() -> None:
    empty, some = np.zeros((4, 4), np.float32), np.eye(4) > 0
    assert agreement(empty, empty) == 1 and agreement(empty, some.astype(np.float32)) == 0
    assert agreement(np.ones((4, 4), np.float32), some.astype(np.float32)) == pytest.approx(1.3 * 0.25 / (0.075 + 1))
    assert score([(empty, some)])[0].f_max == 0
    assert np.isfinite(list(score([(empty, ~(some | True))])[0].to_dict().values())).all()
    assert float(f_measure(0.0, 0.0)) == 0


def test_a_precision_recall_curve_ends_where_a_photograph_has_no_positives_left() -> None:
    """One map reaches 0.5, the other 1: over 0.5 the precision of one of the two is not defined, and counts as 0."""
    pairs = [pair(), pair(), pair()]
    low, high = (
        np.clip(scale * found / found.max(), 0, 1) for scale, (found, _) in zip((0.5, 1.0), pairs, strict=False)
    )
    scores, curves = score([(low, pairs[0][1]), (high, pairs[1][1])])
    assert curves.precision[-1] == 0 and curves.found[[0, 126, 128, 254]].tolist() == [1, 1, 0.5, 0.5]
    recall, precision = curves.precision_recall
    assert len(recall) == 128 and precision.min() > 0.4  # the share in focus is what chance would reach
    assert np.array_equal(precision, curves.precision[:128]) and scores.f_max == curves.f.max()
    # an empty map has no say in precision, whatever the threshold; alone it leaves nothing to draw
    _, beside = score([(high, pairs[1][1]), (0 * high, pairs[1][1])])
    np.testing.assert_allclose(beside.precision_recall[1], score([(high, pairs[1][1])])[1].precision_recall[1])
    assert len(score([(0 * high, pairs[1][1])])[1].precision_recall[0]) == 0


def test_wrong_use() -> None:
    with pytest.raises(ValueError, match="nothing to score"):
        score([])
    with pytest.raises(ValueError, match="its mask"):
        score([(np.zeros((2, 2), np.float32), np.zeros((2, 3), bool))])


def test_the_blurred_class_is_the_complement_of_the_sharp_one() -> None:
    found, mask = pair()
    found = 0.5 * found  # of the mean of 1 - found, 1.5 times is over 1
    scores, curves = judge(found, mask, "blurred")
    blurred = found < 1.5 * found.mean()
    true = (blurred & ~mask).sum()
    p, r = true / blurred.sum(), true / (~mask).sum()
    assert scores.f_adaptive == pytest.approx(1.3 * p * r / (0.3 * p + r)) and scores.f_adaptive > 0.7
    assert scores.f_half == pytest.approx(f_at(1 - found, ~mask, 0.5))
    assert scores.mae == pytest.approx(judge(found, mask)[0].mae)
    np.testing.assert_allclose(curves.recall, score([(1 - found, ~mask)])[1].recall)
    perfect = judge(mask.astype(np.float32), mask, "blurred")[0]
    assert (perfect.f_adaptive, perfect.f_half, perfect.f_max, perfect.auc) == (1, 1, 1, 1)
