"""What a file is, is decided by its content."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from r2mrf_deploy import networks, runtimes
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.checkpoint_files import is_checkpoint, kind, stem
from r2mrf_deploy.errors import CheckpointError

SMALL = {"steps": "2", "width": "4", "amdf_channels": "8", "initial_channels": "8"}


def test_the_content_decides_and_then_the_name(tmp_path: Path) -> None:
    weights = {"w": torch.arange(4.0)}
    torch.save(weights, tmp_path / "zip.jpg")
    torch.save(weights, tmp_path / "pickle.bin", _use_new_zipfile_serialization=False)
    (tmp_path / "cut").write_bytes((tmp_path / "zip.jpg").read_bytes()[:300])
    assert [kind(tmp_path / n) for n in ("zip.jpg", "pickle.bin", "cut")] == ["torch"] * 3
    Image.new("RGB", (8, 8)).save(tmp_path / "photo.ckpt", "PNG")
    np.savez(tmp_path / "arrays.npz", a=np.zeros(3))
    (tmp_path / "text").write_text("{" * 99)
    assert not any(kind(tmp_path / n) for n in ("photo.ckpt", "arrays.npz", "text", "absent.pth"))
    assert is_checkpoint(tmp_path / "absent.pth.tar") and not is_checkpoint(tmp_path / "absent.tar")
    assert next(r.name for r in runtimes.suitable(tmp_path / "zip.jpg")) == "pytorch"
    assert stem(Path("a/best.pth.tar")) == "best" and stem(Path("v1.2.ckpt")) == "v1.2"


def test_a_package_of_compiled_code_is_none(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        for name in ("a/archive_format", "a/data/aotinductor/model/x.wrapper_metadata.json"):
            archive.writestr(name, "{}")
    assert not is_checkpoint(tmp_path / "a.pt2")


@pytest.mark.filterwarnings("ignore")
def test_a_program_is_refused_with_advice_that_is_safe(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(str(tmp_path / "program.pt"))
    with pytest.raises(CheckpointError, match=r"TorchScript program.*save the state_dict") as refusal:
        Checkpoint.load(tmp_path / "program.pt")
    assert "weights_only" not in str(refusal.value)


def test_safetensors_are_read(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.torch")
    state = networks.create(*networks.preset("r2mrf-edge", SMALL)).state_dict()
    path = tmp_path / "weights.bin"  # whatever its name
    safetensors.save_file({f"model.{k}": v.half() if v.is_floating_point() else v for k, v in state.items()}, path)
    found = Checkpoint.load(path, settings={"steps": "2"})
    assert all(torch.equal(found.state_dict[k], v.half().float() if v.dim() else v) for k, v in state.items())
    content = path.read_bytes()
    path.write_bytes(content[:-5])
    with pytest.raises(CheckpointError, match="damaged safetensors file"):
        Checkpoint.load(path)
    path.write_bytes(content.replace(b"model.", b"mo\x00\xffl.", 1))
    with pytest.raises(CheckpointError):
        Checkpoint.load(path)


def test_classes_that_only_hold_values_are_read_and_others_are_not(tmp_path: Path) -> None:
    from r2mrf_deploy.safe_objects import allowed

    def read(value: object) -> object:
        torch.save(value, tmp_path / "x")
        with allowed():
            return torch.load(tmp_path / "x", weights_only=True)

    assert read({"a": np.float32(0.5), "b": np.uint8(3)}) == {"a": 0.5, "b": 3}
    for refused in (np.array([{}], dtype=object), nn.Linear(1, 1), print):
        with pytest.raises(pickle.UnpicklingError):
            read(refused)
    torch.save({"a": np.float32(1)}, tmp_path / "x")
    with pytest.raises(pickle.UnpicklingError):  # outside, nothing is allowed that PyTorch does not allow
        torch.load(tmp_path / "x", weights_only=True)
