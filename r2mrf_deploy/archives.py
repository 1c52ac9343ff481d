"""Zip archives that PyTorch writes: checkpoints and compiled packages. PyTorch checks almost nothing of them when it reads.

It stores members as they are, each with its CRC-32. So nothing has to be believed: what an archive claims is compared with
its length and its checksums before anything is unpacked or allocated. Source: PKWARE's APPNOTE, and `PyTorchFileWriter`.
"""

from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path, PurePosixPath, PureWindowsPath

_END = struct.Struct("<4s6xH10x")
"""The record that ends an archive without a comment: its mark, and the number of members in the directory before it."""
_FOLDER = 0x10
"""MS-DOS's attribute. For such a member PyTorch's reader fills nothing, and takes what the memory held for the weights."""


def verify(archive: zipfile.ZipFile, path: Path) -> None:
    """Check every member of an archive. Reads it once; allocates at most a block.

    `zipfile` raises many types about damage itself, so a caller catches whatever comes (`errors.reading`).

    Args:
        archive: the opened archive.
        path: its file.

    Raises:
        ValueError: a member is damaged, a folder, compressed, encrypted or there twice, claims more bytes than the file has,
            or would be unpacked outside its folder.
    """
    members = archive.infolist()
    with path.open("rb") as f:
        f.seek(-_END.size, os.SEEK_END)
        end, entries = _END.unpack(f.read())
    if end != b"PK\5\6" or entries not in (len(members), 0xFFFF):  # the latter where the 64-bit record has the number
        raise ValueError("its directory is cut off, or more follows it")
    if len({m.filename for m in members}) < len(members):
        raise ValueError("two of its members have the same name")
    for member in members:
        if _escapes(member.filename):
            raise ValueError(f"its member {member.filename!r} would be unpacked outside its folder")
        if member.is_dir() or member.external_attr & _FOLDER:
            raise ValueError(f"its member {member.filename!r} is marked as a folder")
        if member.flag_bits & 1:
            raise ValueError(f"its member {member.filename!r} is encrypted")
        if member.compress_type != zipfile.ZIP_STORED or member.compress_size != member.file_size:
            raise ValueError(f"its member {member.filename!r} is compressed, which PyTorch does not do")
    if sum(m.file_size for m in members) > path.stat().st_size:
        raise ValueError("its members claim more bytes than the file has")
    checked = any(m.CRC for m in members)  # torch.serialization.set_crc32_options(False) writes zeros
    if checked and (broken := archive.testzip()):
        raise ValueError(f"the checksum of its member {broken!r} differs")


def _escapes(name: str) -> bool:
    posix, windows = PurePosixPath(name), PureWindowsPath(name)
    return bool(posix.root or windows.anchor) or ".." in (*posix.parts, *windows.parts) or "\0" in name
