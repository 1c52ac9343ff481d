"""Reduces the CUDA fat binaries in a library to one GPU: the code for others becomes zeros, which compress to nothing.

A fat binary is a header (magic, version, its length, the length of what follows) and entries, each with a header (kind,
version, its length, the length of its code, ..., the architecture at byte 28) and code. Headers stay unchanged, so that the
driver still finds the entry for its architecture. (The layout was found by inspecting the libraries of CUDA 11 to 13.)
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterator

MAGIC = struct.pack("<I", 0xBA55ED50)
HEADER = struct.Struct("<IHHQ")
ENTRY = struct.Struct("<HHIQ12xI")
PTX, MACHINE_CODE = 1, 2


class NotFatBinary(ValueError):
    """The bytes are not a fat binary, or it holds no code for the GPU."""


def entries(library: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Find every piece of code in a library: (kind, architecture, offset, length).

    Raises:
        NotFatBinary: an entry is damaged or of an unknown layout.
    """
    for found in re.finditer(re.escape(MAGIC), library):
        at = found.start()
        if at + HEADER.size > len(library):
            continue
        _, version, header, length = HEADER.unpack_from(library, at)
        if version != 1 or header != HEADER.size:
            continue  # these bytes equal the magic number by chance
        at, end = at + header, at + header + length
        while at < end:
            if at + ENTRY.size > len(library):
                raise NotFatBinary(f"an entry at {at:#x} is cut off")
            kind, _, header, length, architecture = ENTRY.unpack_from(library, at)
            if kind not in (PTX, MACHINE_CODE) or header < ENTRY.size or at + header + length > end:
                raise NotFatBinary(f"an entry at {at:#x} is not as expected")
            yield kind, architecture, at + header, length
            at += header + length


def reduce(library: bytes, architecture: int) -> tuple[bytes, Counter[int]]:
    """Keep the machine code for one architecture (90 for compute capability 9.0).

    Returns:
        (the reduced library, the bytes of code that the original held for each architecture).

    Raises:
        NotFatBinary: the library has no code for this architecture.
    """
    left, held = bytearray(library), Counter[int]()
    for kind, made_for, at, length in entries(library):
        held[made_for] += length
        if kind != MACHINE_CODE or made_for != architecture:
            left[at : at + length] = bytes(length)
    if architecture not in held:
        raise NotFatBinary(f"there is no code for {architecture}, only for {sorted(held)}")
    return bytes(left), held
