"""Export: one file and its manifest, checked against PyTorch, or nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
import torch

from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import ArtifactError, CheckFailed, CheckpointError, UsageError
from r2mrf_deploy.export import chain as module
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.options import ExportOptions
from r2mrf_deploy.files import sha256
from tests.conftest import manifest_of

pytestmark = pytest.mark.artifact


def test_artifact_and_manifest(small: Path, exported: Path) -> None:
    manifest = manifest_of(exported)
    assert manifest is not None
    assert exported == small.with_suffix(".onnx")
    assert manifest.checkpoint_sha256 == sha256(small)
    assert (manifest.network, manifest.config["steps"], manifest.precision) == ("r2mrf", 2, "fp32")
    assert str(manifest.inputs[0]) == "image: uint8 [1×96×128×3] NHWC"
    assert [o.name for o in manifest.outputs][:2] == ["map", "step1_branch5"]
    assert manifest.parity[0]["verdict"] == "pass"
    assert manifest.multiply_adds and manifest.parameters == Checkpoint.load(small).parameters
    assert not list(exported.parent.glob("*.data")), "weights belong inside the file"


def test_a_dynamic_artifact_has_a_profile(export: Callable[..., Path]) -> None:
    manifest = manifest_of(export(dynamic=True, io="tensor", all_steps=True, steps=4))
    assert manifest is not None and manifest.preprocess is not None
    assert manifest.profiles == {"tensor": {"min": [1, 3, 64, 64], "opt": [1, 3, 96, 128], "max": [4, 3, 1280, 1280]}}
    assert manifest.inputs[0].shape == ["batch", 3, "height", "width"]
    assert manifest.config["steps"] == 4
    assert not manifest.preprocess.inside
    assert manifest.parity[0]["photographs"] == 4, "an odd size is compared too"


@pytest.fixture
def graph(export: Callable[..., Path]) -> onnx.ModelProto:
    """What tracing `small` gives for FOUR_STEPS."""
    return onnx.load(export(steps=4, optimize=False))


FOUR_STEPS = ExportOptions(size=(96, 128), steps=4)


def test_steps_settle_a_plain_state_dict(
    small: Path, tmp_path: Path, graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "plain.pth"
    torch.save(dict(Checkpoint.load(small).state_dict), plain)
    with pytest.raises(CheckpointError, match="`settings` steps="):
        export_artifact(plain)
    monkeypatch.setattr(module, "trace", lambda *_, **__: graph)
    done = export_artifact(plain, options=FOUR_STEPS)
    assert done.manifest.config["steps"] == 4 and done.parity.passed


def test_a_graph_that_computes_something_else_is_not_written(
    small: Path, tmp_path: Path, graph: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    bias = next(t for t in graph.graph.initializer if t.name.endswith("fusion.bias"))
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.01, bias.name))
    monkeypatch.setattr(module, "trace", lambda *_, **__: graph)
    with pytest.raises(CheckFailed, match="was not written: it does not compute what PyTorch computes") as e:
        export_artifact(small, tmp_path / "wrong.onnx", FOUR_STEPS)
    assert e.value.exit_code == 1 and not list(tmp_path.iterdir())
    allowed = export_artifact(small, tmp_path / "wrong.onnx", replace(FOUR_STEPS, allow_failed_parity=True))
    (evidence,) = allowed.manifest.parity
    assert (evidence["verdict"], evidence["allowed"]) == ("fail", True) and allowed.warnings
    fp64 = evidence["fp64"]  # PyTorch itself is near FP64, so the difference is not rounding
    assert fp64["reference"]["relative"] < 1e-4 < fp64["artifact"]["relative"]


def test_wrong_use(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no exporter writes \.txt files; known are \.onnx \.xml \.plan \.pt2"):
        export_artifact(small, tmp_path / "x.txt")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ArtifactError, match="cannot write"):
        export_artifact(small, blocked / "x.onnx", ExportOptions(size=(64, 64)))
