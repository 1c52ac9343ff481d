"""Evaluation: every kind of source through one path, the figures of `metrics`, files that hold what the table says."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import evaluation
from r2mrf_deploy.cli import main
from r2mrf_deploy.datasets import Dataset, read_dataset
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.evaluation import Method, evaluate, opened
from r2mrf_deploy.metrics import score
from r2mrf_deploy.photographs import sample


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Three photographs of different sizes, each with an ellipse as its mask."""
    for folder in ("image", "gt"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    for number, name in enumerate(("astronaut", "coffee", "rocket")):
        picture = Image.fromarray(sample(name)).resize((90 + 10 * number, 70))
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
    assert other.scores == score([(1 - found, ~truth) for found, truth in pairs])[0]
    assert other.scores.mae == pytest.approx(row.scores.mae, abs=1e-6) and other.scores.f_max != row.scores.f_max


def test_the_truth_itself_is_perfect(dataset: Dataset) -> None:
    truths = {dataset.image(n).tobytes(): dataset.truth(n).astype(np.float32) for n in range(3)}
    (row,) = evaluate([Method(lambda image: {"truth": truths[image.tobytes()]}, "none")], dataset)
    s = row.scores
    assert s.f_max == s.f_adaptive == s.f_half == s.auc == 1 and s.mae == 0


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
        assert len(evaluate(methods, dataset)) == 5
    for sources, options, said in (
        ([exported], {"steps": True}, "needs the checkpoint"),
        ([small], {"branches": True, "runtime": "openvino"}, "run by PyTorch"),
    ):
        with pytest.raises(UsageError, match=said), opened(sources, **options):  # type: ignore[arg-type]
            pass
    with pytest.raises(UsageError, match="nothing to evaluate"):
        evaluate([], dataset)


def test_files_say_what_the_table_says(dataset: Dataset, tmp_path: Path) -> None:
    methods = [Method(_brightness, "none")]
    (row,) = rows = evaluate(methods, dataset)
    files = evaluation.write(rows, {"data": "data"}, methods, dataset, tmp_path / "o")
    assert {f.name for f in files} == {
        "scores.json", "scores.csv", "photographs.csv", "curves.csv", "curves.png", "worst-brightness-none.png",
    }  # fmt: skip
    (kept,) = json.loads((tmp_path / "o" / "scores.json").read_text())["rows"]
    assert kept["mae"] == row.scores.mae and len(kept["precision"]) == 256
    with (tmp_path / "o" / "photographs.csv").open() as f:
        errors = {r["photograph"]: float(r["mae"]) for r in csv.DictReader(f)}
    assert np.mean(list(errors.values())) == pytest.approx(row.scores.mae, abs=1e-6)
    with (tmp_path / "o" / "curves.csv").open() as f:
        assert max(float(r["f"]) for r in csv.DictReader(f)) == pytest.approx(row.scores.f_max, abs=1e-6)
    with Image.open(tmp_path / "o" / "worst-brightness-none.png") as sheet:
        assert sheet.height > 3 * 200 and np.asarray(sheet).std() > 20


def test_the_command_prints_one_document(small: Path, dataset: Dataset, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(small), "--data", str(dataset.folder), "--white", "sharp", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert {"f_max", "f_adaptive", "f_half", "mae", "auc"} <= document.keys()
    assert document["rows"][0]["f_max"] == document["f_max"] and document["photographs"] == 3
    assert main(["eval", str(small), "--data", str(dataset.folder)]) == 2
    assert "--white" in capsys.readouterr().err
