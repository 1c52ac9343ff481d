"""Values known at some places, led to all places by the colours of the photograph.

Levin, Lischinski and Weiss, A closed-form solution to natural image matting, IEEE TPAMI 30 (2008): in each 3 × 3 window the
values are a linear function of the colours, as far as what is known allows.
"""

from __future__ import annotations

import numpy as np


def propagate(values: np.ndarray, weights: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Solve (L + diag(weights)) x = weights · values, with the matting Laplacian L.

    Args:
        values: float [R, C]; where the weight is 0 they do not matter.
        weights: float [R, C], not negative, and not 0 everywhere.
        colours: float [R, C, 3] in 0..1.

    Returns:
        float64 [R, C]. It can exceed the range of `values` a little.
    """
    from scipy.sparse import diags
    from scipy.sparse.linalg import spsolve

    shape = values.shape
    add = [(0, max(3 - n, 0)) for n in shape]
    values, weights = (np.pad(a, add, mode="symmetric") for a in (values, weights))
    laplacian = _laplacian(np.pad(colours, [*add, (0, 0)], mode="symmetric"))
    system = laplacian + diags(weights.ravel() + 1e-8)
    solved = spsolve(system.tocsc(), (weights * values).ravel(), permc_spec="MMD_AT_PLUS_A")
    return np.asarray(solved.reshape(values.shape)[: shape[0], : shape[1]])


def _laplacian(colours: np.ndarray, smoothness: float = 1e-4):  # type: ignore[no-untyped-def]
    """The matting Laplacian of [R, C, 3], sparse [R · C, R · C]."""
    from scipy.sparse import coo_matrix, diags

    height, width, _ = colours.shape
    index = np.arange(height * width).reshape(height, width)
    cells = np.lib.stride_tricks.sliding_window_view(index, (3, 3)).reshape(-1, 9)
    centred = colours.reshape(-1, 3)[cells]
    centred = centred - centred.mean(1, keepdims=True)
    covariance = centred.swapaxes(1, 2) @ centred / 9 + smoothness / 9 * np.eye(3)
    affinity = (1 + centred @ np.linalg.solve(covariance, centred.swapaxes(1, 2))) / 9
    rows, columns = np.repeat(cells, 9, axis=1).ravel(), np.tile(cells, (1, 9)).ravel()
    size = height * width
    joined = coo_matrix((affinity.ravel(), (rows, columns)), (size, size)).tocsr()
    return diags(np.asarray(joined.sum(1)).ravel()) - joined
