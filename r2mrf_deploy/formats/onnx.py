"""ONNX files: the contract lies in `metadata_props`.

Only the outermost message is walked, so that neither the `onnx` package nor the weights are needed. Source: onnx.proto and
the encoding of protocol buffers.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.formats import KEY, Content
from r2mrf_deploy.manifest import Contract

_METADATA = 14
"""ModelProto.metadata_props; an entry has the fields key = 1 and value = 2."""
_LARGEST = 16 << 20
"""Bytes of metadata."""


def read(path: Path) -> Content:
    """Read the contract of an ONNX file. A file that is not ONNX has none here; what opens it says so.

    Raises:
        ArtifactError: the file cannot be read, or its contract is damaged.
    """
    try:
        with path.open("rb") as f:
            for entry in _fields(f, path.stat().st_size, {_METADATA}):
                parts = dict(_parts(entry))
                if parts.get(1) == KEY.encode():
                    return Content(Contract.parse(parts.get(2, b""), f"the contract inside {path}"))
    except OSError as e:
        raise ArtifactError(f"{path} cannot be read: {e.strerror or e}") from None
    except (ValueError, EOFError):
        pass
    return Content()


def _fields(f: BinaryIO, size: int, wanted: set[int]) -> Iterator[bytes]:
    """The wanted length-delimited fields of the message in a file; others are skipped."""
    while f.tell() < size:
        number, wire = divmod(_varint(f), 8)
        if wire == 0:
            _varint(f)
        elif wire in (1, 5):
            f.seek(8 if wire == 1 else 4, 1)
        elif wire == 2:
            length = _varint(f)
            if number in wanted and length <= _LARGEST:
                yield f.read(length)
            else:
                f.seek(length, 1)
        else:
            raise ValueError(f"wire type {wire}")


def _parts(message: bytes) -> Iterator[tuple[int, bytes]]:
    from io import BytesIO

    for number in (1, 2):
        yield from ((number, value) for value in _fields(BytesIO(message), len(message), {number}))


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
