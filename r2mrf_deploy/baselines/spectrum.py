"""The slope of the local spectrum: blur removes high frequencies first, so the amplitude falls faster with frequency.

Vu, Phan and Chandler, S3: a spectral and spatial measure of local perceived sharpness in natural images, IEEE TIP 21
(2012). A slope does not depend on contrast, so the paper multiplies it (S1) by the total variation of the neighbourhood
(S2). Shi, Xu and Jia, Discriminative blur detection features, CVPR (2014), use slopes of local spectra too. There are two
departures: the line is fitted by least squares, and a block's mean is subtracted first, because the window would leak it
into the lowest frequency.
"""

from __future__ import annotations

import itertools

import numpy as np

from r2mrf_deploy.baselines.windows import around, every, luminance, spread

BLOCK, STRIDE = 32, 8
"""The side of the blocks and the distance between them, in pixels. The map is interpolated between their centres."""
STEEPNESS, MIDDLE = -3.0, 2.0
"""β1 and β2: the logistic curve from slope to sharpness; a slope of 2 gives 0.5."""
NEIGHBOURHOOD = 8
"""Side in pixels of the blocks over which S2 takes the maximum of the total variation."""
LEAST_CONTRAST, LEAST_MEAN = 5.0, 2.0
"""In cd/m². A block with a smaller range or a lower mean has no visible detail."""
WEAKEST = 1e-3
"""Lower bound of amplitudes, less than one 8-bit level, so that they have a logarithm."""


def focus(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB -> float32 [H, W] in 0..1, 1 = in focus.

    Normalisation: the paper's, the same for every photograph. S1 is a logistic curve of the slope, S2 is 1 for the total
    variation of a chessboard, and the map is their geometric mean.

    Raises:
        InputError: the array is not such a photograph.
    """
    grey = luminance(image)
    return np.sqrt(_spectral(grey) * _spatial(grey)).astype(np.float32)


def _spectral(grey: np.ndarray) -> np.ndarray:
    """S1, from the slope of the spectrum: float64 [H, W] in 0..1."""
    from scipy.special import expit

    windows = around(grey, BLOCK)
    rows, columns = (every(n, STRIDE) for n in windows.shape[:2])
    along = []
    for row in rows:
        blocks = windows[row, columns]
        along.append(np.where(_visible(blocks), expit(STEEPNESS * (_slopes(blocks) - MIDDLE)), 0.0))
    return spread(np.stack(along), rows - 0.5, columns - 0.5, grey.shape)


def _spatial(grey: np.ndarray) -> np.ndarray:
    """S2, a quarter of the largest total variation of 2×2 pixels in each block: float64 [H, W] in 0..1."""
    from scipy.ndimage import maximum_filter

    four = around(grey, 2).reshape(grey.shape[0] + 1, grey.shape[1] + 1, 4)
    variation = sum(np.abs(four[..., i] - four[..., j]) for i, j in itertools.combinations(range(4), 2))
    greatest = maximum_filter(variation / 4, NEIGHBOURHOOD - 1)
    rows, columns = (np.arange(n + 1) - 0.5 for n in grey.shape)
    return spread(greatest, rows, columns, grey.shape)


def _slopes(blocks: np.ndarray) -> np.ndarray:
    """α in amplitude ~ frequency^-α of [..., BLOCK, BLOCK], from amplitudes averaged over all directions, up to Nyquist."""
    window = np.outer(np.hanning(BLOCK), np.hanning(BLOCK))
    amplitude = np.abs(np.fft.fft2((blocks - blocks.mean((-2, -1), keepdims=True)) * window))
    cycles = np.fft.fftfreq(BLOCK, 1 / BLOCK)
    ring = np.round(np.hypot(cycles[:, None], cycles[None])).ravel()
    frequencies = np.arange(1, BLOCK // 2 + 1)
    member = (ring[:, None] == frequencies).astype(np.float64)
    mean = amplitude.reshape(*amplitude.shape[:-2], -1) @ (member / member.sum(0))
    x = np.log(frequencies) - np.log(frequencies).mean()
    return np.asarray(-(np.log(np.maximum(mean, WEAKEST)) @ x) / (x @ x))


def _visible(blocks: np.ndarray) -> np.ndarray:
    """Whether each block has enough contrast and light on the paper's screen (sRGB): bool [...] of [..., BLOCK, BLOCK]."""
    light = (0.7656 + 0.0364 * 255 * blocks) ** 2.2
    return np.asarray((np.ptp(light, axis=(-2, -1)) > LEAST_CONTRAST) & (light.mean((-2, -1)) > LEAST_MEAN))
