"""The tables of the documents are those of the results, and no figure in them is typed."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest

from .conftest import FOLDER, load

tables = load("tables")
PLACE = "<!-- table: made.up up.json -->\n{}<!-- end of table -->\n"


def test_every_table_is_that_of_its_results() -> None:
    done = subprocess.run(
        [sys.executable, FOLDER / "tables.py", "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_of_results_that_has_a_table_is_in_a_document() -> None:
    """All but those whose figures are only in the text."""
    shown = set(re.findall(r"<!-- table: [\w.]+ ([\w.-]+)", "".join(page.read_text() for page in tables.pages())))
    assert {file.name for file in tables.RESULTS.glob("*.json")} - shown == {"cpp.json", "lively.json"}


def test_a_place_gets_its_table_and_the_text_around_it_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(tables, "made", lambda *place: asked.append(place) or "| new |")
    before = (
        "before\n" + PLACE.format("\n| old |\n\n") + "between\n" + PLACE.format("").replace("up.json", "up.json#part")
    )
    after = tables.filled(before)
    assert after == before.replace("| old |", "| new |").replace("#part -->\n", "#part -->\n\n| new |\n\n")
    assert tables.filled(after) == after
    assert asked[:2] == [("made.up", "up.json", None), ("made.up", "up.json", "part")]


@pytest.mark.parametrize(
    "text", [PLACE.format("").replace("end of", "End of"), PLACE.format("").replace("made.up up.json", "up.json")]
)
def test_a_place_that_is_not_one_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="write <!-- table:"):
        tables.filled(text)


def test_names_are_to_the_left_and_figures_to_the_right() -> None:
    assert (
        tables.markdown(["a", "b", "c"], [["x", "y", "1"]], names=2)
        == "| a | b | c |\n| --- | --- | ---: |\n| x | y | 1 |"
    )
    assert tables.in_code("btbnet:width=0.25") == "`btbnet`, `width=0.25`" and tables.in_code("a.onnx") == "`a`"
