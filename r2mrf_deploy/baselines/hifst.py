"""HiFST: the weakest high-frequency coefficients of the gradient's magnitude, over four resolutions.

Golestaneh and Karam, Spatially-varying blur detection based on multiscale fused and sorted transform coefficients of
gradient magnitudes, CVPR (2017). Round each pixel the DCT of four patches gives high-frequency coefficients; their absolute
values, sorted together, make layers; each layer is normalised over the photograph, the greatest is taken, and weighed by its
local entropy. Two departures: the transform is taken every few pixels and interpolated, and the guided filter smooths
instead of the domain transform.
"""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.baselines.guided import guided
from r2mrf_deploy.baselines.windows import around, every, luminance, spread, stretch

PATCHES = (7, 15, 31, 63)
"""M_r = 2^(2+r) - 1: sides in pixels, odd so that a pixel is in the middle."""
LAYERS = sum(PATCHES)
"""How many of the sorted layers count: the weakest."""
STRIDE = 4
"""Pixels from one patch to the next."""
BEFORE = 0.5
"""σ of the Gaussian before the gradient, against noise, in pixels."""
NEIGHBOURHOOD = 7
"""Side in pixels of the squares whose entropy weighs the map."""


def focus(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB -> float32 [H, W] in 0..1, 1 = in focus.

    Normalisation: each layer, and the map, linearly from the photograph's lowest value to its highest, as in the paper.

    Raises:
        InputError: the array is not such a photograph.
    """
    grey = luminance(image)
    rows, columns = (every(n, STRIDE) for n in grey.shape)
    gradient = _gradient(grey)
    windows = [around(gradient, side) for side in PATCHES]
    layers = np.stack([_layers([w[row, columns] for w in windows]) for row in rows], axis=1)  # [LAYERS, rows, columns]
    greatest = spread(stretch(layers).max(0), rows, columns, grey.shape)
    weighed = greatest * _entropy(greatest)
    return stretch(np.clip(guided(weighed, grey, 15, 1e-2), 0, None)).astype(np.float32)


def _gradient(grey: np.ndarray) -> np.ndarray:
    """The gradient's magnitude: float32 [H, W]."""
    from scipy.ndimage import gaussian_filter, sobel

    smooth = gaussian_filter(grey, BEFORE)
    return np.hypot(sobel(smooth, 0), sobel(smooth, 1)).astype(np.float32) / np.float32(8)


def _layers(patches: list[np.ndarray]) -> np.ndarray:
    """The sorted layers, weakest first: float32 [LAYERS, N] of the N patches [N, M, M] of each side M."""
    from scipy.fft import dctn

    found = []
    for side, some in zip(PATCHES, patches, strict=True):
        transformed = dctn(some, axes=(1, 2), norm="ortho")
        i, j = np.indices((side, side))
        found.append(np.abs(transformed[:, i + j >= side - 1]))
    together = np.partition(np.concatenate(found, axis=1), LAYERS - 1, axis=1)[:, :LAYERS]
    return np.sort(together, axis=1).T


def _entropy(values: np.ndarray) -> np.ndarray:
    """The entropy of each pixel's neighbourhood, in bits, of values in 0..1 counted in 256 bins: float64 [H, W]."""
    from skimage.filters.rank import entropy

    levels = np.round(255 * values).astype(np.uint8)
    return np.asarray(entropy(levels, np.ones((NEIGHBOURHOOD, NEIGHBOURHOOD), np.uint8)))
