"""Draw what a network says about a photograph, to be looked at."""

from __future__ import annotations

import numpy as np
from PIL import Image

from r2mrf_deploy.images import grey, resize, strips, within

DARK = np.float32(0.35)
"""How bright what is out of focus is drawn."""
OVERLAY_SIDE = 2048
"""Longest side of an overlay, in pixels: it is looked at on a screen, and one of 24 megapixels takes 3 seconds."""


def overlay(image: np.ndarray, focus: np.ndarray, side: int = OVERLAY_SIDE) -> np.ndarray:
    """Show the area in focus in its own colours, the rest dark and grey, and a line where the map is 0.5.

    Args:
        image: uint8 [H, W, 3].
        focus: float32 [H, W] in [0, 1], 1 = in focus.
        side: the longest side that is drawn, in pixels; a larger photograph is reduced to it.

    Returns:
        uint8 [h, w, 3].
    """
    size = within((focus.shape[0], focus.shape[1]), (side, side))
    image, focus = resize(image, size), resize(focus, size)
    shown = np.empty_like(image)
    for top, bottom in strips(*size):
        weight = np.clip(focus[top:bottom], 0, 1)
        luma = np.asarray(Image.fromarray(image[top:bottom]).convert("L"), np.float32)
        dark = (1 - weight) * (DARK * luma) + np.float32(0.5)
        for colour in range(3):
            shown[top:bottom, :, colour] = weight * image[top:bottom, :, colour] + dark
    return _outlined(shown, focus)


def outlined(image: np.ndarray, focus: np.ndarray) -> np.ndarray:
    """A photograph, uint8 [H, W, 3], with a line where its map, float32 [H, W], is 0.5."""
    return _outlined(image.copy(), focus)


def cutout(image: np.ndarray, focus: np.ndarray) -> np.ndarray:
    """A photograph, uint8 [H, W, 3], whose opacity is its map, float32 [H, W]: uint8 [H, W, 4]. The rest is black."""
    alpha = grey(focus)[:, :, None]
    return np.concatenate([np.where(alpha > 0, image, np.uint8(0)), alpha], axis=2)


def _outlined(image: np.ndarray, focus: np.ndarray) -> np.ndarray:
    image[_outline(focus >= 0.5, max(1, max(image.shape) // 400))] = (255, 210, 0)
    return image


def _outline(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of `mask` that lie within `width` of its complement."""
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
