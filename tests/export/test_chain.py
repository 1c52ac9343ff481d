"""Export: one file and its manifest, checked against PyTorch, or nothing."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import ArtifactError, CheckpointError, UsageError
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


def test_a_dynamic_artifact_has_a_profile(small: Path, tmp_path: Path) -> None:
    done = export_artifact(
        small, tmp_path / "d.onnx", ExportOptions(size=(96, 128), dynamic=True, io="tensor", steps=3)
    )
    assert done.manifest.profiles == {
        "tensor": {"min": [1, 3, 64, 64], "opt": [1, 3, 96, 128], "max": [4, 3, 1280, 1280]}
    }
    assert done.manifest.inputs[0].shape == ["batch", 3, "height", "width"]
    assert done.manifest.config["steps"] == 3
    assert not done.manifest.preprocess.inside
    assert done.parity.photographs == 4, "an odd size is compared too"


def test_steps_settle_a_plain_state_dict(small: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.pth"
    torch.save(dict(Checkpoint.load(small).state_dict), plain)
    with pytest.raises(CheckpointError, match="`settings` steps="):
        export_artifact(plain)
    assert export_artifact(plain, options=ExportOptions(size=(64, 64), steps=2)).manifest.config["steps"] == 2


def test_a_graph_that_computes_something_else_is_not_written(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module.trace

    def wrong(*args: object, **kwargs: object) -> onnx.ModelProto:
        model = original(*args, **kwargs)  # type: ignore[arg-type]
        bias = next(t for t in model.graph.initializer if t.name.endswith("fusion.bias"))
        bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) + 0.01, bias.name))
        return model

    monkeypatch.setattr(module, "trace", wrong)
    with pytest.raises(ArtifactError, match="was not written: it does not compute what PyTorch computes"):
        export_artifact(small, tmp_path / "wrong.onnx", ExportOptions(size=(64, 64)))
    assert not list(tmp_path.iterdir())


def test_wrong_use(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"ends in \.onnx"):
        export_artifact(small, tmp_path / "x.plan")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ArtifactError, match="cannot write"):
        export_artifact(small, blocked / "x.onnx", ExportOptions(size=(64, 64)))
