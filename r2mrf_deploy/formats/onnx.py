"""ONNX files: the contract is stored in `metadata_props`.

Only the outermost message is read, without the `onnx` package and without the weights. Source: onnx.proto and the
encoding of protocol buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

from r2mrf_deploy.formats import KEY, Content
from r2mrf_deploy.manifest import LARGEST, Contract

_METADATA = 14
"""ModelProto.metadata_props; an entry has the fields key = 1 and value = 2."""


def read(path: Path) -> Content:
    """Read the contract of an ONNX file. A file that is not ONNX has none; the runtime that opens it refuses it.

    Raises:
        ArtifactError: the contract is damaged.
    """
    try:
        with path.open("rb") as f:
            for _, entry in _fields(f, path.stat().st_size, {_METADATA}):
                parts = dict(_fields(BytesIO(entry), len(entry), {1, 2}))
                if parts.get(1) == KEY.encode():
                    return Content(Contract.parse(parts.get(2, b""), f"the contract inside {path}"))
    except (ValueError, EOFError):
        pass
    return Content()


def _fields(f: BinaryIO, size: int, wanted: set[int]) -> Iterator[tuple[int, bytes]]:
    """The number and content of the wanted length-delimited fields of a message; others are skipped."""
    while f.tell() < size:
        number, wire = divmod(_varint(f), 8)
        if wire == 0:
            _varint(f)
        elif wire in (1, 5):
            f.seek(8 if wire == 1 else 4, 1)
        elif wire == 2:
            length = _varint(f)
            if length > size - f.tell():
                raise EOFError
            if number in wanted and length <= 2 * LARGEST:
                yield number, f.read(length)
            else:
                f.seek(length, 1)
        else:
            raise ValueError(f"wire type {wire}")


def _varint(f: BinaryIO) -> int:
    value = 0
    for shift in range(0, 70, 7):
        byte = f.read(1)
        if not byte:
            raise EOFError
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("a number has more than ten bytes")
