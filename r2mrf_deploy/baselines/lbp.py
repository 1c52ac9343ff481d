"""Local binary patterns: in defocused areas, few pixels are darker than most of their neighbours.

Yi and Eramian, LBP-based segmentation of defocus blur, IEEE TIP 25 (2016). A neighbour counts if it is brighter, as in the
authors' program. There are two departures. The paper mattes the certain pixels of each scale; here the values between the
two thresholds are linear, and a guided filter replaces the matting. The paper infers one map from three scales by energy
minimisation; here the scales are averaged.
"""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.baselines.guided import guided
from r2mrf_deploy.baselines.windows import around, luminance, stretch

NEIGHBOUR = 0.016
"""T_LBP: a neighbour counts if it is brighter than the centre by more than this, of intensities in 0..1."""
WINDOWS = (11, 15, 21)
"""The three scales: sides in pixels of the windows in which codes are counted."""
BLURRED, SHARP = 0.01, 0.3
"""T_m2 and T_m1: a window is certainly blurred below the first and certainly sharp above the second."""


def focus(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB -> float32 [H, W] in 0..1, 1 = in focus.

    Normalisation: the share of codes 6 to 9, linearly from its lowest value in the photograph to its highest; then `BLURRED`
    is mapped to 0 and `SHARP` to 1.

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
    """LBP^riu2_{8,1}, int [H, W] in 0..9: the number of brighter neighbours of a uniform pattern, 9 for other patterns.

    (scikit-image's local_binary_pattern has no threshold.)
    """
    brighter = _ring(grey) - grey > NEIGHBOUR
    changes = (brighter != np.roll(brighter, 1, axis=0)).sum(0)
    return np.where(changes <= 2, brighter.sum(0), 9)


def _ring(grey: np.ndarray) -> np.ndarray:
    """The eight neighbours at distance 1, in order around the pixel, float [8, H, W]; diagonal ones are bilinear."""
    window = around(grey, 3)
    near, far = 1 - np.sqrt(0.5), np.sqrt(0.5)

    def at(y: int, x: int) -> np.ndarray:
        if 1 in (y, x):
            return window[..., y, x]
        beside = window[..., y, 1] + window[..., 1, x]
        return np.asarray(near * near * grey + near * far * beside + far * far * window[..., y, x])

    return np.stack([at(y, x) for y, x in ((1, 2), (2, 2), (2, 1), (2, 0), (1, 0), (0, 0), (0, 1), (0, 2))])
