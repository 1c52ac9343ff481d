"""A run that was killed goes on where it was, with nothing lost and nothing done twice."""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from r2mrf_deploy.errors import ArtifactError, UsageError
from r2mrf_deploy.predict import Outputs, Prediction, Sources, predict
from r2mrf_deploy.predict.journal import Journal, records
from tests.predict.conftest import Brightness, photograph

MAPS = Outputs(("map",))


def run(brightness: Brightness, folder: Path, **options: object) -> list[Prediction]:
    sources = Sources([folder / "in"], output=folder / "out")
    return list(predict(brightness(), sources, folder / "out", MAPS, **options))  # type: ignore[arg-type]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for n in range(3):
        photograph(tmp_path / "in" / f"{n}.png", 10 * n)
    return tmp_path


def test_what_is_done_is_skipped_by_its_name_and_its_bytes(three: Path, brightness: Brightness) -> None:
    assert len(run(brightness, three)) == 3
    assert run(brightness, three, resume=True) == []
    (three / "in" / "0.png").touch()  # a date says nothing
    photograph(three / "in" / "1.png", 77, (80, 60))
    photograph(three / "in" / "3.png")
    (three / "out" / "2_map.png").unlink()
    assert [Path(p.source).name for p in run(brightness, three, resume=True)] == ["1.png", "2.png", "3.png"]
    assert len({r["source"] for r in records(three / "out" / "predictions.jsonl")}) == 4


def test_what_failed_is_tried_again_and_counted_once(three: Path, brightness: Brightness) -> None:
    (three / "in" / "1.png").write_bytes(b"bad")
    assert [bool(p.error) for p in run(brightness, three)] == [False, True, False]
    photograph(three / "in" / "1.png", 10)
    (again,) = run(brightness, three, resume=True)
    assert again.error is None
    assert [r["error"] for r in records(three / "out" / "predictions.jsonl")] == [None] * 3


def test_a_line_that_was_cut_off_is_done_again(three: Path, brightness: Brightness) -> None:
    run(brightness, three)
    path = three / "out" / "predictions.jsonl"
    whole = path.read_text()
    lines = whole.splitlines(keepends=True)
    for cut, left in ((len(lines[0]) + 1, 3), (len("".join(lines[:3])) - 1, 2), (len(whole) - 1, 0)):
        path.write_text(whole[:cut])
        assert len(run(brightness, three, resume=True)) == left
        assert len(list(records(path))) == 3 and path.read_text().endswith('{"finished": true}\n')


def test_another_run_s_journal_is_not_continued(three: Path, brightness: Brightness) -> None:
    run(brightness, three, model="1")
    with pytest.raises(UsageError, match=r"whose model was '1' and is '2': leave out `resume`"):
        run(brightness, three, model="2", resume=True)
    (three / "out" / "predictions.jsonl").write_text("{}\n")
    with pytest.raises(ArtifactError, match="is not a journal of predictions"):
        run(brightness, three, resume=True)


def test_an_unfinished_run_s_journal_is_kept(
    three: Path, brightness: Brightness, caplog: pytest.LogCaptureFixture
) -> None:
    done = predict(brightness(), Sources([three / "in"], output=three / "out"), three / "out", MAPS)
    next(done)
    done.close()
    unfinished = (three / "out" / "predictions.jsonl").read_text()
    with caplog.at_level(logging.WARNING, "r2mrf_deploy"):
        run(brightness, three)
    assert "holds an unfinished run of 1 photograph, which begins again" in caplog.text
    assert (three / "out" / "predictions.previous.jsonl").read_text() == unfinished
    caplog.clear()
    run(brightness, three)  # that one was finished
    assert not caplog.records


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with Journal(tmp_path, {}), pytest.raises(UsageError, match="another process predicts into"):
        Journal(tmp_path, {})
    with Journal(tmp_path, {}):
        pass
    assert [p.name for p in tmp_path.iterdir()] == ["predictions.jsonl"]


_RUN = """
import sys, time
from pathlib import Path
import numpy as np
from r2mrf_deploy.manifest import NEUTRAL
from r2mrf_deploy.predict import Outputs, Sources, predict
from r2mrf_deploy.predictor import Predictor
from tests.predict.conftest import BrightnessRunner

class Slow(BrightnessRunner):
    def compute(self, image):
        time.sleep(0.001)
        return super().compute(image)

folder = Path(sys.argv[1])
sources = Sources([folder / "in"], output=folder / "out", recursive=True)
outputs = Outputs.of(["map", "contour", "thumbnail"])
for p in predict(Predictor(Slow("n", 2), NEUTRAL), sources, folder / "out", outputs, resume=True):
    print(p.error or "ok", flush=True)
"""
ODD = (
    "кошка",
    "猫の写真",
    "γάτα",
    "قطة",
    "बिल्ली",
    "[x]",
    "a'b\"c",
    "new\nline",
    "-rf",
    "--help",
    "$(x);&",
    "ñandú é",
    " ",
)


def test_a_thousand_photographs_survive_three_kills(tmp_path: Path) -> None:
    """With 20 that cannot be read, and names in five scripts, with brackets, line ends and leading dashes."""
    names = [f"{ODD[n % len(ODD)]}{n}.png" for n in range(1_000)]
    for n, name in enumerate(names):
        file = photograph(tmp_path / "in" / f"{n % 7}" / name, n % 200)
        if n % 50 == 0:
            file.write_bytes(file.read_bytes()[:40])
    before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "in").rglob("*.png")}
    command = [sys.executable, "-c", _RUN, str(tmp_path)]
    printed = ""
    for lines in (100, 250, 300, None):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout is not None
            for _ in range(lines or 0):
                process.stdout.readline()
            if lines:
                process.send_signal(signal.SIGKILL)
            printed = process.stdout.read()
        time.sleep(0.05)
    assert process.returncode == 0, printed
    found = list(records(tmp_path / "out" / "predictions.jsonl"))
    assert len(found) == len({r["source"] for r in found}) == 1_000
    failed = [r["source"] for r in found if r["error"]]
    assert len(failed) == 20 and all(Path(f).stat().st_size == 40 for f in failed)
    outputs = [tmp_path / "out" / file for r in found for file in r["outputs"].values()]
    assert len(set(outputs)) == 3 * 980
    written = {p for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert written == {*outputs, tmp_path / "out" / "predictions.jsonl"}
    assert before == {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in (tmp_path / "in").rglob("*.png")}
    assert {p.name for p in tmp_path.iterdir()} == {"in", "out"}
    assert all(json.loads(file.read_text())["width"] == 8 for file in outputs if file.suffix == ".geojson")
