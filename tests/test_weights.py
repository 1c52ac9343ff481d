"""Shipped weights: what is on the disk is what was shipped, a name stands for it, and it sees what is in focus."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from r2mrf_deploy import weights
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.cli import main
from r2mrf_deploy.datasets import read_dataset
from r2mrf_deploy.errors import CheckpointError
from r2mrf_deploy.evaluation import evaluate, opened
from r2mrf_deploy.files import sha256
from r2mrf_deploy.parity.compare import TOLERANCES, Tolerance
from r2mrf_deploy.sample_photographs import DEMO, sample
from tests.conftest import SMALL

pytestmark = pytest.mark.artifact

_PACKAGE = weights.folder()


def _shipped() -> Path:
    path = weights.find(weights.DEFAULT)
    assert path is not None
    return path


def test_they_fit_and_have_a_card() -> None:
    sizes = [p.stat().st_size for p in weights.folder().iterdir() if p.suffix in (".pth", ".onnx")]
    assert len(sizes) == len(weights.SHIPPED + weights.ARTIFACTS) and sum(sizes) < 20_000_000
    assert weights.DEFAULT in weights.ARTIFACTS and {*weights.ARTIFACTS} <= {*weights.SHIPPED}
    for name in weights.SHIPPED:
        path = weights.find(name)
        assert path is not None and name in path.with_suffix(".md").read_text()
        assert Checkpoint.load(path).metrics["trained"] == name
    assert weights.find("r2mrf-egde") is None


def test_damage_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "__file__", str(tmp_path / "__init__.py"))
    with pytest.raises(CheckpointError, match="missing or damaged"):
        weights.find(weights.DEFAULT)
    for suffix in (".pth", ".onnx", ".onnx.json", ".sha256"):
        shutil.copy(_PACKAGE / f"{weights.DEFAULT}{suffix}", tmp_path)
    assert weights.find(weights.DEFAULT) and weights.artifact(weights.DEFAULT)
    for suffix, open_ in ((".pth", weights.checkpoint), (".onnx.json", weights.artifact)):
        with (tmp_path / f"{weights.DEFAULT}{suffix}").open("ab") as f:
            f.write(b" ")
        with pytest.raises(CheckpointError, match="missing or damaged"):
            open_(weights.DEFAULT)


def test_nothing_is_recorded_in_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    path = weights.artifact(weights.DEFAULT)
    monkeypatch.chdir(path.parents[1])
    for named in (path, path.relative_to(path.parents[1])):
        assert "belongs to the package" in Artifact.open(named).record(latency=[{"runtime": "none"}])
    assert weights.artifact(weights.DEFAULT)  # whose manifest is still what was shipped


def test_the_artifact_says_how_its_weights_are_rounded() -> None:
    artifact = Artifact.open(weights.artifact(weights.DEFAULT))
    assert artifact.manifest is not None and artifact.manifest.checkpoint_sha256 == sha256(_shipped())
    assert (artifact.precision, artifact.rounding) == ("fp32", "fp16")
    assert [p["verdict"] for p in artifact.manifest.parity] == ["pass"]


def test_shipping_writes_weights_and_checksum_or_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("ship", Path(__file__).parents[1] / "examples" / "ship_weights.py")
    assert spec is not None and spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    (tmp_path / "package").mkdir()
    trained = Checkpoint.init("r2mrf-lite", SMALL).save(tmp_path / "r2mrf-lite.pth")
    without = Checkpoint.init("r2mrf-edge", SMALL).save(tmp_path / "r2mrf-edge.pth")
    monkeypatch.setattr(weights, "__file__", str(tmp_path / "package" / "__init__.py"))
    monkeypatch.setattr(example, "LIMIT", 1000)
    monkeypatch.setattr("sys.argv", ["ship", str(trained)])
    with pytest.raises(SystemExit, match="nothing was written"):
        example.main()
    assert not list((tmp_path / "package").iterdir())
    monkeypatch.undo()
    monkeypatch.setattr(weights, "__file__", str(tmp_path / "package" / "__init__.py"))
    monkeypatch.setattr(example, "OPTIMUM", (64, 96))
    wide = Tolerance(map=1, logits=1)  # random weights of few channels pass rounding on
    monkeypatch.setitem(TOLERANCES, "fp16", wide)
    assert example.ship(trained) == weights.find("r2mrf-lite") == tmp_path / "package" / "r2mrf-lite.pth"
    assert weights.artifact("r2mrf-lite") == tmp_path / "package" / "r2mrf-lite.onnx"
    assert len(list((tmp_path / "package").iterdir())) == 4
    assert example.ship(without) == weights.find("r2mrf-edge")  # of which there is no artifact
    assert len(list((tmp_path / "package").iterdir())) == 6
    for given, said in ((["ship"], "^usage"), (["ship", "r2mrf.pth"], "weights.SHIPPED")):
        monkeypatch.setattr("sys.argv", given)
        with pytest.raises(SystemExit, match=said):
            example.main()


def test_weights_are_kept_as_fp16_and_read_as_fp32(tmp_path: Path) -> None:
    kept = torch.load(_shipped(), weights_only=True)["state_dict"]
    read = Checkpoint.load(_shipped())
    assert all(v.dtype != torch.float32 for v in kept.values())
    assert len({v.untyped_storage().data_ptr() for v in kept.values() if v.is_floating_point()}) == 1
    assert all(v.dtype != torch.float16 for v in read.state_dict.values())
    again = Checkpoint.load(read.save(tmp_path / "x.pth", half=True))
    assert all(torch.equal(v, again.state_dict[k]) for k, v in read.state_dict.items())
    large = dict(read.state_dict) | {"fusion.bias": torch.tensor([1e6])}
    with pytest.raises(CheckpointError, match=r"fusion.bias"):
        Checkpoint(read.network, read.config, large).save(tmp_path / "y.pth", half=True)
    assert not (tmp_path / "y.pth").exists()


def test_a_name_stands_for_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(_shipped().parent.iterdir())
    assert main(["export", "r2mrf-lite", "--size", "64x64", "--no-optimize"]) == 0
    assert (tmp_path / "r2mrf-lite.onnx").is_file() and sorted(_shipped().parent.iterdir()) == before
    assert main(["inspect", "r2mrf-lite", "--json"]) == 0
    (tmp_path / "r2mrf-lite").mkdir()  # as a training leaves
    assert main(["inspect", "r2mrf-lite", "--json"]) == 0
    (tmp_path / "r2mrf-lite").rmdir()
    shutil.copy("r2mrf-lite.onnx", "r2mrf-lite")  # a file of the name goes first
    assert main(["inspect", "r2mrf-lite", "--json"]) == 2


def test_a_name_that_stands_for_nothing_is_answered(capsys: pytest.CaptureFixture[str]) -> None:
    for name, said in (("r2mrf-edg", "did you mean 'r2mrf-edge'?"), ("r2mrf-r50", "r2mrf train r2mrf-r50")):
        assert main(["inspect", name]) == 2 and said in " ".join(capsys.readouterr().err.split())
    assert main(["inspect", "photographs"]) == 2 and "no such file" in capsys.readouterr().err


def test_predict_uses_them_where_nothing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(sample(DEMO)).save("photo.png")
    assert main(["predict", "photo.png"]) == 0
    assert main(["predict", weights.DEFAULT, "photo.png", "-o", "named"]) == 0
    focus, named = (np.asarray(Image.open(f"{d}/photo_map.png")).astype(np.float32) / 255 for d in ("out", "named"))
    # without a name it is the artifact, whose weights are rounded to FP16 once more; both maps are rounded to 256 levels
    assert np.abs(focus - named).max() < TOLERANCES["fp16"].map + 1 / 255
    assert focus.shape == sample(DEMO).shape[:2] and focus.std() > 0.2
    assert main(["predict", weights.DEFAULT]) == 2


def test_they_see_what_is_in_focus(dut5: Path) -> None:
    with opened([_shipped()]) as methods:
        (row,) = evaluate(methods, read_dataset(dut5, white="sharp"))
    assert row.scores.f_max >= 0.93 and row.scores.mae <= 0.08
