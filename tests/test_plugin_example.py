"""The package in examples/plugin, installed and used: a network, a format and a runtime without a line of ours changed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.artifact


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder into which pip installed the package, without its dependencies, which are here, and without a network."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "examples" / "plugin", folder / "source")  # a build leaves its files beside the sources
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(folder / "site"), str(folder / "source")], check=True)
    return folder / "site"


def _r2mrf(site: Path, folder: Path, command: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-m", "r2mrf_deploy", *command.split()],
        cwd=folder, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths},
    )  # fmt: skip


def test_the_network_and_the_format_work_together(site: Path, tmp_path: Path) -> None:
    for command in (
        "init unet-tiny -o unet.pth",
        "export unet.pth -o unet.onnx -o unet.ort --size 96x96",
        "export unet.pth -o free.onnx --dynamic",
        "parity unet.pth unet.ort free.onnx",
        "bench unet.onnx unet.ort --duration 0.1 --iterations 3",
        "convert unet.onnx -o half.onnx --precision fp16",
        "build half.onnx -o half.ort",
        "predict unet.pth docs --output maps",
    ):
        if command.startswith("predict"):
            (tmp_path / "docs").mkdir()
            shutil.copy(ROOT / "docs" / "demo.png", tmp_path / "docs")
        done = _r2mrf(site, tmp_path, command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    manifest = json.loads((tmp_path / "unet.ort.json").read_text())
    assert manifest["network"] == "unet" and manifest["kind"] == "ort"
    first = manifest["parity"][0]
    assert first["verdict"] == "pass" and first["runtime"] == "onnxruntime-ort"
    assert (tmp_path / "unet.ort").read_bytes()[4:8] == b"ORTM", "it is no file of ONNX Runtime's format"


def test_doctor_and_formats_list_what_it_adds(site: Path, tmp_path: Path) -> None:
    rows = {r["name"]: r for r in json.loads(_r2mrf(site, tmp_path, "doctor --json").stdout)["rows"]}
    for name in ("network unet", "exporter ort", "runtime onnxruntime-ort"):
        assert rows[name]["ok"] and rows[name]["does"] == "from r2mrf-plugin-example"
    assert ".ort" in _r2mrf(site, tmp_path, "export --formats").stdout


def test_a_checkpoint_of_the_network_is_refused_without_the_package(site: Path, tmp_path: Path) -> None:
    assert _r2mrf(site, tmp_path, "init unet-tiny -o unet.pth").returncode == 0
    done = _r2mrf(tmp_path, tmp_path, "export unet.pth -o unet.onnx")
    assert done.returncode == 2 and "is the package that adds it installed?" in done.stderr
    assert not (tmp_path / "unet.onnx").exists()
