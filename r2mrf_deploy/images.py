"""Read and write photographs. Any mode and size that Pillow reads becomes upright uint8 RGB."""

from __future__ import annotations

import glob
import io
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from r2mrf_deploy.errors import InputError, R2mrfError, first_line, no_file

FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm"),
    "GIF": (".gif",),
    "JPEG2000": (".jp2",),
    "AVIF": (".avif",),
}
"""The formats that are read, as Pillow calls them, and their suffixes. No others are tried, whatever a file is called: for
some, such as EPS, Pillow starts a program, and others have hardly been tried by anyone."""
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)
OVERLAY_SIDE = 2048
"""Longest side of an overlay, in pixels: it is looked at on a screen, and one of 24 megapixels takes 3 seconds."""
STRIP = 1 << 20
"""Pixels of a photograph that are worked on at once: on all of them, every step would need several times their memory."""


def find(inputs: Sequence[str | Path]) -> list[Path]:
    """The image files among `inputs`: files, folders (without their subfolders), and globs that the shell did not expand.

    What macOS writes beside a file on other file systems (`._a.jpg`) is no image.

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
            files = sorted(p for p in candidates if _named_as_image(p) and p.is_file())
        if not files and path.exists() and not path.is_dir():
            raise no_file(path)
        if not files:
            what = "holds no images" if path.is_dir() else "no such file"
            raise InputError(f"{given}: {what} (supported suffixes: {' '.join(sorted(SUFFIXES))})")
        found += files
    return list(dict.fromkeys(found))


def _named_as_image(path: Path) -> bool:
    return path.suffix.lower() in SUFFIXES and not path.name.startswith("._")


def read(path: Path | str) -> np.ndarray:
    """Read a photograph as uint8 [H, W, 3] RGB, rotated upright according to its EXIF orientation.

    Greyscale, palette and CMYK images are converted, and alpha is dropped. Values of 16 or 32 bits are divided by 257,
    unless none is over 255. Only the first frame of an animation is read. EXIF that cannot be read is ignored.

    Raises:
        InputError: the file does not exist, is damaged, is not an image, is too large, or has float pixels.
    """
    with _opened(path) as image:
        turn = _load(image)
        if image.mode == "F":
            raise InputError(f"{path}: float pixels have no standard range; convert it to 8 or 16 bits")
        if not image.mode.startswith("I"):
            return _upright(image, turn, 3, lambda strip: np.asarray(strip.convert("RGB")))
        ends = [f(np.asarray(strip)) for _, _, strip in _strips_of(image) for f in (np.min, np.max)]
        if min(ends) < 0 or max(ends) > 65535:
            raise InputError(f"{path}: its pixels do not fit in 16 bits; convert it to 8 or 16 bits")
        divisor = 257 if max(ends) > 255 else 1

        def grey(strip: Image.Image) -> np.ndarray:
            return ((np.asarray(strip).astype(np.int32) + divisor // 2) // divisor).astype(np.uint8)[:, :, None]

        return _upright(image, turn, 3, grey)


def channels(path: Path | str) -> np.ndarray:
    """Read an image's values as they are stored, upright: [H, W, C] of uint8, uint16, int32 or float32.

    C is 1 (grey), 2 (grey and alpha), 3 (RGB) or 4 (RGB and alpha). Colours of palettes are looked up.

    Raises:
        InputError: the file does not exist, is damaged, is not an image, or is too large.
    """
    with _opened(path) as image:
        turn = _load(image)
        alpha = "transparency" in image.info or image.mode in ("PA", "La", "RGBa")
        plain = image.mode[0] in "IF" or (image.mode in ("L", "LA", "RGB", "RGBA") and not alpha)
        grey = image.mode in ("1", "L", "La")
        mode = image.mode if plain else f"{'L' if grey else 'RGB'}{'A' if alpha else ''}"
        count = len(Image.new(mode, (1, 1)).getbands())
        return _upright(
            image, turn, count, lambda s: np.asarray(s if plain else s.convert(mode)).reshape(s.height, s.width, -1)
        )


def size(path: Path | str) -> tuple[int, int]:
    """(height, width) of an image file, upright, without reading its pixels.

    Raises:
        InputError: the file does not exist, is damaged, is not an image, or is too large.
    """
    with _opened(path) as image:
        tags = getattr(image, "tag_v2", None)  # of a TIFF, whose size newer versions of Pillow have turned already
        width, height = image.size if tags is None else (tags[256], tags[257])
        turned = _orientation(image.getexif) > 4
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
    if not Path(path).is_file():
        raise no_file(Path(path))
    try:
        with warnings.catch_warnings():  # Pillow warns from half its limit on, and of odd EXIF and palettes
            warnings.simplefilter("ignore")
            Image.init()
            with Image.open(path, formats=[f for f in FORMATS if f in Image.OPEN]) as image:
                yield image
    except R2mrfError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{path} is not an image of a supported format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise InputError(f"{path} has more than {most:.0f} million pixels: scale it down first") from None
    except MemoryError:
        raise InputError(f"{path} does not fit in memory: scale it down first") from None
    except Exception as e:  # decoders raise whatever their libraries do
        raise InputError(f"{path} is damaged, or of an unsupported kind: {first_line(e)}") from None


def _load(image: Image.Image) -> int:
    """Decode the pixels. Return the EXIF orientation, 1 to 8, that is still to be applied."""
    try:
        image.load()
    except Exception:
        if getattr(image, "tile", None):  # otherwise the pixels were decoded, and what came after them failed
            raise
    tags = getattr(image, "tag_v2", None)  # Pillow turns a TIFF itself, and then removes the tag
    return _orientation(lambda: image.getexif() if tags is None else tags)


def _orientation(tags: Callable[[], Any]) -> int:
    """The orientation among EXIF tags; 1, which is upright, where they cannot be read or make no sense."""
    try:
        value = tags().get(0x0112, 1)
    except Exception:  # struct.error, TypeError, SyntaxError, ...: EXIF is written by countless programs
        return 1
    return value if value in range(1, 9) else 1


_STORED: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda upright: upright,
    2: lambda upright: upright[:, ::-1],
    3: lambda upright: upright[::-1, ::-1],
    4: lambda upright: upright[::-1],
    5: lambda upright: upright.swapaxes(0, 1),
    6: lambda upright: np.rot90(upright),
    7: lambda upright: upright[::-1, ::-1].swapaxes(0, 1),
    8: lambda upright: np.rot90(upright, -1),
}
"""EXIF orientation -> the view of an upright image that is as the file stores it."""


def _upright(image: Image.Image, turn: int, count: int, convert: Callable[[Image.Image], np.ndarray]) -> np.ndarray:
    """The pixels of a decoded image as [H, W, count], converted in strips so that they are in memory only once more."""
    size = image.size if turn > 4 else image.size[::-1]
    first = convert(image.crop((0, 0, 1, 1)))
    upright = np.empty((*size, count), first.dtype)
    stored = _STORED[turn](upright)
    for top, bottom, strip in _strips_of(image):
        stored[top:bottom] = convert(strip)
    return upright


def _strips_of(image: Image.Image) -> Iterator[tuple[int, int, Image.Image]]:
    for top, bottom in strips(image.height, image.width):
        yield top, bottom, image.crop((0, top, image.width, bottom))


def strips(height: int, width: int) -> Iterator[tuple[int, int]]:
    """First row, and row after the last, of strips of at most `STRIP` pixels, or a row."""
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        yield top, min(top + rows, height)


def within(size: tuple[int, int], most: tuple[int, int]) -> tuple[int, int]:
    """(height, width) reduced in proportion to at most `most`, also (height, width); the same if neither is over it."""
    scale = min(1.0, *(bound / side for bound, side in zip(most, size, strict=True)))
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
    height, width = size
    resized = np.empty((*size, *image.shape[2:]), image.dtype)
    scale = image.shape[0] / height
    reach = math.ceil(max(1.0, scale)) + 1  # of the filter, in rows of the source
    for top, bottom in strips(height, max(width, math.ceil(image.shape[1] * scale))):
        first = max(0, math.floor(top * scale) - reach)
        source = Image.fromarray(image[first : math.ceil(bottom * scale) + reach])
        box = (0, top * scale - first, source.width, min(bottom * scale - first, source.height))
        resized[top:bottom] = np.asarray(source.resize((width, bottom - top), Image.Resampling.BILINEAR, box))
    return resized


def png(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W] or [H, W, 3] as a PNG file, by run lengths: of a map or an overlay, a search for longer matches
    takes three times as long and saves little or nothing."""
    return _encoded(pixels, "PNG", compress_level=1, compress_type=3)  # zlib's Z_RLE


def jpeg(pixels: np.ndarray) -> bytes:
    """Encode uint8 [H, W, 3] as a JPEG file."""
    return _encoded(pixels, "JPEG", quality=90)


def _encoded(pixels: np.ndarray, kind: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values: np.ndarray) -> np.ndarray:
    """Values in [0, 1], float [H, W], as uint8 [H, W], 255 = 1."""
    levels = np.empty(values.shape, np.uint8)
    for top, bottom in strips(*values.shape):
        levels[top:bottom] = np.rint(255 * np.clip(values[top:bottom], 0, 1))
    return levels


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
        weight = np.clip(focus[top:bottom, :, None], 0, 1)
        colour = image[top:bottom].astype(np.float32)
        luma = colour @ np.array([0.299, 0.587, 0.114], np.float32)
        shown[top:bottom] = np.clip(weight * colour + (1 - weight) * 0.35 * luma[:, :, None] + 0.5, 0, 255)
    shown[_outline(focus >= 0.5, max(1, max(size) // 400))] = (255, 210, 0)
    return shown


def _outline(mask: np.ndarray, width: int) -> np.ndarray:
    """The pixels of `mask` that lie within `width` of its complement."""
    inner = mask
    for _ in range(width):
        padded = np.pad(inner, 1, mode="edge")
        inner = inner & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner
