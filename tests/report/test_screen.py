"""What is printed for people: nothing outside acts on the terminal, and no table breaks inside a name or a number."""

from __future__ import annotations

import io
import re

import pytest
from rich.progress import Progress
from rich.text import Text

from r2mrf_deploy.budget import Budget, Prediction
from r2mrf_deploy.doctor import Row
from r2mrf_deploy.report import tables
from r2mrf_deploy.report.facts import facts_lines
from r2mrf_deploy.report.screen import Screen, Sheet

HOSTILE = "a[red]b[/]\x1b[31m\x9b2J[/nothing:smile:"
VISIBLE = r"a[red]b[/]\x1b[31m\x9b2J[/nothing:smile:"


def printed(*what: object, width: int = 80, **how: object) -> str:
    console = Screen(file=io.StringIO(), width=width, force_terminal=True, no_color=True)
    for each in what:
        console.print(each, **how)
    return re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())  # bold, dim and the like are the screen's own


def test_outside_text_is_neither_markup_nor_control_in_whatever_way_it_is_printed() -> None:
    sheet = Sheet(HOSTILE, numbers=("n",), title=HOSTILE)
    sheet.add(HOSTILE, Text(HOSTILE))
    for width in (200, 20):
        assert printed(sheet, width=width, crop=False).count(VISIBLE) == 4 - (width == 20)
    for shown in (HOSTILE, Text(HOSTILE), Text.assemble("x", HOSTILE)):
        assert VISIBLE in printed(shown, soft_wrap=True)
    console = Screen(file=io.StringIO(), force_terminal=True, width=100)
    with Progress("{task.description}", console=console) as bar:  # a column that reads markup, as rich's are by default
        bar.add_task("\x1b]0;owned\x07 \x1b[2Jx")
    assert "\x1b]0" not in console.file.getvalue() and "\x1b[2J" not in console.file.getvalue()


def names_and_numbers(sheet: Sheet) -> set[str]:
    return {
        cell.plain for row in sheet.rows for head, cell in zip(sheet.heads, row, strict=True) if head not in sheet.prose
    }


def prediction(device: str) -> Prediction:
    return Prediction(
        "a-rather-long-name-of-a-graph.onnx rewritten", device, "A long title of a GPU", 0.5, 6_892_144_000, 370_000_000,
        223, 0.0412, 1.1, 0.06, 1234.5, (),
    )  # fmt: skip


SHEETS = [
    *tables.budget_tables(Budget(100, tuple(prediction(d) for d in ("gtx1080ti", "rtx4090")), (), None)),
    tables.doctor_table([Row("onnxruntime-tensorrt", "needs a b c d e f g h i j k l m n", True, "tensorrt_rtx 1.7.1", "")]),
    tables.demo_table([
        {"artifact": "r2mrf-edge.onnx", "bytes": 1, "precision": "fp32", "runtime": "onnxruntime", "input": "320x480",
         "parity": "uninformative", "median_ms": 1344.25, "speed_up": 1.0},
    ]),
]  # fmt: skip


@pytest.mark.parametrize("width", [200, 80, 40])
@pytest.mark.parametrize("sheet", SHEETS)
def test_no_name_and_no_number_is_broken(sheet: Sheet, width: int) -> None:
    shown = printed(sheet, width=width, crop=False)
    missing = {text for text in names_and_numbers(sheet) if text not in shown}
    assert missing <= ({"0.0 MB"} if width == 80 else set())  # a spare column
    if width >= 80:
        assert max(len(line) for line in shown.splitlines() if sheet.title not in line or not sheet.title) <= width


def test_spare_columns_go_first_and_then_rows_become_records() -> None:
    sheet = Sheet("artifact", numbers=("ms", "CV %"), spare=("CV %",))
    sheet.add("a-long-name-of-an-artifact.onnx", "123.4", "5.6")
    whole, less, records = (printed(sheet, width=width, crop=False) for width in (60, 44, 20))
    assert "CV %" in whole and "CV %" not in less and "123.4" in less
    assert records.splitlines() == ["a-long-name-of-an-artifact.onnx", "  ms        123.4", "  CV %      5.6"]


def test_what_all_rows_have_in_common_is_said_once() -> None:
    sheet = Sheet("artifact", "input", numbers=("ms",), once=("input",))
    sheet.add("a.onnx", "320x320", "1.0")
    sheet.add("b.onnx", "320x320", "2.0")
    for width in (60, 10):
        assert printed(sheet, width=width, crop=False).count("320x320") == 1
    assert printed(sheet, width=60, crop=False).startswith("input: 320x320\n")
    sheet.add("c.onnx", "640x640", "3.0")
    for width in (60, 10):
        shown = printed(sheet, width=width, crop=False)
        assert (shown.count("320x320"), shown.count("640x640"), "input:" in shown) == (2, 1, False)


def test_facts_are_read_by_people() -> None:
    facts = {
        "file": HOSTILE, "sha256": "5" * 64, "size": [320, 320], "shape": ["batch", 3, 8], "mean": (0.485, 0.5),
        "f_max": 0.8793431758846746, "share": True, "kept": [], "reason": "", "drift": None, "parameters": 3998880,
        "rewrites": [{"name": "cse", "count": 2}, {"name": "cse", "count": 3}], "parity": [{"largest": 8.06e-8}],
    }  # fmt: skip
    lines = [line.plain.rstrip() for line in facts_lines(facts, 60)]
    values = dict(re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines if "  " in line.strip())
    assert values["size"] == "320×320" and values["shape"] == "batch×3×8" and values["mean"] == "0.485, 0.5"
    assert values["f_max"] == "0.8793" and values["share"] == "true" and values["parameters"] == "3,998,880"
    assert lines[lines.index("sha256") + 1] == f"    {'5' * 64}"
    assert [line for line in lines if "count" in line] and sum("cse" in line for line in lines) == 2
    assert VISIBLE in "\n".join(lines) and not {"kept", "reason", "drift"} & set(values)
    assert not any(sign in line for line in lines for sign in "[]{}'" if HOSTILE[:1] + "[red]" not in line)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (1344.25, "1,344"),
        (99.95, "100.0"),
        (12.34, "12.3"),
        (0.0412, "0.0412"),
        (0.7, "0.700"),
        (0, "0"),
        (-2.5, "-2.50"),
    ],
)
def test_figures_have_three_digits_and_no_exponent(value: float, shown: str) -> None:
    assert tables.figure(value) == shown
