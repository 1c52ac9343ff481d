"""Colours on a terminal only, and not where they are not wanted; -v shows what the library logs."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from r2mrf_deploy import images, sample_photographs
from r2mrf_deploy.cli import common, main
from r2mrf_deploy.progress import timed
from tests.cli.terminal import Terminal, shown

ROOT = Path(__file__).parents[2]
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")
ESCAPE = "\x1b"
PLAIN = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE")}
COMMAND = [sys.executable, "-m", "r2mrf_deploy"]
TABLE = """
from r2mrf_deploy.cli.common import table
from r2mrf_deploy.report.screen import Sheet
from r2mrf_deploy.report.tables import verdict
sheet = Sheet("artifact", "parity")
sheet.add("x.onnx", verdict("pass"))
table(sheet)
"""
LINE = re.compile(r"\d\d:\d\d:\d\d\.\d{3} [a-z_.]+: \S")
"""How a line of the log begins: the time, the module, what was done."""
DID = ("made", "compared", "checked")


def on_a_terminal(command: Sequence[str], **changed: str) -> str:
    """What a command writes on a terminal."""
    environment = PLAIN | {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)} | changed
    with Terminal(command, environment) as terminal:
        return terminal.read()


@pytest.mark.parametrize(
    "command",
    [[*COMMAND, "export", "--help"], [*COMMAND, "inspect", "absent.pth"], [sys.executable, "-c", TABLE]],
    ids=["help", "error", "table"],
)
def test_colours_are_for_terminals(command: list[str]) -> None:
    coloured = on_a_terminal(command)
    assert COLOUR.search(coloured)
    without = on_a_terminal(command, NO_COLOR="1")
    assert not COLOUR.search(without)
    dumb = on_a_terminal(command, TERM="dumb")
    assert ESCAPE not in dumb
    assert shown(coloured) == shown(without) == dumb, "nothing but the colours differs"
    piped = subprocess.run(command, capture_output=True, text=True, env=PLAIN | {"COLUMNS": "80"}, cwd=ROOT)
    assert ESCAPE not in piped.stdout + piped.stderr
    assert (piped.stdout + piped.stderr).split() == dumb.split()


@pytest.mark.artifact
def test_a_bar_has_colours_on_a_terminal_and_none_without(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(images.png(sample_photographs.sample("chelsea")[:64, :64]))
    command = [*COMMAND, "predict", str(tmp_path / "cat.png"), "-o", str(tmp_path / "out"), "--save", "map"]
    moving = "\x1b[?25l"  # the cursor is hidden while a bar moves
    said = on_a_terminal(command)
    assert moving in said and COLOUR.search(said)
    said = on_a_terminal(command, NO_COLOR="1")
    assert moving in said and not COLOUR.search(said) and "% in focus" in said
    said = on_a_terminal(command, TERM="dumb")
    assert ESCAPE not in said and "% in focus" in said


@pytest.fixture
def photograph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cat.png").write_bytes(images.png(sample_photographs.sample("chelsea")[:64, :64]))
    return tmp_path / "cat.png"


def test_v_shows_the_log_with_times_and_json_stays_one_document(
    photograph: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", str(photograph), "--json"]) == 0
    silent = capsys.readouterr()
    assert not silent.err
    for given in ("-v", "--verbose"):
        assert main(["predict", given, str(photograph), "--json"]) == 0
        said = capsys.readouterr()
        assert json.loads(said.out) == json.loads(silent.out)
        lines = said.err.splitlines()
        assert len(lines) >= 5 and all(map(LINE.match, lines))
        assert re.search(r"artifact: verified \S+r2mrf-lite.onnx in \d+\.\d{3} s", said.err)
        assert re.search(r"opened \S+ with onnxruntime \S+ on CPU, .* in \d+\.\d{3} s", said.err)
        assert "providers of the session: CPUExecutionProvider" in said.err
        assert re.search(r"predictor: computed 1 map of \(1, .*, 3\) in \d+\.\d{3} s", said.err)
        assert "cli: exit code 0 after" in lines[-1]


@pytest.mark.artifact
def test_v_says_how_long_each_step_of_an_export_took(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", str(small), "-o", str(tmp_path / "x.onnx"), "--size", "64x64", "-v"]) == 0
    said = capsys.readouterr().err
    steps = [
        f"read {small}",
        "traced r2mrf at 64x64",
        "rewrote the graph",
        "made x.onnx",
        "compared x.onnx",
        "checked x.onnx",
    ]
    places = [said.index(step) for step in steps]
    assert places == sorted(places) and all(re.search(rf"{re.escape(step)}.* \d+\.\d{{3}} s\n", said) for step in steps)
    assert f"published {tmp_path / 'x.onnx'}, {(tmp_path / 'x.onnx').stat().st_size} bytes" in said


def test_v_masks_passwords_and_shows_outside_text_as_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "rtsp://me:secret@camera/1", "\x1b[31m.jpg", "--overlap", "x", "-v"]) == 2
    said = capsys.readouterr().err
    assert "secret" not in said and "rtsp://me:***@camera/1" in said and ESCAPE not in said and r"\x1b[31m" in said


def test_what_follows_two_dashes_is_no_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-v", "--debug"):
        assert main(["inspect", "--", name]) == 2
        assert capsys.readouterr().err == f"error: {name}: no such file\n"


def test_notes_are_said_once_and_the_log_is_whole_and_both_end_with_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    log = logging.getLogger("r2mrf_deploy.somewhere")

    def work() -> None:
        for _ in range(2):
            log.debug("a detail")
            log.info("a note")
            log.warning("a doubt")

    level = log.getEffectiveLevel()
    with common.shown_notes():
        work()
    assert capsys.readouterr().err == "note: a note\nwarning: a doubt\n"
    with common.shown_notes(verbose=True):
        work()
    said = [line.partition(" ")[2] for line in capsys.readouterr().err.splitlines()]
    assert said == ["somewhere: a detail", "somewhere: a note", "somewhere: warning: a doubt"] * 2
    assert log.getEffectiveLevel() == level
    assert not logging.getLogger("r2mrf_deploy").handlers


def test_a_step_that_fails_took_no_time(caplog: pytest.LogCaptureFixture) -> None:
    log = logging.getLogger("r2mrf_deploy.somewhere")
    with caplog.at_level(logging.DEBUG, "r2mrf_deploy"):
        with timed(log, "read %s", "a file of 100 %"):
            pass
        with pytest.raises(ValueError), timed(log, "wrote it"):
            raise ValueError
    assert [re.sub(r"\d\.\d{3}", "T", record.getMessage()) for record in caplog.records] == [
        "read a file of 100 % in T s"
    ]
