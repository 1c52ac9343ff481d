"""A table in other forms than the screen's: CSV, Markdown and LaTeX, in which outside text is text too."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from r2mrf_deploy.report.screen import Sheet
from r2mrf_deploy.wording import plain


def csv_bytes(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


def markdown(sheet: Sheet, notes: Sequence[str] = ()) -> str:
    """A table in GitHub's Markdown, and a list of notes below it."""
    rules = ["---:" if head in sheet.numbers else "---" for head in sheet.heads]
    rows = [[_in_markdown(cell.plain) for cell in row] for row in sheet.rows]
    lines = [f"| {' | '.join(line)} |\n" for line in (map(_in_markdown, sheet.heads), rules, *rows)]
    return "".join([*lines, *("\n" for _ in notes[:1]), *(f"- {_in_markdown(note)}\n" for note in notes)])


def _in_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", plain(text))


def latex(sheet: Sheet, notes: Sequence[str] = ()) -> str:
    """A table in LaTeX, with the rules of the package booktabs; in each column of numbers the bold cell is bold, and a rule
    begins each section. Notes are comments below it."""
    aligned = "".join("r" if head in sheet.numbers else "l" for head in sheet.heads)
    head, *rows = (
        f"  {' & '.join(cells)} \\\\\n"
        for cells in (map(_in_latex, map(Text, sheet.heads)), *(map(_in_latex, row) for row in sheet.rows))
    )
    rows = [f"  \\midrule\n{row}" if number in sheet.sections else row for number, row in enumerate(rows)]
    body = ["  \\toprule\n", head, "  \\midrule\n", *rows, "  \\bottomrule\n"]
    return f"\\begin{{tabular}}{{{aligned}}}\n{''.join(body)}\\end{{tabular}}\n" + "".join(
        f"% {plain(note)}\n" for note in notes
    )


_LATEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "[": "{[}", "]": "{]}",  # after a line's end, a bracket would begin its options
    "Δ": r"$\Delta$", "σ": r"$\sigma$", "β": r"$\beta$", "²": r"$^2$",
} | {c: f"\\{c}" for c in "&%$#_{}"}  # fmt: skip


def _in_latex(text: Text) -> str:
    shown = "".join(_LATEX.get(c, c) for c in plain(text.plain))
    return f"\\textbf{{{shown}}}" if "bold" in str(text.style) else shown
