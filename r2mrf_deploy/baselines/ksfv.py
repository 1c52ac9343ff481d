"""Kernel-specific features: what each of a pool of blurs would leave of a patch's gradients, judged by an SVM.

Pang, Zhu, Li and Li, Classifying discriminative features for blur detection, IEEE Trans. Cybernetics 46 (2016). The feature
of a kernel is the product of the variance of the filtered kernel and the variance of the filtered gradients of the patch;
the pool has kernels of defocus, of motion, and both; a support vector machine decides. There are four departures. The
filters are the differences of successive Gaussians, and a kernel's products are summed over them. The logarithms of the
sums are taken, from windows of two sizes. The motions are horizontal, vertical and diagonal, and those of one length count
as one kernel. The machine is a reduced one (Lee and Mangasarian, 2001), whose support vectors are a random subset; a
logistic curve of its margin is the map. This follows the paper's abstract: its list of kernels and filters was not at hand.
"""

from __future__ import annotations

import itertools

import numpy as np

from r2mrf_deploy.baselines.guided import guided
from r2mrf_deploy.baselines.parameters import learned
from r2mrf_deploy.baselines.windows import every, luminance, spread

SIGMAS = (0.0, 0.6, 1.0, 1.6, 2.5, 4.0)
"""The Gaussians, in pixels; the filters are the differences of successive ones."""
DEFOCUS, MOTION = (0.0, 0.8, 1.2, 1.8, 2.7, 4.0), (3, 5, 9)
"""σ of the kernels of defocus, and lengths of those of motion, in pixels. 0 is no blur."""
WINDOWS = (11, 31)
"""Sides in pixels of the squares in which variances are measured."""
FLOOR = (0.5 / 255) ** 2
"""Added to variances, so that they have a logarithm: half an 8-bit level."""
STRIDE = 4
"""Distance between the places that are classified, in pixels. The map is interpolated between them."""
WIDTH = 0.15
"""γ of the machine's kernel exp(−γ·|x − y|²), of features of standard deviation 1."""


def focus(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB -> float32 [H, W] in 0..1, 1 = in focus.

    Normalisation: the logistic curve of the margin, the same for every photograph; one without any contrast is 0.

    Raises:
        InputError: the array is not such a photograph.
    """
    grey = luminance(image)
    rows, columns = (every(n, STRIDE) for n in grey.shape)
    described = features(grey)[:, rows][:, :, columns]
    sharp = judge(described.reshape(len(described), -1).T, learned("ksfv")).reshape(len(rows), len(columns))
    fine = guided(spread(sharp, rows, columns, grey.shape), grey, 15, 1e-3)
    return (np.clip(fine, 0, 1) * (np.ptp(grey) > 1e-6)).astype(np.float32)


def features(grey: np.ndarray) -> np.ndarray:
    """The logarithm of each kernel's feature in each window, float64 [F, H, W] of [H, W] in 0..1."""
    from scipy.ndimage import gaussian_filter, uniform_filter

    padded = np.pad(grey, 1, mode="symmetric")
    gradients = ((padded[1:-1, 2:] - padded[1:-1, :-2]) / 2, (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2)
    bands = np.zeros((len(SIGMAS) - 1, *grey.shape))
    for gradient in gradients:
        smooth = [gaussian_filter(gradient, s, mode="reflect") if s else gradient for s in SIGMAS]
        bands += np.stack([(a - b) ** 2 for a, b in itertools.pairwise(smooth)])
    kernels = _kernels()
    found = []
    for side in WINDOWS:
        variance = np.stack([uniform_filter(band, side, mode="reflect") for band in bands])
        found.append(np.log(np.tensordot(kernels, np.clip(variance, 0, None), 1) + FLOOR))
    return np.concatenate(found)


def judge(described: np.ndarray, machine: dict[str, np.ndarray]) -> np.ndarray:
    """The probability of being in focus, float64 [N] in 0..1, of features [N, F]."""
    from scipy.special import expit

    hidden = similar((described - machine["mean"]) / machine["deviation"], machine["vectors"])
    return np.asarray(
        expit(machine["curve"][0] * (hidden @ machine["weights"] + machine["offset"]) + machine["curve"][1])
    )


def similar(these: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """The machine's kernel: float64 [N, V] of [N, F] and [V, F]."""
    squares = (these**2).sum(1)[:, None] + (vectors**2).sum(1) - 2 * these @ vectors.T
    return np.exp(-WIDTH * np.clip(squares, 0, None))


def _kernels() -> np.ndarray:
    """The variance of each kernel after each filter, relative to the greatest of the filter: float64 [K, SIGMAS - 1]."""
    from scipy.ndimage import gaussian_filter

    size = 61
    point = np.zeros((size, size))
    point[size // 2, size // 2] = 1
    pool = [[gaussian_filter(point, s) if s else point] for s in DEFOCUS]
    for length in MOTION:
        line = np.zeros((size, size))
        line[size // 2, (size - length) // 2 : (size + length) // 2] = 1 / length
        oblique = np.diag(line[size // 2])
        pool.append([line, line.T, oblique, oblique[::-1]])
        pool.append([gaussian_filter(k, DEFOCUS[2]) for k in pool[-1]])
    rows = []
    for kernels in pool:
        smooth = [[gaussian_filter(k, s) if s else k for s in SIGMAS] for k in kernels]
        rows.append([np.mean([np.var(s[i] - s[i + 1]) for s in smooth]) for i in range(len(SIGMAS) - 1)])
    return np.asarray(rows / np.max(rows, axis=0))
