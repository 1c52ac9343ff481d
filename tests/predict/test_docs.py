"""The page about `predict`: its commands and its Python run as they stand, and it has every option, output and column."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from r2mrf_deploy import images, sample_photographs
from r2mrf_deploy.cli.common import command
from r2mrf_deploy.predict.outputs import KINDS
from r2mrf_deploy.predict.summaries import COLUMNS
from tests.documents import read, run

PAGE = "docs/predict.md"
TEXT = read(PAGE)


@pytest.mark.artifact
def test_the_commands_and_the_python_run(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    (tmp_path / "photographs" / "deep").mkdir(parents=True)
    for name in ("coffee", "deep/chelsea"):
        picture = sample_photographs.sample(Path(name).name)
        (tmp_path / "photographs" / f"{name}.png").write_bytes(images.png(picture))
    with av.open(str(tmp_path / "clip.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=25)
        stream.width, stream.height = 64, 48
        for n in range(5):
            film.mux(stream.encode(av.VideoFrame.from_ndarray(picture[n : n + 48, n : n + 64].copy(), format="rgb24")))
        film.mux(stream.encode(None))
    for line in "".join(run(PAGE, "sh")).splitlines():
        _, *arguments = shlex.split(line, comments=True)
        program = [sys.executable, "-m", "r2mrf_deploy", *arguments]
        done = subprocess.run(program, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    (code,) = run(PAGE, "python")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3, done.stderr
    made = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert {
        "out/coffee_map.png",
        "out/coffee_overlay.jpg",
        "maps/all.html",
        "maps/scores.jsonl",
        "films/clip_map.mp4",
    } <= made
    assert {"out/python/coffee_contour.geojson", "out/python/deep/chelsea_map.png", "tiles/coffee_map.png"} <= made


def test_it_has_every_option() -> None:
    given = [p for p in command(["predict"]).params if p.opts[0].startswith("-")]
    options = {name for p in given for name in (max(p.opts, key=len), *p.secondary_opts)} - {"--help"}
    table = TEXT.split("## Every option")[1]
    assert options == set(re.findall(r"`(--[\w-]+)`", table))


def test_it_has_every_output_and_every_column() -> None:
    outputs, scores = (TEXT.split(f"## {title}\n")[1].split("\n## ")[0] for title in ("What is written", "Scores"))
    assert set(re.findall(r"^\| `(\w+)` \|", outputs, re.MULTILINE)) == set(KINDS)
    named = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (.*?) \|", scores, re.MULTILINE))))
    assert {n if not n.startswith("_") else f"region{n}" for n in named} == set(COLUMNS)
