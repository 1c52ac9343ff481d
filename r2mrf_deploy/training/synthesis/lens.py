"""Defocus by a lens: the point spread functions of several apertures, and the convolution with them."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def kernels(radius: Tensor, shape: Tensor, blades: Tensor, turn: Tensor, reach: int) -> Tensor:
    """Point spread functions [N, K, 2·reach + 1, 2·reach + 1] that sum to 1.

    Args:
        radius: [N, K, 1, 1], in pixels.
        shape: [N, 1, 1, 1]: 0 for a disc, 1 for a polygon with this inner radius, 2 for a Gaussian with the disc's variance
            (σ = radius / 2).
        blades: [N, 1, 1, 1], number of sides of the polygon.
        turn: [N, 1, 1, 1], rotation of the polygon in radians.
    """
    line = torch.arange(-reach, reach + 1, device=radius.device, dtype=radius.dtype)
    distance = torch.hypot(line.view(1, -1), line.view(-1, 1))
    angle = torch.atan2(line.view(-1, 1), line.view(1, -1))
    sector = 2 * math.pi / blades
    across = distance * torch.cos(torch.remainder(angle - turn, sector) - sector / 2)  # along the nearest side's normal
    edge = torch.where(shape == 1, across, distance)
    hard = (radius + 0.5 - edge).clamp(0, 1)  # pixels at the rim are partly covered
    kernel = torch.where(shape == 2, torch.exp(-2 * (distance / radius) ** 2), hard)
    return kernel / kernel.sum((2, 3), keepdim=True)


def convolve(x: Tensor, psf: Tensor) -> Tensor:
    """Convolve each sample of x [N, C, H, W] with each of its kernels [N, K, k, k]: [N, K, C, H, W], borders replicated.

    This uses the Fourier transform, so the time does not depend on the radius.
    """
    reach = psf.shape[-1] // 2
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    height, width = (math.ceil(side / 32) * 32 for side in padded.shape[2:])
    spectrum = torch.fft.rfft2(padded, s=(height, width)).unsqueeze(1)
    product = spectrum * torch.fft.rfft2(psf, s=(height, width)).unsqueeze(2)
    blurred = torch.fft.irfft2(product, s=(height, width))
    start = 2 * reach  # before it, the opposite border has wrapped around
    return blurred[..., start : start + x.shape[2], start : start + x.shape[3]]
