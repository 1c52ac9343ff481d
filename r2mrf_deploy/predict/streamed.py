"""Write a map row by row, so that one of 500 megapixels never lies in memory: as a PNG file, or as numpy's `.npy`.

A file is written beside its place and moved there when its last row is written: it is whole, or not there at all.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np

from r2mrf_deploy.files import flush, refuse_outside, refuse_special, staging

Kind = Literal["grey8", "grey16", "rgba8"]
Write = Callable[[np.ndarray], None]
"""Appends rows to a file. Raises ValueError if their shape or dtype is not the file's, or there are too many."""

_CHUNK = 1 << 20
"""Bytes of an IDAT chunk: a reader has to hold one at a time."""
_LONGEST = 2**31 - 1
"""The longest side that a PNG can have, in pixels."""
_SUB = 1
"""The filter of every row: the difference to the pixel on the left (PNG 9.2). Maps are smooth, so that the differences are
few values in long runs: a map of 20 megapixels by tiles of r2mrf-lite takes 4.3 MB of 8 bits and 26 MB of 16 bits, and
without a filter 8.5 MB and 37 MB, in the same time."""
_FORMS: dict[Kind, tuple[str, int, int, tuple[int, ...]]] = {
    "grey8": ("|u1", 8, 0, ()),
    "grey16": (">u2", 16, 0, ()),
    "rgba8": ("|u1", 8, 6, (4,)),
}
"""The dtype in the file, the bits of a sample, the colour type (PNG 11.2.1), and what follows [rows, width] in the shape."""


@contextmanager
def png(path: Path, size: tuple[int, int], kind: Kind = "grey8", *, within: Path | None = None) -> Iterator[Write]:
    """Write a PNG file row by row.

    Args:
        path: the file. Missing folders are made.
        size: (height, width).
        kind: `grey8` takes rows of uint8 [rows, W], `grey16` of uint16 [rows, W], `rgba8` of uint8 [rows, W, 4].
        within: a folder that must contain the file, for a path that is made of names from outside.

    Yields:
        What appends rows. When the block ends, every row must have been written.

    Raises:
        ArtifactError: the path is no regular file, lies outside `within`, or cannot be written, or the disk is full.
        ValueError: rows are missing. In either case, and after any error in the block, a file at `path` is unchanged.
    """
    if not all(0 < side <= _LONGEST for side in size):
        raise ValueError(f"a PNG cannot be {size[0]}x{size[1]}")
    dtype, _, _, rest = _FORMS[kind]
    with _placed(path, within) as file:
        encoder = _Png(file, size, kind)
        write, written = _counted(encoder.rows, size, np.dtype(dtype).newbyteorder("="), rest)
        yield write
        _complete(path, written(), size)
        encoder.end()


@contextmanager
def npy(path: Path, size: tuple[int, int], *, within: Path | None = None) -> Iterator[Write]:
    """Write a map row by row as numpy's `.npy` file of float32 [H, W], which `numpy.load(path, mmap_mode="r")` need not read
    whole.

    Args:
        path, size, within: as for `png`.

    Yields:
        What appends rows, float32 [rows, W]. When the block ends, every row must have been written.

    Raises:
        ArtifactError, ValueError: as for `png`.
    """
    with _placed(path, within) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": size}
        np.lib.format.write_array_header_1_0(file, header)

        def rows(values: np.ndarray) -> None:
            file.write(np.ascontiguousarray(values, "<f4").data)

        write, written = _counted(rows, size, np.dtype(np.float32), ())
        yield write
        _complete(path, written(), size)


@contextmanager
def _placed(path: Path, within: Path | None) -> Iterator[BinaryIO]:
    """A file that is moved to `path` if the block ends well, and vanishes if not."""
    refuse_special(path)
    refuse_outside(path, within)
    with staging(path) as folder:
        temporary = folder / "content"
        with temporary.open("wb") as file:
            yield file
        flush(temporary)
        temporary.replace(path)


def _counted(
    write: Write, size: tuple[int, int], dtype: np.dtype[np.generic], rest: tuple[int, ...]
) -> tuple[Write, Callable[[], int]]:
    """`write`, which refuses rows that do not fit, and what says how many it has taken."""
    taken = 0

    def checked(rows: np.ndarray) -> None:
        nonlocal taken
        if rows.dtype != dtype or rows.shape[1:] != (size[1], *rest):
            raise ValueError(f"rows are {dtype.name} [n, {', '.join(map(str, (size[1], *rest)))}], not {_said(rows)}")
        if taken + len(rows) > size[0]:
            raise ValueError(f"the file has {size[0]} rows, not {taken + len(rows)}")
        taken += len(rows)
        write(rows)

    return checked, lambda: taken


def _said(array: np.ndarray) -> str:
    return f"{array.dtype.name} {list(array.shape)}"


def _complete(path: Path, written: int, size: tuple[int, int]) -> None:
    if written != size[0]:
        raise ValueError(f"{path} is not complete: {written} of {size[0]} rows were written")


class _Png:
    """Encodes rows by run lengths, as `images.png` does."""

    def __init__(self, file: BinaryIO, size: tuple[int, int], kind: Kind) -> None:
        self._file = file
        self._dtype, bits, colour, rest = _FORMS[kind]
        self._bytes = bits // 8 * (rest[0] if rest else 1)  # of a pixel
        self._compressor = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS, 8, zlib.Z_RLE)
        self._encoded = bytearray()
        file.write(b"\x89PNG\r\n\x1a\n")
        self._chunk(b"IHDR", struct.pack(">2I5B", *size[::-1], bits, colour, 0, 0, 0))

    def rows(self, rows: np.ndarray) -> None:
        stored = np.ascontiguousarray(rows, self._dtype).view(np.uint8).reshape(len(rows), -1)
        filtered = np.empty((stored.shape[0], 1 + stored.shape[1]), np.uint8)
        filtered[:, 0] = _SUB
        filtered[:, 1 : 1 + self._bytes] = stored[:, : self._bytes]
        np.subtract(stored[:, self._bytes :], stored[:, : -self._bytes], out=filtered[:, 1 + self._bytes :])
        self._encoded += self._compressor.compress(filtered.data)
        while len(self._encoded) >= _CHUNK:
            self._chunk(b"IDAT", bytes(self._encoded[:_CHUNK]))
            del self._encoded[:_CHUNK]

    def end(self) -> None:
        self._encoded += self._compressor.flush()
        self._chunk(b"IDAT", bytes(self._encoded))
        self._chunk(b"IEND", b"")

    def _chunk(self, name: bytes, content: bytes) -> None:
        self._file.write(struct.pack(">I", len(content)) + name)
        self._file.write(content)
        self._file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(name))))
