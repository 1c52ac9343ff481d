"""Likelihoods of blur kernels: which of several blurs explains the local spectrum of the gradient best.

Chakrabarti, Zickler and Freeman, Analyzing spatially-varying blur, CVPR (2010). A gradient in focus is white, with a
variance s of its own at each pixel (a Gaussian scale mixture). In a band with the filter f_i, a gradient blurred by k has
then the variance s·Σ|k ∗ f_i|² plus that of the noise. The s that fits best gives the likelihood of k. There are three
departures. The paper compares motion blurs; here k is a disc, as in a photograph that is out of focus, and the horizontal
and the vertical gradient count alike. The likelihoods are averaged over a window, stronger blurs are likelier beforehand,
and a guided filter replaces the segmentation by colour and a Markov random field. The map is not the most likely k but the
expectation of its rank among the radii.
"""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.baselines.guided import guided
from r2mrf_deploy.baselines.windows import luminance, stretch

LENGTH, BANDS = 21, 9
"""Samples of a filter, and the number of filters: frequencies 1 .. BANDS cycles in LENGTH pixels."""
RADII = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
"""Radii in pixels of the discs that are compared; 0 is no blur."""
SCALES = np.geomspace(1e-6, 1e-1, 16)
"""The values of s that are tried: variances of a gradient of intensities in 0..1."""
NOISE = (2.0 / 255) ** 2
"""Variance of the noise of intensities in 0..1: two 8-bit levels."""
NEIGHBOURHOOD = 15
"""Side in pixels of the squares over which log-likelihoods are averaged."""
PRIOR = 6.0
"""By how much the log-likelihood of the greatest radius exceeds that of no blur beforehand, rising from rank to rank: where
there is no detail, nothing is in focus."""


def focus(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB -> float32 [H, W] in 0..1, 1 = in focus.

    Normalisation: linear, from the highest expected rank of the radius in the photograph to the lowest.

    Raises:
        InputError: the array is not such a photograph.
    """
    from scipy.ndimage import uniform_filter

    grey = luminance(image)
    fits = _likelihoods(grey) + np.swapaxes(_likelihoods(grey.T), 1, 2)  # [RADII, H, W]
    fits = np.stack([uniform_filter(fit, NEIGHBOURHOOD, mode="reflect") for fit in fits])
    fits += PRIOR * np.linspace(0, 1, len(RADII))[:, None, None]
    share = np.exp(fits - fits.max(0))
    rank = 1 - np.linspace(0, 1, len(RADII))
    sharp = np.tensordot(rank, share / share.sum(0), 1)
    return stretch(np.clip(guided(sharp, grey, 15, 1e-3), 0, 1)).astype(np.float32)


def _likelihoods(grey: np.ndarray) -> np.ndarray:
    """The log-likelihood of each radius from the horizontal gradient, float64 [RADII, H, W] of [H, W]."""
    energies = _energies(grey).reshape(BANDS, -1)
    own, noise = _variances()
    expected = SCALES[:, None, None] * own + noise  # [SCALES, RADII, BANDS]
    best = np.full((len(RADII), energies.shape[1]), -np.inf)
    for variances in expected:
        np.maximum(best, -(1 / variances) @ energies - np.log(variances).sum(1)[:, None], out=best)
    return best.reshape(len(RADII), *grey.shape)


def _filters() -> np.ndarray:
    """f_i: windowed complex exponentials, complex128 [BANDS, LENGTH]."""
    at = np.arange(LENGTH) - LENGTH // 2
    window = np.hanning(LENGTH + 2)[1:-1]
    return np.asarray(window * np.exp(-2j * np.pi * np.arange(1, BANDS + 1)[:, None] * at / LENGTH))


def _energies(grey: np.ndarray) -> np.ndarray:
    """|f_i ∗ ∇x|², float64 [BANDS, H, W], the mean of the gradients on both sides of a pixel."""
    from scipy.ndimage import correlate1d

    gradient = np.diff(np.pad(grey, ((0, 0), (1, 1)), mode="symmetric"), axis=1)
    found = []
    for f in _filters():
        energy = (
            correlate1d(gradient, f.real, 1, mode="reflect") ** 2
            + correlate1d(gradient, f.imag, 1, mode="reflect") ** 2
        )
        found.append((energy[:, 1:] + energy[:, :-1]) / 2)
    return np.stack(found)


def _variances() -> tuple[np.ndarray, np.ndarray]:
    """Σ|k ∗ f_i|² of each radius, float64 [RADII, BANDS], and the variance of the noise's gradient in each band."""
    from scipy.signal import fftconvolve

    own = [[np.abs(fftconvolve(_disc(r), f[None])) ** 2 for f in _filters()] for r in RADII]
    noise = NOISE * np.array([(np.abs(np.convolve(f, [1, -1])) ** 2).sum() for f in _filters()])
    return np.array([[energy.sum() for energy in row] for row in own]), noise


def _disc(radius: float) -> np.ndarray:
    """The share of light in each pixel of a disc, from 9 × 9 points in each: float64 [N, N], of sum 1."""
    reach = int(np.ceil(radius + 0.5)) if radius else 0
    points = (np.arange(9 * (2 * reach + 1)) + 0.5) / 9 - reach - 0.5
    inside = points[:, None] ** 2 + points**2 <= max(radius, 0.5) ** 2
    cells = inside.reshape(2 * reach + 1, 9, 2 * reach + 1, 9).sum((1, 3)).astype(np.float64)
    return np.asarray(cells / cells.sum())
