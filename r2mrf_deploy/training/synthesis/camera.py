"""What happens to a picture after the lens: softness, contrast, and JPEG.

The functions take batches [N, 3, H, W] in 0 .. 1 and one value per picture, [N, 1, 1, 1], on any device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from r2mrf_deploy.training.synthesis.rng import Range, Rng

# ITU-T T.81, tables K.1 (luminance) and K.2 (chrominance): the quantisation of JPEG at quality 50.
_LUMINANCE = """
16 11 10 16 24 40 51 61   12 12 14 19 26 58 60 55   14 13 16 24 40 57 69 56   14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77   24 35 55 64 81 104 113 92   49 64 78 87 103 121 120 101   72 92 95 98 112 100 103 99
"""
_CHROMINANCE = """
17 18 24 47 99 99 99 99   18 21 26 66 99 99 99 99   24 26 56 99 99 99 99 99   47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99   99 99 99 99 99 99 99 99
"""
# ITU-T T.871 (JFIF): R'G'B' to Y'CbCr.
_TO_YCC = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))


@dataclass(frozen=True)
class Camera:
    """What a camera and its files do to a picture, at random."""

    soft: float = 0.2
    """Probability of a slight blur of the whole picture, by a Gaussian with a standard deviation of `softness` pixels."""
    softness: Range = (0.3, 0.7)
    flat: float = 0.15
    """Probability that the contrast is reduced, to `contrast`."""
    contrast: Range = (0.4, 0.9)
    gain: Range = (0.6, 1.3)
    noise: Range = (0.0, 0.02)
    """Standard deviation of the sensor's noise, which is added after the lens, on the scale 0 to 1."""
    jpeg: float = 0.5
    """Probability of JPEG compression, at `quality` on the usual scale to 100."""
    quality: Range = (40.0, 95.0)

    def photograph(self, image: Tensor, rng: Rng) -> Tensor:
        """Add the effects to [N, 3, H, W], in place or not."""
        count = len(image)
        if len(some := rng.some(count, self.soft)):
            image[some] = soften(image[some], rng.uniform(len(some), self.softness))
        if len(some := rng.some(count, self.flat)):
            image[some] = flatten_contrast(image[some], rng.uniform(len(some), self.contrast))
        gain, sigma = rng.uniform(count, self.gain), rng.uniform(count, self.noise)
        image = (gain * image + sigma * rng.noise(image)).clamp(0, 1)
        if len(some := rng.some(count, self.jpeg)):
            image[some] = jpeg(image[some], rng.uniform(len(some), self.quality))
        return image


def soften(image: Tensor, sigma: Tensor) -> Tensor:
    """Blur slightly by a Gaussian, as resampling and noise reduction do; `sigma` is in pixels and below 1."""
    line = torch.arange(-2, 3, device=image.device)
    weights = torch.exp(-0.5 * (line / sigma.view(-1, 1)) ** 2)
    weights = (weights / weights.sum(1, keepdim=True)).repeat_interleave(3, 0).unsqueeze(1)
    count, _, height, width = image.shape
    planes = F.pad(image, (2,) * 4, mode="replicate").reshape(1, 3 * count, height + 4, width + 4)
    planes = F.conv2d(planes, weights.unsqueeze(2), groups=3 * count)
    return F.conv2d(planes, weights.unsqueeze(3), groups=3 * count).view_as(image)


def flatten_contrast(image: Tensor, contrast: Tensor) -> Tensor:
    """Move every value towards the picture's mean; a `contrast` of 1 changes nothing."""
    mean = image.mean((1, 2, 3), keepdim=True)
    return mean + contrast * (image - mean)


def jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """Simulate JPEG compression at a quality of 1 .. 100, on the scale of the Independent JPEG Group.

    No file is made: values are rounded to 8 bits, colours are subsampled 4:2:0, and each 8×8 block is transformed,
    quantised and transformed back (ITU-T T.81).
    """
    height, width = image.shape[2:]
    padded = F.pad(image, (0, -width % 16, 0, -height % 16), mode="replicate")
    ycc = torch.einsum("ij,njhw->nihw", image.new_tensor(_TO_YCC), (255 * padded).round())
    scale = torch.where(quality < 50, 5000 / quality, 200 - 2 * quality)
    luma = _quantised(ycc[:, :1] - 128, scale, _LUMINANCE)
    chroma = _quantised(F.avg_pool2d(ycc[:, 1:], 2), scale, _CHROMINANCE)
    chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)
    rgb = torch.einsum("ij,njhw->nihw", image.new_tensor(_TO_YCC).inverse(), torch.cat([luma + 128, chroma], 1))
    return (rgb[:, :, :height, :width].round() / 255).clamp(0, 1)


def _quantised(planes: Tensor, scale: Tensor, table: str) -> Tensor:
    """Round the cosine coefficients of each 8×8 block of [N, C, H, W] to multiples of the table's scaled steps."""
    steps = torch.tensor([int(t) for t in table.split()], device=planes.device).view(1, 8, 1, 8)
    steps = ((steps * scale.view(-1, 1, 1, 1) + 50) / 100).floor().clamp(1, 255).unsqueeze(1).unsqueeze(3)
    steps = steps.view(-1, 1, 1, 8, 1, 8)
    u = torch.arange(8, device=planes.device, dtype=planes.dtype).view(-1, 1)
    cosine = torch.cos((2 * u.T + 1) * u * math.pi / 16) / 2  # the orthonormal transform, [8, 8]
    cosine[0] /= math.sqrt(2)
    blocks = planes.unflatten(3, (-1, 8)).unflatten(2, (-1, 8))  # [N, C, H / 8, 8, W / 8, 8]
    coefficients = torch.einsum("ui,ncaibj,vj->ncaubv", cosine, blocks, cosine)
    rounded = (coefficients / steps).round() * steps
    return torch.einsum("ui,ncaubv,vj->ncaibj", cosine, rounded, cosine).flatten(4).flatten(2, 3)
