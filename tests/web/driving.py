"""What the tests of the page do in a browser: give it files, call its functions, and wait for it."""

from __future__ import annotations

import base64
import io
import re
import time
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

_PRELUDE = """
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const text = (buffer) => {
  const array = new Uint8Array(buffer.buffer ?? buffer, buffer.byteOffset ?? 0, buffer.byteLength);
  let found = "";
  for (let i = 0; i < array.length; i += 32768) found += String.fromCharCode(...array.subarray(i, i + 32768));
  return btoa(found);
};
"""


def call(page: Any, body: str, **given: Any) -> Any:
    """Run the body of an asynchronous function of `given`, whose arrays and bytes arrive as base64 for `bytes(...)`. What
    it returns may hold `text(array)`."""
    plain = {k: encoded(v) if isinstance(v, np.ndarray | bytes) else v for k, v in given.items()}
    return page.evaluate(f"async ({{{', '.join(plain)}}}) => {{ {_PRELUDE} {body} }}", plain)


def encoded(value: np.ndarray | bytes) -> str:
    return base64.b64encode(value if isinstance(value, bytes) else value.tobytes()).decode()


def array(text: str, dtype: Any, *shape: int) -> np.ndarray:
    """What `text(...)` gave."""
    return np.frombuffer(base64.b64decode(text), dtype).reshape(shape)


def module(site: Path, name: str) -> str:
    """The address of one of the page's modules."""
    (found,) = site.glob(f"{name}-????????????.js")
    return f"./{found.name}"


def until(page: Any, condition: str, seconds: float = 60) -> None:
    """Wait for a JavaScript expression to be true. (The page's policy refuses Playwright's own way, which is `eval`.)"""
    deadline = time.monotonic() + seconds
    while not page.evaluate(f"Boolean({condition})"):
        assert time.monotonic() < deadline, f"{condition}: {page.inner_text('body')}"
        page.wait_for_timeout(30)


def photograph(name: str, height: int = 0, width: int = 0) -> Image.Image:
    """A sample photograph, resized if a size is given."""
    from r2mrf_deploy import sample_photographs

    image = Image.fromarray(sample_photographs.sample(name))
    return image.resize((width, height)) if height else image


def file(image: Image.Image, kind: str, **options: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def give(page: Any, *files: tuple[str, bytes]) -> None:
    """Choose files by the page's own control."""
    page.set_input_files("#files", [{"name": name, "mimeType": "", "buffer": content} for name, content in files])


def settled(page: Any) -> None:
    """Wait until nothing is waiting or being analysed, and what is shown is drawn."""
    until(
        page,
        "!document.querySelector('.thumb.waiting, .thumb.working') && (!document.querySelector('#frame').hidden"
        " || document.querySelector('#pending.failed'))",
    )


def luminance(colour: str) -> float:
    """Of `rgb(r, g, b)`, relative (WCAG 2.2)."""
    parts = [int(part) / 255 for part in islice(re.findall(r"\d+", colour), 3)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
