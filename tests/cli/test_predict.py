"""The command `predict`: what it makes of a folder, what it refuses, and what it says."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from r2mrf_deploy.cli import main
from r2mrf_deploy.cli.predict import _needs_checkpoint
from tests.predict.conftest import photograph

Run = Callable[..., int]


@pytest.fixture
def run(tiny_onnx: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """`run(arguments...)`: predict with a small model, in a folder with the folder `in` of three photographs."""
    model = tiny_onnx()
    monkeypatch.chdir(tmp_path)
    for name, level in (("a.png", 10), ("sub/b.png", 100), ("c.png", 200)):
        photograph(Path("in") / name, level, (64, 48))
    return lambda *arguments: main(["predict", str(model), *arguments])


def test_a_folder_with_scores_a_page_and_stars(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    Path("in/bad.png").write_text("bad")
    assert run("in", "-r", "--save", "map,scores,coco", "--report", "sheet.html", "--xmp") == 2
    said = capsys.readouterr()
    assert "bad.png is not an image" in said.err and "1 of 4 images failed; the errors are above" in said.err
    assert said.out.count("% in focus") == 3 and "3 done, 1 failed" in said.err
    made = {str(p) for p in Path().rglob("*") if p.is_file()} - {f"in/{n}.png" for n in ("a", "sub/b", "c", "bad")}
    assert made - {"tiny.onnx", "tiny.onnx.json"} == {
        *(f"out/{n}{end}" for n in ("a", "sub/b", "c") for end in ("_map.png", "_contour.geojson", "_thumbnail.jpg")),
        *(f"out/{n}" for n in ("scores.jsonl", "coco.json", "predictions.jsonl")),
        *(f"in/{n}.png.xmp" for n in ("a", "sub/b", "c")), "sheet.html",
    }  # fmt: skip
    page = Path("sheet.html").read_text()
    assert page.count("data:image/jpeg") >= 1 and "in/sub/b.png" in page and "bad.png" in page


def test_resumed_nothing_is_done_twice_and_the_page_has_all(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("in", "-r") == 0
    capsys.readouterr()
    assert run("in", "-r", "--resume") == 0
    said = capsys.readouterr()
    assert said.out == "" and "note: 3 photographs done before" in said.err
    assert run("in", "-r", "--resume", "--json") == 0
    assert json.loads(capsys.readouterr().out) == []
    assert run("in", "-r", "--resume", "--xmp") == 2
    assert "whose xmp was False and is True: leave out --resume" in capsys.readouterr().err


def test_a_list_on_standard_input(
    run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def given(text: str) -> None:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))

    given("in/a.png\nin/sub/b.png\n")
    assert run("-", "--save", "map") == 0
    assert capsys.readouterr().out.count("out/in/") == 2 and Path("out/in/sub/b.png_map.png").is_file()
    given("")
    assert run("-") == 2
    assert "there is nothing to predict" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("in/a.png", "--report", "in/c.png"), "must end in .html"),
        (("in/page.html", "--report", "in/page.html"), "would lie among what was given"),
        (("in", "--report", "in/x.html"), "would lie among what was given"),
        (("in", "--save", ""), "--save names nothing"),
        (("in", "--save", "mapp"), "did you mean 'map'?"),
        (("in", "--smooth", "1"), "--smooth is for films, of which there is none here"),
        (("in", "--overlap", "0.5"), "--overlap is for --tile, of which there is none here"),
        (("in", "--tile", "--overlap", "1"), "--overlap 1 is not from 0 to 0.9"),
        (("clip.mp4", "--tile"), "--tile is for photographs, of which there is none here"),
        (("clip.mp4", "clip_map.mp4", "-o", ".", "--save", "map"), "clip_map.mp4 would overwrite clip_map.mp4"),
        (("in", "-o", "in"), "would lie among the photographs"),
        (("in", "--batch", "7"), "--batch 7: the artifact's is 1"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_touched(
    run: Run, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], said: str
) -> None:
    Path("in/page.html").write_bytes(Path("in/a.png").read_bytes())
    before = {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()}
    assert run(*arguments) == 2
    assert said in capsys.readouterr().err
    assert {p: p.read_bytes() for p in Path().rglob("*") if p.is_file()} == before


@pytest.mark.parametrize(
    ("runtime", "checkpoint"),
    [(None, False), ("onnxruntime", False), ("openvino", False), ("pytorch", True), ("pytorch-cuda-fp16", True)],
)
def test_the_shipped_weights_are_what_the_runtime_computes_in_its_precision(
    runtime: str | None, checkpoint: bool
) -> None:
    """PyTorch's variants open the shipped ONNX file too, but one for FP16 refuses it, since it is FP32."""
    assert _needs_checkpoint(runtime) == checkpoint
