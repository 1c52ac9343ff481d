"""Evaluation: every kind of source through one path, the figures of `metrics`, files that hold what the table says."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy.cli import main
from r2mrf_deploy.datasets import Dataset, read_dataset
from r2mrf_deploy.errors import InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.evaluation import Method, doubt, evaluate, opened
from r2mrf_deploy.metrics import average, judge, score
from r2mrf_deploy.report import evaluation_files
from r2mrf_deploy.sample_photographs import sample

pytestmark = pytest.mark.artifact


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three photographs of different sizes, each with an ellipse as its mask."""
    for folder in ("image", "gt"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for number, name in enumerate(("astronaut", "coffee", "rocket")):
        picture = Image.fromarray(sample(name)).resize((90 + 165 * number, 70))  # the last over the scale of 320
        y, x = np.mgrid[-1:1:70j, -1 : 1 : complex(picture.width)]
        picture.save(tmp_path / "data" / "image" / f"{name}.jpg")
        Image.fromarray(255 * (x**2 + y**2 < 0.5).astype(np.uint8)).save(tmp_path / "data" / "gt" / f"{name}.png")
    return read_dataset(tmp_path / "data", white="sharp")


def _brightness(image: np.ndarray) -> dict[str, np.ndarray]:
    return {"brightness": image.mean(2, dtype=np.float32) / 255}


def test_rows_hold_the_metrics(dataset: Dataset) -> None:
    (row,) = evaluate([Method(_brightness, "none")], dataset)
    pairs = [(_brightness(dataset.image(n))["brightness"], dataset.truth(n)) for n in range(3)]
    assert row.scores == score(pairs)[0] and row.scores.photographs == 3
    assert row.worst(2) == sorted(row.photographs, key=lambda n: -row.photographs[n].mae)[:2]
    (other,) = evaluate([Method(_brightness, "none")], dataset, positive="blurred")
    assert other.scores == average([judge(found, truth, "blurred") for found, truth in pairs])[0]
    assert other.scores.mae == pytest.approx(row.scores.mae, abs=1e-6) and other.scores.f_max != row.scores.f_max


def test_the_truth_itself_is_perfect(dataset: Dataset) -> None:
    truths = {dataset.image(n).tobytes(): dataset.truth(n).astype(np.float32) for n in range(3)}
    (row,) = evaluate([Method(lambda image: {"truth": truths[image.tobytes()]}, "none")], dataset)
    s = row.scores
    assert s.f_max == s.f_adaptive == s.f_half == s.auc == 1 and s.mae == s.ece == 0


def test_masks_the_other_way_round_are_said(dataset: Dataset) -> None:
    def focus(image: np.ndarray) -> dict[str, np.ndarray]:
        return {"right": truths[image.tobytes()], "nearly right": 0.8 * truths[image.tobytes()] + 0.1}

    truths = {dataset.image(n).tobytes(): dataset.truth(n).astype(np.float32) for n in range(3)}
    wrong = read_dataset(dataset.folder, white="blurred")
    said = doubt(evaluate([Method(focus, "none")], wrong), wrong)
    assert said.startswith("every AUC is under 0.5 (at most 0.00): are the masks the other way round?")
    assert "read with `white` blurred; if white means sharp in them, give `white` sharp" in said
    for positive in ("sharp", "blurred"):
        assert doubt(evaluate([Method(focus, "none")], dataset, positive=positive), dataset) == ""  # type: ignore[arg-type]
    one_good = [Method(focus, "none"), Method(lambda image: {"bad": 1 - truths[image.tobytes()]}, "none")]
    assert doubt(evaluate(one_good, dataset), dataset) == ""


def test_a_checkpoint_and_its_artifact_agree(small: Path, exported: Path, dataset: Dataset) -> None:
    with opened([small, exported]) as methods:
        torch, onnx = evaluate(methods, dataset)
    assert (torch.runtime, onnx.runtime) == ("pytorch", "onnxruntime")
    with opened([small], runtime="openvino") as methods:
        (exported_on_the_way,) = evaluate(methods, dataset)
    assert exported_on_the_way.runtime == "openvino"
    # the artifact sees 96×128, the checkpoint each photograph at its own size: near, not equal
    assert abs(torch.scores.mae - onnx.scores.mae) < 0.1


def test_baselines_go_the_same_way(dataset: Dataset) -> None:
    with opened([], baselines=["lbp", "hifst"]) as methods:
        rows = evaluate(methods, dataset)
    assert [(row.name, row.runtime) for row in rows] == [("lbp", "no training"), ("hifst", "no training")]
    with pytest.raises(UsageError, match="did you mean 'lbp'"), opened([], baselines=["lpb"]):
        pass


def test_steps_and_branches(small: Path, exported: Path, dataset: Dataset) -> None:
    with opened([small], steps=True, branches=True) as methods:
        rows = {row.name: row for row in evaluate(methods, dataset)}
    with opened([small]) as methods:
        (whole,) = evaluate(methods, dataset)
    assert list(rows) == [
        "small.pth T = 1", "small.pth T = 2", *(f"small.pth step2_branch{b}" for b in (5, 4, 3, 2, 1)),
    ]  # fmt: skip
    assert rows["small.pth T = 2"].scores == whole.scores != rows["small.pth T = 1"].scores
    with opened([exported], branches=True) as methods:
        assert [row.name for row in evaluate(methods, dataset)] == [
            "small.onnx", *(f"small.onnx step2_branch{b}" for b in (5, 4, 3, 2, 1)),
        ]  # fmt: skip
    with opened([exported, small], steps=True) as methods:  # an artifact has its steps: its plain row
        assert [row.name for row in evaluate(methods, dataset)] == ["small.onnx", "small.pth T = 1", "small.pth T = 2"]
    with opened([small], branches=True) as methods:
        assert evaluate(methods, dataset)[0].scores == whole.scores
    with (
        pytest.raises(UsageError, match="run on PyTorch"),
        opened([small], branches=True, runtime="openvino"),
    ):
        pass
    with pytest.raises(UsageError, match="nothing to evaluate"):
        evaluate([], dataset)


def test_steps_of_a_network_that_always_runs_all(dataset: Dataset, tmp_path: Path) -> None:
    """Its RLNets' maps, the last of which is the map."""
    import torch

    from r2mrf_deploy import networks
    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.networks.initialise import initialise

    family, config = networks.preset("btbcrl", {"width": "0.25"})
    network = networks.create(family, config)
    initialise(network, torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)))  # soon done
    path = Checkpoint.of(family, network, {"trained": False}).save(tmp_path / "b.pth")
    with opened([path], steps=True) as methods:
        rows = {row.name: row.scores for row in evaluate(methods, dataset)}
    assert list(rows) == ["b.pth", "b.pth crl1", "b.pth crl2", "b.pth crl3"]
    assert rows["b.pth crl3"].mae == pytest.approx(rows["b.pth"].mae, abs=1e-6) != rows["b.pth crl1"].mae


def test_a_baseline_sees_what_a_network_sees(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def focus(image: np.ndarray) -> np.ndarray:
        seen.append(image.shape[:2])
        return (image[:, :, 0] / 255).astype(np.float32)

    monkeypatch.setattr("r2mrf_deploy.baselines.get", lambda _: focus)
    ramp = np.repeat(np.linspace(0, 255, 1600).astype(np.uint8)[None, :, None], 900, 0).repeat(3, 2)
    with opened([], baselines=["lbp"]) as (method,):
        found = method.maps(ramp)["lbp"]
        method.maps(ramp[:100, :80])
    assert seen == [(360, 640), (100, 80)]
    assert found.shape == ramp.shape[:2] and np.abs(found - ramp[:, :, 0] / 255).max() < 0.01


def test_what_would_fail_late_fails_first(dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="is not a writable folder"):
        evaluation_files.check(tmp_path / "file" / "o")
    evaluation_files.check(tmp_path / "o" / "p")
    assert not (tmp_path / "o").exists()
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(RuntimeUnavailable, match="matplotlib"):
        evaluation_files.check(tmp_path / "o")
    Image.new("L", (5, 5)).save(dataset.pairs[2].mask)
    with pytest.raises(InputError, match="5×5, its photograph"):
        evaluate([Method(lambda _: pytest.fail("nothing may be run"), "none")], dataset)


def test_figures_are_out_before_anything_is_drawn(
    small: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise InputError("the disk is full")

    monkeypatch.setattr("r2mrf_deploy.report.evaluation_files.write", full)
    line = ["eval", str(small), "--data", str(dataset.folder), "--white", "sharp", "-o", str(tmp_path / "o")]
    assert main(line) == 2 and "small.pth" in capsys.readouterr().out
    assert main([*line, "--json"]) == 2 and json.loads(capsys.readouterr().out)["photographs"] == 3


def test_a_caption_is_as_wide_as_its_text(tmp_path: Path) -> None:
    """Over a photograph of 60×600, whose four tiles are 98 pixels wide."""
    for folder in ("image", "gt"):
        (tmp_path / folder).mkdir()
        Image.new("L", (60, 600)).save(tmp_path / folder / "tall.png")
    dataset = read_dataset(tmp_path, white="sharp")
    methods = [Method(_brightness, "none")]
    (row,) = evaluate(methods, dataset)
    with Image.open(evaluation_files.contact_sheet(row, methods, dataset, tmp_path / "sheet.png")) as sheet:
        written = np.asarray(sheet.convert("L"))[:22].min(0) < 128
    text = np.flatnonzero(written)
    assert text[-1] > 300 and text[-1] < sheet.width - 1


def test_files_say_what_the_table_says(dataset: Dataset, tmp_path: Path) -> None:
    methods = [Method(_brightness, "none")]
    (row,) = rows = evaluate(methods, dataset)
    files = evaluation_files.write(rows, {"data": "data"}, methods, dataset, tmp_path / "o")
    assert {f.name for f in files} == {
        "scores.json", "scores.csv", "photographs.csv", "curves.csv", "curves.png", "reliability.csv", "reliability.png",
        "worst-brightness-none.png",
    }  # fmt: skip
    (kept,) = json.loads((tmp_path / "o" / "scores.json").read_text())["rows"]
    assert kept["mae"] == row.scores.mae and len(kept["precision"]) == 256
    with (tmp_path / "o" / "photographs.csv").open() as f:
        errors = {r["photograph"]: float(r["mae"]) for r in csv.DictReader(f)}
    assert np.mean(list(errors.values())) == pytest.approx(row.scores.mae, abs=1e-6)
    with (tmp_path / "o" / "curves.csv").open() as f:
        assert max(float(r["f"]) for r in csv.DictReader(f)) == pytest.approx(row.scores.f_max, abs=1e-6)
    with (tmp_path / "o" / "reliability.csv").open() as f:
        bins = [{k: float(v) for k, v in r.items() if k not in ("name", "runtime")} for r in csv.DictReader(f)]
    errors = [b["share"] * abs(b["mean_probability"] - b["in_focus"]) for b in bins if b["share"]]
    assert len(bins) == 15 and sum(errors) == pytest.approx(row.scores.ece, abs=1e-4) and row.scores.ece > 0.1
    assert all(b["over"] <= b["mean_probability"] <= b["at_most"] for b in bins if b["share"])
    with Image.open(tmp_path / "o" / "worst-brightness-none.png") as sheet:
        assert sheet.height > 3 * 200 and np.asarray(sheet).std() > 20


def test_flip_is_said_and_not_taken_for_the_artifact_s_own(exported: Path, dataset: Dataset, tmp_path: Path) -> None:
    artifact = Path(shutil.copy(exported, tmp_path / "x.onnx"))
    manifest = Path(shutil.copy(f"{exported}.json", tmp_path / "x.onnx.json"))
    before = manifest.read_bytes()
    line = ["eval", str(artifact), "--data", str(dataset.folder), "--white", "sharp", "--flip"]
    assert main(line) == 0 and manifest.read_bytes() == before
    with opened([artifact], branches=True) as plain, opened([artifact], branches=True, flip=True) as flipped:
        rows = evaluate([*plain, *flipped], dataset)
    half = len(rows) // 2
    assert [row.name.replace("x.onnx", "x.onnx with flip") for row in rows[:half]] == [row.name for row in rows[half:]]
    assert all(a.scores != b.scores for a, b in zip(rows[:half], rows[half:], strict=True))
    with pytest.raises(UsageError, match="only artifacts and checkpoints take `flip`"), opened([], flip=True):
        pass
    assert main(line[:-1]) == 0 and manifest.read_bytes() != before


def test_the_command_prints_one_document(small: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(small), "--data", str(dataset.folder), "--white", "sharp", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"f_max", "f_adaptive", "f_half", "mae", "auc", "ece"} <= document.keys()
    assert document["rows"][0]["f_max"] == document["f_max"] and document["photographs"] == 3
    assert document["input"] == "at most 320x320", "the scale of a network that was not trained"
    assert main(["eval", str(small), "--data", str(dataset.folder), "--white", "sharp"]) == 0
    assert capsys.readouterr().out.startswith("input: at most 320x320\n")
    assert main(["eval", str(small), "--data", str(dataset.folder)]) == 2
    assert "--white" in capsys.readouterr().err
