"""Local windows of a photograph, which the baselines measure at every pixel or on a grid.

Windows overlap the border by half their side, and the photograph is mirrored beyond it.
"""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.errors import InputError


def luminance(image: np.ndarray) -> np.ndarray:
    """The grey photograph, float64 [H, W] in 0..1, of uint8 [H, W, 3] RGB.

    Raises:
        InputError: the array has another type or shape, or is empty.
    """
    from skimage.color import rgb2gray

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or not image.size:
        raise InputError(f"a baseline takes uint8 [H, W, 3] RGB, not {image.dtype} {list(image.shape)}")
    return np.asarray(rgb2gray(image))


def around(grey: np.ndarray, size: int) -> np.ndarray:
    """All windows of a size, as a view [H, W, size, size], or [H + 1, W + 1, size, size] if `size` is even, because such
    windows are centred between pixels."""
    padded = np.pad(grey, size // 2, mode="symmetric")
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size))


def every(count: int, stride: int) -> np.ndarray:
    """About every `stride`-th of `count` indices, including the first and the last. They are symmetric, so that a mirrored
    photograph has a mirrored map."""
    half = -(-(count - 1) // (2 * stride)) + 1
    low = np.round(np.linspace(0, count - 1, 2 * half)[:half]).astype(np.int64)
    return np.unique(np.concatenate([low, count - 1 - low]))


def spread(values: np.ndarray, rows: np.ndarray, columns: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Interpolate [len(rows), len(columns)] bilinearly to every pixel: float64 [H, W] of `shape`. Beyond the outermost
    centres (in pixels, increasing) the nearest value is used."""
    down = np.apply_along_axis(lambda line: np.interp(np.arange(shape[0]), rows, line), 0, values)
    return np.apply_along_axis(lambda line: np.interp(np.arange(shape[1]), columns, line), 1, down)


def stretch(values: np.ndarray) -> np.ndarray:
    """Scale linearly to 0..1 along the last two axes; 0 if all values are equal, up to rounding."""
    low, high = (f(values, axis=(-2, -1), keepdims=True) for f in (np.min, np.max))
    distinct = high - low > 1e-6
    return np.asarray(np.where(distinct, (values - low) / np.where(distinct, high - low, 1), 0))
