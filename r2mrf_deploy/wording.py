"""How texts are put together for people: outside text that cannot act on a terminal, and counts with their nouns."""

from __future__ import annotations

import re
from collections.abc import Collection
from itertools import islice

_PASSWORD = re.compile(r"(?<=://)([^/@:\s]*):\S*@")
_ACTING = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object) -> str:
    """Text of users, files and libraries as one line that a terminal only shows.

    Control characters (an escape sequence could colour, erase or rename what is on the screen), line separators, marks that
    turn the direction of writing around, and bytes of file names that are not UTF-8 become escapes: `\\x1b`.
    """
    return _ACTING.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def masked(text: str) -> str:
    """Text without the passwords of the addresses in it."""
    return _PASSWORD.sub(r"\1:***@", text)


def count(number: int, noun: str) -> str:
    """`1 photograph`, `2 photographs`, `1,000 photographs`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def first(names: Collection[str], most: int) -> str:
    """`a, b, c`, or `a, b, ...` where there are more."""
    return ", ".join(islice(names, most)) + (", ..." if len(names) > most else "")
