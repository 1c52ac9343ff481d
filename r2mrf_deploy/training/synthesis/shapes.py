"""The shape of the foreground in a composite: generated, or cut from drawn masks.

A shape is a coverage, float [N, 1, S, S] in 0 .. 1, with an outline about one pixel wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from r2mrf_deploy.errors import InputError
from r2mrf_deploy.training.synthesis.rng import Range, Rng

CANVAS = 256
"""Side of the squares to which drawn masks are resized. Outlines are sharpened again after a mask is enlarged."""
WINDOW: Range = (0.45, 1.0)
"""Side of the square that is cut from a drawn mask, as a share of the mask's shorter side."""
USABLE: Range = (0.04, 0.96)
"""Share of a cut that must be in focus. Other cuts are replaced by generated shapes."""


def generated(rng: Rng, count: int, side: int, area: Range, softness: Tensor) -> Tensor:
    """Polygons, bent ellipses and clouds, alone or in pairs.

    Args:
        area: share of the picture to cover.
        softness: width of the outline in pixels, [N, 1, 1, 1].
    """
    kind = rng.whole(2 * count, 0, 3).flatten()
    field = torch.empty(2 * count, side, side, device=rng.device)
    for number, make in enumerate((_polygons, _outlines, _clouds)):
        here = torch.nonzero(kind == number).flatten()
        if len(here):
            field[here] = make(rng, len(here), side)
    first, second = field.unflatten(0, (2, count))
    field = torch.where(rng.chance(count, 0.3).squeeze(1), torch.maximum(first, second), first)
    # A threshold at a quantile gives the desired area for any field.
    sample = field[:, ::4, ::4].flatten(1).sort(dim=1).values
    rank = (1 - rng.uniform(count, area).flatten()) * (sample.shape[1] - 1)
    level = sample.gather(1, rank.long().unsqueeze(1))
    return ((field - level.unsqueeze(2)).unsqueeze(1) / softness + 0.5).clamp(0, 1)


class DrawnMasks:
    """Masks of real photographs, cut at random, mirrored and resized.

    Args:
        masks: at least one, uint8 [H, W] each, 255 = in focus.
        device: where they are kept.

    Raises:
        InputError: a mask is not such an array.
    """

    def __init__(self, masks: Sequence[np.ndarray], device: torch.device | str = "cpu") -> None:
        for mask in masks:
            if mask.dtype != np.uint8 or mask.ndim != 2:
                raise InputError(f"a mask must be uint8 [H, W], not {mask.dtype} {list(mask.shape)}")
        self._masks = torch.cat([_canvas(mask, device) for mask in masks])
        self._sizes = torch.tensor([mask.shape for mask in masks], dtype=torch.float32, device=device)

    def cut(self, rng: Rng, count: int, side: int) -> tuple[Tensor, Tensor]:
        """(coverage of the area in focus [N, 1, side, side], whether the cut is `USABLE` [N, 1, 1, 1])."""
        chosen = rng.whole(count, 0, len(self._masks)).flatten()
        size = self._sizes[chosen]
        share = rng.uniform(count, WINDOW).view(-1, 1) * size.amin(1, keepdim=True) / size  # of height and width
        offset = (2 * torch.cat([rng.uniform(count, (0, 1)) for _ in range(2)], 1).view(-1, 2) - 1) * (1 - share)
        mirror = 1 - 2 * rng.chance(count, 0.5).flatten().float()
        theta = torch.zeros(count, 2, 3, device=rng.device)
        theta[:, 0, 0], theta[:, 1, 1] = share[:, 1] * mirror, share[:, 0]
        theta[:, 0, 2], theta[:, 1, 2] = offset[:, 1], offset[:, 0]
        grid = F.affine_grid(theta, [count, 1, side, side], align_corners=False)
        found = F.grid_sample(self._masks[chosen].float(), grid, "bilinear", "border", align_corners=False) / 255
        # Makes enlarged outlines one pixel wide again.
        steep = (side / (share.amin(1) * CANVAS)).clamp(min=1).view(-1, 1, 1, 1)
        found = ((found - 0.5) * steep + 0.5).clamp(0, 1)
        part = found.mean((2, 3), keepdim=True)
        return found, (part > USABLE[0]) & (part < USABLE[1])


def _canvas(mask: np.ndarray, device: torch.device | str) -> Tensor:
    full = torch.tensor(mask, device=device)[None, None].float()
    square = F.interpolate(full, size=(CANVAS, CANVAS), mode="bilinear", antialias=True, align_corners=False)
    return square.round().to(torch.uint8)


def _polygons(rng: Rng, count: int, side: int) -> Tensor:
    """Distance in pixels from the edge of a convex polygon with 1 (a half plane) to 6 sides, positive inside, [N, S, S]."""
    x, y = grid(side, rng.device)
    sides = rng.whole(count, 1, 7).view(count, 1)
    order = torch.arange(6, device=rng.device)
    turn = rng.uniform(count, (0, 2 * math.pi)).view(count, 1)
    angle = turn + 2 * math.pi * (order + rng.uniform(count * 6, (-0.3, 0.3)).view(count, 6)) / sides
    angle = torch.where(order < sides, angle, angle[:, :1])
    offset = rng.uniform(count * 6, (0.0, 0.5)).view(count, 6)
    offset = torch.where(order < sides, offset, offset[:, :1])
    dx, dy = (line.unsqueeze(1) for line in (x - _centre(rng, count), y - _centre(rng, count)))
    angle, offset = angle.view(count, 6, 1, 1), offset.view(count, 6, 1, 1)
    return ((offset - dx * angle.cos()) - dy * angle.sin()).amin(1) * side


def _outlines(rng: Rng, count: int, side: int) -> Tensor:
    """Approximate distance in pixels from the edge of an ellipse bent by a few harmonics, positive inside, [N, S, S]."""
    x, y = grid(side, rng.device)
    turn, stretch = (rng.uniform(count, r).squeeze(1) for r in ((0, math.pi), (1.0, 2.5)))
    dx, dy = x - _centre(rng, count), y - _centre(rng, count)
    u = (dx * turn.cos() + dy * turn.sin()) * stretch
    v = dy * turn.cos() - dx * turn.sin()
    angle = torch.atan2(v, u)
    bend = torch.ones_like(angle)
    for harmonic in range(2, 7):
        size = rng.uniform(count, (0.0, 0.5 / harmonic)).squeeze(1)
        phase = rng.uniform(count, (0, 2 * math.pi)).squeeze(1)
        bend = bend + size * torch.cos(harmonic * angle + phase)
    return (0.3 * bend - torch.hypot(u, v)) * side / stretch.sqrt()


def _clouds(rng: Rng, count: int, side: int) -> Tensor:
    """Smooth noise, scaled to change by about one from each pixel to the next, [N, S, S]."""
    coarse = rng.normal(count, 1, 5, 5)
    smooth = F.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True).squeeze(1)
    slope = (smooth[:, 1:] - smooth[:, :-1]).abs().mean((1, 2), keepdim=True)
    return smooth / slope


def _centre(rng: Rng, count: int) -> Tensor:
    return rng.uniform(count, (-0.3, 0.3)).squeeze(1)


def grid(side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Coordinates of the pixels' centres in -0.5 .. 0.5, as [1, S] and [S, 1]."""
    line = (torch.arange(side, device=device) + 0.5) / side - 0.5
    return line.view(1, -1), line.view(-1, 1)
