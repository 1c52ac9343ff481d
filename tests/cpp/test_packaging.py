"""The installed library, as another project finds it."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import PREFIX, TinyOnnx

pytestmark = pytest.mark.artifact

CPP = Path(__file__).parents[2] / "engines" / "cpp"


def said(*command: str | Path, **environment: str) -> str:
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("libdir", ["lib", "lib/x86_64-linux-gnu", "/elsewhere/lib64"])
def test_pkg_config_finds_its_folders(tmp_path: Path, libdir: str) -> None:
    """With any libdir, and after the installation was moved as a whole."""
    build = tmp_path / "build"
    # without OpenVINO, because nothing is compiled
    options = ["-DBUILD_TESTING=OFF", "-DCMAKE_DISABLE_FIND_PACKAGE_OpenVINO=ON", "-DCMAKE_INSTALL_PREFIX=/usr"]
    said("cmake", "-S", CPP, "-B", build, "-G", "Ninja", *options, f"-DCMAKE_INSTALL_LIBDIR={libdir}")
    libraries = tmp_path / "stage" / (Path("/usr") / libdir).relative_to("/")
    (libraries / "pkgconfig").mkdir(parents=True)
    (build / "r2mrf_deploy.pc").rename(libraries / "pkgconfig" / "r2mrf_deploy.pc")
    flags = said(
        "pkg-config", "--cflags", "--libs", "r2mrf_deploy", PKG_CONFIG_PATH=str(libraries / "pkgconfig")
    ).split()
    found = [(flag[:2], Path(os.path.normpath(flag[2:]))) for flag in flags]
    assert found[:2] == [("-I", tmp_path / "stage" / "usr" / "include"), ("-L", libraries)]


def test_symbols_are_the_c_api_s_alone(library: ctypes.CDLL) -> None:
    symbols = [line.split()[-1] for line in said("nm", "-D", "--defined-only", PREFIX / "lib/libr2mrf.so").splitlines()]
    assert "r2mrf_open" in symbols
    assert [name for name in symbols if not name.startswith("r2mrf_")] == []


@pytest.mark.usefixtures("library")
def test_licences_come_along() -> None:
    folder = PREFIX / "share" / "doc" / "r2mrf_deploy"
    assert "Apache License" in (folder / "LICENSE").read_text(encoding="utf-8")
    notice = (folder / "THIRD_PARTY.md").read_text(encoding="utf-8")
    assert "nlohmann-json" in notice and "stb_image" in notice


@pytest.mark.usefixtures("library")
def test_the_example_in_python_runs(tiny_onnx: TinyOnnx) -> None:
    example = CPP / "examples" / "embed_ctypes.py"
    assert "in focus" in said(sys.executable, example, PREFIX / "lib" / "libr2mrf.so", tiny_onnx())
    assert len(example.read_text(encoding="utf-8").splitlines()) <= 60
