"""What a release says of itself, and what its checks refuse."""

from __future__ import annotations

import importlib.metadata
import io
import re
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

import r2mrf_deploy

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "release"))

import release  # noqa: E402


def version() -> str:
    found = re.search('^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found
    return found[1]


def test_every_file_that_states_the_version_states_that_of_pyproject() -> None:
    assert r2mrf_deploy.__version__ == importlib.metadata.version("r2mrf-deploy")
    assert re.search("^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)[1] == version()  # type: ignore[index]
    assert f"## {version()}" in (ROOT / "CHANGELOG.md").read_text()
    # CMake reads it from pyproject.toml
    assert "VERSION ${version}" in (ROOT / "engines" / "cpp" / "CMakeLists.txt").read_text()


def test_the_weights_of_the_bill_are_those_of_the_package() -> None:
    folder = ROOT / "r2mrf_deploy" / "weights"
    listed = {part["name"]: part["hashes"][0]["content"] for part in release.weights()}
    shipped = {f.name for f in folder.iterdir() if f.suffix in (".pth", ".onnx", ".json")}
    assert listed.keys() == shipped and all(re.fullmatch("[0-9a-f]{64}", digest) for digest in listed.values())


def packages(folder: Path, *, without: str = "", further: str = "") -> tuple[Path, Path]:
    """A wheel and an sdist of empty files: all that are needed, but for one, and one more."""
    wheel, sdist = folder / "x.whl", folder / "x.tar.gz"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in {*release.NEEDED, further} - {without, ""}:
            archive.writestr(f"r2mrf_deploy/{name}", b"")
    with tarfile.open(sdist, "w:gz") as archive:
        for name in {"Makefile", "constraints.txt", "engines/cpp/CMakeLists.txt"} - {without}:
            archive.addfile(tarfile.TarInfo(f"r2mrf_deploy-1/{name}"), io.BytesIO())
    return wheel, sdist


def test_packages_that_lack_files_or_hold_others_are_refused(tmp_path: Path) -> None:
    release.check_contents(*packages(tmp_path))
    for without in (release.NEEDED[0], "Makefile"):
        with pytest.raises(SystemExit, match=f"lack.*{without}"):
            release.check_contents(*packages(tmp_path, without=without))
    with pytest.raises(SystemExit, match=r"hold.*node_modules"):
        release.check_contents(*packages(tmp_path, further="web/node_modules/x.js"))


def test_what_is_needed_is_there() -> None:
    for name in release.NEEDED:
        assert (ROOT / "r2mrf_deploy" / name).is_file(), name
