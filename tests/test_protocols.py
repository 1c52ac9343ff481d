"""Protocols: every method gets what a protocol says, and published figures stand beside measured ones, set apart."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import images, protocols
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.cli import main
from r2mrf_deploy.datasets import KNOWN, Dataset, Pair, read_dataset
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.evaluation import Method, evaluate, opened
from r2mrf_deploy.export.options import ExportOptions
from r2mrf_deploy.manifest import NEUTRAL, Preprocess, TensorSpec
from r2mrf_deploy.metrics import Positive
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.report import forms, tables
from r2mrf_deploy.runtimes import Runner
from r2mrf_deploy.sample_photographs import sample


class Seen(Runner):
    """A runner whose map is the red channel of its input, which it keeps."""

    runtime, device = "fake", "CPU"

    def __init__(self, height: int | str, width: int | str) -> None:
        self.inputs = (TensorSpec(name="image", dtype="uint8", shape=[1, height, width, 3], layout="NHWC"),)
        self.outputs = ()
        self.images: list[np.ndarray] = []

    def _run(self, arrays):  # type: ignore[no-untyped-def]
        self.images.append(arrays["image"][0])
        return {"map": arrays["image"][:, None, :, :, 0].astype(np.float32) / 255}


def predictor(runner: Runner, fit: str = "letterbox", profile: dict[str, list[int]] | None = None) -> Predictor:
    preprocess = Preprocess.model_validate(NEUTRAL.model_dump() | {"fit": fit, "longest_side": 200})
    return Predictor(runner, preprocess, profile or {})


PROFILE = {"min": [1, 64, 64, 3], "opt": [1, 320, 320, 3], "max": [4, 640, 640, 3]}


@pytest.mark.parametrize(
    ("size", "fit", "profile"),
    [
        (("height", "width"), "letterbox", None),
        (("height", "width"), "letterbox", PROFILE),
        ((320, 320), "letterbox", None),
        ((320, 320), "stretch", None),
        ((320, "width"), "letterbox", None),
    ],
)
@pytest.mark.parametrize("photograph", [(100, 60), (451, 300)])
def test_a_photograph_is_stretched_whatever_the_artifact_says(
    size: tuple[int | str, int | str], fit: str, profile: dict[str, list[int]] | None, photograph: tuple[int, int]
) -> None:
    """A small one is enlarged, and neither its aspect nor the scale of the network is kept."""
    image, runner = images.resize(sample("chelsea"), photograph), Seen(*size)
    stretched = predictor(runner, fit, profile).stretched((320, 320))
    found = stretched(image)
    wanted = images.resize(image, (320, 320))
    assert np.array_equal(runner.images[0], wanted)
    assert np.array_equal(found, images.resize(wanted[:, :, 0].astype(np.float32) / 255, photograph))
    assert stretched.size == "320x320, stretched"


@pytest.mark.parametrize(
    ("size", "profile"),
    [((96, 128), None), ((320, 96), None), (("h", "w"), {"min": [1, 64, 64, 3], "max": [1, 320, 256, 3]})],
)
def test_an_input_of_another_size_is_refused(
    size: tuple[int | str, int | str], profile: dict[str, list[int]] | None
) -> None:
    with pytest.raises(UsageError, match="cannot be 320x320: export it again with --size 320x320"):
        predictor(Seen(*size), profile=profile).stretched((320, 320))


def test_published_rows_are_whole() -> None:
    """Each has a known dataset and protocol, a source, and figures in [0, 1]; none is there twice."""
    rows = protocols.read_published()
    assert {row.protocol for row in rows} == set(protocols.PROTOCOLS) and {row.dataset for row in rows} == {
        "cuhk",
        "dut",
    }
    assert all(0 < row.mae < row.f < 1 and row.split == "test" and row.source and row.authors for row in rows)
    assert len({(row.method, row.dataset, row.protocol) for row in rows}) == len(rows)


@pytest.mark.parametrize(
    ("protocol", "dataset", "method", "f", "mae"),
    [
        ("r2mrf", "cuhk", "R²MRF", 0.927, 0.119),
        ("r2mrf", "dut", "R²MRF", 0.950, 0.088),
        ("common", "cuhk", "D-DFFNet", 0.973, 0.036),
        ("common", "cuhk-320", "BR²Net", 0.966, 0.059),
        ("common", "dut", "DeFusionNet", 0.952, 0.085),
    ],
)
def test_published_rows_of_a_dataset(protocol: str, dataset: str, method: str, f: float, mae: float) -> None:
    rows = protocols.published(protocols.get(protocol), dataset)
    (row,) = [row for row in rows if row.method == method]
    assert (row.f, row.mae, row.dataset) == (f, mae, KNOWN[dataset].copy_of or dataset)
    assert {r.protocol for r in rows} == {protocol}


def test_an_f_that_flatters_says_so() -> None:
    """D-DFFNet's code takes a maximum for these three (its README says for which)."""
    rows = protocols.published(protocols.get("common"), "cuhk")
    assert {row.method for row in rows if "flatters" in row.note} == {"BR²Net", "DD", "D-DFFNet"}


@pytest.mark.parametrize("dataset", ["", "ctcug", "ebd"])
def test_nothing_is_published_for_another_dataset(dataset: str) -> None:
    assert not any(protocols.published(protocol, dataset) for protocol in protocols.PROTOCOLS.values())


def test_a_protocol_fixes_the_positive_class() -> None:
    for name, other in (("common", "sharp"), ("r2mrf", "blurred")):
        protocol = protocols.get(name)
        own: Positive = "blurred" if other == "sharp" else "sharp"
        assert protocols.positive_class(protocol, None) == protocols.positive_class(protocol, own) == own
        with pytest.raises(UsageError, match=f"`positive` {other} contradicts `protocol` {name}.*class is {own}"):
            protocols.positive_class(protocol, other)  # type: ignore[arg-type]
    assert protocols.positive_class(None, None) == "sharp" and protocols.positive_class(None, "blurred") == "blurred"
    with pytest.raises(UsageError, match="no protocol 'comon': did you mean 'common'"):
        protocols.get("comon")


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Two photographs of other sizes than 320×320, named as two of DUT's, each with an ellipse as its mask."""
    for folder in ("image", "gt"):
        (tmp_path / "dut" / folder).mkdir(parents=True)
    for number, name in enumerate(("astronaut", "coffee"), 1):
        picture = Image.fromarray(sample(name)).resize((90 + 60 * number, 80))
        y, x = np.mgrid[-1:1:80j, -1 : 1 : complex(picture.width)]
        picture.save(tmp_path / "dut" / "image" / f"{number}.png")
        Image.fromarray(255 * (x**2 + y**2 < 0.5).astype(np.uint8)).save(tmp_path / "dut" / "gt" / f"{number}.png")
    return read_dataset(tmp_path / "dut", white="sharp", dataset="dut")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The sizes that a baseline is given."""
    seen: list[tuple[int, ...]] = []

    def focus(image: np.ndarray) -> np.ndarray:
        seen.append(image.shape)
        return (image[:, :, 0] / 255).astype(np.float32)

    monkeypatch.setattr("r2mrf_deploy.baselines.get", lambda _: focus)
    return seen


def test_a_baseline_gets_the_size_too(data: Dataset, recorder: list[tuple[int, ...]]) -> None:
    with opened([], baselines=["lbp"], size=(320, 320)) as (method,):
        assert method.maps(data.image(0))["lbp"].shape == data.image(0).shape[:2]
    assert recorder == [(320, 320, 3)] and method.size == "320x320, stretched"


@pytest.mark.artifact
def test_checkpoint_dynamic_and_static_artifacts_compute_the_same_at_one_size(
    small: Path, export: Callable[..., Path], exported: Path, data: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that nothing but the method differs between rows. Without a size, they see each photograph in their own way."""
    size, dynamic = (96, 128), export(dynamic=True)
    assert Artifact.open(exported).contract.preprocess.fit == "letterbox"  # type: ignore[union-attr]
    with opened([small, dynamic, exported], size=size) as methods:
        rows = evaluate(methods, data, positive="blurred")
    assert {row.size for row in rows} == {"96x128, stretched"}
    # rounding in another order, as in parity
    assert all(row.scores.mae == pytest.approx(rows[0].scores.mae, abs=1e-5) for row in rows)
    with opened([small, exported]) as methods:
        own, static = evaluate(methods, data, positive="blurred")
    assert abs(own.scores.mae - static.scores.mae) > 1e-4 < abs(own.scores.mae - rows[0].scores.mae)
    with opened([small], size=size, steps=True, branches=True) as methods:
        ablations = {row.name: row for row in evaluate(methods, data, positive="blurred")}
    assert ablations["small.pth T = 2"].scores == rows[0].scores
    assert {row.size for row in ablations.values()} == {"96x128, stretched"}

    def export_on_the_way(_: Path, __: Path, options: ExportOptions) -> Artifact:
        assert options.size == size
        return Artifact.open(exported)

    monkeypatch.setattr("r2mrf_deploy.export.chain.export_artifact", lambda *given, **_: export_on_the_way(*given))
    with opened([small], size=size, runtime="onnxruntime") as methods:
        assert evaluate(methods, data, positive="blurred")[0].scores == rows[2].scores
    with (
        pytest.raises(UsageError, match=r"small.onnx: its input is 96x128, and cannot be 320x320: export it again"),
        opened([small, exported], size=(320, 320)),
    ):
        pass


def _scored(data: Dataset) -> list:  # type: ignore[type-arg]
    def brightness(image: np.ndarray) -> dict[str, np.ndarray]:
        return {"brightness": image.mean(2, dtype=np.float32) / 255}

    return evaluate([Method(brightness, "none", "320x320, stretched")], data, positive="blurred")


def test_the_table_sets_published_rows_apart(data: Dataset) -> None:
    protocol = protocols.get("common")
    published = protocols.published(protocol, "dut")
    (row,) = rows = _scored(data)
    sheet = tables.protocol_table(rows, protocol, published)
    assert sheet.heads == ["map", "runtime", "input", "F", "mae", "f_max", "f_adaptive", "auc", "ece"]
    cells = [[cell.plain for cell in line] for line in sheet.rows]
    assert cells[0][3:5] == [f"{row.scores.f_half:.4f}", f"{row.scores.mae:.4f}"]
    assert [line[1] for line in cells] == ["none", *["published"] * 5] and sheet.sections == {1}
    assert cells[-1] == ["D-DFFNet (ICME 2023) *", "published", "320x320, stretched", "0.939", "0.070", *["-"] * 4]
    latex = forms.latex(sheet, ["a note"]).splitlines()
    assert latex[4].startswith("  brightness") and latex[5] == r"  \midrule" and latex[-1] == "% a note"
    assert forms.markdown(sheet, ["a *"]).splitlines()[-2:] == ["", r"- a \*"]
    other = tables.protocol_table(rows, protocols.get("r2mrf"), [])
    assert other.rows[0][3].plain == f"{row.scores.f_adaptive:.4f}" and not math.isclose(
        row.scores.f_adaptive, row.scores.f_half, abs_tol=1e-3
    )


def test_whether_the_published_rows_are_of_these_photographs_is_said() -> None:
    protocol = protocols.get("common")
    published = protocols.published(protocol, "dut")
    pairs = [Pair(str(n), Path(), Path()) for n in range(500)]
    test, part = (Dataset(Path(), "sharp", pairs[:n], published="dut") for n in (500, 5))
    same = "published: for the test split of 500 photographs, the one evaluated here"
    other = "published: for the test split of 500 photographs, not for those evaluated here"
    assert same in tables.protocol_lines(protocol, published, test, 500)
    assert other in tables.protocol_lines(protocol, published, test, 499), "Ctrl-C before the last"
    assert other in tables.protocol_lines(protocol, published, part, 5)
    assert not [said for said in tables.protocol_lines(protocol, [], part, 5) if said.startswith("published")]


def test_the_command(
    data: Dataset, recorder: list[tuple[int, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["eval", "--baseline", "lbp", "--data", str(data.folder), "--dataset", "dut", "--protocol", "common"]
    assert main([*line, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["protocol"]["name"] == "common" and document["positive"] == "blurred"
    assert document["f"] == document["rows"][0]["f"] == document["f_half"] != document["f_adaptive"]
    assert [row["name"] for row in document["rows"]] == ["lbp"] and document["test_split"] is False
    assert {"method", "f", "mae", "source"} <= document["published"][-1].keys()
    assert set(recorder) == {(320, 320, 3)}
    files = ["-o", str(tmp_path / "o"), "--markdown", str(tmp_path / "t.md"), "--latex", str(tmp_path / "t.tex")]
    assert main([*line, *files]) == 0
    shown = capsys.readouterr().out
    for text in (shown, (tmp_path / "t.md").read_text(), (tmp_path / "t.tex").read_text()):
        assert "0.952" in text and "for the test split of 500 photographs, not for those evaluated here" in text
    with (tmp_path / "o" / "scores.csv").open() as f:
        rows = list(csv.DictReader(f))
    assert [row["runtime"] for row in rows] == ["no training", *["published"] * 5]
    assert rows[0]["f"] == rows[0]["f_half"] and not rows[0]["source"]
    assert (rows[-1]["f"], rows[-1]["f_half"]) == ("0.939", "") and "D-DFFNet" in rows[-1]["source"]
    assert json.loads((tmp_path / "o" / "scores.json").read_text())["published"] == document["published"]
    assert main([*line, "--positive", "sharp"]) == 2
    assert "--positive sharp contradicts --protocol common" in capsys.readouterr().err
    assert main([*line[:5], "--white", "sharp", "--protocol", "r2mrf"]) == 0
    assert "name it with --dataset" in capsys.readouterr().out and recorder[-1] != (320, 320, 3)


@pytest.mark.artifact
def test_the_record_names_the_protocol(export: Callable[..., Path], data: Dataset, tmp_path: Path) -> None:
    for file in export(dynamic=True).parent.glob("small.onnx*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    path = tmp_path / "small.onnx"
    for protocol in ([], ["--protocol", "common"]):
        assert main(["eval", str(path), "--data", str(data.folder), "--white", "sharp", *protocol]) == 0
    records = Artifact.open(path).manifest.accuracy  # type: ignore[union-attr]
    assert [(r.get("protocol"), r["positive"]) for r in records] == [(None, "sharp"), ("common", "blurred")]
