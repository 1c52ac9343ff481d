"""Checkpoints: what is written is read back; whatever is wrong ends in one line and runs no code."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import CheckpointError, InputError, R2mrfError, UsageError

pytestmark = pytest.mark.artifact

SMALL = {"steps": "2", "width": "4", "amdf_channels": "8", "initial_channels": "8"}


@pytest.fixture(scope="module")
def small() -> Checkpoint:
    return Checkpoint.init("r2mrf-edge", SMALL)


@pytest.fixture
def saved(small: Checkpoint, tmp_path: Path) -> Path:
    return small.save(tmp_path / "c.pth")


def test_round_trip(small: Checkpoint, saved: Path) -> None:
    read = Checkpoint.load(saved)
    assert (read.network, read.config, read.preprocess) == (small.network, small.config, small.preprocess)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(read.module()(x), small.module()(x))
    assert read.sha256 and len(read.sha256) == 64


def test_an_initial_map_is_informative(small: Checkpoint) -> None:
    from r2mrf_deploy import sample_photographs
    from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner

    focus = PyTorchRunner(small).run({"image": sample_photographs.sample("chelsea")[None]})["map"]
    assert focus.std() > 0.05


def test_the_seed_decides_the_weights(small: Checkpoint) -> None:
    same, other = Checkpoint.init("r2mrf-edge", SMALL), Checkpoint.init("r2mrf-edge", SMALL, seed=1)
    assert torch.equal(same.state_dict["amdf.weight"], small.state_dict["amdf.weight"])
    assert not torch.equal(other.state_dict["amdf.weight"], small.state_dict["amdf.weight"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model": {f"module.{k}": v for k, v in s.items()}},
    ],
    ids=["bare", "DataParallel", "state_dict", "model.module"],
)
def test_plain_state_dicts_load_by_their_shapes(small: Checkpoint, tmp_path: Path, wrap: Callable[..., Any]) -> None:
    path = tmp_path / "plain.pth"
    torch.save(wrap(dict(small.state_dict)), path)
    with pytest.raises(CheckpointError, match="does not say its steps: give `settings` steps="):
        Checkpoint.load(path)
    assert Checkpoint.load(path, settings={"steps": "2"}).config == small.config
    assert Checkpoint.load(path, defaults={"steps": "2"}).config == small.config
    assert Checkpoint.load(path, network="r2mrf-edge", settings=SMALL).config == small.config


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch executed",)


def _broken(name: str, small: Checkpoint, path: Path) -> None:
    state = dict(small.state_dict)
    ours = {
        "format": "r2mrf-checkpoint/1",
        "network": "r2mrf",
        "config": small.config.to_dict(),
        "state_dict": state,
    }
    if name == "code":
        torch.save({"state_dict": state, "hook": _Code()}, path)
    elif name == "format":
        torch.save(ours | {"format": "r2mrf-checkpoint/2"}, path)
    elif name == "preprocess":
        torch.save(ours | {"preprocess": {"mean": (0, 0), "std": "x"}}, path)
    elif name == "protocol 4":
        path.write_bytes(pickle.dumps({"weights": [1]}, protocol=4))
    elif name == "bare pickle":
        path.write_bytes(pickle.dumps(_Code()))
    elif name == "truncated":
        small.save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif name == "text":
        path.write_text("weights, please\n")
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "zip":
        with zipfile.ZipFile(path, "w") as z:
            z.writestr("readme.txt", "not a checkpoint")
    elif name == "foreign":
        torch.save({"conv.weight": torch.zeros(3), "conv.bias": torch.zeros(3)}, path)
    elif name == "tensor":
        torch.save(torch.zeros(3), path)
    elif name == "missing key":
        del state["amdf.weight"]
        torch.save(ours, path)
    elif name == "misshapen":
        state["amdf.bias"] = torch.zeros(9)
        torch.save(ours, path)
    elif name == "not finite":
        state["fusion.bias"] = torch.tensor([float("nan")])
        torch.save(ours, path)
    elif name == "not a tensor":
        state["fusion.bias"] = 1.0
        torch.save(ours, path)
    elif name == "config field":
        torch.save(ours | {"config": ours["config"] | {"stepz": 2}}, path)
    elif name == "config type":
        torch.save(ours | {"config": ours["config"] | {"steps": "two"}}, path)
    elif name == "network":
        torch.save(ours | {"network": "r2mfr"}, path)
    elif name == "no state":
        torch.save({k: v for k, v in ours.items() if k != "state_dict"}, path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("code", "would run code"),
        ("bare pickle", "would run code"),
        ("protocol 4", "would run code"),
        ("format", "'r2mrf-checkpoint/2' was written by a later version of r2mrf-deploy.* update it"),
        ("preprocess", "its preprocess.mean.* is wrong: "),
        ("truncated", "damaged, truncated or"),
        ("text", "not a PyTorch checkpoint"),
        ("empty", "not a PyTorch checkpoint"),
        ("zip", "damaged, truncated or not a PyTorch"),
        ("foreign", r"2 tensors \(conv.weight \[3\]"),
        ("tensor", "holds a Tensor"),
        ("missing key", r"1 missing \(amdf.weight\)"),
        ("misshapen", r"1 misshapen \(amdf.bias is \[9\], not \[8\]\)"),
        ("not finite", "fusion.bias has 1 value not finite"),
        ("not a tensor", "fusion.bias is not a tensor"),
        ("config field", "did you mean 'steps'"),
        ("config type", "steps must be int"),
        ("network", "did you mean 'r2mrf'"),
        ("no state", "'state_dict' is missing"),
    ],
)
@pytest.mark.filterwarnings("error")
def test_what_is_wrong_is_said_in_one_line(
    small: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "broken.pth"
    _broken(name, small, path)
    with pytest.raises(CheckpointError, match=message) as error:
        Checkpoint.load(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "executed").exists()


def test_a_state_dict_that_is_nearly_ours_names_the_difference(small: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "near.pth"
    torch.save({k: v for k, v in small.state_dict.items() if k != "fusion.weight"}, path)
    with pytest.raises(CheckpointError, match=r"1 missing \(fusion.weight\)"):
        Checkpoint.load(path, settings={"steps": "2"})


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Checkpoint.load(tmp_path / "absent.pth")


def test_an_ablation_can_be_set_on_a_checkpoint(saved: Path) -> None:
    assert Checkpoint.load(saved, settings={"output": "branch3"}).config.output == "branch3"
    with pytest.raises(R2mrfError, match="misshapen"):
        Checkpoint.load(saved, settings={"width": "5"})


def test_a_network_that_contradicts_the_checkpoint_is_refused(saved: Path) -> None:
    assert Checkpoint.load(saved, network="r2mrf").network == "r2mrf"  # the family
    assert Checkpoint.load(saved, network="r2mrf-edge", settings=SMALL).config.width == 4
    with pytest.raises(UsageError, match=r"holds r2mrf; omit `network`"):
        Checkpoint.load(saved, network="br2net")
    with pytest.raises(UsageError, match="holds r2mrf with backbone=mobilenet_v3_large; omit `network`"):
        Checkpoint.load(saved, network="r2mrf-r50")
    with pytest.raises(UsageError, match="no network 'r2mfr'"):
        Checkpoint.load(saved, network="r2mfr")
