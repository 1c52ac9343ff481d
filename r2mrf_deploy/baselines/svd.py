"""Singular values: blur leaves a patch's first ones and takes away the rest, which hold its detail.

Su, Lu and Tan, Blurred image region detection and classification, ACM Multimedia (2011): the blur of a pixel is the share of
the first k singular values of the patch round it in their sum.
"""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.baselines.windows import around, every, luminance, spread, stretch

PATCH, FIRST = 10, 3
"""The patch's side in pixels, and k: the values in common use."""
STRIDE = 2
"""Pixels from one patch to the next; between them the map is interpolated. (The paper measures every pixel.)"""


def focus(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB -> float32 [H, W] in 0..1, 1 = in focus.

    Normalisation: linear, from the photograph's lowest value to its highest. (The paper thresholds the share instead.)

    Raises:
        InputError: the array is not such a photograph.
    """
    grey = luminance(image)
    windows = around(grey, PATCH)
    rows, columns = (every(n, STRIDE) for n in windows.shape[:2])
    detail = np.stack([_detail(windows[row, columns]) for row in rows])
    return stretch(spread(detail, rows - 0.5, columns - 0.5, grey.shape)).astype(np.float32)


def _detail(patches: np.ndarray) -> np.ndarray:
    """The share of the singular values after the first k: float64 [N] of [N, PATCH, PATCH]."""
    values = np.linalg.svd(patches, compute_uv=False)
    total = values.sum(-1)
    return np.asarray(values[:, FIRST:].sum(-1) / np.where(total > 0, total, 1))  # of a black patch: none
