"""Writes the figures of `results/*.json` into the documents, so that none of them is typed.

    python benchmarks/tables.py            # write the tables
    python benchmarks/tables.py --check    # say which differ from the results, and exit with 1

A comment in a Markdown file says which function of which script makes the table below it, and from what:

    <!-- table: peers.table peers-r2mrf-lite.json -->

    | ... |

    <!-- end of table -->

`gpu.report.table` would be a function of gpu/report.py. A `#KEY` after the file's name takes that part of it. The function
gets the content of the file and returns the table. It stands in the script that measures, beside what it prints.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- table: ([\w.]+) ([\w.-]+)(?:#([\w-]+))? -->\n).*?(<!-- end of table -->)", re.DOTALL)
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "pytorch": "PyTorch"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a table is not that of its results"
    )
    given = parser.parse_args()
    differing = []
    for page in pages():
        text = page.read_text(encoding="utf-8")
        if (now := filled(text)) != text:
            differing.append(page.relative_to(ROOT))
            if not given.check:
                page.write_text(now, encoding="utf-8")
    for page in differing:
        print(f"{page} {'differs from its results: run python benchmarks/tables.py' if given.check else 'is written'}")
    raise SystemExit(1 if given.check and differing else 0)


def pages() -> list[Path]:
    """The files that hold tables."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def filled(text: str) -> str:
    """A page with every table made anew.

    Raises:
        SystemExit: a place has no end.
    """
    if len(PLACE.findall(text)) != text.count("<!-- table:"):
        raise SystemExit(
            "write <!-- table: SCRIPT.FUNCTION FILE.json --> before each table and <!-- end of table --> after it"
        )
    return PLACE.sub(lambda place: f"{place[1]}\n{made(place[2], place[3], place[4])}\n\n{place[5]}", text)


def made(function: str, file: str, part: str | None) -> str:
    """The table that a script's function makes of a file in `results`, or of a part of it."""
    module, _, name = function.rpartition(".")
    found = json.loads((RESULTS / file).read_text(encoding="utf-8"))
    return getattr(importlib.import_module(module), name)(found[part] if part else found)


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]], names: int = 1) -> str:
    """A table whose first columns are names, to the left, and whose others are figures, to the right."""
    rule = ["---"] * names + ["---:"] * (len(head) - names)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def in_code(name: str) -> str:
    """A preset and its settings (`btbnet:width=0.25`), or the name of a model file, as code."""
    preset, *settings = name.removesuffix(".onnx").split(":")
    return ", ".join(f"`{part}`" for part in (preset, *settings))


if __name__ == "__main__":
    main()
