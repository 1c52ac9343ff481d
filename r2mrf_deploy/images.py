"""Read and write photographs. Any mode and size that Pillow reads becomes upright uint8 RGB."""

from __future__ import annotations

import glob
import io
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from r2mrf_deploy.errors import InputError

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".gif"}


def find(inputs: Sequence[str | Path]) -> list[Path]:
    """The image files among `inputs`: files, folders (without their subfolders), and globs that the shell did not expand.

    Raises:
        InputError: an input does not exist or contains no image.
    """
    found: list[Path] = []
    for given in inputs:
        path = Path(given)
        if path.is_file():
            files = [path]
        else:
            candidates = path.iterdir() if path.is_dir() else map(Path, glob.glob(str(given)))  # noqa: PTH207
            files = sorted(p for p in candidates if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            what = "holds no images" if path.is_dir() else "no such file"
            raise InputError(f"{given}: {what} (supported suffixes: {' '.join(sorted(SUFFIXES))})")
        found += files
    return list(dict.fromkeys(found))


def read(path: Path | str) -> np.ndarray:
    """Read a photograph as uint8 [H, W, 3] RGB, rotated upright according to its EXIF orientation.

    Greyscale, palette and CMYK images are converted, alpha is dropped, and 16-bit values are divided by 257. Only the first
    frame of an animation is read.

    Raises:
        InputError: the file does not exist, is damaged, is not an image, is too large, or has float pixels.
    """
    with _opened(path) as opened:
        image = ImageOps.exif_transpose(opened)
        if image.mode.startswith("I"):  # 16-bit greyscale
            wide = np.asarray(image).astype(np.int64)
            if wide.min() < 0 or wide.max() > 65535:
                raise InputError(f"{path}: its pixels do not fit in 16 bits; convert it to 8 or 16 bits")
            grey = ((wide + 128) // 257).astype(np.uint8)
            return np.repeat(grey[:, :, None], 3, axis=2)
        if image.mode == "F":
            raise InputError(f"{path}: float pixels have no standard range; convert it to 8 or 16 bits")
        return np.array(image.convert("RGB"))


def size(path: Path | str) -> tuple[int, int]:
    """(height, width) of an image file, upright, without reading its pixels.

    Raises:
        InputError: the file does not exist, is damaged, is not an image, or is too large.
    """
    with _opened(path) as opened:
        width, height = opened.size
        turned = opened.getexif().get(0x0112, 1) in (5, 6, 7, 8)
    return (width, height) if turned else (height, width)


@contextmanager
def _opened(path: Path | str) -> Iterator[Image.Image]:
    """Open an image; what goes wrong there, or while it is read, is an InputError."""
    try:
        with warnings.catch_warnings():  # Pillow warns from half its limit on
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            yield image
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is not an image that Pillow can read") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise InputError(f"{path} has more than {most:.0f} million pixels: scale it down first") from None
    except (OSError, SyntaxError, ValueError) as e:
        raise InputError(f"{path} is damaged: {e}") from None


def within(size: tuple[int, int], longest: int) -> tuple[int, int]:
    """(height, width) reduced in proportion so that no side is over `longest` pixels; the same if none is."""
    scale = min(1.0, longest / max(size))
    height, width = (max(1, math.floor(side * scale + 0.5)) for side in size)
    return height, width


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize with Pillow's antialiased bilinear filter.

    Args:
        image: uint8 [H, W, 3], or float32 [H, W] (a map).
        size: (height, width).
    """
    if image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def png(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W] or [H, W, 3] as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def overlay(image: np.ndarray, focus: np.ndarray) -> np.ndarray:
    """Show the area in focus in its own colours, the rest dark and grey, and a line where the map is 0.5.

    Args:
        image: uint8 [H, W, 3].
        focus: float32 [H, W] in [0, 1], 1 = in focus.

    Returns:
        uint8 [H, W, 3].
    """
    weight = np.clip(focus, 0, 1)[:, :, None]
    colour = image.astype(np.float32)
    grey = colour @ np.array([0.299, 0.587, 0.114], np.float32)
    shown = weight * colour + (1 - weight) * 0.35 * grey[:, :, None]
    shown[_outline(focus >= 0.5, max(1, max(image.shape[:2]) // 400))] = (255, 210, 0)
    return np.clip(shown + 0.5, 0, 255).astype(np.uint8)


def _outline(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of `mask` that lie within `width` of its complement."""
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
