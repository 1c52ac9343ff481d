"""Score a map against a mask with the metrics of the papers.

The papers use different F-measures, and the choice alone changes the value by about 0.05, so all three are computed.
A map is float [H, W] and a mask bool [H, W]; 1 and True are in focus. The positive class is what is in focus (`sharp`) or
the other (`blurred`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np

Positive = Literal["sharp", "blurred"]

BETA_SQUARED = 0.3
"""Weights precision above recall in every F-measure (Achanta et al., CVPR 2009, and all papers on the subject)."""
LEVELS = 256
"""Number of thresholds k / 255; values strictly greater are positive."""


@dataclass(frozen=True)
class Scores:
    """The figures of one photograph, or of a set."""

    f_max: float
    """The best F over the thresholds. For a set, precision and recall are averaged first, so this is not a mean of F."""
    f_adaptive: float
    """F at 1.5 times the map's mean, at most 1; for a set, the mean. The threshold always separates what is in focus from
    the rest, and for the class `blurred` the rest is scored: 1.5 times that class's own mean would mostly be over 1."""
    f_half: float
    """F at 0.5; for a set, the mean."""
    mae: float
    """Mean absolute difference between map and mask; for a set, the mean."""
    auc: float
    """Area under the ROC curve; for a set, of the averaged rates."""
    photographs: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Curves:
    """Values at each of 256 thresholds, for one photograph or averaged over a set: float64 [256]."""

    precision: np.ndarray
    recall: np.ndarray
    false_positive_rate: np.ndarray
    found: np.ndarray
    """Share of the photographs in which anything is positive. The precision of the others counts as 0 in the average."""

    @property
    def f(self) -> np.ndarray:
        return f_measure(self.precision, self.recall)

    @property
    def auc(self) -> float:
        """Area under the ROC curve."""
        x = np.concatenate([[0.0], self.false_positive_rate[::-1], [1.0]])
        y = np.concatenate([[0.0], self.recall[::-1], [1.0]])
        return float(np.sum(np.diff(x) * (y[1:] + y[:-1]) / 2))

    @property
    def precision_recall(self) -> tuple[np.ndarray, np.ndarray]:
        """A precision-recall curve, (recall, precision), of the thresholds at which no photograph has run out of positives.

        Beyond them the average falls to 0 because precision is undefined, not because it is poor. A photograph whose map
        is 0 everywhere never has positives and does not count in precision.
        """
        shown = (self.found == self.found[0]) & (self.found > 0)
        return self.recall[shown], self.precision[shown] / self.found[shown]


def judge(found: np.ndarray, mask: np.ndarray, positive: Positive = "sharp") -> tuple[Scores, Curves]:
    """Score one map (float [H, W] in [0, 1]) against its mask (bool [H, W]).

    Raises:
        ValueError: the sizes differ.
    """
    if found.shape != mask.shape:
        raise ValueError(f"a map is {found.shape}, its mask {mask.shape}")
    adapted = found >= min(1.5 * float(found.mean()), 1.0)
    if positive == "blurred":
        found, mask, adapted = 1 - found, ~mask, ~adapted
    curves = _curves(found, mask)
    adaptive, half = f_at(adapted, mask, 1), f_at(found, mask, 0.5)
    mae = float(np.abs(found.astype(np.float64) - mask).mean())
    return Scores(float(curves.f.max()), adaptive, half, mae, curves.auc, 1), curves


def average(judged: Sequence[tuple[Scores, Curves]]) -> tuple[Scores, Curves]:
    """The figures of a set of photographs.

    Raises:
        ValueError: the set is empty.
    """
    if not judged:
        raise ValueError("there is nothing to score")
    curves = Curves(*(np.mean([getattr(c, name) for _, c in judged], 0) for name in Curves.__annotations__))
    adaptive, half, mae = (float(np.mean([getattr(s, n) for s, _ in judged])) for n in ("f_adaptive", "f_half", "mae"))
    return Scores(float(curves.f.max()), adaptive, half, mae, curves.auc, len(judged)), curves


def score(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> tuple[Scores, Curves]:
    """Score maps (float [H, W] in [0, 1]) against masks (bool [H, W], the same size).

    Raises:
        ValueError: there is no pair, or the sizes differ.
    """
    return average([judge(found, mask) for found, mask in pairs])


def f_at(found: np.ndarray, mask: np.ndarray, threshold: float) -> float:
    """F of a map at one threshold; values of at least the threshold are positive."""
    positive = found >= threshold
    true = float(np.logical_and(positive, mask).sum())
    return float(f_measure(true / max(float(positive.sum()), 1.0), true / max(float(mask.sum()), 1.0)))


def agreement(found: np.ndarray, wanted: np.ndarray) -> float:
    """F of the area in focus (at least 0.5) in one map against another; 1 if nothing is in focus in either."""
    if not ((found >= 0.5).any() or (wanted >= 0.5).any()):
        return 1.0
    return f_at(found, wanted >= 0.5, 0.5)


def f_measure(precision: np.ndarray | float, recall: np.ndarray | float) -> np.ndarray:
    """F with β² = 0.3; 0 where both are 0."""
    precision, recall = np.asarray(precision, np.float64), np.asarray(recall, np.float64)
    denominator = BETA_SQUARED * precision + recall
    return (1 + BETA_SQUARED) * precision * recall / np.where(denominator > 0, denominator, 1.0)


def _curves(found: np.ndarray, mask: np.ndarray) -> Curves:
    # A value v is over k/255 for every k < ceil(255 v), so this is the number of thresholds that each value is over.
    over = np.clip(np.ceil(found.astype(np.float64) * (LEVELS - 1)), 0, LEVELS).astype(np.int64)
    counts = (np.bincount(over[part], minlength=LEVELS + 1) for part in (mask, ~mask))
    true, false = (n[::-1].cumsum()[::-1][1:] for n in counts)  # how many values are over each threshold
    positive = true + false
    return Curves(
        precision=true / np.maximum(positive, 1),
        recall=true / max(int(mask.sum()), 1),
        false_positive_rate=false / max(int((~mask).sum()), 1),
        found=(positive > 0).astype(np.float64),
    )
