"""Damage: what happens to files on their way, and what somebody might do to them."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from r2mrf_deploy.errors import R2mrfError

COUNTS = [500, pytest.param(10_000, marks=pytest.mark.slow)]
"""The number of mutations: in `make test`, and where there is time."""


def mutations(whole: bytes, count: int, focus: range | None = None) -> Iterator[bytes]:
    """Damaged copies of a file: flipped bits; random, zeroed, removed, repeated and swapped bytes; cuts; numbers that lie.

    Half of them lie within `focus`, where a parser reads lengths and offsets; by default the first and last KiB.
    """
    draw = random.Random(len(whole))
    for number in range(count):
        damaged = bytearray(whole)
        for _ in range(draw.choice((1, 1, 1, 2, 8))):
            at = _place(draw, len(damaged), focus if number % 2 else None)
            length = draw.choice((1, 2, 4, 64, 4096))
            match draw.randrange(8):
                case 0:
                    damaged[at : at + 1] = bytes([damaged[at] ^ 1 << draw.randrange(8)]) if damaged else b""
                case 1:
                    damaged[at : at + length] = draw.randbytes(len(damaged[at : at + length]))
                case 2:
                    damaged[at : at + length] = bytes(len(damaged[at : at + length]))
                case 3:
                    del damaged[at : at + length]
                case 4:
                    damaged[at:at] = damaged[at : at + length]
                case 5:
                    other = _place(draw, len(damaged), focus)
                    damaged[at : at + length] = damaged[other : other + length]
                case 6:
                    damaged[at : at + 4] = draw.choice(
                        (b"\xff\xff\xff\xff", b"\xff\xff\xff\x7f", b"\0\0\0\x80", b"[[[[")
                    )
                case 7:
                    del damaged[at if draw.random() < 0.2 else max(at, len(damaged) - length) :]
            if not damaged:
                damaged += b"\0"
        yield bytes(damaged)


def _place(draw: random.Random, size: int, focus: range | None) -> int:
    near = focus or range(0)
    if near and draw.random() < 0.8:
        return min(draw.choice(near), size - 1)
    if draw.random() < 0.5:
        return min(draw.choice((draw.randrange(1024), max(0, size - 1 - draw.randrange(1024)))), size - 1)
    return draw.randrange(size)


def survivors(
    path: Path, damaged: Iterator[bytes], read: Callable[[Path], object], error: type[R2mrfError] | tuple[type, ...]
) -> Iterator[object]:
    """What was read in spite of the damage. Anything raised but `error` fails the test."""
    for content in damaged:
        path.write_bytes(content)
        try:
            found = read(path)
        except error as e:
            assert str(e).strip()
        else:
            yield found
