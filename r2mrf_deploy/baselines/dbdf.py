"""Four features of blur at three scales, judged by naive Bayes and fused over the scales.

Shi, Xu and Jia, Discriminative blur detection features, CVPR (2014). The features of a window are the peakedness of its
gradients (kurtosis), how heavy their tails are (the wider part of a mixture of two Gaussians), its average log power
spectrum, and the responses of learned local filters. Their distributions in focus and out of focus give a probability at
each scale. An energy couples it with the probabilities nearby and at the other scales. There are five departures. The
mixture has equal parts and is fitted by its moments. The filters separate the classes by the variances of their responses,
since means do not differ, and are as symmetric as a square. Distributions are histograms. A logistic curve makes the naive
sum a probability, since the features are not independent. The energy is quadratic and is minimised by Jacobi's method, and
a guided filter leads to the pixels.
"""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.baselines.guided import guided
from r2mrf_deploy.baselines.parameters import learned
from r2mrf_deploy.baselines.rings import log_spectra
from r2mrf_deploy.baselines.windows import every, luminance, spread

WINDOWS = (11, 21, 41)
"""The three scales: sides of the windows in pixels."""
STRIDE = 4
"""Distance between the places that are judged, in pixels. The map is interpolated between them."""
FILTER, FILTERS = 11, 3
"""Side of the local filters in pixels, and their number."""
FEATURES = 3 + FILTERS
FLOOR = (0.5 / 255) ** 2
"""Added to variances of intensities, so that they have a logarithm: half an 8-bit level."""
NEARBY, SCALES, ROUNDS = 2.0, 1.0, 10
"""Weights of the terms that couple neighbours and scales, in units of that of the feature's own, and the rounds."""


def focus(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB -> float32 [H, W] in 0..1, 1 = in focus.

    Normalisation: the learned probability, the same for every photograph; a photograph without any contrast is 0.

    Raises:
        InputError: the array is not such a photograph.
    """
    grey, known = luminance(image), learned("dbdf")
    if np.ptp(grey) < 1e-6:
        return np.zeros(grey.shape, np.float32)
    rows, columns = (every(n, STRIDE) for n in grey.shape)
    at_scales = [
        probability(features(grey, side, known["filters"], rows, columns), index, known)
        for index, side in enumerate(WINDOWS)
    ]
    fine = guided(spread(_fused(np.stack(at_scales)), rows, columns, grey.shape), grey, 15, 1e-3)
    return np.clip(fine, 0, 1).astype(np.float32)


def features(grey: np.ndarray, side: int, filters: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The features of the windows of a side around each row and column, float64 [FEATURES, rows, columns].

    `filters` is float [FILTERS, FILTER, FILTER], and `grey` float [H, W] in 0..1.
    """
    from scipy.ndimage import correlate, uniform_filter

    def mean(x: np.ndarray) -> np.ndarray:
        return np.asarray(uniform_filter(x, side, mode="reflect"))[np.ix_(rows, columns)]

    padded = np.pad(grey, 1, mode="symmetric")
    peaks, tails = [], []
    for gradient in (padded[1:-1, 2:] - padded[1:-1, :-2], padded[2:, 1:-1] - padded[:-2, 1:-1]):
        second, fourth = np.clip(mean(gradient**2), 0, None) + FLOOR, np.clip(mean(gradient**4), 0, None) + 3 * FLOOR**2
        peaks.append(np.log(fourth / second**2))
        tails.append(second + np.sqrt(np.clip(fourth / 3 - second**2, 0, None)))
    block = side if side < 41 else 33
    sparse = every(grey.shape[0], 2 * STRIDE), every(grey.shape[1], 2 * STRIDE)
    power = spread(log_spectra(grey, block, *sparse, 0.0, 0.02).mean(-1), *sparse, grey.shape)
    responses = [np.log(np.clip(mean(correlate(grey, f, mode="reflect") ** 2), 0, None) + FLOOR / 100) for f in filters]
    return np.stack([np.minimum(*peaks), np.log(np.maximum(*tails)), power[np.ix_(rows, columns)], *responses])


def probability(described: np.ndarray, scale: int, known: dict[str, np.ndarray]) -> np.ndarray:
    """The probability of being in focus, float64 [...] in 0..1, of features [FEATURES, ...] at a scale."""
    from scipy.special import expit

    slope, offset = known["curves"][scale]
    return np.asarray(expit(slope * evidence(described, known["ranges"][scale], known["ratios"][scale]) + offset))


def evidence(described: np.ndarray, ranges: np.ndarray, ratios: np.ndarray) -> np.ndarray:
    """The sum over the features of the log ratio of their densities in focus and out of focus: float64 [...].

    `ranges` is the first and the last centre of the bins, [FEATURES, 2], and `ratios` the log ratio at each,
    [FEATURES, bins].
    """
    total = np.zeros(described.shape[1:])
    for values, (low, high), ratio in zip(described, ranges, ratios, strict=True):
        total += np.interp(values, np.linspace(low, high, len(ratio)), ratio)
    return total


def _fused(own: np.ndarray) -> np.ndarray:
    """Minimise Σ(s − p)² + coupling of neighbours and scales over s, for probabilities p [scales, R, C]: the mean of s."""
    from scipy.ndimage import correlate1d

    found = own
    cross = np.array([0.5, 0, 0.5])
    for _ in range(ROUNDS):
        nearby = (correlate1d(found, cross, 1, mode="nearest") + correlate1d(found, cross, 2, mode="nearest")) / 2
        scales = correlate1d(found, cross, 0, mode="nearest")
        found = (own + NEARBY * nearby + SCALES * scales) / (1 + NEARBY + SCALES)
    return np.asarray(found.mean(0))
