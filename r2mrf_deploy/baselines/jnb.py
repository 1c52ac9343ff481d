"""Sparse codes over blurred patches: the sharper a patch, the more atoms of blur it takes to represent it.

Shi, Xu and Jia, Just noticeable defocus blur detection and estimation, CVPR (2015): a dictionary of 64 atoms is learned from
8 × 8 patches that are slightly blurred. A patch is represented to within ε by as few atoms as possible, and their number
measures its sharpness. There are four departures. The patches for learning are out-of-focus parts of
photographs. The atoms are chosen by orthogonal matching pursuit, after the patch's mean is subtracted. A logistic curve,
which is learned too, leads from the number to the probability of being in focus, not to the σ of a blur. A guided filter
replaces the edge-preserving smoothing.
"""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.baselines.guided import guided
from r2mrf_deploy.baselines.parameters import learned
from r2mrf_deploy.baselines.windows import around, every, luminance, spread

PATCH = 8
"""Side of a patch in pixels."""
ATOMS = 64
STRIDE = 4
"""Distance between patches in pixels. The map is interpolated between them. (The paper measures every pixel.)"""
TOLERANCE = 64 * (3.0 / 255) ** 2
"""ε: the squared error that is left, of intensities in 0..1; three 8-bit levels in each pixel."""
MOST = 24
"""Number of atoms after which a patch is sharp beyond doubt."""
NEIGHBOURHOOD = 5
"""Side, in patches, of the squares over which the numbers of atoms are averaged."""


def focus(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB -> float32 [H, W] in 0..1, 1 = in focus.

    Normalisation: the learned curve, the same for every photograph, from no atoms (0) upwards.

    Raises:
        InputError: the array is not such a photograph.
    """
    grey = luminance(image)
    known = learned("jnb")
    numbers, rows, columns = numbers_of_atoms(grey, known["atoms"])
    sharp = probability(numbers, known["curve"])
    return np.clip(guided(spread(sharp, rows - 0.5, columns - 0.5, grey.shape), grey, 15, 1e-3), 0, 1).astype(
        np.float32
    )


def probability(numbers: np.ndarray, curve: np.ndarray) -> np.ndarray:
    """The logistic curve of slope and offset `curve`, shifted and scaled so that 0 atoms are exactly 0."""
    from scipy.special import expit

    lowest = expit(curve[1])  # the slope is positive
    return np.asarray((expit(curve[0] * numbers + curve[1]) - lowest) / (1 - lowest))


def numbers_of_atoms(grey: np.ndarray, atoms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean number of atoms of the patches around each, float64 [rows, columns], and the patches' rows and columns."""
    from scipy.ndimage import uniform_filter

    windows = around(grey, PATCH)
    rows, columns = (every(n, STRIDE) for n in windows.shape[:2])
    patches = windows[np.ix_(rows, columns)].reshape(-1, PATCH * PATCH)
    _, numbers = pursue(patches - patches.mean(1, keepdims=True), atoms, TOLERANCE, MOST)
    grid = numbers.reshape(len(rows), len(columns)).astype(np.float64)
    return np.clip(uniform_filter(grid, NEIGHBOURHOOD, mode="reflect"), 0, MOST), rows, columns


def pursue(patches: np.ndarray, atoms: np.ndarray, tolerance: float, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Orthogonal matching pursuit.

    Args:
        patches: float64 [N, P].
        atoms: float64 [ATOMS, P]; made to have length 1 here.
        tolerance: a patch is done when its squared error is at most this.
        most: and at the latest after this many atoms.

    Returns:
        The chosen atoms in order, int [N, most], -1 after the last; their number, int [N].
    """
    atoms = atoms / np.linalg.norm(atoms, axis=1, keepdims=True)
    products = atoms @ atoms.T
    chosen = np.full((len(patches), most), -1)
    error = (patches**2).sum(1)
    active = np.flatnonzero(error > tolerance)
    match, error = patches[active] @ atoms.T, error[active]  # of the residuals with the atoms
    basis = np.zeros((0, len(active), len(atoms)))  # the orthonormal basis of the chosen atoms, times all atoms
    for step in range(most):
        best = np.abs(match).argmax(1)
        each = np.arange(len(active))
        row = products[best] - np.einsum("mna,mn->na", basis, basis[:, each, best])
        row /= np.sqrt(np.maximum(row[each, best], 1e-12))[:, None]
        weight = match[each, best] / np.sqrt(np.maximum(row[each, best] ** 2, 1e-12))
        chosen[active, step] = best
        match, error = match - weight[:, None] * row, error - weight**2
        left = error > tolerance
        basis = np.concatenate([basis[:, left], row[None, left]])
        active, match, error = active[left], match[left], error[left]
        if not len(active):
            break
    return chosen, (chosen >= 0).sum(1)
