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
BINS = 15
"""Number of bins of equal width that the calibration error takes a map's values in."""


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
    ece: float
    """Expected calibration error, see `Curves.ece`; for a set, of the averaged bins. It does not depend on the class."""
    photographs: int

    def to_dict(self) -> dict[str, float]:
        return asdict(self)


@dataclass(frozen=True)
class Curves:
    """Values at each of 256 thresholds, float64 [256], and in each of 15 bins, float64 [15], for one photograph or averaged
    over a set.

    Bin b = 1 .. 15 holds the pixels whose value, the predicted probability of being in focus, is in ((b - 1) / 15, b / 15];
    0 is in the first. The bins are about what is in focus whichever class is positive. They hold shares of a photograph's
    pixels, so that their average over a set is the bins of all its pixels, each photograph having the same weight.
    """

    precision: np.ndarray
    recall: np.ndarray
    false_positive_rate: np.ndarray
    found: np.ndarray
    """Share of the photographs in which anything is positive. The precision of the others counts as 0 in the average."""
    share: np.ndarray
    """Share of the pixels that each bin holds."""
    predicted: np.ndarray
    """Sum of the probabilities of a bin's pixels, over the number of all pixels: the share that should be in focus."""
    focused: np.ndarray
    """Share of the pixels that are in the bin and in focus."""

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
    def ece(self) -> float:
        """Expected calibration error: the difference of mean probability and observed frequency in each bin, weighted by
        the bin's share of the pixels.

        It is Eq. 3 of Guo et al. (ICML 2017) in the binary form of Naeini et al. (AAAI 2015): the bins divide the
        probability of being in focus, over [0, 1], and the share in focus is compared with it. Guo et al. compare the
        accuracy with the confidence in the predicted class, which is over [0.5, 1] if there are two: errors at p and at
        1 - p may cancel there.
        """
        return float(np.abs(self.predicted - self.focused).sum())

    @property
    def reliability(self) -> tuple[np.ndarray, np.ndarray]:
        """A reliability diagram, (mean probability, observed frequency) of each bin; NaN where a bin is empty."""
        share = np.where(self.share > 0, self.share, np.nan)
        return self.predicted / share, self.focused / share

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
    bins = _bins(found, mask)
    if positive == "blurred":
        found, mask, adapted = 1 - found, ~mask, ~adapted
    curves = Curves(*_rates(found, mask), *bins)
    adaptive, half = f_at(adapted, mask, 1), f_at(found, mask, 0.5)
    mae = float(np.abs(found.astype(np.float64) - mask).mean())
    return Scores(float(curves.f.max()), adaptive, half, mae, curves.auc, curves.ece, 1), curves


def average(judged: Sequence[tuple[Scores, Curves]]) -> tuple[Scores, Curves]:
    """The figures of a set of photographs.

    Raises:
        ValueError: the set is empty.
    """
    if not judged:
        raise ValueError("there is nothing to score")
    curves = Curves(*(np.mean([getattr(c, name) for _, c in judged], 0) for name in Curves.__annotations__))
    adaptive, half, mae = (float(np.mean([getattr(s, n) for s, _ in judged])) for n in ("f_adaptive", "f_half", "mae"))
    return Scores(float(curves.f.max()), adaptive, half, mae, curves.auc, curves.ece, len(judged)), curves


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


def _rates(found: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Precision, recall, false positive rate and found of `Curves`."""
    # A value v is over k/255 for every k < ceil(255 v), so this is the number of thresholds that each value is over.
    over = np.clip(np.ceil(found.astype(np.float64) * (LEVELS - 1)), 0, LEVELS).astype(np.int64)
    counts = (np.bincount(over[part], minlength=LEVELS + 1) for part in (mask, ~mask))
    true, false = (n[::-1].cumsum()[::-1][1:] for n in counts)  # how many values are over each threshold
    positive = true + false
    return (
        true / np.maximum(positive, 1),
        true / max(int(mask.sum()), 1),
        false / max(int((~mask).sum()), 1),
        (positive > 0).astype(np.float64),
    )


def _bins(found: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """Share, predicted and focused of `Curves`."""
    values = found.astype(np.float64).ravel()
    bins = np.clip(np.ceil(values * BINS) - 1, 0, BINS - 1).astype(np.int64)
    share, predicted, focused = (np.bincount(bins, w, BINS) for w in (None, values, mask.ravel()))
    return share / values.size, predicted / values.size, focused / values.size
