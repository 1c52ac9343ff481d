"""The guided filter, which aligns the edges of a map with those of the photograph.

He, Sun and Tang, Guided image filtering, IEEE TPAMI 35 (2013), with the grey photograph as the guide.
"""

from __future__ import annotations

import numpy as np


def guided(values: np.ndarray, guide: np.ndarray, radius: int, smoothness: float) -> np.ndarray:
    """Smooth `values` (float [H, W]) except where `guide` (float [H, W] in 0..1) has edges.

    Args:
        radius: radius of the square window in pixels.
        smoothness: ε, the variance below which the guide counts as flat.

    Returns:
        float64 [H, W]. It can exceed the range of `values` a little at edges.
    """
    from scipy.ndimage import uniform_filter

    def mean(x: np.ndarray) -> np.ndarray:
        return np.asarray(uniform_filter(x, 2 * radius + 1, mode="reflect"))

    guide, values = guide.astype(np.float64), values.astype(np.float64)
    guide_mean, values_mean = mean(guide), mean(values)
    variance = mean(guide * guide) - guide_mean**2
    slope = (mean(guide * values) - guide_mean * values_mean) / (variance + smoothness)
    return mean(slope) * guide + mean(values_mean - slope * guide_mean)
