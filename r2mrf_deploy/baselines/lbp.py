"""Local binary patterns: where the picture is out of focus, few pixels are darker than most of their neighbours.

Yi and Eramian, LBP-based segmentation of defocus blur, IEEE TIP 25 (2016). A neighbour counts where it is brighter, as in
the authors' program. Two departures: where the paper mattes each scale's certain pixels and infers one map from three by
energy minimisation, the doubt between the two thresholds is linear here, the guided filter takes the place of the matting,
and the three scales are averaged.
"""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.baselines.guided import guided
from r2mrf_deploy.baselines.windows import luminance, stretch

NEIGHBOUR = 0.016
"""T_LBP: by how much a neighbour must be brighter than the centre, of intensities in 0..1, to count."""
WINDOWS = (11, 15, 21)
"""The three scales: sides of the windows, in pixels, in which codes are counted."""
BLURRED, SHARP = 0.01, 0.3
"""T_m2 and T_m1: up to the one a window is certainly blurred, from the other on certainly sharp."""


def focus(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB -> float32 [H, W] in 0..1, 1 = in focus.

    Normalisation: the share of codes 6 to 9, linearly from the photograph's lowest to its highest; of that, `BLURRED`
    becomes 0 and `SHARP` 1.

    Raises:
        InputError: the array is not such a photograph.
    """
    from scipy.ndimage import uniform_filter

    grey = luminance(image)
    sharp = (_codes(grey) >= 6).astype(np.float64)
    shares = (stretch(uniform_filter(sharp, side, mode="reflect")) for side in WINDOWS)
    alphas = [np.clip((share - BLURRED) / (SHARP - BLURRED), 0, 1) for share in shares]
    matted = [guided(alpha, grey, side, 1e-3) for alpha, side in zip(alphas, WINDOWS, strict=True)]
    return np.clip(np.mean(matted, axis=0), 0, 1).astype(np.float32)


def _codes(grey: np.ndarray) -> np.ndarray:
    """LBP^riu2_{8,1}, int [H, W] in 0..9: of a uniform pattern the number of brighter neighbours, 9 for the others.

    (scikit-image's local_binary_pattern has no threshold.)
    """
    brighter = _ring(grey) - grey > NEIGHBOUR
    changes = (brighter != np.roll(brighter, 1, axis=0)).sum(0)
    return np.where(changes <= 2, brighter.sum(0), 9)


def _ring(grey: np.ndarray) -> np.ndarray:
    """The eight neighbours at distance 1, in order round the pixel: float [8, H, W]; diagonal ones are bilinear."""
    height, width = grey.shape
    padded = np.pad(grey, 1, mode="edge")

    def at(y: int, x: int) -> np.ndarray:
        return padded[1 + y : 1 + y + height, 1 + x : 1 + x + width]

    def diagonal(y: int, x: int) -> np.ndarray:
        near, far = 1 - np.sqrt(0.5), np.sqrt(0.5)
        return np.asarray(near * near * grey + near * far * (at(y, 0) + at(0, x)) + far * far * at(y, x))

    return np.stack(
        [at(0, 1), diagonal(1, 1), at(1, 0), diagonal(1, -1), at(0, -1), diagonal(-1, -1), at(-1, 0), diagonal(-1, 1)]
    )
