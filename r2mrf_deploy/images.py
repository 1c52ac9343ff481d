"""Read and write photographs. Any mode and size that Pillow, pillow-heif or LibRaw reads becomes upright uint8 RGB."""

from __future__ import annotations

import glob
import io
import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from r2mrf_deploy import raw_photographs
from r2mrf_deploy.errors import InputError, no_file
from r2mrf_deploy.image_files import FORMATS as FORMATS
from r2mrf_deploy.image_files import SUFFIXES as SUFFIXES
from r2mrf_deploy.image_files import explained, head, name_of, opened

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
            files = sorted(p for p in candidates if named_as_image(p) and p.is_file())
        if not files and path.exists() and not path.is_dir():
            raise no_file(path)
        if not files:
            what = "holds no images" if path.is_dir() else "no such file"
            raise InputError(f"{given}: {what} (supported suffixes: {' '.join(sorted(SUFFIXES))})")
        found += files
    return list(dict.fromkeys(found))


def named_as_image(path: Path, suffixes: Collection[str] = SUFFIXES) -> bool:
    """Whether a file is called like an image, and not like what macOS writes beside one."""
    return path.suffix.lower() in suffixes and not path.name.startswith("._")


@dataclass(frozen=True)
class Photograph:
    """A photograph as it was read."""

    pixels: np.ndarray
    """uint8 [h, w, 3] RGB, upright."""
    size: tuple[int, int]
    """(height, width) of the photograph in the file, upright: those of `pixels`, unless these were reduced."""
    note: str = ""
    """Which of several pictures it is: `the first of 12 frames`; empty if the file holds one."""


def load(source: Path | str | bytes, at_least: tuple[int, int] | int | None = None, *, name: str = "") -> Photograph:
    """Read a photograph as `read` does, reduced if that makes it faster, and say what else its file holds.

    Args:
        source: a file, or the content of one.
        at_least: the longest side, or (height, width), that is enough, in pixels. The decoder of a JPEG then reduces it by
            2, 4 or 8, and that of a raw photograph by 2, if what is left is at least this. Other formats are read whole.
            The pixels differ slightly from those of the whole photograph reduced by `resize`. If `resize` reduces them
            further, ask for twice its size: three photographs' gradients were then 0 to 3 % lower than if they had been
            read whole, and up to 10 % with its size itself. It is blur that is to be measured.
        name: what messages call the content. Its suffix tells whether it is a raw photograph.

    Raises:
        InputError: as `read`; a package that the format needs is not installed.
    """
    with explained(name := name or name_of(source)):
        if _is_raw(source, name):
            with raw_photographs.opened(source, name) as raw:
                half = at_least is not None and _reduction(raw.size, at_least, [2]) == 2
                return Photograph(raw.develop(half=half), raw.size)
        with opened(source, name) as image:
            size = None if at_least is None else _draft(image, at_least)
            pixels = rgb(image, name)
            return Photograph(pixels, size or (pixels.shape[0], pixels.shape[1]), _note(image))


def read(path: Path | str) -> np.ndarray:
    """Read a photograph as uint8 [H, W, 3] RGB, rotated upright according to its EXIF orientation.

    Greyscale, palette and CMYK images are converted, and alpha is dropped. Values of 16 or 32 bits are divided by 257,
    unless none is over 255. Only the first frame of an animation is read, and of a HEIF file the main picture. EXIF that
    cannot be read is ignored; in HEIF, orientation is the file's own, whatever EXIF says. Raw photographs are developed.

    Raises:
        InputError: the file does not exist, is damaged, is not an image, is too large, or has float pixels.
    """
    return load(path).pixels


def rgb(image: Image.Image, name: str) -> np.ndarray:
    """A Pillow image, called `name`, as uint8 [H, W, 3] RGB, in the way of `read`.

    Raises:
        InputError: its pixels are floats, or do not fit in 16 bits. What Pillow raises about damaged files is passed on.
    """
    turn = _load(image)
    if image.mode == "F":
        raise InputError(f"{name}: float pixels have no standard range; convert it to 8 or 16 bits")
    if not image.mode.startswith("I"):
        return _upright(image, turn, 3, lambda strip: np.asarray(strip.convert("RGB")))
    ends = [f(np.asarray(strip)) for _, _, strip in _strips_of(image) for f in (np.min, np.max)]
    if min(ends) < 0 or max(ends) > 65535:
        raise InputError(f"{name}: its pixels do not fit in 16 bits; convert it to 8 or 16 bits")
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
    with explained(str(path)), opened(path, str(path)) as image:
        turn = _load(image)
        alpha = "transparency" in image.info or image.mode in ("PA", "La", "RGBa")
        plain = image.mode[0] in "IF" or (image.mode in ("L", "LA", "RGB", "RGBA") and not alpha)
        grey = image.mode in ("1", "L", "La")
        mode = image.mode if plain else f"{'L' if grey else 'RGB'}{'A' if alpha else ''}"
        count = len(Image.new(mode, (1, 1)).getbands())
        return _upright(
            image, turn, count, lambda s: np.asarray(s if plain else s.convert(mode)).reshape(s.height, s.width, -1)
        )


def size(source: Path | str | bytes, *, name: str = "") -> tuple[int, int]:
    """(height, width) of a photograph, upright, without reading its pixels.

    Args:
        source: as for `load`.
        name: as for `load`.

    Raises:
        InputError: the file does not exist, is damaged, is not an image, or is too large.
    """
    with explained(name := name or name_of(source)):
        if _is_raw(source, name):
            with raw_photographs.opened(source, name) as raw:
                return raw.size
        with opened(source, name) as image:
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


def _is_raw(source: Path | str | bytes, name: str) -> bool:
    return raw_photographs.is_raw(name if isinstance(source, bytes) else str(source), head(source))


def _draft(image: Image.Image, at_least: tuple[int, int] | int) -> tuple[int, int] | None:
    """Have the decoder of a JPEG reduce it. Return its full (height, width), upright; None if it is no JPEG."""
    if image.format not in ("JPEG", "MPO"):
        return None
    size = image.size if _orientation(image.getexif) > 4 else image.size[::-1]
    by = _reduction(size, at_least, [8, 4, 2])
    image.draft(None, (max(1, image.width // by), max(1, image.height // by)))
    return size


def _reduction(size: tuple[int, int], at_least: tuple[int, int] | int, steps: Sequence[int]) -> int:
    """The first of `steps` that a (height, width) can be divided by, rounded up, and still be enough; otherwise 1."""
    for by in steps:
        height, width = (-(-side // by) for side in size)
        if isinstance(at_least, tuple):
            enough = height >= at_least[0] and width >= at_least[1]
        else:
            enough = max(height, width) >= at_least
        if enough:
            return by
    return 1


def _note(image: Image.Image) -> str:
    """Which of its file's pictures an image is. The others in a JPEG are previews, depth, or the other eye's."""
    if image.format in ("JPEG", "MPO"):
        return ""
    what = {"TIFF": "pages", "HEIF": "pictures"}.get(image.format or "", "frames")
    try:
        count = getattr(image, "n_frames", 1)
    except Exception:  # what follows the first is damaged
        return f"the first of several {what}"
    which = "the main one" if image.format == "HEIF" else "the first"
    return f"{which} of {count} {what}" if count > 1 else ""


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
    if image.height * image.width <= STRIP:
        yield 0, image.height, image
        return
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
    """Encode uint8 [H, W], [H, W, 3] or [H, W, 4], or uint16 [H, W], as a PNG file, by run lengths: of a map or an overlay,
    a search for longer matches takes three times as long and saves little or nothing."""
    return _encoded(pixels, "PNG", compress_level=1, compress_type=3)  # zlib's Z_RLE


def jpeg(pixels: np.ndarray, quality: int = 90) -> bytes:
    """Encode uint8 [H, W, 3] as a JPEG file."""
    return _encoded(pixels, "JPEG", quality=quality)


def tiff(values: np.ndarray) -> bytes:
    """Encode float32 [H, W] as a TIFF file."""
    return _encoded(values, "TIFF", compression="tiff_adobe_deflate")


def _encoded(pixels: np.ndarray, kind: str, **options: int | str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, **options)
    return buffer.getvalue()


def grey(values: np.ndarray, dtype: type[np.unsignedinteger[Any]] = np.uint8) -> np.ndarray:
    """Values in [0, 1], float [H, W], as uint8 or uint16 [H, W]: 255 or 65535 = 1."""
    levels, most = np.empty(values.shape, dtype), np.iinfo(dtype).max
    for top, bottom in strips(*values.shape):
        levels[top:bottom] = np.rint(most * np.clip(values[top:bottom], 0, 1))
    return levels
