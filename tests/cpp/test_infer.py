"""`r2mrf-infer`: the files that `r2mrf predict` writes, the summary of `r2mrf bench`, and failures in one line."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import images, photographs
from r2mrf_deploy.predict import Predictor

from .conftest import TinyOnnx


def run(infer: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([infer, *arguments], capture_output=True, text=True, timeout=60)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    Image.fromarray(photographs.sample("chelsea")).save(path)
    return path


def test_maps_and_overlays_are_those_of_predict(infer: Path, exported: Path, picture: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("not an image")
    done = run(infer, exported, picture, bad, "-o", tmp_path / "out")
    assert done.returncode == 1  # one image could not be read; the other was not left out for it
    assert "bad.png" in done.stderr and len(done.stderr.splitlines()) == 1
    with Predictor.open(exported, "openvino") as predictor:
        focus = predictor(photographs.sample("chelsea"))
    made = np.asarray(Image.open(tmp_path / "out" / "cat_map.png"), np.int16)
    assert np.abs(made - np.round(focus * 255)).max() <= 1
    expected = images.overlay(photographs.sample("chelsea"), focus)
    overlay = np.asarray(Image.open(tmp_path / "out" / "cat_overlay.png"), np.int16)
    differs = np.abs(overlay - expected).max(axis=2) > 1
    assert differs.mean() < 1e-3  # the line is drawn elsewhere only where the map is 0.5 to the last bit


def test_images_of_one_name_do_not_overwrite_each_other(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    sources = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", tmp_path / "y.png", tmp_path / "y.bmp"]
    for path in sources:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(photographs.sample("chelsea")[:64, :64]).save(path)
    assert run(infer, tiny_onnx(), *sources, "-o", tmp_path / "out", "--no-overlays").returncode == 0
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_bench_says_what_r2mrf_bench_says(infer: Path, tiny_onnx: TinyOnnx) -> None:
    done = run(infer, tiny_onnx(), "--bench", "--duration", "0.05", "--warmUp", "10", "--iterations", "12")
    assert done.returncode == 0, done.stderr
    names = [line.partition(":")[0] for line in done.stdout.splitlines()[2:]]
    assert names == [
        *("Throughput", "Latency", "Enqueue Time", "H2D Latency", "CPU Compute Time", "D2H Latency"),
        *("Prepare Time", "Finish Time", "Total Host Walltime", "Total CPU Compute Time", "Peak memory"),
    ]
    statistics = (
        r"min = \S+ ms, max = \S+ ms, mean = \S+ ms, median = \S+ ms, percentile\(90%\) = \S+ ms, "
        r"percentile\(95%\) = \S+ ms, percentile\(99%\) = \S+ ms"
    )
    assert re.search(f"^Latency: {statistics}$", done.stdout, re.MULTILINE)
    count = re.search(r"^(\d+) inferences$", done.stdout, re.MULTILINE)
    assert count and int(count[1]) >= 12


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "no artifact given"),
        (["x.onnx"], 2, "give images"),
        (["x.onnx", "--bench", "--duration", "long"], 2, "wants a number"),
        (["x.onnx", "--bench", "--fast"], 2, "no option --fast"),
        (["x.onnx", "--bench"], 1, "x.onnx: no such file"),
    ],
)
def test_failures_have_a_code_and_a_line(infer: Path, arguments: list[str], code: int, message: str) -> None:
    done = run(infer, *arguments)
    assert done.returncode == code and message in done.stderr.splitlines()[0]
