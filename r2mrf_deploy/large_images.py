"""Read a photograph band by band: one of 500 megapixels takes 1.5 GB of memory as a whole.

What `images.read` reads is decoded at once, by Pillow as everywhere else. What is over Pillow's limit of pixels, or of a
format that it does not know, is read by libvips, which needs the extra `large`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, UnidentifiedImageError

from r2mrf_deploy import images
from r2mrf_deploy.errors import InputError, last_line, reading

if TYPE_CHECKING:
    import pyvips

SLIDES = frozenset((".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif"))
"""Suffixes of the scanners of microscopes. OpenSlide reads them, which a libvips may have been built without."""

SUFFIXES = SLIDES | {".jxl", ".v"}
"""Of the files that only this module reads."""

_LOADERS = {
    (0, b"\xff\xd8\xff"): "jpegload",
    (0, b"\x89PNG\r\n\x1a\n"): "pngload",
    **dict.fromkeys(((0, b"II*\0"), (0, b"MM\0*"), (0, b"II+\0"), (0, b"MM\0+")), "tiffload"),
    (8, b"WEBP"): "webpload",
    (4, b"ftypavif"): "heifload",
    **dict.fromkeys(((4, b"jP  \r\n\x87\n"), (0, b"\xff\x4f\xff\x51")), "jp2kload"),
    **dict.fromkeys(((0, b"\xff\x0a"), (4, b"JXL \r\n\x87\n")), "jxlload"),
    **dict.fromkeys(((0, b"\xb6\xa6\xf2\x08"), (0, b"\x08\xf2\xa6\xb6")), "vipsload"),
}
"""Where a file has which bytes, and the loader of libvips for it. No others are tried, whatever a file is called: some run
programs, or read what a file only names."""
_LIBRARIES = {"openslideload": "OpenSlide", "jp2kload": "OpenJPEG", "jxlload": "libjxl", "heifload": "libheif"}
"""What libvips needs to have a loader."""
_BEYOND_PILLOW = ("jxlload", "vipsload")
"""Loaders of formats that Pillow does not read. A file of another format that it does not know is damaged."""
_LAB = ("lab", "labs", "labq")


class Bands(ABC):
    """An opened photograph, upright, uint8 RGB, as `images.read` gives it."""

    size: tuple[int, int]
    """Height and width, in pixels."""
    note = ""
    """Which of the file's pictures it is, as `images.Photograph` has it."""

    @abstractmethod
    def read(self, top: int, bottom: int) -> np.ndarray:
        """Rows `top` to `bottom` - 1 as uint8 [bottom - top, W, 3]. From call to call they only go forward: none may be
        asked for again.

        Raises:
            InputError: the file is damaged there.
        """

    @abstractmethod
    def reduced(self, size: tuple[int, int]) -> np.ndarray:
        """The whole photograph at a smaller height and width, antialiased: uint8 [h, w, 3]. It may be asked for at any time.

        Raises:
            InputError: the file is damaged.
        """


@contextmanager
def open_bands(path: Path | str) -> Iterator[Bands]:
    """Open a photograph.

    Raises:
        InputError: the file does not exist, is damaged, is not an image, or has float pixels.
        ModuleNotFoundError: it needs libvips, and pyvips is not installed.
    """
    if _needs_vips(Path(path)):
        yield _in_vips(Path(path))
    else:
        photograph = images.load(path)
        yield Decoded(photograph.pixels, photograph.note)


class Decoded(Bands):
    """A photograph in memory, uint8 [H, W, 3]."""

    def __init__(self, pixels: np.ndarray, note: str = "") -> None:
        self._pixels, self.note = pixels, note
        self.size = pixels.shape[0], pixels.shape[1]

    def read(self, top: int, bottom: int) -> np.ndarray:
        return self._pixels[top:bottom]

    def reduced(self, size: tuple[int, int]) -> np.ndarray:
        return images.resize(self._pixels, size)


def _needs_vips(path: Path) -> bool:
    """Whether a file is not for Pillow. Raises InputError if it is for neither."""
    if path.suffix.lower() in SLIDES and path.is_file():
        return True
    try:
        images.size(path)
    except InputError as e:
        # `images` says it to people; what Pillow raised says it to programs
        too_large = isinstance(e.__context__, Image.DecompressionBombError) and _loader(path) is not None
        unknown = isinstance(e.__context__, UnidentifiedImageError) and _loader(path) in _BEYOND_PILLOW
        if too_large or unknown:
            return True
        raise
    return False


def _loader(path: Path) -> str | None:
    """The loader of libvips for a file, by how it begins."""
    if path.suffix.lower() in SLIDES:
        return "openslideload"
    with reading(path, InputError, "is damaged"), path.open("rb") as file:
        begin = file.read(16)
    return next((loader for (at, magic), loader in _LOADERS.items() if begin[at:].startswith(magic)), None)


def _in_vips(path: Path) -> Bands:
    import pyvips

    # it would keep the results of operations, and files that may have changed since, for others to come
    pyvips.cache_set_max(0)
    loader = _loader(path)
    assert loader is not None
    if not pyvips.type_find("VipsOperation", loader):
        raise InputError(
            f"{path}: the installed libvips was built without {_LIBRARIES.get(loader, loader)}: convert it to a tiled TIFF, "
            "or install a libvips that has it"
        )
    return InVips(path, loader)


class InVips(Bands):
    """A photograph in a file that libvips reads. Little more than a band is in memory at any time."""

    def __init__(self, path: Path, loader: str) -> None:
        import pyvips

        self._path, self._loader = path, loader
        with self._explained():
            stored = self._stored()
            self._divisor = self._checked_divisor()
            self._turned = stored.get_typeof("orientation") != 0 and stored.get("orientation") in range(2, 9)
            # One that lies on its side, or on its head, is not read from its first row to its last. If it is large, libvips
            # decodes it into a temporary file (in TMPDIR) first, unless it has tiles.
            upright = self._stored("random").autorot() if self._turned else stored
            self.size = upright.height, upright.width
            self._region = pyvips.Region.new(_rgb(upright, self._divisor))

    def read(self, top: int, bottom: int) -> np.ndarray:
        with self._explained():
            fetched = self._region.fetch(0, top, self.size[1], bottom - top)
        return np.frombuffer(fetched, np.uint8).reshape(bottom - top, self.size[1], 3)

    def reduced(self, size: tuple[int, int]) -> np.ndarray:
        with self._explained():
            stored = self._stored()
            lies = self._turned and stored.get("orientation") > 4
            height, width = size[::-1] if lies else size
            small = _rgb(stored, self._divisor).resize(
                width / stored.width, vscale=height / stored.height, kernel="linear"
            )
            return (small.autorot() if self._turned else small).numpy()

    def _stored(self, access: str = "sequential") -> pyvips.Image:
        """The image as the file has it. Its pixels are not read yet."""
        import pyvips

        return getattr(pyvips.Image, self._loader)(str(self._path), access=access, fail_on="error")

    def _checked_divisor(self) -> int:
        """What makes bytes of the values, by the rule of `images.read`. Raises InputError if nothing does."""
        stored = self._stored()
        if stored.format == "uchar" or stored.interpretation in _LAB:
            return 1
        if stored.format not in ("char", "ushort", "short", "uint", "int"):
            raise InputError(f"{self._path}: float pixels have no standard range; convert it to 8 or 16 bits")
        statistics = stored.stats()
        low, high = statistics(0, 0)[0], statistics(1, 0)[0]
        if low < 0 or high > 65535:
            raise InputError(f"{self._path}: its pixels do not fit in 16 bits; convert it to 8 or 16 bits")
        return 257 if high > 255 else 1

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """What goes wrong in libvips is an InputError."""
        import pyvips

        try:
            yield
        except pyvips.Error as e:
            raise InputError(f"{self._path} is damaged, or of an unsupported kind: {last_line(e)}") from None


def _rgb(image: pyvips.Image, divisor: int) -> pyvips.Image:
    """An image of any colours as 8 bits of RGB. CMYK becomes RGB as Pillow makes it, and alpha is dropped."""
    if image.interpretation in _LAB:
        image = image.colourspace("srgb")
    if image.format != "uchar":
        image = image.linear(1 / divisor, 0.5, uchar=True)
    if image.interpretation == "cmyk":
        image = ((255 - image[:3]) * (255 - image[3])).linear(1 / 255, 0.5, uchar=True)
    elif image.bands < 3:
        image = image[0].bandjoin([image[0], image[0]])
    return image[:3] if image.bands > 3 else image
