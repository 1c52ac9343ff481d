"""The documents, and the blocks of code in them that are run as they stand."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
NOT_FILES = {".venv", "out", "build", "dist", "node_modules", ".pytest_cache"}
FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
REASON = re.compile(r"<!-- not run: (.+) -->\n$")


class Block(NamedTuple):
    """A fenced block: its language, its text, and why it is not run, if it is not."""

    language: str
    text: str
    reason: str


def pages() -> list[Path]:
    """Every Markdown file of the repository."""
    found = (page for page in ROOT.rglob("*.md") if not NOT_FILES & {*page.relative_to(ROOT).parts})
    return sorted(page for page in found if not any(part.startswith(".") for part in page.relative_to(ROOT).parts))


def read(page: str | Path) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def fenced(page: str | Path) -> list[Block]:
    """The fenced blocks of a page."""
    text, found = read(page), []
    for fence in FENCE.finditer(text):
        reason = REASON.search(text[: fence.start()])
        code = "".join(line[len(fence[1]) :] for line in fence[3].splitlines(keepends=True))
        found.append(Block(fence[2], code, reason[1] if reason else ""))
    return found


def run(page: str | Path, language: str) -> list[str]:
    """The blocks of a page in a language that are run."""
    return [block.text for block in fenced(page) if block.language == language and not block.reason]
