"""The slope of the local spectrum: blur takes the high frequencies first, so amplitude falls faster with frequency.

Vu, Phan and Chandler, S3: a spectral and spatial measure of local perceived sharpness in natural images, IEEE TIP 21 (2012);
this is its spectral half, S1. Slopes of local spectra tell blur from sharpness in Shi, Xu and Jia, Discriminative blur
detection features, CVPR (2014), too. Two departures: the line is fitted by least squares, and a block's mean is taken away
first, because the window would let it leak into the lowest frequency.
"""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.baselines.windows import around, every, luminance, spread

BLOCK, STRIDE = 32, 8
"""The blocks' side, and the distance from one to the next, in pixels; between their centres the map is interpolated."""
STEEPNESS, MIDDLE = -3.0, 2.0
"""β1 and β2: the logistic curve from slope to sharpness; a slope of 2 gives 0.5."""
LEAST_CONTRAST, LEAST_MEAN = 5.0, 2.0
"""cd/m²: a block with a smaller range, or a darker one, has nothing to see."""
WEAKEST = 1e-3
"""Amplitudes are not taken for smaller than this, under a level of 8 bits, so that they have a logarithm."""


def focus(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB -> float32 [H, W] in 0..1, 1 = in focus.

    Normalisation: the paper's logistic curve of the slope, the same for every photograph.

    Raises:
        InputError: the array is not such a photograph.
    """
    grey = luminance(image)
    windows = around(grey, BLOCK)
    rows, columns = (every(n, STRIDE) for n in windows.shape[:2])
    blocks = windows[np.ix_(rows, columns)]
    sharpness = np.where(_visible(blocks), _logistic(_slopes(blocks)), 0.0)
    return spread(sharpness, rows - 0.5, columns - 0.5, grey.shape).astype(np.float32)


def _slopes(blocks: np.ndarray) -> np.ndarray:
    """α in amplitude ~ frequency^-α, of [..., BLOCK, BLOCK]: the mean amplitude over all directions, up to Nyquist."""
    window = np.outer(np.hanning(BLOCK), np.hanning(BLOCK))
    amplitude = np.abs(np.fft.fft2((blocks - blocks.mean((-2, -1), keepdims=True)) * window))
    cycles = np.fft.fftfreq(BLOCK, 1 / BLOCK)
    ring = np.round(np.hypot(cycles[:, None], cycles[None])).ravel()
    frequencies = np.arange(1, BLOCK // 2 + 1)
    member = (ring[:, None] == frequencies).astype(np.float64)
    mean = amplitude.reshape(*amplitude.shape[:-2], -1) @ (member / member.sum(0))
    x = np.log(frequencies) - np.log(frequencies).mean()
    return np.asarray(-(np.log(np.maximum(mean, WEAKEST)) @ x) / (x @ x))


def _logistic(slopes: np.ndarray) -> np.ndarray:
    from scipy.special import expit

    return np.asarray(expit(STEEPNESS * (slopes - MIDDLE)))


def _visible(blocks: np.ndarray) -> np.ndarray:
    """Whether each block has contrast and light on the paper's screen (sRGB): bool [...] of [..., BLOCK, BLOCK]."""
    light = (0.7656 + 0.0364 * 255 * blocks) ** 2.2
    return np.asarray((np.ptp(light, axis=(-2, -1)) > LEAST_CONTRAST) & (light.mean((-2, -1)) > LEAST_MEAN))
