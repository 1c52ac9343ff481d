"""Take photographs as programs have them: arrays, Pillow's images and tensors become uint8 RGB."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from r2mrf_deploy import images
from r2mrf_deploy.errors import InputError
from r2mrf_deploy.image_files import explained

_HALF_A_LEVEL = 0.5 / 255
"""How far floats may be outside [0, 1], as resampled ones are: to 8 bits they round like 0 and 1."""


def as_pixels(value: Any) -> np.ndarray:
    """A photograph as uint8 [H, W, 3] RGB. An array that is so already is returned itself, not a copy.

    Args:
        value: an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], whose alpha is dropped; a tensor of PyTorch's on any
            device, [H, W], [1, H, W] or [3, H, W]; or a Pillow image of any mode, which is read as `images.read` reads
            files, and so turned upright by its EXIF orientation. Arrays and tensors are RGB, of bool, uint8, uint16 (which
            is divided by 257, unless none is over 255) or floats in [0, 1].

    Raises:
        InputError: it is none of these, is empty, or has floats outside [0, 1] or NaN.
    """
    if isinstance(value, Image.Image):
        with explained("the Pillow image"):
            return images.rgb(value, "the Pillow image")
    if isinstance(value, np.ndarray):
        return _as_rgb(_last_axis(value, -1, (1, 3, 4), "an array [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]"))
    if hasattr(value, "detach"):
        return _as_rgb(_last_axis(_array(value), 0, (1, 3), "a tensor [H, W], [1, H, W] or [3, H, W]"))
    raise InputError(
        f"a photograph is an array, a Pillow image or a tensor, not {type(value).__name__}: "
        "read a file with r2mrf_deploy.images.read, and convert others with numpy.asarray"
    )


def _array(tensor: Any) -> np.ndarray:
    """A tensor of PyTorch's as an array. Its floats become float32, since arrays have no bfloat16."""
    tensor = tensor.detach().cpu()
    return np.asarray((tensor.float() if "float" in str(tensor.dtype) else tensor).numpy())


def _last_axis(values: np.ndarray, axis: int, counts: tuple[int, ...], known: str) -> np.ndarray:
    """Values as [H, W, C], of which `axis` is that of C, one of `counts`.

    Raises:
        InputError: the shape is not one of those that `known` says, or empty.
    """
    shape = list(values.shape)
    if values.ndim == 2:
        values = values[:, :, None]
    elif values.ndim == 3 and shape[axis] in counts:
        values = np.moveaxis(values, axis, -1)
    else:
        other = values.ndim == 3 and shape[-1 - axis] in (1, 3, 4)  # -1 and 0 are each other's
        turn = "transpose(1, 2, 0)" if axis else "permute(2, 0, 1)"
        cure = f"use .{turn}" if other else "give one photograph at a time" if values.ndim > 3 else "convert it to RGB"
        raise InputError(f"a photograph is {known}, and this is {shape}: {cure}")
    if not values.size:
        raise InputError(f"a photograph has pixels, and this is {shape}, which is empty")
    return values


def _as_rgb(values: np.ndarray) -> np.ndarray:
    """Values [H, W, C] as uint8 [H, W, 3]. C is 1 (grey), 3 (RGB), or 4 (RGB and alpha)."""
    levels = _eight_bits(values[:, :, :3])
    return np.ascontiguousarray(levels if levels.shape[2] == 3 else np.broadcast_to(levels, (*levels.shape[:2], 3)))


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Values [H, W, C] as uint8, of the same shape.

    Raises:
        InputError: they are floats outside [0, 1], or of a type that photographs do not have.
    """
    kind = values.dtype.newbyteorder("=")
    if kind == np.uint8:
        return values
    if kind == np.bool_:
        return np.where(values, np.uint8(255), np.uint8(0))
    if kind == np.uint16:
        wide = values.max() > 255
        return ((values.astype(np.uint32) + 128) // 257 if wide else values).astype(np.uint8)
    if kind.kind != "f":
        raise InputError(
            f"a photograph's values are bool, uint8, uint16 or floats, not {kind}: "
            "if they are 0 to 255, convert them to uint8"
        )
    low, high = float(values.min()), float(values.max())
    if not (low >= -_HALF_A_LEVEL and high <= 1 + _HALF_A_LEVEL):  # nor if they are NaN
        raise InputError(
            f"a photograph's floats are in [0, 1], and these are from {low:g} to {high:g}: divide them by what white is, "
            "undo a normalisation, replace NaN"
        )
    levels = np.empty(values.shape, np.uint8)
    for top, bottom in images.strips(*values.shape[:2]):
        levels[top:bottom] = np.rint(255 * np.clip(values[top:bottom].astype(np.float32), 0, 1))
    return levels
