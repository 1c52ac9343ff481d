"""Score a map against a mask with the metrics of the papers.

The literature does not agree on one F-measure, and the choice alone changes the value by some 0.05; so there are three.
A map and a mask are float and bool [H, W]; True and 1 are in focus.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np

BETA_SQUARED = 0.3
"""Of every F-measure: precision counts more than recall (Achanta et al., CVPR 2009, and every paper on the subject)."""
LEVELS = 256
"""Number of thresholds k / 255; values strictly greater are positive."""


@dataclass(frozen=True)
class Scores:
    """Over a set of photographs."""

    f_max: float
    """The best F over the thresholds, of precision and recall averaged over the photographs first."""
    f_adaptive: float
    """Mean over the photographs of F at 1.5 times the map's mean."""
    f_half: float
    """Mean over the photographs of F at 0.5."""
    mae: float
    """Mean over the photographs of the mean absolute difference between map and mask."""
    auc: float
    """Area under the ROC curve of the averaged rates."""
    photographs: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Curves:
    """Averages over the photographs at each of 256 thresholds: float64 [256]."""

    precision: np.ndarray
    recall: np.ndarray
    false_positive_rate: np.ndarray
    found: np.ndarray
    """Share of the photographs in which anything is positive. The precision of the others counts as 0 in the average."""

    @property
    def f(self) -> np.ndarray:
        return f_measure(self.precision, self.recall)

    @property
    def precision_recall(self) -> tuple[np.ndarray, np.ndarray]:
        """What a precision-recall curve shows, (recall, precision): thresholds at which no photograph ran out of positives.

        Beyond, the average falls to 0 because precision is not defined, not because it is poor. A photograph whose map is 0
        all over has none at any threshold, and no say in precision.
        """
        shown = (self.found == self.found[0]) & (self.found > 0)
        return self.recall[shown], self.precision[shown] / self.found[shown]


@dataclass(frozen=True)
class Judged:
    """One map against its mask."""

    f_adaptive: float
    f_half: float
    mae: float
    precision: np.ndarray
    """At each of 256 thresholds: float64 [256]; so are the next three."""
    recall: np.ndarray
    false_positive_rate: np.ndarray
    found: np.ndarray
    """1 where anything is positive, else 0."""

    @property
    def f_max(self) -> float:
        """The best F of this map; that of a set is not the mean of these."""
        return float(f_measure(self.precision, self.recall).max())


def judge(found: np.ndarray, mask: np.ndarray) -> Judged:
    """Score one map (float [H, W] in [0, 1]) against its mask (bool [H, W]).

    Raises:
        ValueError: the sizes differ.
    """
    if found.shape != mask.shape:
        raise ValueError(f"a map is {found.shape}, its mask {mask.shape}")
    return Judged(
        f_at(found, mask, min(1.5 * float(found.mean()), 1.0)),
        f_at(found, mask, 0.5),
        float(np.abs(found.astype(np.float64) - mask).mean()),
        *_curve(found, mask),
    )


def average(judged: Sequence[Judged]) -> tuple[Scores, Curves]:
    """The figures of a set of photographs.

    Raises:
        ValueError: there is none.
    """
    if not judged:
        raise ValueError("there is nothing to score")
    curves = Curves(*(np.mean([getattr(j, name) for j in judged], 0) for name in Curves.__annotations__))
    x = np.concatenate([[0.0], curves.false_positive_rate[::-1], [1.0]])
    y = np.concatenate([[0.0], curves.recall[::-1], [1.0]])
    area = float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))
    adaptive, half, mae = (float(np.mean([getattr(j, n) for j in judged])) for n in ("f_adaptive", "f_half", "mae"))
    return Scores(float(curves.f.max()), adaptive, half, mae, area, len(judged)), curves


def score(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[Scores, Curves]:
    """Score maps (float [H, W] in [0, 1]) against masks (bool [H, W], the same size).

    Raises:
        ValueError: there is no pair, or sizes differ.
    """
    return average([judge(found, mask) for found, mask in pairs])


def f_at(found: np.ndarray, mask: np.ndarray, threshold: float) -> float:
    """F of a map at one threshold; values equal to it or greater are positive."""
    positive = found >= threshold
    true = float(np.logical_and(positive, mask).sum())
    return float(f_measure(true / max(float(positive.sum()), 1.0), true / max(float(mask.sum()), 1.0)))


def agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """F of what is in focus (at 0.5) in one map against another; 1 where nothing is in either."""
    if not ((found >= 0.5).any() or (wanted >= 0.5).any()):
        return 1.0
    return f_at(found, wanted >= 0.5, 0.5)


def f_measure(precision: np.ndarray | float, recall: np.ndarray | float) -> np.ndarray:
    """F with β² = 0.3; 0 where both are 0."""
    precision, recall = np.asarray(precision, np.float64), np.asarray(recall, np.float64)
    denominator = BETA_SQUARED * precision + recall
    return (1 + BETA_SQUARED) * precision * recall / np.where(denominator > 0, denominator, 1.0)


def _curve(found: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Precision, recall, false-positive rate and whether anything is positive, at each threshold."""
    # a value v is over k/255 for k < ceil(255 v): the number of thresholds it is over
    over = np.clip(np.ceil(found.astype(np.float64).ravel() * (LEVELS - 1)), 0, LEVELS).astype(np.int64)
    inside = mask.ravel()
    true = _at_least(np.bincount(over[inside], minlength=LEVELS + 1))
    false = _at_least(np.bincount(over[~inside], minlength=LEVELS + 1))
    positive = true + false
    recall, false_positive_rate = true / max(int(inside.sum()), 1), false / max(int((~inside).sum()), 1)
    return true / np.maximum(positive, 1), recall, false_positive_rate, (positive > 0).astype(np.float64)


def _at_least(counts: np.ndarray) -> np.ndarray:
    """For each threshold k, how many values are over it: float64 [256]."""
    return (counts[::-1].cumsum()[::-1])[1 : LEVELS + 1].astype(np.float64)
