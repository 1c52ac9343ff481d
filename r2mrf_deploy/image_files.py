"""Open image files of any supported format, and say what is wrong with the others."""

from __future__ import annotations

import functools
import io
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from r2mrf_deploy import raw_photographs
from r2mrf_deploy.errors import InputError, R2mrfError, first_line, no_file
from r2mrf_deploy.progress import unwarned

FORMATS = {
    "JPEG": (".jpg", ".jpeg", ".mpo"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
    "PPM": (".ppm", ".pgm"),
    "GIF": (".gif",),
    "JPEG2000": (".jp2",),
    "AVIF": (".avif",),
    "HEIF": (".heic", ".heif", ".hif"),
}
"""The formats that are read, as Pillow calls them, and their suffixes. No others are tried, whatever a file is called: for
some, such as EPS, Pillow starts a program, and others have hardly been tried by anyone. HEIF is pillow-heif's."""
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes) | raw_photographs.SUFFIXES
_HEIC = frozenset((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"))
"""Brands of HEIF files whose pictures are coded by HEVC (ISO/IEC 23008-12, annex B)."""

_EXTENT = re.compile(rb"\0\0\0\x14ispe\0{4}(.{8})", re.DOTALL)


def name_of(source: Path | str | bytes) -> str:
    """What messages call a file, or the content of one."""
    return "the image" if isinstance(source, bytes) else str(source)


def head(source: Path | str | bytes) -> bytes:
    """The first bytes of a file, which tell its format.

    Raises:
        InputError: there is no such file, or it is not a regular one.
    """
    if isinstance(source, bytes):
        return source[:64]
    if not Path(source).is_file():
        raise no_file(Path(source))
    with Path(source).open("rb") as f:
        return f.read(64)


@contextmanager
def opened(source: Path | str | bytes, name: str) -> Iterator[Image.Image]:
    """Open an image that is not a raw photograph, called `name`. To be used in `explained`.

    Raises:
        InputError: it is damaged HEIF, or pillow-heif is not installed; it is a raw photograph after all. What Pillow raises
            about others is passed on.
    """
    heif = _is_heif(head(source))
    if heif:
        try:
            _register_heif()
        except ImportError:
            raise InputError(f'{name} needs pillow-heif: pip install "r2mrf-deploy[formats]"') from None
        source = source if isinstance(source, bytes) else Path(source).read_bytes()
        _refuse_large(source)
    with unwarned():  # Pillow warns from half its limit on, and of odd EXIF and palettes
        Image.init()
        file = io.BytesIO(source) if isinstance(source, bytes) else source
        try:
            opening = Image.open(file, formats=[f for f in FORMATS if f in Image.OPEN and (f == "HEIF") == heif])
        except UnidentifiedImageError:
            if heif:
                raise InputError(f"{name} is damaged, or HEIF of an unsupported kind") from None
            raise
        with opening as image:
            tags = getattr(image, "tag_v2", {})
            if tags.get(254) == 1 and 330 in tags:  # a preview, with the photograph in another directory
                raise InputError(f"{name} is a raw photograph: give it the suffix of its camera (.dng, .nef, ...)")
            yield image


def _is_heif(head: bytes) -> bool:
    """Whether a file is HEIF but not AVIF, by the brands at its beginning (ISO/IEC 14496-12, 4.3)."""
    end = min(int.from_bytes(head[:4], "big"), len(head))
    brands = {head[8:12], *(head[at : at + 4] for at in range(16, end, 4))}
    return head[4:8] == b"ftyp" and bool(brands & _HEIC or (b"mif1" in brands and not brands & {b"avif", b"avis"}))


def _refuse_large(content: bytes) -> None:
    """Hold the pictures in a HEIF file to Pillow's limit. Pillow itself sees what is left of them after they are cropped.

    Raises:
        PIL.Image.DecompressionBombError: one has too many pixels, by its property `ispe` (ISO/IEC 23008-12, 6.5.3).
    """
    for width, height in (struct.unpack(">II", found[1]) for found in _EXTENT.finditer(content)):
        if Image.MAX_IMAGE_PIXELS and width * height > 2 * Image.MAX_IMAGE_PIXELS:
            raise Image.DecompressionBombError


@functools.cache
def _register_heif() -> None:
    import pillow_heif

    pillow_heif.register_heif_opener(thumbnails=False)


@contextmanager
def explained(name: str) -> Iterator[None]:
    """What goes wrong while an image, called `name`, is opened or read is an InputError."""
    try:
        yield
    except R2mrfError:
        raise
    except UnidentifiedImageError:
        raise InputError(f"{name} is not an image of a supported format ({', '.join(FORMATS)})") from None
    except Image.DecompressionBombError:
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise InputError(f"{name} has more than {most:.0f} million pixels: scale it down first") from None
    except MemoryError:
        raise InputError(f"{name} does not fit in memory: scale it down first") from None
    except Exception as e:  # decoders raise whatever their libraries do
        raise InputError(f"{name} is damaged, or of an unsupported kind: {first_line(e)}") from None
