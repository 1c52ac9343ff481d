"""What `mkdocs build` does besides: files of the repository that documents link to become part of the site.

On a code host, `../engines/cpp/README.md` leads to that file. The site has only what is in `docs`, so the files that are
linked from there are added under `repository/`, Markdown as pages and all others as they are. A link to a folder becomes its
text. A link to nothing stays, and the strict build refuses it.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]+)(#[^)\s]*)?\)")
UNDER = "repository/"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what is linked from the documents, and from what is added."""
    waiting = [file.src_uri for file in files.documentation_pages()]
    while waiting:
        source = waiting.pop()
        for path in _linked(_in_repository(source)):
            uri = _in_site(path)
            if (ROOT / path).is_file() and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(ROOT / path)))
                if path.endswith(".md"):
                    waiting.append(uri)
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Point links at where their files are in the site."""
    source = page.file.src_uri

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = _target(_in_repository(source), target)
        if path is None or not (ROOT / path).exists():
            return found[0]
        if (ROOT / path).is_dir():
            return text
        return f"[{text}]({posixpath.relpath(_in_site(path), posixpath.dirname(source) or '.')}{anchor})"

    return LINK.sub(link, markdown)


def _linked(path: str) -> Iterator[str]:
    """The files of the repository that a document links to."""
    for found in LINK.finditer((ROOT / path).read_text(encoding="utf-8")):
        if (target := _target(path, found[2])) is not None:
            yield target


def _target(path: str, link: str) -> str | None:
    """Where a link of a document leads in the repository; None out of it, and to other hosts."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return None if ":" in link or target.startswith(("../", "/")) else target


def _in_repository(uri: str) -> str:
    return uri.removeprefix(UNDER) if uri.startswith(UNDER) else f"docs/{uri}"


def _in_site(path: str) -> str:
    return path.removeprefix("docs/") if path.startswith("docs/") else UNDER + path
