"""The examples in Python are run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image, ImageFilter

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.artifact


def _run(example: str, *arguments: str, folder: Path) -> str:
    command = [sys.executable, str(EXAMPLES / example), *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_training_script_s_checkpoint_becomes_files_that_compute_the_same(tmp_path: Path) -> None:
    said = _run("export_checkpoint.py", folder=tmp_path)
    assert len(re.findall(r"net\.(?:onnx|xml).*: pass, ", said)) == 4
    assert re.search(r"half\.onnx on \w+: (pass|emulated), ", said)
    assert "[1×160×240×3] NHWC" in said
    made = {p.name for p in (tmp_path / "out" / "example").iterdir()}
    assert {"net.onnx", "net.xml", "net.bin", "half.onnx", "net.onnx.json"} <= made


def test_the_sharpest_photograph_comes_first(tmp_path: Path) -> None:
    folder = tmp_path / "photographs"
    folder.mkdir()
    sharp = Image.open(EXAMPLES.parent / "docs" / "demo.png").convert("RGB").crop((0, 0, 450, 300))
    for name, radius in (("a-blurred", 6), ("b-sharp", 0), ("c-soft", 1.5)):
        sharp.filter(ImageFilter.GaussianBlur(radius)).save(folder / f"{name}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    said = _run("sort_photographs.py", "photographs", folder=tmp_path)
    assert re.findall(r"\w-(sharp|soft|blurred)\.png", said) == ["sharp", "soft", "blurred"]
    assert "left out: " in said and "broken.jpg" in said
    (folder / "b-sharp.png").replace(folder / "a-blurred.png")  # a second run replaces the links of the first
    _run("sort_photographs.py", "photographs", folder=tmp_path)
    links = sorted((tmp_path / "out" / "sorted").iterdir())
    assert [link.resolve().name for link in links] == ["a-blurred.png", "c-soft.png"]
