"""Puts a page together: its sources under names that hold a hash of their content, and the block of JSON that they read.

A source refers to another as `"./name"`, in double quotes, and to nothing else. A file's hash covers what it refers to, so
files that are referred to come first.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from graphlib import TopologicalSorter
from pathlib import Path, PurePosixPath

from r2mrf_deploy.web import DIGITS, FIXED, HEADERS, INDEX, POLICY, Site, headers, page_folder

_TEXTS = (".js", ".css", ".html")


def hashed(name: str, content: bytes) -> str:
    """`name` with the hash of a content: `page.js` becomes `page-0123456789ab.js`, `x.wasm.gz` `x-0123456789ab.wasm.gz`."""
    path = PurePosixPath(name)
    suffixes = "".join(path.suffixes[-2:]) if path.suffix == ".gz" else path.suffix
    return f"{name.removesuffix(suffixes)}-{hashlib.sha256(content).hexdigest()[:DIGITS]}{suffixes}"


def sources() -> dict[str, bytes]:
    """The page's sources as the package has them, each under its own name."""
    found = sorted(page_folder().iterdir())
    return {file.name: file.read_bytes() for file in found if file.is_file() and not file.name.startswith(".")}


def linked(content: Mapping[str, bytes]) -> dict[str, bytes]:
    """The sources under their hashed names, with each reference to another replaced by its hashed name.

    Raises:
        CycleError: files refer to each other in a circle, so that neither can have a hash.
    """
    refers = {name: _references(name, body, content) for name, body in content.items()}
    names: dict[str, str] = {}
    done: dict[str, bytes] = {}
    # a fixed name does not depend on its file's content, so a reference to it makes no circle
    order = TopologicalSorter({name: {r for r in found if r not in FIXED} for name, found in refers.items()})
    for name in order.static_order():
        body = content[name]
        for other in refers[name]:
            body = body.replace(f'"./{other}"'.encode(), f'"./{names.get(other, other)}"'.encode())
        names[name] = name if name in FIXED else hashed(name, body)
        done[names[name]] = body
    return done


def _references(name: str, body: bytes, known: Iterable[str]) -> list[str]:
    if Path(name).suffix not in _TEXTS:
        return []
    return sorted(other for other in known if f'"./{other}"'.encode() in body)


def index(template: bytes, site: Site) -> bytes:
    """The page itself: its template with the policy, and with what it has to know."""
    text = template.decode()
    block = json.dumps(site.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":  # nothing in it can end the block
        block = block.replace(character, f"\\u{ord(character):04x}")
    for name, value in (("{{policy}}", POLICY), ("{{artifact}}", block)):
        if text.count(name) != 1:
            raise ValueError(f"the template of the page must have {name} once, and has it {text.count(name)} times")
        text = text.replace(name, value)
    return text.encode()


def version(files: Mapping[str, bytes], about: str) -> str:
    """What tells a page from others: a hash of its files, and of what it says."""
    digest = hashlib.sha256(about.encode())
    for name in sorted(files):
        digest.update(f"\n{name} {hashlib.sha256(files[name]).hexdigest()}".encode())
    return digest.hexdigest()[:DIGITS]


def headers_file(names: Iterable[str]) -> bytes:
    """The headers of `runtimes/web/site.py`, as static hosts read them from a file."""
    lines = ["/*", *(f"  {name}: {value}" for name, value in HEADERS.items())]
    for name in sorted(names):
        for address in ("/", f"/{INDEX}") if name == INDEX else (f"/{name}",):
            lines += [address, f"  Cache-Control: {headers(name)['Cache-Control']}"]
    return ("\n".join(lines) + "\n").encode()
