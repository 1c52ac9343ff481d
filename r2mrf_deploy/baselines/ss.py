"""A spectral and a spatial step: the residual of the local log spectrum, refined by what resembles each place nearby.

Tang, Wu, Hou, Wang and Li, A spectral and spatial approach of coarse-to-fine blurred image region detection, IEEE Signal
Processing Letters 23 (2016). The logarithm of a block's spectrum, averaged over directions, gives a residual, whose high
frequencies blur removes: the coarse map. Then each region takes over the values of neighbours that resemble it in colour
and in the distribution of their gradients, again and again, so that a smooth region in focus follows its textured
neighbours. There are four departures. The residual is what remains after the average of the photograph's blocks is
subtracted. The regions are square cells, since superpixels prefer a side. The distribution of gradients is represented by
the logarithms of their mean and standard deviation. A guided filter leads from the cells to the pixels.
This follows the letter's abstract: its own formulas of the residual and of the update were not at hand.
"""

from __future__ import annotations

import itertools

import numpy as np

from r2mrf_deploy.baselines.guided import guided
from r2mrf_deploy.baselines.rings import log_spectra
from r2mrf_deploy.baselines.windows import every, luminance, spread, stretch

BLOCKS, STRIDE = (17, 33), 8
"""The sides of the blocks and the distance between them, in pixels; the cells are as large as the distance."""
LOWEST = 0.25
"""The lowest frequency of the residual that counts, as a share of the highest."""
WEAKEST = 0.02
"""Added to amplitudes, so that rounding to 8 bits is no detail."""
REACH, ROUNDS, SHARE = 2, 12, 0.7
"""Cells up to this distance are neighbours; the number of updates; the weight of the neighbours in each."""
COLOUR, TEXTURE = 0.1, 0.6
"""Differences in colour (of 0..1 in each channel) and in the logarithms about gradients that make regions unlike."""


def focus(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] RGB -> float32 [H, W] in 0..1, 1 = in focus.

    Normalisation: linear, from the lowest refined residual in the photograph to the highest.

    Raises:
        InputError: the array is not such a photograph.
    """
    from scipy.ndimage import uniform_filter

    grey = luminance(image)
    rows, columns = (every(n, STRIDE) for n in grey.shape)
    cell = np.ix_(rows, columns)
    coarse = stretch(np.mean([_residual(grey, side, rows, columns) for side in BLOCKS], axis=0))
    colours = uniform_filter(image / 255, (STRIDE + 1, STRIDE + 1, 1), mode="reflect")[cell]
    refined = _refined(coarse, colours / COLOUR, _gradients(grey)[cell] / TEXTURE)
    fine = guided(spread(refined, rows, columns, grey.shape), grey, 15, 1e-3)
    return stretch(fine).astype(np.float32)


def _residual(grey: np.ndarray, side: int, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The mean residual over the high frequencies of the blocks around rows and columns: float64 [rows, columns]."""
    found = log_spectra(grey, side, rows, columns, LOWEST, WEAKEST)
    return np.asarray((found - found.mean((0, 1))).mean(-1))


def _gradients(grey: np.ndarray) -> np.ndarray:
    """The logarithms of the mean and the standard deviation of gradients around each pixel: float64 [H, W, 2]."""
    from scipy.ndimage import sobel, uniform_filter

    gradient = np.hypot(sobel(grey, 0), sobel(grey, 1)) / 8
    mean, square = (uniform_filter(g, 2 * STRIDE + 1, mode="reflect") for g in (gradient, gradient**2))
    return np.log(np.stack([mean, np.sqrt(np.clip(square - mean**2, 0, None))], axis=-1) + 2 / 255)


def _refined(values: np.ndarray, *features: np.ndarray) -> np.ndarray:
    """Mix `values` [R, C] with those of similar neighbours, repeatedly; each of `features` is [R, C, F], in units in which
    1 is unlike."""
    described = np.concatenate(features, axis=-1)
    size = 2 * REACH + 1
    neighbours = _shifted(described, size)  # [R, C, F, size, size]
    alike = np.exp(-((neighbours - described[..., None, None]) ** 2).sum(2) / 2)
    for down, right in itertools.product(range(size), repeat=2):
        alike[..., down, right] *= (down, right) != (REACH, REACH)
    weight = alike.sum((2, 3))
    mixed = values
    for _ in range(ROUNDS):
        others = (alike * _shifted(mixed[..., None], size)[:, :, 0]).sum((2, 3)) / np.maximum(weight, 1e-9)
        trust = SHARE * weight / (weight + 1)  # with few that are alike, a cell keeps its value
        mixed = (1 - trust) * mixed + trust * others
    return mixed


def _shifted(values: np.ndarray, size: int) -> np.ndarray:
    """The size × size neighbours of each cell: [R, C, F, size, size] of [R, C, F]."""
    padded = np.pad(values, ((size // 2,) * 2, (size // 2,) * 2, (0, 0)), mode="symmetric")
    return np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(0, 1))
