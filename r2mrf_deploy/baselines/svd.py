"""Singular values: blur keeps the first ones of a patch and removes the rest, which represent its detail.

Su, Lu and Tan, Blurred image region detection and classification, ACM Multimedia (2011): the blur of a pixel is the sum of
the first k singular values of the patch around it, divided by the sum of all.
"""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.baselines.windows import around, every, luminance, spread, stretch

PATCH, FIRST = 10, 3
"""The side of the patch in pixels, and k: the values in common use."""
STRIDE = 2
"""Distance between patches in pixels. The map is interpolated between them. (The paper measures every pixel.)"""


def focus(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB -> float32 [H, W] in 0..1, 1 = in focus.

    Normalisation: linear, from the lowest value in the photograph to the highest. (The paper thresholds the share instead.)

    Raises:
        InputError: the array is not such a photograph.
    """
    grey = luminance(image)
    windows = around(grey, PATCH)
    rows, columns = (every(n, STRIDE) for n in windows.shape[:2])
    detail = np.stack([_detail(windows[row, columns]) for row in rows])
    return stretch(spread(detail, rows - 0.5, columns - 0.5, grey.shape)).astype(np.float32)


def _detail(patches: np.ndarray) -> np.ndarray:
    """The share of the singular values after the first k, float64 [N] of [N, PATCH, PATCH]; 0 for a black patch."""
    values = np.linalg.svd(patches, compute_uv=False)
    total = values.sum(-1)
    return np.asarray(values[:, FIRST:].sum(-1) / np.where(total > 0, total, 1))
