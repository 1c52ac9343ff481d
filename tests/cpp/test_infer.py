"""`r2mrf-infer` writes what `r2mrf predict` writes, prints the summary of `r2mrf bench`, and reports errors in one line."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import drawing, images, sample_photographs
from r2mrf_deploy.predict import predict
from r2mrf_deploy.predictor import Predictor

from .conftest import TinyOnnx

pytestmark = pytest.mark.artifact


def run(infer: Path, *arguments: str | Path, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([infer, *arguments], capture_output=True, text=True, timeout=60, env=env)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "cat.png"
    Image.fromarray(sample_photographs.sample("chelsea")).save(path)
    return path


@pytest.mark.parametrize("side", [drawing.OVERLAY_SIDE, 200])
def test_maps_and_overlays_are_those_of_predict(
    infer: Path, exported: Path, picture: Path, tmp_path: Path, side: int
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("not an image")
    done = run(
        infer, exported, picture, bad, "-o", tmp_path / "out", *(["--overlay-side", "200"] if side == 200 else [])
    )
    assert done.returncode == 2  # one image could not be read, but the other was processed
    assert "bad.png is damaged" in done.stderr and done.stderr.endswith("\n1 of 2 images were done\n")
    with Predictor.open(exported, "openvino") as predictor:
        focus = predictor(sample_photographs.sample("chelsea"))
    made = np.asarray(Image.open(tmp_path / "out" / "cat_map.png"), np.int16)
    assert np.abs(made - np.round(focus * 255)).max() <= 1
    expected = drawing.overlay(sample_photographs.sample("chelsea"), focus, side)
    overlay = np.asarray(Image.open(tmp_path / "out" / "cat_overlay.png"), np.int16)
    assert overlay.shape == expected.shape
    differs = np.abs(overlay - expected).max(axis=2) > 1
    assert differs.mean() < 1e-3  # the lines differ only where the map is within a rounding of 0.5


def test_images_of_one_name_do_not_overwrite_each_other(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    sources = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", tmp_path / "y.png", tmp_path / "y.bmp"]
    for number, path in enumerate(sources):
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(sample_photographs.sample("chelsea")[64 * number :][:64, :64]).save(path)
    file = tiny_onnx()
    assert run(infer, file, *sources, "-o", tmp_path / "out", "--no-overlays").returncode == 0
    with Predictor.open(file, "openvino") as predictor:
        expected = {p.map.name: p.map for p in predict(predictor, sources, tmp_path / "python") if p.map}
    made = {path.name: path for path in (tmp_path / "out").iterdir()}
    assert set(made) == set(expected) and len(made) == 4
    for name, path in expected.items():
        np.testing.assert_array_equal(np.asarray(Image.open(made[name])), np.asarray(Image.open(path)), err_msg=name)


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_photographs_are_turned_upright(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path, suffix: str) -> None:
    """By all eight EXIF orientations. The map of a crop shows which one was applied."""
    file, sources = tiny_onnx(dynamic=True), []
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x010F] = "the maker, so that the orientation is not the first tag"
        exif[0x0112] = orientation
        sources.append(tmp_path / f"{orientation}.{suffix}")
        Image.fromarray(sample_photographs.sample("chelsea")[40:120, 100:164]).save(sources[-1], exif=exif, quality=95)
    assert run(infer, file, *sources, "-o", tmp_path / "out", "--no-overlays").returncode == 0
    with Predictor.open(file, "openvino") as predictor:
        for source in sources:
            made = np.asarray(Image.open(tmp_path / "out" / f"{source.stem}_map.png"), np.int16)
            expected = predictor(images.read(source)) * 255
            assert made.shape == expected.shape
            # a PNG's pixels are the same; a JPEG's differ by a level or two, and this network amplifies them
            assert np.abs(made - expected).mean() < (0.51 if suffix == "png" else 2), source
    others = (expected[::-1], expected[:, ::-1], expected[::-1, ::-1])
    assert min(np.abs(expected - other).mean() for other in others) > 4  # a wrong turn would show


def test_bench_says_what_r2mrf_bench_says(infer: Path, tiny_onnx: TinyOnnx) -> None:
    done = run(infer, tiny_onnx(), "--bench", "--duration", "0.05", "--warmUp", "10", "--iterations", "12")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("64x64x3, OpenVINO ")
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
    ("arguments", "message"),
    [
        ([], "no artifact given"),
        (["x.onnx"], "give images"),
        (["x.onnx", "--bench", "--duration", "long"], "takes a number"),
        (["x.onnx", "--bench", "--fast"], "unknown option --fast"),
        (["x.onnx", "x.png", "--overlay-side", "0"], "--overlay-side takes a whole number from 1 to 1000000, not"),
        (["x.onnx", "--bench", "--threads", "1.7"], "takes a whole number from 0 to 1024"),
        (["x.onnx", "--bench", "--threads", "1025"], "takes a whole number from 0 to 1024"),
        (["x.onnx", "--bench", "--threads"], "needs a value"),
        (["x.onnx", "--bench"], "x.onnx: no such file"),
    ],
)
def test_wrong_use_is_2_and_a_line(infer: Path, arguments: list[str], message: str) -> None:
    done = run(infer, *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1 and not done.stdout


@pytest.mark.parametrize("flag", ["--help", "-h", "--version"])
def test_help_and_version_are_answers(infer: Path, flag: str) -> None:
    done = run(infer, flag)
    assert done.returncode == 0 and not done.stderr
    assert ("r2mrf-infer 0." if flag == "--version" else "usage: r2mrf-infer") in done.stdout


def test_a_missing_image_leaves_no_folder(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    done = run(infer, tiny_onnx(), tmp_path / "none.png", "-o", tmp_path / "out")
    assert done.returncode == 2 and done.stderr == f"{tmp_path / 'none.png'}: no such file\n"
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_written(infer: Path, tiny_onnx: TinyOnnx, picture: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = run(infer, tiny_onnx(), picture, "-o", tmp_path / "file" / "out")
    assert done.returncode == 2 and re.fullmatch(
        r"cannot write .*: Not a directory; name a folder with -o .*\n", done.stderr
    )


def test_without_its_cpu_plugin_openvino_is_unavailable(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    libraries = Path(pytest.importorskip("openvino").__file__).parent / "libs"
    for path in libraries.iterdir():
        if path.is_file() and "cpu_plugin" not in path.name:
            shutil.copy(path, tmp_path)
    done = run(infer, tiny_onnx(), "--bench", env=os.environ | {"LD_LIBRARY_PATH": str(tmp_path)})
    assert done.returncode == 2 and done.stderr.startswith("OpenVINO has no CPU plugin")
    assert len(done.stderr.splitlines()) == 1
