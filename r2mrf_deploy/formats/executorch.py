"""ExecuTorch programs, `.pte`: a flatbuffer with what is executed in which order, and behind it the weights in segments.

The contract is a method that returns a constant, its text: ExecuTorch hands it to C++ and Kotlin like the result of any
other method. Here it is found without ExecuTorch, by ExecuTorch's schema (`program.fbs`, identifier ET12).
"""

from __future__ import annotations

import struct
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from r2mrf_deploy.errors import ArtifactError, reading
from r2mrf_deploy.formats import KEY, Content
from r2mrf_deploy.manifest import LARGEST, Contract

METHOD = "forward"
"""The method that computes."""

_HEADER = struct.Struct("<4s4s4sIQQQ")
"""The flatbuffer's root and identifier; the extended header: its magic and length, the length of the flatbuffer, where the
segments begin, and their length."""
_MOST = 64 << 20
"""Bytes of a flatbuffer, which holds no weights: ours have under one MiB."""
_STRING = 6
"""The type of a string among a method's values."""


@dataclass(frozen=True)
class Program:
    """The header of a program."""

    schema: int
    """The version of ExecuTorch's schema."""
    delegates: dict[str, int]
    """How many parts of the graph each backend runs as a whole."""
    operators: list[str]
    """What ExecuTorch's own kernels compute outside of those."""
    planned_bytes: int
    """The memory for values between the parts, at the largest size."""


def read(path: Path) -> Content:
    """Read a program's header and contract without running anything.

    Raises:
        ArtifactError: the file is no program of ExecuTorch's, or is damaged or incomplete.
    """
    with reading(path, ArtifactError, "is not an ExecuTorch program, or is damaged", "export it again"):
        methods = dict(_methods(root := _Table.root(_flatbuffer(path))))
        program = _program(root.number(0, "I"), methods[METHOD])
        text = _constant(methods[KEY]) if KEY in methods else None
    contract = Contract.parse(text, f"{path} is damaged: the contract inside") if text else None
    return Content(contract, program)


def _flatbuffer(path: Path) -> bytes:
    """The flatbuffer, which is read whole; that the segments are there is seen from the file's size."""
    with path.open("rb") as f:
        head = f.read(_HEADER.size)
        if len(head) < _HEADER.size or head[4:8] != b"ET12":
            raise ValueError("it does not begin as one")
        _, _, magic, length, program, segments, size = _HEADER.unpack(head)
        if magic != b"eh00" or length < _HEADER.size - 8:
            raise ValueError("its extended header is another")
        if program > _MOST or (size and segments < program):
            raise ValueError("the length of its flatbuffer is wrong")
        found, needed = path.stat().st_size, segments + size if size else program
        if found < needed:
            raise ValueError(f"it ends after {found:,} of {needed:,} bytes")
        return head + f.read(program - len(head))


@dataclass(frozen=True)
class _Table:
    """A table of a flatbuffer: a list of fields, each of which may be absent."""

    buffer: bytes
    at: int

    @classmethod
    def root(cls, buffer: bytes) -> _Table:
        return cls(buffer, _unpack("I", buffer, 0))

    def _field(self, index: int) -> int:
        """Where a field is; 0 if it is absent."""
        table = self.at - _unpack("i", self.buffer, self.at)
        slot = 4 + 2 * index
        offset = _unpack("H", self.buffer, table + slot) if slot < _unpack("H", self.buffer, table) else 0
        return self.at + offset if offset else 0

    def number(self, index: int, kind: str) -> int:
        at = self._field(index)
        return _unpack(kind, self.buffer, at) if at else 0

    def _followed(self, index: int) -> int:
        at = self._field(index)
        return at + _unpack("I", self.buffer, at) if at else 0

    def table(self, index: int) -> _Table:
        if not (at := self._followed(index)):
            raise ValueError("a part of it is missing")
        return _Table(self.buffer, at)

    def text(self, index: int) -> str:
        at = self.table(index).at
        length = _unpack("I", self.buffer, at)
        if length > LARGEST or at + 4 + length > len(self.buffer):
            raise ValueError("a text in it is too long")
        return self.buffer[at + 4 : at + 4 + length].decode()

    def numbers(self, index: int, kind: str) -> tuple[int, ...]:
        if not (at := self._followed(index)):
            return ()
        count, size = _unpack("I", self.buffer, at), struct.calcsize(f"<{kind}")
        if at + 4 + count * size > len(self.buffer):
            raise ValueError("a list in it is too long")
        return struct.unpack_from(f"<{count}{kind}", self.buffer, at + 4)

    def tables(self, index: int) -> list[_Table]:
        start = self._followed(index) + 4
        return [_Table(self.buffer, start + 4 * n + offset) for n, offset in enumerate(self.numbers(index, "I"))]


def _unpack(kind: str, buffer: bytes, at: int) -> Any:
    if at < 0:
        raise ValueError("an offset in it is negative")
    return struct.unpack_from(f"<{kind}", buffer, at)[0]


def _methods(program: _Table) -> list[tuple[str, _Table]]:
    return [(plan.text(0), plan) for plan in program.tables(1)]


def _constant(method: _Table) -> str:
    """What a method of one string returns."""
    (output,) = method.numbers(4, "i")
    value = method.tables(2)[output]
    if value.number(0, "B") != _STRING:
        raise ValueError("its contract is no text")
    return value.table(1).text(0)


def _program(schema: int, method: _Table) -> Program:
    operators = [f"{o.text(0)}.{o.text(1)}".rstrip(".") for o in method.tables(6)]
    delegates = Counter(d.text(0) for d in method.tables(7))
    return Program(schema, dict(delegates), operators, sum(method.numbers(8, "q")))
