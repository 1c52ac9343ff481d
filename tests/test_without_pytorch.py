"""An install without the extras: photographs are predicted, graphs are inspected and timed, and what needs more says so.

A module that is None in `sys.modules` cannot be imported, and `importlib.util.find_spec` does not find it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import environment, images, weights
from r2mrf_deploy.cli import main
from r2mrf_deploy.predictor import Predictor
from tests.conftest import TinyOnnx

ROOT = Path(__file__).parents[1]

_PROGRAM = """
import contextlib, io, json, sys
from r2mrf_deploy import environment
sys.modules.update(dict.fromkeys(environment.EXTRAS.keys() - {"onnxruntime"} | set(sys.argv[1:])))
from r2mrf_deploy.cli import main
found = {}
for command in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(command.split())
    found[command] = [code, out.getvalue(), err.getvalue()]
print(json.dumps(found))
"""


def _run(folder: Path, *commands: str, without: tuple[str, ...] = ()) -> dict[str, tuple[int, str, str]]:
    """Exit code, standard output and error of every command, in a process that has of all extras `cpu` only, and not the
    modules `without`."""
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, *without],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr
    return {command: tuple(found) for command, found in json.loads(done.stdout).items()}


@pytest.mark.artifact
def test_what_works_and_what_names_its_extra(tmp_path: Path, tiny_onnx: TinyOnnx) -> None:
    tiny_onnx("x")
    shutil.copy(weights.folder() / "r2mrf-edge.pth", tmp_path / "my.pth")
    Image.open(ROOT / "docs" / "demo.png").convert("RGB").resize((96, 64)).save(tmp_path / "p.png")
    for folder in ("image", "gt"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    shutil.copy(tmp_path / "p.png", tmp_path / "data" / "image")
    with Predictor.open(weights.artifact(weights.DEFAULT)) as predictor:
        focus = predictor(images.read(tmp_path / "p.png"))
    # what the weights find, so that they are not doubted
    Image.fromarray((focus > np.median(focus)).astype(np.uint8) * 255).save(tmp_path / "data" / "gt" / "p.png")
    works = {
        "predict p.png": "p_map.png: ",
        "predict r2mrf-lite p.png -o named": "p_map.png: ",
        "inspect r2mrf-lite": "multiply_adds",
        "inspect x.onnx": "multiply_adds",
        "bench x.onnx --duration 0.01 --iterations 2": "median",
        "eval r2mrf-lite --data data --white sharp": "r2mrf-lite.onnx",
        "doctor": 'pip install "r2mrf-deploy[export]"',
    }
    needs = {
        "predict my.pth p.png": "export",
        "predict r2mrf-edge p.png": "export",
        "inspect my.pth": "export",
        "init r2mrf-edge -o i.pth": "export",
        "export r2mrf-edge": "export",
        "parity my.pth x.onnx": "export",
        "train r2mrf-edge --sharp . --masks . -o t": "export",
        "demo -o d": "export",
        "optimize x.onnx -o y.onnx": "eval",
        "eval --baseline lbp --data data --white sharp": "eval",
        "build x.onnx -o x.xml": "export",
        "predict p.png --runtime pytorch": "export",
        "predict x.onnx p.png --runtime openvino": "openvino",
    }
    found = _run(tmp_path, *works, *needs)
    for command, said in works.items():
        code, out, err = found[command]
        assert (code, err) == (0, "") and said in " ".join(out.split()), (command, found[command])
    for command, extra in needs.items():
        code, _, err = found[command]
        assert code == 2 and f'pip install "r2mrf-deploy[{extra}]"' in err, (command, found[command])
        assert len(err.splitlines()) == 1 and "unexpected" not in err, err
    assert (tmp_path / "out/p_map.png").read_bytes() == (tmp_path / "named/p_map.png").read_bytes()


@pytest.mark.artifact
def test_what_runs_a_graph_names_the_two_extras_that_bring_onnx_runtime(tmp_path: Path, tiny_onnx: TinyOnnx) -> None:
    tiny_onnx("x")
    shutil.copy(ROOT / "docs" / "demo.png", tmp_path / "p.png")
    needs = ("predict p.png", "bench x.onnx --duration 0.01 --iterations 2")
    found = _run(tmp_path, "inspect x.onnx", "doctor --json", *needs, without=("onnxruntime",))
    for command in needs:
        code, _, err = found[command]
        assert code == 2 and 'pip install "r2mrf-deploy[cpu]", or [gpu] for an NVIDIA GPU' in err, found[command]
        assert len(err.splitlines()) == 1 and "unexpected" not in err, err
    assert found["inspect x.onnx"][0] == 0
    (row,) = [r for r in json.loads(found["doctor --json"][1])["rows"] if r["name"] == "onnxruntime"]
    assert not row["ok"] and "[cpu]" in row["note"]


def test_a_module_of_no_extra_is_an_internal_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "r2mrf_deploy.doctor", None)
    assert main(["doctor"]) == 2
    assert "unexpected ModuleNotFoundError" in capsys.readouterr().err


def test_the_extras_are_pyprojects() -> None:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 has it")
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    modules = {"scikit-image": "skimage", "cuda-bindings": "cuda", "nvidia-pytriton": "pytriton"} | {
        "onnxruntime-gpu": "onnxruntime"
    }
    installs: dict[str, set[str]] = {}
    for extra in extras.keys() - {"dev", "docs", "all"}:
        for requirement in extras[extra]:
            package = re.match(r"[\w-]+", requirement)[0]  # type: ignore[index]
            installs.setdefault(modules.get(package, package.replace("-", "_")), set()).add(extra)
    installs["scipy"] = installs["skimage"]  # which needs it
    del installs["r2mrf_deploy"]
    assert installs.keys() == environment.EXTRAS.keys()
    assert all(extra in installs[module] for module, extra in environment.EXTRAS.items())
