"""Local windows of a photograph: every baseline measures them, most of them not at every pixel.

Windows overlap the border by half their side; beyond it the photograph is mirrored.
"""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.errors import InputError


def luminance(image: np.ndarray) -> np.ndarray:
    """The grey photograph, float64 [H, W] in 0..1, of uint8 [H, W, 3] RGB.

    Raises:
        InputError: the array is of another type or shape, or empty.
    """
    from skimage.color import rgb2gray

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"a baseline takes uint8 [H, W, 3] RGB, not {image.dtype} {list(image.shape)}")
    return np.asarray(rgb2gray(image))


def around(grey: np.ndarray, size: int) -> np.ndarray:
    """Every window of a side, as a view [H, W, size, size]; [H + 1, W + 1, size, size] where `size` is even, because such
    windows are centred between pixels."""
    padded = np.pad(grey, size // 2, mode="symmetric")
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size))


def every(count: int, stride: int) -> np.ndarray:
    """About every `stride`-th of `count` indices, first and last among them; the mirror image of itself, so that a mirrored
    photograph has a mirrored map."""
    half = -(-(count - 1) // (2 * stride)) + 1
    low = np.round(np.linspace(0, count - 1, 2 * half)[:half]).astype(np.int64)
    return np.unique(np.concatenate([low, count - 1 - low]))


def spread(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Bilinear interpolation to every pixel: float64 [H, W] of `shape` from [len(rows), len(columns)]; beyond the outermost
    centres (in pixels, increasing) the nearest value."""
    return _along(_along(values, rows, shape[0]).T, columns, shape[1]).T


def stretch(values: np.ndarray) -> np.ndarray:
    """Linearly to 0..1, along the last two axes; 0 where they hold one value, up to rounding."""
    low, high = (f(values, axis=(-2, -1), keepdims=True) for f in (np.min, np.max))
    told_apart = high - low > 1e-6
    return np.asarray(np.where(told_apart, (values - low) / np.where(told_apart, high - low, 1), 0))


def _along(values: np.ndarray, centres: np.ndarray, length: int) -> np.ndarray:
    """Linear interpolation along the first axis: [length, n] from [len(centres), n]."""
    at = np.interp(np.arange(length), centres, np.arange(len(centres)))
    low = at.astype(np.int64)
    share = (at - low)[:, None]
    return np.asarray((1 - share) * values[low] + share * values[np.minimum(low + 1, len(centres) - 1)])
