"""Read raw photographs, as cameras write them, with LibRaw: the package rawpy.

They are developed here from the sensor's values, and the JPEG that cameras embed is left alone. That one is quicker to read,
but the camera has sharpened and denoised it as its menus say, and blur is what the networks measure. Its size is the
camera's choice too: from a full one down to a thumbnail, or none.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from r2mrf_deploy.errors import InputError

if TYPE_CHECKING:
    import rawpy

MAKERS = {
    "Adobe, Apple, DJI, Google, Leica, Pentax, Samsung": (".dng",),
    "Canon": (".cr2", ".cr3", ".crw"),
    "Epson": (".erf",),
    "Fujifilm": (".raf",),
    "Hasselblad": (".3fr",),
    "Kodak": (".kdc",),
    "Leica": (".rwl",),
    "Minolta": (".mrw",),
    "Nikon": (".nef", ".nrw"),
    "Olympus": (".orf",),
    "Panasonic": (".rw2",),
    "Pentax": (".pef",),
    "Phase One": (".iiq",),
    "Samsung": (".srw",),
    "Sony": (".arw", ".sr2", ".srf"),
}
"""Whose cameras write raw photographs of which suffixes. `.raw` is not among them: with most programs it is an array of
values without a header."""
SUFFIXES = frozenset(suffix for suffixes in MAKERS.values() for suffix in suffixes)

_BEGINNINGS = (b"FUJIFILMCCD-RAW", b"IIRO", b"IIRS", b"MMOR", b"IIU\0")
"""How raw photographs of Fujifilm, Olympus and Panasonic begin. Most others begin as a TIFF."""
_OTHERS = (b"\xff\xd8\xff", b"\x89PNG", b"BM", b"GIF8", b"RIFF")
"""How formats begin that no raw photograph has, whatever its name."""


class Raw:
    """An opened raw photograph. Its sensor's values have not been read yet.

    Attributes:
        size: (height, width) of the photograph, upright, at its full size.
    """

    def __init__(self, file: rawpy.RawPy) -> None:
        self._file = file
        self.size = _upright_size(file.sizes)  # which developing changes

    def develop(self, *, half: bool = False) -> np.ndarray:
        """The photograph, uint8 [H, W, 3] sRGB, upright, with the camera's white balance.

        Args:
            half: make one pixel of each cell of 2×2 of the sensor, which is 5 times as fast as to interpolate between
                them. Sides are rounded up. A file whose pixels have all colours already is not reduced.
        """
        pixels = np.asarray(self._file.postprocess(use_camera_wb=True, half_size=half, output_bps=8))
        pixels = pixels.reshape(*pixels.shape[:2], -1)
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels


def _upright_size(sizes: rawpy.ImageSizes) -> tuple[int, int]:
    height, width, aspect = sizes.height, sizes.width, sizes.pixel_aspect
    if aspect < 1:  # LibRaw makes the pixels square
        height = int(height / aspect + 0.5)
    elif aspect > 1:
        width = int(width * aspect + 0.5)
    return (width, height) if sizes.flip in (5, 6) else (height, width)


def is_raw(name: str, head: bytes) -> bool:
    """Whether a file is a raw photograph, by its name and its first 16 bytes or more.

    The name decides where it can: most raw photographs are TIFF files, of which Pillow would read a thumbnail.
    """
    if head.startswith(_OTHERS):
        return False
    canon = head[8:10] == b"CR" and head[:2] in (b"II", b"MM")
    return Path(name).suffix.lower() in SUFFIXES or canon or head[4:12] == b"ftypcrx " or head.startswith(_BEGINNINGS)


@contextmanager
def opened(source: Path | str | bytes, name: str) -> Iterator[Raw]:
    """Open a raw photograph.

    Args:
        source: a file, or the content of one.
        name: what messages call it.

    Raises:
        InputError: rawpy is not installed; the file is damaged, or is of a kind that LibRaw does not know. Also while it is
            developed.
        PIL.Image.DecompressionBombError: it has more pixels than Pillow reads.
    """
    try:
        import rawpy
    except ImportError:
        raise InputError(f'{name} needs rawpy: pip install "r2mrf-deploy[formats]"') from None
    try:
        with rawpy.imread(io.BytesIO(source) if isinstance(source, bytes) else str(source)) as file:
            raw = Raw(file)
            sensor = file.sizes.raw_height * file.sizes.raw_width
            if Image.MAX_IMAGE_PIXELS and max(sensor, raw.size[0] * raw.size[1]) > 2 * Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            yield raw
    except rawpy.LibRawError as e:
        said = e.args[0] if e.args else ""
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        raise InputError(f"{name} is damaged, or a raw photograph of an unknown kind: LibRaw says {said!r}") from None
