"""Partially defocused photographs, made from sharp ones, with the mask of what is in focus.

A composite has two layers, as a scene has: a foreground, cut out by a generated shape, before a background. One of them is
out of focus. A defocused background ends sharply at the object before it; a defocused foreground bleeds over what is behind
it, because its colour and its coverage are blurred together (premultiplied alpha). The circle of confusion is a disc, a
polygon (the blades of an aperture) or a Gaussian, and its radius changes across the layer.

Everything is done for a batch at once, on any device, and follows from one seed. Photographs are reduced in advance to
several scales, so that crops need no resampling and what was sharp stays sharp to the pixel.
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

Range = tuple[float, float]


@dataclass(frozen=True)
class Synthesis:
    """What composites look like. Ranges are drawn from uniformly, except `radius`: that one log-uniformly."""

    size: int = 160
    """Side of a composite, in pixels."""
    radius: Range = (1.5, 8.0)
    """Radius of the circle of confusion, in pixels."""
    swell: float = 2.0
    """The radius changes across the defocused layer by a factor of at most this."""
    area: Range = (0.15, 0.75)
    """Share of the picture that the foreground covers."""
    foreground_in_focus: float = 0.6
    """How often it is the foreground that is sharp; the background is, otherwise."""
    one_photograph: float = 0.5
    """How often both layers come from one photograph: then only the sharpness tells them apart."""
    gradual: float = 0.2
    """How often, of these, focus is lost gradually, as on a plane in depth, instead of at an outline."""
    scales: tuple[float, ...] = (1.0, 0.8, 0.63, 0.5)
    """Reductions of the photographs; the least sharp detail becomes sharper with each."""
    gain: Range = (0.6, 1.3)
    noise: Range = (0.0, 0.02)
    """Standard deviation of the sensor's noise, added after the lens, on the scale 0 to 1."""

    def __post_init__(self) -> None:
        if not 0 < self.radius[0] <= self.radius[1] or self.swell < 1:
            raise UsageError(
                f"radius must be an increasing pair over 0, and swell at least 1, not {self.radius}, {self.swell}"
            )
        if self.size < 16:
            raise UsageError(f"size must be at least 16, not {self.size}")


class Composites:
    """Composites without end, in batches.

    Args:
        photographs: sharp all over, uint8 [H, W, 3], each at least `synthesis.size` high and wide.
        synthesis: what to make of them.
        seed: the same seed, photographs and device give the same batches.
        device: where batches are made. What is chosen does not depend on it; the sensor's noise does.

    Raises:
        InputError: there is no photograph, or one is not uint8 RGB or is too small.
    """

    def __init__(
        self,
        photographs: Sequence[np.ndarray],
        synthesis: Synthesis | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.synthesis = synthesis or Synthesis()
        self.device = torch.device(device)
        self._choices = torch.Generator().manual_seed(seed)
        self._noise = torch.Generator(self.device).manual_seed(seed)
        if not len(photographs):
            raise InputError("no photograph to make composites of: give at least one")
        self._scaled = [self._reductions(photograph) for photograph in photographs]

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """Make `count` composites.

        Returns:
            (images float [N, 3, S, S] in 0 .. 1, masks float [N, 1, S, S] in 0 .. 1: 1 = in focus, between at edges).
        """
        s = self.synthesis
        one, sharp_front = self._chance(count, s.one_photograph), self._chance(count, s.foreground_in_focus)
        gradual = one & self._chance(count, s.gradual)
        front, back = self._crops(count), self._crops(count)
        back = torch.where(self._to(one), front, back)
        softness = torch.where(gradual, self._uniform(count, (s.size / 8, s.size / 2)), torch.ones(count, 1, 1, 1))
        shape = self._shapes(count, self._to(softness))

        clear = self._to(sharp_front)
        layer = torch.where(clear, _with_alpha(back, torch.ones_like(shape)), _with_alpha(front * shape, shape))
        layer = self._defocus(layer).clamp(0, 1)  # the transform rounds
        colour, alpha = layer[:, :3], layer[:, 3:]
        image = torch.where(clear, shape * front + (1 - shape) * colour, colour + (1 - alpha) * back)
        mask = torch.where(clear, shape, 1 - alpha)
        return self._expose(image), mask

    def _reductions(self, photograph: np.ndarray) -> list[Tensor]:
        size = self.synthesis.size
        if photograph.dtype != np.uint8 or photograph.ndim != 3 or photograph.shape[2] != 3:
            raise InputError(f"a photograph must be uint8 [H, W, 3], not {photograph.dtype} {list(photograph.shape)}")
        height, width = photograph.shape[:2]
        if min(height, width) < size:
            raise InputError(f"a photograph of {height}×{width} is too small for composites of {size}×{size}")
        full = torch.tensor(photograph).permute(2, 0, 1).contiguous().to(self.device)
        sizes = dict.fromkeys((round(height * k), round(width * k)) for k in self.synthesis.scales)
        reduced = [_resize(full, hw) for hw in sizes if min(hw) >= size]
        return reduced or [full]

    def _crops(self, count: int) -> Tensor:
        """Random crops, mirrored, turned and with their colour channels permuted, float [N, 3, S, S] in 0 .. 1."""
        size, crops = self.synthesis.size, []
        for _ in range(count):
            scaled = self._scaled[self._integer(len(self._scaled))]
            picture = scaled[self._integer(len(scaled))]
            top, left = (self._integer(side - size + 1) for side in picture.shape[1:])
            crop = picture[:, top : top + size, left : left + size]
            if self._integer(2):
                crop = crop.flip(2)
            if self._integer(4) == 0:
                crop = crop.transpose(1, 2)
            crops.append(crop[torch.randperm(3, generator=self._choices).to(self.device)])
        return torch.stack(crops).float() / 255

    def _shapes(self, count: int, softness: Tensor) -> Tensor:
        """Coverage of the foreground, float [N, 1, S, S]: polygons, outlines and clouds, alone or two together."""
        kinds = torch.stack([self._polygons(2 * count), self._outlines(2 * count), self._clouds(2 * count)])
        kind = torch.randint(3, (2 * count,), generator=self._choices).to(self.device)
        field = kinds[kind, torch.arange(2 * count, device=self.device)].unflatten(0, (2, count))
        together = self._to(self._chance(count, 0.3)).squeeze(1)
        field = torch.where(together, field.amax(0), field[0])
        # Whatever the field, a threshold at its quantile gives the area that was asked for.
        area = self._to(self._uniform(count, self.synthesis.area)).flatten()
        sample = field[:, ::4, ::4].flatten(1).sort(dim=1).values
        level = sample.gather(1, ((1 - area) * (sample.shape[1] - 1)).long().unsqueeze(1))
        return ((field - level.unsqueeze(2)).unsqueeze(1) / softness + 0.5).clamp(0, 1)

    def _polygons(self, count: int) -> Tensor:
        """Distance in pixels inside a convex polygon of 1 (a half plane) to 6 sides, [N, S, S]."""
        x, y = self._grid()
        sides = torch.randint(1, 7, (count, 1), generator=self._choices)
        order = torch.arange(6)
        turn = self._uniform(count, (0, 2 * math.pi)).view(count, 1)
        angle = turn + 2 * math.pi * (order + self._uniform(count * 6, (-0.3, 0.3)).view(count, 6)) / sides
        angle = torch.where(order < sides, angle, angle[:, :1]).to(self.device)
        offset = self._uniform(count * 6, (0.0, 0.5)).view(count, 6)
        offset = torch.where(order < sides, offset, offset[:, :1]).to(self.device)
        centre_x, centre_y = self._centres(count)
        dx, dy = x - centre_x, y - centre_y
        inside: Tensor | None = None
        for side in range(6):
            a, b = angle[:, side].view(-1, 1, 1), offset[:, side].view(-1, 1, 1)
            distance = b - dx * a.cos() - dy * a.sin()
            inside = distance if inside is None else torch.minimum(inside, distance)
        assert inside is not None
        return inside * self.synthesis.size

    def _outlines(self, count: int) -> Tensor:
        """About the distance in pixels inside an ellipse whose outline is bent by a few harmonics, [N, S, S]."""
        x, y = self._grid()
        centre_x, centre_y = self._centres(count)
        turn, stretch = (self._to(self._uniform(count, r)).squeeze(1) for r in ((0, math.pi), (1.0, 2.5)))
        dx, dy = x - centre_x, y - centre_y
        u = (dx * turn.cos() + dy * turn.sin()) * stretch
        v = dy * turn.cos() - dx * turn.sin()
        angle = torch.atan2(v, u)
        bend = torch.ones_like(angle)
        for harmonic in range(2, 7):
            size = self._to(self._uniform(count, (0.0, 0.5 / harmonic))).squeeze(1)
            phase = self._to(self._uniform(count, (0, 2 * math.pi))).squeeze(1)
            bend = bend + size * torch.cos(harmonic * angle + phase)
        return (0.3 * bend - torch.hypot(u, v)) * self.synthesis.size / stretch.sqrt()

    def _clouds(self, count: int) -> Tensor:
        """Smooth noise, scaled so that it changes by about one from a pixel to the next, [N, S, S]."""
        size = self.synthesis.size
        coarse = torch.randn(count, 1, 5, 5, generator=self._choices).to(self.device)
        smooth = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True).squeeze(1)
        slope = (smooth[:, 1:] - smooth[:, :-1]).abs().mean((1, 2), keepdim=True)
        return smooth / slope

    def _defocus(self, layer: Tensor) -> Tensor:
        """Blur [N, C, S, S] by a radius that goes from r to as much as swell × r across the picture."""
        s, count = self.synthesis, layer.shape[0]
        low = torch.exp(self._uniform(count, (math.log(s.radius[0]), math.log(s.radius[1]))))
        high = (low * self._uniform(count, (1.0, s.swell))).clamp(max=s.radius[1])
        radius = self._to(torch.cat([low, high], 1))
        reach = math.ceil(1.5 * s.radius[1])
        shape = torch.randint(3, (count, 1, 1, 1), generator=self._choices)
        blades = torch.randint(5, 9, (count, 1, 1, 1), generator=self._choices)
        turn = self._uniform(count, (0, math.pi))
        psf = kernels(radius, self._to(shape), self._to(blades), self._to(turn), reach)
        near, far = convolve(layer, psf).unbind(1)
        x, y = self._grid()
        angle = self._to(self._uniform(count, (0, 2 * math.pi)))
        share = (0.5 + x * angle.cos() + y * angle.sin()).clamp(0, 1)
        return near + share * (far - near)

    def _expose(self, image: Tensor) -> Tensor:
        gain = self._to(self._uniform(len(image), self.synthesis.gain))
        sigma = self._to(self._uniform(len(image), self.synthesis.noise))
        noise = torch.randn(image.shape, generator=self._noise, device=self.device)
        return (gain * image + sigma * noise).clamp(0, 1)

    def _grid(self) -> tuple[Tensor, Tensor]:
        """Coordinates of the pixels' centres, -0.5 .. 0.5, as [1, S] and [S, 1]."""
        line = (torch.arange(self.synthesis.size, device=self.device) + 0.5) / self.synthesis.size - 0.5
        return line.view(1, -1), line.view(-1, 1)

    def _centres(self, count: int) -> tuple[Tensor, Tensor]:
        x, y = (self._to(self._uniform(count, (-0.3, 0.3))).squeeze(1) for _ in range(2))
        return x, y

    def _uniform(self, count: int, interval: Range) -> Tensor:
        low, high = interval
        return low + (high - low) * torch.rand(count, 1, 1, 1, generator=self._choices)

    def _chance(self, count: int, probability: float) -> Tensor:
        return torch.rand(count, 1, 1, 1, generator=self._choices) < probability

    def _integer(self, stop: int) -> int:
        return int(torch.randint(stop, (), generator=self._choices))

    def _to(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True)


def _resize(picture: Tensor, size: tuple[int, int]) -> Tensor:
    if picture.shape[1:] == size:
        return picture
    resized = F.interpolate(picture[None].float(), size=size, mode="bicubic", antialias=True)
    return resized[0].round().clamp(0, 255).to(torch.uint8)


def _with_alpha(colour: Tensor, alpha: Tensor) -> Tensor:
    return torch.cat([colour, alpha], 1)


def kernels(radius: Tensor, shape: Tensor, blades: Tensor, turn: Tensor, reach: int) -> Tensor:
    """Point spread functions [N, K, 2·reach + 1, 2·reach + 1] that sum to 1.

    Args:
        radius: [N, K, 1, 1], pixels.
        shape: [N, 1, 1, 1]: 0 disc, 1 polygon of that inner radius, 2 Gaussian of the disc's variance (σ = radius / 2).
        blades: [N, 1, 1, 1], sides of the polygon.
        turn: [N, 1, 1, 1], its rotation in radians.
    """
    line = torch.arange(-reach, reach + 1, device=radius.device, dtype=radius.dtype)
    distance = torch.hypot(line.view(1, -1), line.view(-1, 1))
    angle = torch.atan2(line.view(-1, 1), line.view(1, -1))
    sector = 2 * math.pi / blades
    across = distance * torch.cos(torch.remainder(angle - turn, sector) - sector / 2)  # along the nearest side's normal
    hard = (radius + 0.5 - torch.where(shape == 1, across, distance)).clamp(
        0, 1
    )  # the rim's pixels are covered in part
    kernel = torch.where(shape == 2, torch.exp(-2 * (distance / radius) ** 2), hard)
    return kernel / kernel.sum((2, 3), keepdim=True)


def convolve(x: Tensor, psf: Tensor) -> Tensor:
    """Each sample of x [N, C, H, W] with each of its own kernels [N, K, k, k]: [N, K, C, H, W], borders replicated.

    By Fourier transform: the time does not depend on the radius.
    """
    reach = psf.shape[-1] // 2
    padded = F.pad(x, (reach,) * 4, mode="replicate")
    height, width = (math.ceil(side / 32) * 32 for side in padded.shape[2:])
    spectrum = torch.fft.rfft2(padded, s=(height, width)).unsqueeze(1)
    product = spectrum * torch.fft.rfft2(psf, s=(height, width)).unsqueeze(2)
    blurred = torch.fft.irfft2(product, s=(height, width))
    start = 2 * reach  # before it, the far border has wrapped round
    return blurred[..., start : start + x.shape[2], start : start + x.shape[3]]
