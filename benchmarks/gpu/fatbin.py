"""Reduces the CUDA fat binaries in a library to one GPU, and to the kernels that are needed: other code becomes zeros, which
compress to nothing.

A fat binary is a header (magic, version, its length, the length of what follows) and entries, each with a header (kind,
version, its length, the length of its code, ..., the architecture at byte 28) and code. Headers stay unchanged, so that the
driver still finds the entry for its architecture. (The layout was found by inspecting the libraries of CUDA 11 to 13.)
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import struct
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

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


def kernels(library: bytes, architecture: int) -> list[set[str]]:
    """The names of the kernels in each piece of machine code for one architecture, in the order of `entries`.

    The code is compressed, so NVIDIA's cuobjdump reads it; Triton brings it. Without it, or if it finds another number of
    pieces, the list is empty.
    """
    program = _cuobjdump()
    if program is None:
        return []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "library.so"
        path.write_bytes(library)
        done = subprocess.run(
            [program, "-xelf", "all", "-arch", f"sm_{architecture}", str(path)], cwd=folder, capture_output=True
        )
        numbered = {int(found[1]): f for f in Path(folder).iterdir() if (found := re.search(r"\.(\d+)\.sm_", f.name))}
        pieces = sum(entry[:2] == (MACHINE_CODE, architecture) for entry in entries(library))
        if done.returncode or len(numbered) != pieces:
            return []
        return [
            {name.decode() for name in re.findall(rb"\.text\.(\w+)", numbered[number].read_bytes())}
            for number in sorted(numbered)
        ]


def _cuobjdump() -> str | None:
    triton = importlib.util.find_spec("triton")
    beside = [
        Path(p) / "backends" / "nvidia" / "bin" / "cuobjdump"
        for p in (triton and triton.submodule_search_locations) or ()
    ]
    return next((str(p) for p in beside if p.is_file()), shutil.which("cuobjdump"))


def reduce(library: bytes, architecture: int, unneeded: Sequence[bool] = ()) -> tuple[bytes, Counter[int]]:
    """Keep the machine code for one architecture (90 for compute capability 9.0).

    Args:
        unneeded: for each piece of that code, in the order of `entries`, whether it is removed too.

    Returns:
        (the reduced library, the bytes of code that the original held for each architecture).

    Raises:
        NotFatBinary: the library has no code for this architecture, or another number of pieces than `unneeded`.
    """
    left, held, number = bytearray(library), Counter[int](), 0
    for kind, made_for, at, length in entries(library):
        held[made_for] += length
        keep = kind == MACHINE_CODE and made_for == architecture
        if keep and unneeded:
            keep = number < len(unneeded) and not unneeded[number]
            number += 1
        if not keep:
            left[at : at + length] = bytes(length)
    if architecture not in held:
        raise NotFatBinary(f"there is no code for {architecture}, only for {sorted(held)}")
    if number != len(unneeded):
        raise NotFatBinary(f"there are {number} pieces of code for {architecture}, not {len(unneeded)}")
    return bytes(left), held
