"""HiFST: the weakest high-frequency coefficients of the gradient's magnitude, at four scales.

Golestaneh and Karam, Spatially-varying blur detection based on multiscale fused and sorted transform coefficients of
gradient magnitudes, CVPR (2017). The DCT of four patches around each pixel gives high-frequency coefficients. Their
absolute values, sorted together, form layers. Each layer is normalised over the photograph; the maximum over the layers is
weighted by its local entropy. There are two departures: the transform is computed every few pixels and interpolated, and a
guided filter replaces the domain transform as the last smoothing.
"""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.baselines.guided import guided
from r2mrf_deploy.baselines.windows import around, every, luminance, spread, stretch

PATCHES = (7, 15, 31, 63)
"""M_r = 2^(2+r) - 1: sides in pixels, odd so that each patch is centred on a pixel."""
LAYERS = sum(PATCHES)
"""Number of sorted layers used, from the weakest."""
STRIDE = 4
"""Distance between patches in pixels."""
DENOISING = 0.5
"""σ of the Gaussian that is applied before the gradient, in pixels."""
NEIGHBOURHOOD = 7
"""Side in pixels of the squares whose entropy weights the map."""


def focus(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB -> float32 [H, W] in 0..1, 1 = in focus.

    Normalisation: each layer, and the map, linearly from its lowest value in the photograph to its highest, as in the paper.

    Raises:
        InputError: the array is not such a photograph.
    """
    from scipy.ndimage import gaussian_filter, sobel
    from skimage.filters.rank import entropy

    grey = luminance(image)
    smooth = gaussian_filter(grey, DENOISING)
    gradient = np.hypot(sobel(smooth, 0), sobel(smooth, 1)).astype(np.float32) / np.float32(8)
    windows = [around(gradient, side) for side in PATCHES]
    rows, columns = (every(n, STRIDE) for n in grey.shape)
    layers = np.stack([_layers([w[row, columns] for w in windows]) for row in rows], axis=1)  # [LAYERS, rows, columns]
    greatest = spread(stretch(layers).max(0), rows, columns, grey.shape)
    levels = np.round(255 * greatest).astype(np.uint8)
    weighted = greatest * entropy(levels, np.ones((NEIGHBOURHOOD, NEIGHBOURHOOD), np.uint8))
    return stretch(np.clip(guided(weighted, grey, 15, 1e-2), 0, None)).astype(np.float32)


def _layers(patches: list[np.ndarray]) -> np.ndarray:
    """The sorted layers, weakest first, of N patches [N, M, M] of each side M: float32 [LAYERS, N]."""
    from scipy.fft import dctn

    found = []
    for side, some in zip(PATCHES, patches, strict=True):
        high = np.indices((side, side)).sum(0) >= side - 1
        found.append(np.abs(dctn(some, axes=(1, 2), norm="ortho")[:, high]))
    together = np.partition(np.concatenate(found, axis=1), LAYERS - 1, axis=1)[:, :LAYERS]
    return np.sort(together, axis=1).T
