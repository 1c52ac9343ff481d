"""The C++ example for phones, `examples/edge`: compiled against ExecuTorch's wheel, it computes Python's map to the byte."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy import runtimes, sample_photographs
from r2mrf_deploy.images import resize
from tests.conftest import Once

EXAMPLE = Path(__file__).parents[1] / "examples" / "edge"
pytestmark = pytest.mark.artifact


@pytest.fixture(scope="session")
def edge(once: Once) -> Path:
    """The program."""
    found = importlib.util.find_spec("executorch")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs ExecuTorch")
    package = Path(found.submodule_search_locations[0]) / "share" / "cmake"
    if not list(package.glob("../../lib/libexecutorch.*")):
        pytest.skip("this wheel of ExecuTorch has no libraries to link")
    if shutil.which("cmake") is None or shutil.which("c++") is None:
        pytest.skip("needs CMake and a C++ compiler")

    def build(folder: Path) -> None:
        for command in (["-S", EXAMPLE, "-B", folder, f"-Dexecutorch_DIR={package}"], ["--build", folder]):
            done = subprocess.run(["cmake", *command], capture_output=True, text=True)
            assert done.returncode == 0, done.stdout + done.stderr

    return once("edge", build) / "edge"


def ppm(path: Path, image: np.ndarray) -> Path:
    height, width, _ = image.shape
    path.write_bytes(b"P6\n%d %d\n255\n" % (width, height) + image.tobytes())
    return path


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_its_map_is_python_s(edge: Path, programs: Callable[..., Path], tmp_path: Path, precision: str) -> None:
    image = resize(sample_photographs.sample("chelsea"), (96, 128))
    command = [edge, programs(precision), ppm(tmp_path / "p.ppm", image), tmp_path / "m.pgm", tmp_path / "m.raw"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with runtimes.open(programs(precision)) as runner:
        wanted = runner.run({"image": image[None]})["map"][0, 0]
    assert wanted.std() > 0.05
    np.testing.assert_array_equal(np.fromfile(tmp_path / "m.raw", np.float32).reshape(96, 128), wanted)
    head, pixels = (tmp_path / "m.pgm").read_bytes().split(b"\n255\n", 1)
    assert head == b"P5\n128 96"
    gray = np.frombuffer(pixels, np.uint8).reshape(96, 128)
    assert np.abs(gray - 255.0 * wanted).max() <= 0.5 + 1e-4  # the nearest


def test_what_it_cannot_use_is_named(edge: Path, programs: Callable[..., Path], tmp_path: Path) -> None:
    image = np.zeros((96, 120, 3), np.uint8)
    short = tmp_path / "short.ppm"
    short.write_bytes(b"P6\n128 96\n255\n" + bytes(100))
    (tmp_path / "cut.pte").write_bytes(programs().read_bytes()[:5000])
    for model, photograph, message in (
        (programs(), ppm(tmp_path / "p.ppm", image), "p.ppm must have 128x96 pixels"),
        (programs(), short, "short.ppm is cut off"),
        (programs(), programs(), "is not a binary PPM of 8 bits"),
        (tmp_path / "cut.pte", short, "cut.pte: Error::InvalidProgram"),
        (tmp_path / "none.pte", short, "none.pte: Error::AccessFailed"),
    ):
        done = subprocess.run([edge, model, photograph, tmp_path / "m.pgm"], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.splitlines()[-1].endswith(message), done.stderr
    assert not (tmp_path / "m.pgm").exists()
