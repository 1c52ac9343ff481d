"""A contact sheet of many photographs: one HTML file that needs nothing else, in which they are sorted and filtered.

The page contains its pictures, asks for nothing from anywhere, and runs no script but its own: its policy names that by
SHA-256. What comes from outside (names, notes, reasons) is data in it and never markup.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path, PurePath
from typing import Any

from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.predict.scores import NAMES
from r2mrf_deploy.predict.sources import JOURNAL
from r2mrf_deploy.wording import count, plain

MOST = 10_000
"""Photographs on a page: with thumbnails of 240 pixels, some 100 MiB, which a browser opens in seconds."""
_PHOTOGRAPHS = "<!-- photographs -->"
_ESCAPES = {ord(c): f"\\u{ord(c):04x}" for c in "<>&"}


def write(path: Path, rows: Iterable[Mapping[str, Any]], *, title: str, most: int = MOST) -> int:
    """Write a contact sheet, row by row: memory does not grow with their number.

    Args:
        path: the HTML file.
        rows: one mapping for each photograph, with these keys; one that is missing is None.
            `source`: str, its path or address, with any characters.
            `href`: the address that opens it, percent-encoded; None, or what `is_safe` refuses, for no link.
            `thumbnail`: a JPEG's bytes, with the outline of what is in focus drawn in; None for no picture.
            `error`: why it could not be read. Such photographs are in a list of their own.
            `note`: what else there is to say about it.
            The fields of `Scores`.
        title: the page's heading, one line of text.
        most: photographs on the page. Those after them are counted, and the page says so.

    Returns:
        How many photographs are on the page, with those that could not be read.

    Raises:
        ArtifactError: the file cannot be written, or the rows raise an OSError. A file at `path` is unchanged.
    """
    shown = 0

    def content(file: Path) -> None:
        nonlocal shown
        shown = _write(file, rows, title, most)

    write_atomically(path, content)
    return shown


def _write(file: Path, rows: Iterable[Mapping[str, Any]], title: str, most: int) -> int:
    head, tail = _page(title)
    total = 0
    with file.open("wb") as f:
        f.write(head)
        for total, row in enumerate(rows, 1):
            if total <= most:
                f.writelines(_blocks(row))
        shown = min(total, most)
        left = f"The page shows {shown:,} of {count(total, 'photograph')}; all are in {JOURNAL}."
        f.write(_block("summary", {"left": left if shown < total else None}))
        f.write(tail)
    return shown


def _page(title: str) -> tuple[bytes, bytes]:
    """The page before and after its photographs."""
    text = files(__package__).joinpath("contact_sheet.html").read_text(encoding="utf-8")
    values = {"title": html.escape(plain(title)), "policy": _policy(text)}
    head, tail = re.sub(r"\{\{(\w+)\}\}", lambda found: values[found[1]], text).split(_PHOTOGRAPHS)
    return head.encode(), tail.encode()


def _policy(text: str) -> str:
    """What the page may do (W3C, Content Security Policy Level 3): use its own style, script and pictures."""
    style, script = (_hash(re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)) for tag in ("style", "script"))
    return (
        f"default-src 'none'; img-src data:; style-src {style}; script-src {script}; "
        "base-uri 'none'; form-action 'none'"
    )


def _hash(contents: list[str]) -> str:
    """The source expressions of inline elements: their SHA-256 in base64."""
    digests = (hashlib.sha256(content.encode()).digest() for content in contents)
    return " ".join(f"'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)


def _blocks(row: Mapping[str, Any]) -> Iterable[bytes]:
    """What the page holds of a photograph: its figures, and its picture beside them, which is read when it is shown."""
    source = str(row["source"])
    facts = {
        "name": plain(PurePath(source).name or source),
        "source": plain(source),
        "href": row["href"] if row.get("href") and is_safe(row["href"]) else None,
        **{key: None if row.get(key) is None else plain(row[key]) for key in ("error", "note", "verdict")},
        **{key: _figure(row.get(key)) for key in NAMES if key != "verdict"},
    }
    yield _block("photograph", facts)
    if row.get("thumbnail"):
        yield b'<script type="text/plain" class="picture">%s</script>\n' % base64.b64encode(row["thumbnail"])


def _block(kind: str, value: Mapping[str, Any]) -> bytes:
    """Data of the page. As text in JSON no character can end its element, or be other than ASCII."""
    text = json.dumps(value, allow_nan=False).translate(_ESCAPES)
    return f'<script type="application/json" class="{kind}">{text}</script>\n'.encode()


def _figure(value: Any) -> float | None:
    """A number that JSON can hold."""
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def is_safe(address: str) -> bool:
    """Whether an address may be a link: http, https, file, or relative to the page and on its machine.

    Control characters are refused, because browsers leave some of them out: `java\\nscript:` would be a scheme.
    """
    if re.search(r"[\x00-\x1f\x7f]", address) or re.match(r"\s*[/\\]{2}", address):
        return False
    scheme = re.match(r"[^/?#]*?:", address)
    return scheme is None or scheme[0].lower() in {"http:", "https:", "file:"}
