"""Read and write photographs. Any mode and size that Pillow reads becomes upright uint8 RGB."""

from __future__ import annotations

import glob
import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from r2mrf_deploy.errors import InputError
from r2mrf_deploy.manifest import Preprocess, TensorSpec

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


def is_picture(path: Path) -> bool:
    """Whether a file begins as a picture does; its pixels may still be damaged."""
    try:
        size(path)
    except InputError:
        return False
    return True


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


def resize(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize with Pillow's antialiased bilinear filter.

    Args:
        image: uint8 [H, W, 3], or float32 [H, W] (a map).
        size: (height, width).
    """
    if image.shape[:2] == size:
        return image
    return np.array(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))


def as_input(image: np.ndarray, spec: TensorSpec, preprocess: Preprocess, limit: Sequence[int] = ()) -> np.ndarray:
    """Convert a photograph to a network's input, with a batch of 1.

    Args:
        image: uint8 [H, W, 3] RGB.
        spec: the input, uint8 NHWC or normalised float NCHW.
        preprocess: the normalisation of float inputs.
        limit: the largest shape allowed if the spec's height and width are free.

    Returns:
        [1, h, w, 3] or [1, 3, h, w] of the spec's size. If that is free, the image keeps its own size, or is scaled down in
        proportion to fit `limit`, but each side is at least 32 pixels.
    """
    spatial = (2, 3) if spec.layout == "NCHW" else (1, 2)
    fixed = [spec.shape[d] for d in spatial]
    if all(isinstance(d, int) for d in fixed):
        size = (int(fixed[0]), int(fixed[1]))
    else:
        height, width = image.shape[:2]
        scale = min(1.0, *(limit[d] / side for d, side in zip(spatial, (height, width), strict=True))) if limit else 1.0
        size = (max(32, round(height * scale)), max(32, round(width * scale)))
    pixels = resize(image, size)
    if spec.layout != "NCHW":
        return pixels[None]
    mean, std = (np.array(v, np.float32).reshape(3, 1, 1) for v in (preprocess.mean, preprocess.std))
    chw = pixels.transpose(2, 0, 1).astype(np.float32)
    return ((chw / np.float32(255) - mean) / std).astype(spec.dtype)[None]


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
