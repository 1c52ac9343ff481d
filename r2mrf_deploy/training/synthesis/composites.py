"""Partially defocused photographs, made from sharp ones, with the mask of what is in focus.

A composite has two layers: a foreground, cut out by a generated or a drawn shape, in front of a background. One of them is
out of focus. A defocused background ends sharply at the foreground's outline. A defocused foreground bleeds over the
background, because its colour and its coverage are blurred together (premultiplied alpha). The circle of confusion is a
disc, a polygon (the blades of an aperture) or a Gaussian, and its radius changes across the layer. Cameras and image files
then add their part: resizing, softness, gain, noise, JPEG.

A batch is made at once, on any device, and depends only on the seed or, after `seek`, on the seed and the iteration.
Photographs are reduced to several scales in advance, so that crops need no resampling and stay sharp to the pixel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from r2mrf_deploy.errors import InputError, UsageError
from r2mrf_deploy.training.synthesis import shapes
from r2mrf_deploy.training.synthesis.camera import Camera
from r2mrf_deploy.training.synthesis.lens import convolve, kernels
from r2mrf_deploy.training.synthesis.rng import Range, Rng


@dataclass(frozen=True)
class Synthesis(Camera):
    """What composites look like. Ranges are sampled uniformly, except `radius`, which is sampled log-uniformly."""

    size: int = 160
    """Side of a composite in pixels."""
    radius: Range = (1.5, 8.0)
    """Radius of the circle of confusion in pixels."""
    swell: float = 2.0
    """The radius changes across the defocused layer by a factor of at most this."""
    area: Range = (0.15, 0.75)
    """Share of the picture that a generated foreground covers."""
    drawn: float = 0.5
    """Probability that the shape is a drawn mask, if there are any."""
    foreground_in_focus: float = 0.6
    """Probability that the foreground is in focus; otherwise the background is."""
    one_photograph: float = 0.5
    """Probability that both layers come from one photograph, so that only the sharpness distinguishes them."""
    gradual: float = 0.2
    """Probability that such a composite loses focus gradually, like a receding plane, instead of at an outline."""
    plain: float = 0.05
    """Probability that there is no outline: everything is in focus, or nothing."""
    scales: tuple[float, ...] = (1.4, 1.2, 1.0, 0.8, 0.63)
    """Scales of the photographs that crops are taken from. Reduced ones are sharper to the pixel than most photographs.
    Enlarged ones teach that fur and skin may be in focus without being so."""
    shrunk: float = 0.2
    """Probability that a batch is made larger, by `shrinkage`, and then reduced: this sharpens outlines and correlates
    noise."""
    shrinkage: Range = (1.2, 1.5)

    def __post_init__(self) -> None:
        if not 0 < self.radius[0] <= self.radius[1] or self.swell < 1:
            raise UsageError(
                f"`radius` must be an increasing pair over 0 and `swell` at least 1, not {self.radius} and {self.swell}"
            )
        if self.size < 16:
            raise UsageError(f"`size` must be at least 16, not {self.size}")
        if self.shrinkage[0] < 1 or not 0 < self.quality[0] <= self.quality[1] <= 100:
            raise UsageError("`shrinkage` must be at least 1 and `quality` an increasing pair in 0 .. 100")


class Composites:
    """An endless source of composites, in batches.

    Args:
        photographs: sharp everywhere, uint8 [H, W, 3], each at least `synthesis.size` high and wide.
        synthesis: what to make of them.
        masks: drawn masks, uint8 [H, W] each, 255 = in focus.
        seed: the same seed, photographs, masks and device give the same batches.
        device: where batches are made. The random choices do not depend on it; the sensor's noise does.

    Raises:
        InputError: there is no photograph, or a photograph or a mask cannot be used.
    """

    def __init__(
        self,
        photographs: Sequence[np.ndarray],
        synthesis: Synthesis | None = None,
        *,
        masks: Sequence[np.ndarray] = (),
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.synthesis = synthesis or Synthesis()
        self.device = torch.device(device)
        self.seed = seed
        self._rng = Rng(self.device)
        self._rng.seek(seed)
        if not len(photographs):
            raise InputError("no photograph to make composites of: give at least one")
        self._scaled = [self._reductions(photograph) for photograph in photographs]
        self._masks = shapes.DrawnMasks(masks, self.device) if len(masks) else None
        shortest = min(min(reduced[0].shape[1:]) for reduced in self._scaled)
        self._largest = shortest / self.synthesis.size

    def seek(self, *key: int) -> None:
        """Go to the batches of a key, for example (iteration, rank), whatever was made before."""
        self._rng.seek(self.seed, *key)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Make `count` composites.

        Returns:
            (images float [N, 3, S, S] in 0 .. 1, masks float [N, 1, S, S], 1 = in focus, with values between at edges).
        """
        s, rng = self.synthesis, self._rng
        side = s.size
        if rng.real((0, 1)) < s.shrunk:
            side = round(s.size * min(rng.real(s.shrinkage), self._largest))
        image, mask = self._compose(count, side)
        if side > s.size:
            size = (s.size, s.size)
            image, mask = (
                F.interpolate(x, size=size, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
                for x in (image, mask)
            )
        return s.photograph(image, rng), mask

    def _compose(self, count: int, side: int) -> tuple[Tensor, Tensor]:
        s, rng = self.synthesis, self._rng
        one, clear = rng.chance(count, s.one_photograph), rng.chance(count, s.foreground_in_focus)
        gradual = one & rng.chance(count, s.gradual)
        front, back = self._crops(count, side), self._crops(count, side)
        back = torch.where(one, front, back)
        shape, clear = self._shapes(count, side, gradual, clear)

        layer = torch.where(clear, torch.cat([back, torch.ones_like(shape)], 1), torch.cat([front * shape, shape], 1))
        layer = self._defocus(layer, side / s.size).clamp(0, 1)  # the Fourier transform rounds
        colour, alpha = layer[:, :3], layer[:, 3:]
        image = torch.where(clear, shape * front + (1 - shape) * colour, colour + (1 - alpha) * back)
        return image, torch.where(clear, shape, 1 - alpha)

    def _shapes(self, count: int, side: int, gradual: Tensor, clear: Tensor) -> tuple[Tensor, Tensor]:
        """(coverage of the foreground [N, 1, S, S], whether the foreground is in focus)."""
        s, rng = self.synthesis, self._rng
        width = torch.where(gradual, rng.uniform(count, (side / 8, side / 2)), 1.0)
        shape = shapes.generated(rng, count, side, s.area, width)
        if self._masks is not None:
            focus, usable = self._masks.cut(rng, count, side)
            usable = usable & ~gradual & rng.chance(count, s.drawn)
            # The part in focus is either the foreground or the background.
            shape = torch.where(usable, torch.where(clear, focus, 1 - focus), shape)
        plain, everything = rng.chance(count, s.plain), rng.chance(count, 0.5)
        shape = torch.where(plain, everything.float(), shape)
        return shape, clear | plain

    def _reductions(self, photograph: np.ndarray) -> list[Tensor]:
        size = self.synthesis.size
        if photograph.dtype != np.uint8 or photograph.ndim != 3 or photograph.shape[2] != 3:
            raise InputError(f"a photograph must be uint8 [H, W, 3], not {photograph.dtype} {list(photograph.shape)}")
        height, width = photograph.shape[:2]
        if min(height, width) < size:
            raise InputError(f"a photograph of {height}×{width} is too small for composites of {size}×{size}")
        full = torch.tensor(photograph).permute(2, 0, 1).contiguous().to(self.device)
        sizes = dict.fromkeys((round(height * k), round(width * k)) for k in self.synthesis.scales if k < 1)
        return [full, *(resized(full, hw) for hw in sizes if min(hw) >= size)]

    def _crops(self, count: int, side: int) -> Tensor:
        """Random crops, mirrored, transposed and with their colour channels permuted, float [N, 3, S, S] in 0 .. 1."""
        return torch.stack([self._crop(side) for _ in range(count)]).float() / 255

    def _crop(self, side: int) -> Tensor:
        rng, scales = self._rng, self.synthesis.scales
        reduced = self._scaled[rng.integer(len(self._scaled))]
        scale = scales[rng.integer(len(scales))]
        if scale > 1:  # a smaller crop, to be enlarged
            picture, cut = reduced[0], math.ceil(side / scale)
        else:
            large = [picture for picture in reduced if min(picture.shape[1:]) >= side]
            wanted = scale * reduced[0].shape[1]
            picture, cut = min(large, key=lambda picture: abs(picture.shape[1] - wanted)), side
        top, left = (rng.integer(length - cut + 1) for length in picture.shape[1:])
        crop = picture[:, top : top + cut, left : left + cut]
        if rng.integer(2):
            crop = crop.flip(2)
        if rng.integer(4) == 0:
            crop = crop.transpose(1, 2)
        return resized(crop[rng.order(3)], (side, side))

    def _defocus(self, layer: Tensor, enlarged: float) -> Tensor:
        """Blur [N, C, S, S] with a radius that grows from r to at most swell × r across the picture."""
        s, rng, count = self.synthesis, self._rng, layer.shape[0]
        low = torch.exp(rng.uniform(count, (math.log(s.radius[0]), math.log(s.radius[1]))))
        high = (low * rng.uniform(count, (1.0, s.swell))).clamp(max=s.radius[1])
        radius = enlarged * torch.cat([low, high], 1)
        reach = math.ceil(1.5 * enlarged * s.radius[1])
        shape, blades, turn = rng.whole(count, 0, 3), rng.whole(count, 5, 9), rng.uniform(count, (0, math.pi))
        near, far = convolve(layer, kernels(radius, shape, blades, turn, reach)).unbind(1)
        x, y = shapes.grid(layer.shape[-1], self.device)
        angle = rng.uniform(count, (0, 2 * math.pi))
        share = (0.5 + x * angle.cos() + y * angle.sin()).clamp(0, 1)
        return torch.lerp(near, far, share)


def resized(picture: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize uint8 [C, H, W] with an antialiased cubic filter."""
    if picture.shape[1:] == size:
        return picture
    antialias = size[0] < picture.shape[1] or size[1] < picture.shape[2]
    resized = F.interpolate(picture[None].float(), size=size, mode="bicubic", antialias=antialias, align_corners=False)
    return resized[0].round().clamp(0, 255).to(torch.uint8)
