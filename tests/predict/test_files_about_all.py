"""Tables of scores, COCO's contours, sidecars and regions of interest."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy import images
from r2mrf_deploy.errors import InputError
from r2mrf_deploy.predict import Outputs, Prediction, Sources, predict, sidecars, summaries
from r2mrf_deploy.predict.rois import Rois
from r2mrf_deploy.predict.scores import Scores
from tests.predict.conftest import Brightness, photograph


def half(path: Path) -> Path:
    """A photograph, 60 wide and 40 high, whose right half is bright."""
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = 255
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(images.png(pixels))
    return path


@pytest.fixture
def done(tmp_path: Path, brightness: Brightness) -> list[Prediction]:
    half(tmp_path / "in" / "a.png"), half(tmp_path / "in" / 'b",\n;.png')
    (tmp_path / "in" / "c.png").write_bytes(b"bad")
    sources = Sources([tmp_path / "in"], output=tmp_path / "out")
    return list(predict(brightness(), sources, tmp_path / "out", Outputs.of(["coco", "scores"])))


def test_every_table_has_the_same_rows_and_columns(tmp_path: Path, done: list[Prediction]) -> None:
    expected = [{name: p.to_dict().get(name) for name in summaries.COLUMNS} for p in done]
    rows = [json.loads(line) for line in summaries.write_scores(tmp_path / "out").read_text().splitlines()]
    assert rows == expected and rows[0]["in_focus"] == 0.5 and "not an image" in rows[2]["error"]
    with summaries.write_scores(tmp_path / "out", "csv").open(newline="") as f:
        table = list(csv.DictReader(f))
    assert table == [{k: "" if v is None else str(v) for k, v in row.items()} for row in expected]
    parquet = pytest.importorskip("pyarrow.parquet")
    table = parquet.read_table(summaries.write_scores(tmp_path / "out", "parquet"))
    assert table.to_pylist() == expected
    assert {str(table.schema.field(n).type) for n in ("width", "in_focus", "source")} == {"int64", "double", "string"}


def test_names_that_are_not_text_become_escapes_in_parquet(tmp_path: Path, brightness: Brightness) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    try:
        half(tmp_path / "in" / "\udcff.png")
    except OSError:
        pytest.skip("this file system has no such names")
    list(
        predict(brightness(), Sources([tmp_path / "in"], output=tmp_path / "out"), tmp_path / "out", Outputs(("map",)))
    )
    (row,) = parquet.read_table(summaries.write_scores(tmp_path / "out", "parquet")).to_pylist()
    assert row["source"].endswith("/in/\\udcff.png")
    assert b"/in/\xff.png" in summaries.write_scores(tmp_path / "out", "csv").read_bytes()


def test_coco_holds_every_photograph_s_contours(tmp_path: Path, done: list[Prediction]) -> None:
    coco = json.loads(summaries.write_coco(tmp_path / "out").read_text())
    assert [(i["id"], i["file_name"], i["width"], i["height"]) for i in coco["images"]] == [
        (n, p.source, 60, 40) for n, p in enumerate(done[:2], 1)
    ]
    assert [(a["id"], a["image_id"], a["bbox"]) for a in coco["annotations"]] == [
        (1, 1, [30, 0, 30, 40]), (2, 2, [30, 0, 30, 40]),
    ]  # fmt: skip
    (polygon,) = coco["annotations"][0]["segmentation"]
    assert len(polygon) % 2 == 0 and min(polygon[::2]) == 30 and max(polygon[1::2]) == 40
    assert coco["annotations"][0]["area"] == pytest.approx(1200, rel=0.01)


def test_nothing_for_coco_is_a_valid_file(tmp_path: Path, brightness: Brightness) -> None:
    list(predict(brightness(), [photograph(tmp_path / "a.png", 0)], tmp_path / "out", Outputs.of(["coco"])))
    assert json.loads(summaries.write_coco(tmp_path / "out").read_text())["annotations"] == []


def test_stars_are_written_beside_the_photograph(tmp_path: Path, brightness: Brightness) -> None:
    a, b = photograph(tmp_path / "a.png", 255), photograph(tmp_path / "b.png", 80)
    before = a.read_bytes()
    for _ in range(2):  # our own are written again
        assert [p.note for p in predict(brightness(), [a, b], tmp_path / "out", Outputs(("map",)), xmp=True)] == [
            "",
            "",
        ]
    assert 'xmp:Rating="5"' in (tmp_path / "a.png.xmp").read_text() and a.read_bytes() == before
    assert 'xmp:Rating="2"' in (tmp_path / "b.png.xmp").read_text()
    import xml.etree.ElementTree as tree

    (description,) = (
        tree.parse(tmp_path / "a.png.xmp").getroot().iter("{http://www.w3.org/1999/02/22-rdf-syntax-ns#}Description")
    )
    assert description.attrib["{http://ns.adobe.com/xap/1.0/}Rating"] == "5"


def test_another_program_s_sidecar_stays(tmp_path: Path, brightness: Brightness) -> None:
    a = photograph(tmp_path / "a.png", 255)
    (tmp_path / "a.png.xmp").write_text('<x:xmpmeta x:xmptk="darktable"/>')
    (row,) = predict(brightness(), [a], tmp_path / "out", Outputs(("map",)), xmp=True)
    assert row.note == "a.png.xmp is another program's, and stays as it is"
    assert (tmp_path / "a.png.xmp").read_text() == '<x:xmpmeta x:xmptk="darktable"/>'


def test_a_raw_photograph_s_sidecar_is_called_as_adobe_calls_it() -> None:
    assert sidecars.sidecar(Path("x/IMG_1.CR2")) == Path("x/IMG_1.xmp")
    assert sidecars.sidecar(Path("x/IMG_1.JPG")) == Path("x/IMG_1.JPG.xmp")


def test_stars_follow_the_region_of_interest_where_one_is_given() -> None:
    focus = np.zeros((10, 10), np.float32)
    focus[:, :5] = 1
    assert sidecars.rating(Scores.of(focus, (10, 10))) == 3
    assert sidecars.rating(Scores.of(focus, (10, 10), focus)) == 5


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("r.json", '{"a.png": [30, 0, 45, 40], "b.png": [[0, 0, 30, 40], [45, 0, 60, 40]]}'),
        ("r.csv", "file,left,top,right,bottom\na.png,30,0,45,40\nb.png,0,0,30,40\nb.png,45,0,60,40\n"),
    ],
)
def test_boxes(tmp_path: Path, brightness: Brightness, name: str, text: str) -> None:
    files = [half(tmp_path / f"{n}.png") for n in "abc"]
    (tmp_path / name).write_text(text)
    rows = predict(brightness(), files, tmp_path / "out", Outputs(("map",)), rois=Rois(tmp_path / name))
    assert [row.scores and row.scores.roi for row in rows] == [1.0, pytest.approx(1 / 3, abs=1e-4), None]


def test_masks(tmp_path: Path, brightness: Brightness) -> None:
    for n in ("a", "sub/b", "c"):
        half(tmp_path / "in" / f"{n}.jpg").rename(tmp_path / "in" / f"{n}.png")
    for n, columns in (("a", slice(0, 30)), ("sub/b", slice(15, 45))):
        mask = np.zeros((40, 60), np.uint8)
        mask[:, columns] = 255
        (tmp_path / "masks" / n).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "masks" / f"{n}.png").write_bytes(images.png(mask))
    sources = Sources([tmp_path / "in"], output=tmp_path / "out", recursive=True)
    rows = predict(brightness(), sources, tmp_path / "out", Outputs(("map",)), rois=Rois(tmp_path / "masks"))
    found = {Path(r.source).stem: r.scores and r.scores.roi for r in rows}
    assert found == {"a": 0.0, "b": pytest.approx(0.5, abs=0.02), "c": None}


@pytest.mark.parametrize("text", ["[]", "{", '{"a": [1, 2]}', '{"a": [5, 0, 1, 1]}', "file,x\n1,2\n", ""])
def test_wrong_boxes_are_refused(tmp_path: Path, text: str) -> None:
    for name in ("r.json", "r.csv"):
        (tmp_path / name).write_text(text)
        if name == "r.json" or text.startswith("file") or not text:
            with pytest.raises(InputError, match=f"{name} is neither a JSON nor a CSV file of boxes"):
                Rois(tmp_path / name)
    with pytest.raises(InputError, match="No such file"):
        Rois(tmp_path / "absent.json")
