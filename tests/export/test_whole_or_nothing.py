"""Whatever stops a verb, its artifact is the old one, the new one or nothing, and the next run leaves no traces."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.export import chain
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.check import Check
from r2mrf_deploy.export.convert import convert_artifact
from r2mrf_deploy.export.optimize import optimize_artifact
from r2mrf_deploy.export.options import ExportOptions, PrecisionOptions
from tests.test_artifact import Stop, leftovers, steps

pytestmark = pytest.mark.artifact

Verb = Callable[[Path], object]


def _package(program: object, package_path: str, inductor_configs: dict[str, Any]) -> None:
    """A package with the contract and without code: compiling takes minutes, and changes no file of ours."""
    facts = {"AOTI_DEVICE_KEY": "cpu"} | inductor_configs["aot_inductor.metadata"]
    with zipfile.ZipFile(package_path, "w") as archive:
        archive.writestr("a.wrapper_metadata.json", json.dumps(facts))


@pytest.fixture
def verb(
    request: pytest.FixtureRequest,
    small: Path,
    export: Callable[..., Path],
    tiny_onnx: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Verb:
    """A verb by its name, that writes the path it is given. What is slow in it is done once, or not at all."""
    name = request.param
    if not name.startswith("export"):
        model = tiny_onnx()
        other = PrecisionOptions("fp16")
        return {
            "convert": lambda path: convert_artifact(model, path, other, allow_failed_parity=True),
            "optimize": lambda path: optimize_artifact(model, path),
            "build": lambda path: build_artifact(model, path),
        }[name.split()[0]]
    traced = export(optimize=False)
    monkeypatch.setattr(chain, "trace", lambda *_, **__: onnx.load(traced))
    monkeypatch.setattr(Check, "compare", lambda *_: None)  # proved elsewhere
    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", _package)
    return lambda path: export_artifact(small, path, ExportOptions(size=(96, 128), optimize=False))


@pytest.mark.parametrize(
    ("verb", "suffix"),
    [
        *((f"export {suffix}", suffix) for suffix in (".onnx", ".xml", ".plan", ".pt2")),
        ("convert", ".onnx"),
        ("optimize", ".onnx"),
        *((f"build {suffix}", suffix) for suffix in (".xml", ".plan")),
    ],
    indirect=["verb"],
)
def test_a_verb_stopped_at_any_change_of_the_file_system(verb: Verb, suffix: str, tmp_path: Path) -> None:
    if suffix == ".plan":
        pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    if suffix == ".xml":
        pytest.importorskip("openvino", reason="needs openvino")
    old = tmp_path / "old" / f"x{suffix}"
    verb(old)
    before = Artifact.open(old)
    assert before.manifest is not None
    before.record(latency=[{"runtime": "old"}])  # tells the old manifest from the new
    seen = set()
    for at in range(1, 40):
        folder = tmp_path / str(at)
        shutil.copytree(old.parent, folder)
        path = folder / old.name
        with pytest.MonkeyPatch.context() as patch:
            steps(patch, at)
            try:
                verb(path)
            except Stop:
                stopped = True
            else:
                stopped = False
        if path.exists():
            manifest = Artifact.open(path).manifest
            assert manifest is not None
            seen.add("old" if manifest.latency else "new")
        else:
            seen.add("nothing")
        if not stopped:
            break
        if at % 3 == 0:  # not after every one: it takes as long again
            verb(path)
            assert Artifact.open(path).manifest is not None and not leftovers(folder)
    assert not stopped and {"old", "new"} <= seen and ("nothing" in seen) == (suffix == ".xml")
    assert not leftovers(folder)
