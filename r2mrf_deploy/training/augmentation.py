"""What is done to photographs and their masks so that a network learns sharpness, and not a camera or a colour."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from r2mrf_deploy.training.synthesis import shapes
from r2mrf_deploy.training.synthesis.camera import Camera
from r2mrf_deploy.training.synthesis.lens import convolve, kernels
from r2mrf_deploy.training.synthesis.rng import Range, Rng


@dataclass(frozen=True)
class Augmentation(Camera):
    """The random changes of a batch of crops. A camera's are as for composites, but for less noise and higher quality: a
    photograph already has some of both."""

    noise: Range = (0.0, 0.015)
    jpeg: float = 0.3
    quality: Range = (50.0, 95.0)
    gamma: Range = (0.7, 1.4)
    tint: float = 0.1
    """Largest change of a colour channel's gain."""
    grey: float = 0.05
    """Probability that the colours are lost."""
    defocused: float = 0.25
    """Probability that a region is defocused, whatever was in focus there."""
    area: Range = (0.15, 0.75)
    """Share of the picture that the region covers."""
    radius: Range = (2.0, 8.0)
    """Radius of the circle of confusion in pixels, log-uniformly."""

    def __call__(self, image: Tensor, mask: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """Change images [N, 3, S, S] in 0 .. 1 and their masks [N, 1, S, S], 1 = in focus."""
        count = len(image)
        if len(some := rng.some(count, self.defocused)):
            image[some], mask[some] = self._defocus(image[some], mask[some], rng)
        image = image.clamp(0, 1) ** rng.uniform(count, self.gamma)
        tint = 1 + self.tint * (2 * rng.uniform(3 * count, (0.0, 1.0)).view(count, 3, 1, 1) - 1)
        image = image * tint
        image = torch.where(rng.chance(count, self.grey), image.mean(1, keepdim=True), image)
        return self.photograph(image, rng), mask

    def _defocus(self, image: Tensor, mask: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        count, side = len(image), image.shape[-1]
        low, high = map(math.log, self.radius)
        radius = torch.exp(rng.uniform(count, (low, high)))
        shape, blades, turn = rng.whole(count, 0, 3), rng.whole(count, 5, 9), rng.uniform(count, (0, math.pi))
        blurred = convolve(image, kernels(radius, shape, blades, turn, math.ceil(1.5 * self.radius[1])))[:, 0]
        region = shapes.generated(rng, count, side, self.area, torch.ones_like(radius))
        return torch.lerp(image, blurred, region), mask * (1 - region)
