"""`eval --table1`: the paper's twelve rows beside what was measured, whatever was given."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import baselines, networks, protocols
from r2mrf_deploy.cli import main
from r2mrf_deploy.datasets import Dataset, read_dataset
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.evaluation import Evaluation, Method, evaluate
from r2mrf_deploy.report import table1
from r2mrf_deploy.sample_photographs import sample
from tests.benchmarks.conftest import load

ORDER = ["ASVB", "SVD", "JNB", "DBDF", "SS", "LBP", "KSFV", "DHDE", "HiFST", "BTBNet", "DeFusionNet", "R²MRF"]
F = {
    "cuhk": [0.731, 0.806, 0.797, 0.841, 0.787, 0.866, 0.733, 0.850, 0.856, 0.892, 0.917, 0.927],
    "dut": [0.747, 0.818, 0.748, 0.802, 0.784, 0.874, 0.751, 0.823, 0.866, 0.887, 0.922, 0.950],
}
MAE = {
    "cuhk": [0.636, 0.301, 0.355, 0.323, 0.298, 0.186, 0.380, 0.390, 0.232, 0.105, 0.116, 0.119],
    "dut": [0.651, 0.301, 0.424, 0.369, 0.296, 0.173, 0.399, 0.408, 0.302, 0.190, 0.115, 0.088],
}


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Two photographs, named as two of CUHK's; in each the brighter half is called in focus."""
    for folder in ("image", "gt"):
        (tmp_path / "cuhk" / folder).mkdir(parents=True)
    for number, name in enumerate(("astronaut", "coffee"), 1):
        picture = Image.fromarray(sample(name)).resize((60 + 20 * number, 60))
        mask = np.asarray(picture)[:, :, 0] < 128
        picture.save(tmp_path / "cuhk" / "image" / f"out_of_focus000{number}.png")
        Image.fromarray(255 * mask.astype(np.uint8)).save(tmp_path / "cuhk" / "gt" / f"out_of_focus000{number}.png")
    return read_dataset(tmp_path / "cuhk", white="blurred", dataset="cuhk")


@pytest.fixture
def bright(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every baseline is the red channel, so that nothing takes long."""
    monkeypatch.setattr(baselines, "get", lambda _: lambda image: (image[:, :, 0] / 255).astype(np.float32))


@pytest.mark.parametrize("dataset", ["cuhk", "cuhk-320", "dut"])
def test_the_figures_are_the_papers(dataset: str) -> None:
    rows, key = protocols.table1(dataset), dataset.partition("-")[0]
    assert [row.method for row in rows] == ORDER == list(protocols.TABLE1)
    assert [row.f for row in rows] == F[key] and [row.mae for row in rows] == MAE[key]
    assert len({row.source for row in rows}) == 1


def test_each_row_can_be_computed_here() -> None:
    names = list(protocols.TABLE1.values())
    assert set(names[:9]) == set(baselines.BASELINES) - {"spectrum"}
    assert set(names[9:]) <= set(networks.families())


@pytest.mark.parametrize("dataset", ["", "ctcug", "ebd"])
def test_other_datasets_are_refused(dataset: str) -> None:
    with pytest.raises(UsageError, match="`table1` has figures of cuhk, cuhk-320, dut: name yours with `dataset`"):
        protocols.table1(dataset)


def _measured(data: Dataset, methods: dict[str, str | None]) -> list[Evaluation]:
    """Rows of these names, and of what computed them."""

    def named(name: str, computed_by: str | None) -> Method:
        return Method(lambda image: {name: image.mean(2, dtype=np.float32) / 255}, "none", "as it is", computed_by)

    return evaluate([named(*each) for each in methods.items()], data)


def test_rows_find_their_figures_by_network(data: Dataset) -> None:
    """Two of one network are two lines; one that the paper does not have is the last; the others stay empty."""
    rows = _measured(
        data, {"mine.pth": "r2mrf", "lbp": "lbp", "yours.onnx": "r2mrf", "other.onnx": "br2net", "unknown.onnx": None}
    )
    found = table1.lines(rows, protocols.table1("cuhk"))
    titles = [None if each.printed is None else each.printed.method for each in found]
    assert titles == [*ORDER, "R²MRF", None, None]
    own = [None if each.own is None else each.own.name for each in found]
    assert own == [None] * 5 + ["lbp"] + [None] * 5 + ["mine.pth", "yours.onnx", "other.onnx", "unknown.onnx"]
    assert [line.partition(" has no figures")[0] for line in table1.missing(found)] == ORDER[:5] + ORDER[6:11]
    assert "the network defusionnet" in table1.missing(found)[-1]
    document = found[5].to_dict()
    assert document["printed"] == {"f": 0.866, "mae": 0.186} and document["f"] == rows[1].scores.f_adaptive
    assert found[0].to_dict()["f"] is None and found[-1].to_dict()["printed"] is None
    sheet = table1.sheet(found)
    cells = [[cell.plain for cell in line] for line in sheet.rows]
    scores = rows[1].scores
    f, mae = scores.f_adaptive, scores.mae
    assert cells[5][:6] == ["LBP (TIP 2016)", "lbp", "as it is", "0.866", f"{f:.3f}", f"{f - 0.866:+.3f}"]
    assert cells[5][6:9] == ["0.186", f"{mae:.3f}", f"{mae - 0.186:+.3f}"]
    assert [line[0] for line in cells[10:13]] == ["DeFusionNet (CVPR 2019)", *["R²MRF (AAAI 2020) *"] * 2]
    assert cells[0][3:9] == ["0.731", "-", "-", "0.636", "-", "-"] and cells[-1][3:6] == ["-", f"{f:.3f}", "-"]


@pytest.mark.usefixtures("bright")
def test_the_command(data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["eval", "--table1", "--data", str(data.folder), "--dataset", "cuhk"]
    assert main([*line, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [each["method"] for each in document["table1"]] == ORDER and document["protocol"]["name"] == "r2mrf"
    assert [each["own"] for each in document["table1"]] == [*list(protocols.TABLE1.values())[:9], None, None, None]
    assert [row["name"] for row in document["rows"]] == list(protocols.TABLE1.values())[:9]
    assert document["table1"][0]["f"] == document["rows"][0]["f"] == document["rows"][0]["f_adaptive"]
    files = ["-o", str(tmp_path / "o"), "--markdown", str(tmp_path / "t.md"), "--latex", str(tmp_path / "t.tex")]
    pytest.importorskip("matplotlib")
    assert main([*line, *files]) == 0
    shown = capsys.readouterr().out
    for text in (shown, (tmp_path / "t.md").read_text(), (tmp_path / "t.tex").read_text()):
        assert "0.731" in text and "0.119" in text and "BTBNet has no figures of your own: give a checkpoint" in text
    kept = json.loads((tmp_path / "o" / "scores.json").read_text())
    assert kept["table1"] == document["table1"]
    with (tmp_path / "o" / "scores.csv").open() as f:
        assert [row["runtime"] for row in csv.DictReader(f)][-12:] == ["published"] * 12


@pytest.mark.usefixtures("bright")
@pytest.mark.artifact
def test_a_checkpoint_fills_the_row_of_its_network(
    small: Path, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["eval", str(small), "--table1", "--data", str(data.folder), "--dataset", "cuhk", "--json"]
    assert main(line) == 0
    last = json.loads(capsys.readouterr().out)["table1"][-1]
    assert last["method"] == "R²MRF" and last["own"] == small.name and 0 <= last["mae"] <= 1


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--dataset", "cuhk", "--protocol", "common"], "leave out --baseline, --steps"),
        (["--dataset", "cuhk", "--baseline", "lbp"], "leave out --baseline, --steps"),
        (["--dataset", "cuhk", "--steps"], "leave out --baseline, --steps"),
        (["--dataset", "cuhk", "--positive", "blurred"], "--positive blurred contradicts --protocol r2mrf"),
        (["--white", "blurred"], "name yours with --dataset"),
    ],
)
def test_what_contradicts_it_is_refused(
    more: list[str], said: str, data: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", "--table1", "--data", str(data.folder), *more]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.usefixtures("bright")
def test_the_benchmark_measures_the_nine(data: Dataset) -> None:
    load("tables")
    found = load("table1").measured(data, [])
    assert [row["method"] for row in found["rows"]] == ORDER
    assert all("f" in row and row["seconds"] >= 0 for row in found["rows"][:9])
    assert not any("f" in row for row in found["rows"][9:])
    (own,) = _measured(data, {"x": None})
    red = evaluate([Method(lambda i: {"x": (i[:, :, 0] / 255).astype(np.float32)}, "none")], data)[0].scores
    assert found["rows"][0]["f"] == pytest.approx(red.f_adaptive, abs=1e-4) != own.scores.f_adaptive
    assert found["rows"][0]["within"] is bool(abs(red.f_adaptive - 0.731) <= 0.05)
    share = np.mean([data.truth(n).mean() for n in range(2)])
    assert found["all_in_focus"]["mae"] == pytest.approx(1 - share, abs=1e-4)
    assert found["all_blurred"]["mae"] == pytest.approx(share, abs=1e-4)
