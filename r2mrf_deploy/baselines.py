"""Focus maps that need no training, so that every result has something to stand beside.

Each takes a photograph, uint8 [H, W, 3] of any size, and gives float32 [H, W] in [0, 1], 1 = in focus. They are the local
measures of the papers; the refinement that some papers put after them (alpha matting, edge-preserving filters) is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from r2mrf_deploy.errors import RuntimeUnavailable, UsageError, did_you_mean

LBP_THRESHOLD = 0.016
"""Of Yi and Eramian, for grey in [0, 1]."""
LBP_WINDOWS = (11, 15, 21)
SVD_SIDE, SVD_KEPT, SVD_STRIDE = 10, 3, 4
HIFST_SIDES, HIFST_STRIDE = (7, 15, 31, 63), 6
SPECTRUM_SIDE, SPECTRUM_STRIDE = 32, 8


def names() -> list[str]:
    return list(_TABLE)


def get(name: str) -> Callable[[np.ndarray], np.ndarray]:
    """The baseline called `name`.

    Raises:
        UsageError: there is none.
    """
    if name not in _TABLE:
        raise UsageError(f"no baseline {name!r}: {did_you_mean(name, _TABLE)}")
    return _TABLE[name]


def lbp(image: np.ndarray) -> np.ndarray:
    """Share of the local binary patterns 6 to 9 in a window (Yi and Eramian, IEEE TIP 25(4), 2016).

    LBP_{8,1}^{riu2} with their threshold on differences. The paper joins its scales by alpha matting and inference on a
    graph; here they are averaged.
    """
    uniform_filter = _ndimage().uniform_filter
    grey = np.pad(_grey(image), 1, mode="symmetric")
    centre = grey[1:-1, 1:-1]
    angles = np.arange(8) * np.pi / 4
    bits = np.stack([_shifted(grey, np.sin(a), np.cos(a)) - centre >= LBP_THRESHOLD for a in angles])
    transitions = (bits != np.roll(bits, 1, 0)).sum(0)
    code = np.where(transitions <= 2, bits.sum(0), 9)
    sharp = (code >= 6).astype(np.float64)
    return _bounded(np.mean([uniform_filter(sharp, w, mode="reflect") for w in LBP_WINDOWS], 0))


def svd(image: np.ndarray) -> np.ndarray:
    """1 minus the share of the largest singular values of a patch (Su, Lu and Tan, ACM Multimedia 2011).

    What is blurred is nearly of low rank. Scaled so that equal singular values give 1; a patch of zeros gives 0.
    """
    grey = _grey(image)
    patches, rows, columns = _patches(grey, SVD_SIDE, SVD_STRIDE)
    values = np.linalg.svd(patches, compute_uv=False)
    total = values.sum(-1)
    first = values[..., :SVD_KEPT].sum(-1) / np.where(total > 0, total, 1)
    share = np.where(total > 0, 1 - first, 0) / (1 - SVD_KEPT / SVD_SIDE)
    return _bounded(_spread(share, rows, columns, grey.shape))


def hifst(image: np.ndarray) -> np.ndarray:
    """High-frequency multiscale fusion and sort transform of the gradient (Golestaneh and Karam, CVPR 2017).

    DCT coefficients on and over the antidiagonal, of four block sizes, sorted together at each position; each rank is
    scaled to [0, 1] over the photograph and the ranks are summed. Positions are every 6th pixel, not every one; the
    paper's weighting by local entropy is left out, and a Gaussian takes the place of its edge-preserving smoothing.
    """
    ndimage = _ndimage()
    smooth = ndimage.gaussian_filter(_grey(image), 0.5)
    gradient = np.hypot(ndimage.sobel(smooth, 0), ndimage.sobel(smooth, 1))
    found = []
    for side in HIFST_SIDES:
        patches, rows, columns = _patches(gradient.astype(np.float32), side, HIFST_STRIDE)
        basis = _dct(side)
        high = np.add.outer(np.arange(side), np.arange(side)) >= side - 1
        found.append(np.stack([np.abs(basis @ row @ basis.T)[:, high] for row in patches]))
    ranked = np.sort(np.concatenate(found, -1), -1)
    low, high_ = ranked.min((0, 1)), ranked.max((0, 1))
    total = ((ranked - low) / np.where(high_ > low, high_ - low, 1)).sum(-1)
    whole = _spread(ndimage.gaussian_filter(total, 1), rows, columns, gradient.shape)
    # what is left of a flat picture's gradient is rounding
    return _stretched(whole) if gradient.max() > 1e-6 else np.zeros(gradient.shape, np.float32)


def spectrum(image: np.ndarray) -> np.ndarray:
    """Slope of the local amplitude spectrum: S1 of S3 (Vu, Phan and Chandler, IEEE TIP 21(3), 2012).

    The slope's magnitude a goes through 1 - 1 / (1 + exp(-3 (a - 2))), as there; blocks of no contrast give 0.
    """
    grey = _grey(image)
    patches, rows, columns = _patches(grey, SPECTRUM_SIDE, SPECTRUM_STRIDE)
    window = np.outer(np.hanning(SPECTRUM_SIDE), np.hanning(SPECTRUM_SIDE))
    amplitude = np.abs(np.fft.fft2((patches - patches.mean((-2, -1), keepdims=True)) * window))
    frequency = np.fft.fftfreq(SPECTRUM_SIDE, 1 / SPECTRUM_SIDE)
    radius = np.round(np.hypot(frequency[:, None], frequency)).astype(int)
    radii = np.arange(1, SPECTRUM_SIDE // 2 + 1)
    radial = np.stack([amplitude[..., radius == r].mean(-1) for r in radii], -1)
    x = np.log(radii) - np.log(radii).mean()
    slope = -(np.log(radial + 1e-6) @ x) / (x @ x)
    contrast = patches.max((-2, -1)) - patches.min((-2, -1))
    score = np.where(contrast > 5 / 255, 1 - 1 / (1 + np.exp(-3 * (slope - 2))), 0)
    return _bounded(_spread(score, rows, columns, grey.shape))


_TABLE: dict[str, Callable[[np.ndarray], np.ndarray]] = {"lbp": lbp, "svd": svd, "hifst": hifst, "spectrum": spectrum}


def _grey(image: np.ndarray) -> np.ndarray:
    """Luma in [0, 1], float64 [H, W] (ITU-R BT.601)."""
    return image.astype(np.float64) @ np.array([0.299, 0.587, 0.114]) / 255


def _shifted(padded: np.ndarray, dy: float, dx: float) -> np.ndarray:
    """The picture at an offset of at most one pixel, bilinear; `padded` has one pixel more on every side."""
    height, width = padded.shape
    inner = np.zeros((height - 2, width - 2))
    for y in (-1, 0, 1):
        for x in (-1, 0, 1):
            weight = max(0.0, 1 - abs(y - dy)) * max(0.0, 1 - abs(x - dx))
            if weight > 1e-9:
                inner += weight * padded[1 + y : height - 1 + y, 1 + x : width - 1 + x]
    return inner


def _patches(grey: np.ndarray, side: int, stride: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Patches [h, w, side, side] round a grid of pixels, and the grid's rows and columns."""
    half = side // 2
    padded = np.pad(grey, ((half, side - half), (half, side - half)), mode="symmetric")
    rows, columns = (np.arange(min(stride // 2, n - 1), n, stride) for n in grey.shape)
    views = np.lib.stride_tricks.sliding_window_view(padded, (side, side))
    return views[rows[:, None], columns], rows, columns


def _spread(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Values on a grid of pixels to every pixel, bilinear; the border is held."""
    down, across = (
        np.stack([np.interp(np.arange(n), at, unit) for unit in np.eye(len(at))], 1)
        for n, at in zip(size, (rows, columns), strict=True)
    )
    return down @ values @ across.T


def _dct(side: int) -> np.ndarray:
    """The orthonormal DCT-II as float32 [side, side]."""
    k, n = np.arange(side)[:, None], np.arange(side)
    basis = np.cos(np.pi * (n + 0.5) * k / side) * np.sqrt(2 / side)
    basis[0] /= np.sqrt(2)
    return basis.astype(np.float32)


def _bounded(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 1).astype(np.float32)


def _stretched(values: np.ndarray) -> np.ndarray:
    """To [0, 1] over the photograph."""
    low, high = float(values.min()), float(values.max())
    return _bounded((values - low) / (high - low) if high > low else np.zeros_like(values))


def _ndimage() -> Any:
    try:
        from scipy import ndimage
    except ImportError:
        raise RuntimeUnavailable('this baseline needs SciPy: pip install "r2mrf-deploy[eval]"') from None
    return ndimage
