"""Logarithms of local spectra, averaged over all directions."""

from __future__ import annotations

import numpy as np

from r2mrf_deploy.baselines.windows import around


def log_spectra(
    grey: np.ndarray, side: int, rows: np.ndarray, columns: np.ndarray, lowest: float, weakest: float
) -> np.ndarray:
    """The log spectrum of the block around each row and column, tapered and without its mean.

    Args:
        grey: float [H, W] in 0..1.
        side: of the blocks in pixels, odd.
        lowest: the lowest frequency, as a share of the highest.
        weakest: added to amplitudes, so that rounding to 8 bits is no detail.

    Returns:
        float64 [rows, columns, frequencies], the frequencies in cycles per block, one apart, up to Nyquist's.
    """
    windows, taper = around(grey, side), np.hanning(side + 2)[1:-1]
    cycles = np.fft.fftfreq(side, 1 / side)
    ring = np.round(np.hypot(cycles[:, None], cycles[None, : side // 2 + 1])).ravel()
    frequencies = np.arange(np.ceil(lowest * (side // 2)), side // 2 + 1)
    member = (ring[:, None] == frequencies).astype(np.float64)
    member /= member.sum(0)
    logs = []
    for row in rows:
        blocks = windows[row, columns]
        blocks = (blocks - blocks.mean((1, 2), keepdims=True)) * np.outer(taper, taper)
        logs.append(np.log(np.abs(np.fft.rfft2(blocks)).reshape(len(columns), -1) @ member + weakest))
    return np.stack(logs)
