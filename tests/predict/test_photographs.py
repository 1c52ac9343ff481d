"""What `predict` makes of a batch: a name for every output, nothing outside its folder, and a row for every failure."""

from __future__ import annotations

import io
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import images
from r2mrf_deploy.errors import ArtifactError, UsageError
from r2mrf_deploy.predict import Outputs, Prediction, Source, Sources, predict
from r2mrf_deploy.predict.names import names
from r2mrf_deploy.predictor import Predictor
from tests.predict.conftest import Brightness, photograph

ALL = ("map", "map16", "float", "overlay", "cutout", "contour", "thumbnail")


def run(predictor: Predictor, sources: list[Path], output: Path, *save: str, **options: Any) -> list[Prediction]:
    return list(predict(predictor, sources, output, Outputs(save or ("map", "overlay")), **options))


def levels(predictions: list[Prediction]) -> list[int]:
    """The grey level of each map, which is that of its photograph if no output was overwritten."""
    found = []
    for p in predictions:
        assert p.map is not None, p.error
        with Image.open(p.map) as focus:
            found.append(int(np.asarray(focus)[0, 0]))
    return found


def test_relative_folders_with_files_of_one_name_stay_in_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brightness: Brightness
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = [photograph(Path("c/p.png"), 10), photograph(Path("d/p.png"), 20)]
    done = list(predict(brightness(), Sources(["c", "d"], output=Path("out")), Path("out")))
    assert levels(done) == [10, 20] and [Path(p.source) for p in done] == [p.absolute() for p in sources]
    assert sorted(str(p) for p in Path("out").rglob("*.*g")) == [
        "out/c/p_map.png", "out/c/p_overlay.jpg", "out/d/p_map.png", "out/d/p_overlay.jpg",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [
        ("a.jpg", "a.png", "a.jpg.webp"),
        ("a.jpg", "a.png", "a.jpg.webp", "a.png.bmp", "b/a.png", "c/a.png"),
        ("A.jpg", "a.png", "Å.jpg", "a\u030a.png"),  # a file system may take these for one
        ("x/a_b/i.png", "x/a/b/i.png", "x/q/b/i.png", "a/b/i.png"),
    ],
)
def test_no_two_outputs_are_one_file(tmp_path: Path, given: tuple[str, ...], brightness: Brightness) -> None:
    sources = [photograph(tmp_path / name, 10 * n) for n, name in enumerate(given)]
    done = run(brightness(), sources, tmp_path / "out", "map")
    np.testing.assert_allclose(levels(done), [10 * n for n in range(len(given))], atol=2)  # JPEG rounds
    assert len({p.map.name.casefold() for p in done if p.map}) == len(given)


def test_names_that_are_exhausted_still_differ() -> None:
    """Joined by `_`, these paths are the same in full."""
    found = names([Path("/a_b/i.png"), Path("/a/b/i.png"), Path("/q/b/i.png")])
    assert len(set(found)) == 3 and not any("/" in name for name in found)


def test_many_files_of_one_name_are_named_in_linear_time() -> None:
    sources = [Path(f"/album{n // 100}/{n}/DSC_0001.jpg") for n in range(20_000)]
    assert len(set(names(sources))) == 20_000  # quadratic, this took minutes


@pytest.mark.parametrize("stem", ["x" * 240, "x" * 251, "写" * 77, "写" * 83])
def test_a_long_name_is_shortened_and_stays_its_own(tmp_path: Path, stem: str, brightness: Brightness) -> None:
    try:
        sources = [photograph(tmp_path / f"{stem[:-1]}{end}.png", level) for end, level in (("1", 10), ("2", 20))]
    except OSError:
        pytest.skip("this file system has shorter names")
    done = run(brightness(), sources, tmp_path / "out", *ALL)
    assert levels(done) == [10, 20]
    assert all(p.overlay and p.overlay.is_file() and p.overlay.name.startswith(stem[:70]) for p in done)


def test_nothing_is_written_through_a_link(tmp_path: Path, brightness: Brightness) -> None:
    source, treasure = photograph(tmp_path / "a.png"), tmp_path / "treasure"
    treasure.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_map.png").symlink_to(treasure)
    (row,) = run(brightness(), [source], tmp_path / "out")
    assert "symbolic link" in (row.error or "") and str(treasure) in (row.error or "")
    assert treasure.read_text() == "mine" and (tmp_path / "out" / "a_map.png").is_symlink()


@pytest.mark.parametrize("batch", [None, 3])
def test_whatever_fails_is_that_photograph_s_row(
    tmp_path: Path, brightness: Brightness, monkeypatch: pytest.MonkeyPatch, batch: int | None
) -> None:
    """Also where it fails the whole of a batch."""
    good = [photograph(tmp_path / f"{name}.png", level) for name, level in zip("abcd", (10, 20, 30, 40), strict=True)]
    predictor = brightness()
    errors = {10: RuntimeError("[ONNXRuntimeError] : 1\nmore"), 20: ArtifactError("no map"), 30: MemoryError()}
    compute = predictor.runner.compute  # type: ignore[attr-defined]

    def fails(image: np.ndarray) -> np.ndarray:
        for level in image[:, 0, 0, 0].tolist():
            if error := errors.get(level):
                raise error
        return compute(image)

    monkeypatch.setattr(predictor.runner, "compute", fails)
    rows = run(predictor, good, tmp_path / "out", batch=batch)
    a, b, c, _ = good
    assert [row.error for row in rows] == [
        f"{a}: RuntimeError: [ONNXRuntimeError] : 1", f"{b}: no map", f"{c}: MemoryError: MemoryError", None,
    ]  # fmt: skip
    assert rows[3].map and rows[3].map.is_file()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that cannot be written")
def test_an_output_that_cannot_be_written_is_refused_before_the_first_map(
    tmp_path: Path, brightness: Brightness
) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(ArtifactError, match="not a writable folder"):
        run(brightness(), [photograph(tmp_path / "a.png")], tmp_path / "out")


def test_batches_are_filled_with_photographs_of_one_size(tmp_path: Path, brightness: Brightness) -> None:
    sizes = [(64, 40)] * 5 + [(40, 64)] * 2 + [(64, 40)]
    sources = [photograph(tmp_path / f"{n}.png", 10 * n, size) for n, size in enumerate(sizes)]
    for artifact, batch, expected in (("n", 3, [3, 2, 2, 1]), (4, None, [4, 4, 4, 4]), ("n", None, [1] * 8)):
        predictor = brightness(artifact)
        assert levels(run(predictor, sources, tmp_path / "out", batch=batch)) == [10 * n for n in range(8)]
        assert predictor.runner.batches == expected  # type: ignore[attr-defined]
    journal = (tmp_path / "out" / "predictions.jsonl").read_text()
    with pytest.raises(UsageError, match=r"`batch` 5: the artifact's is 4; export it again with --batch 5"):
        run(brightness(4), sources, tmp_path / "out", batch=5)
    nothing = Sources([], output=tmp_path / "out", listed=io.BytesIO())
    assert list(predict(brightness(), nothing, tmp_path / "out")) == []
    assert (tmp_path / "out" / "predictions.jsonl").read_text() == journal


def test_several_are_computed_at_once_and_come_in_order(
    tmp_path: Path, brightness: Brightness, monkeypatch: pytest.MonkeyPatch
) -> None:
    sources = [photograph(tmp_path / f"{n:02}.png", n) for n in range(20)]
    predictor = brightness(streams=3)
    compute, meet = predictor.runner.compute, threading.Barrier(2)  # type: ignore[attr-defined]

    def waits(image: np.ndarray) -> np.ndarray:
        meet.wait(timeout=30)  # only another inference ends this one
        return compute(image)

    monkeypatch.setattr(predictor.runner, "compute", waits)
    assert levels(run(predictor, sources, tmp_path / "out")) == list(range(20))
    assert 2 <= predictor.runner.most_under_way <= 3  # type: ignore[attr-defined]


def test_few_photographs_are_taken_ahead_however_many_there_are(tmp_path: Path, brightness: Brightness) -> None:
    source, taken = photograph(tmp_path / "a.png"), 0

    def endless() -> Iterator[Source]:
        nonlocal taken
        for taken in itertools.count(1):
            yield Source(str(source), f"{taken}")

    sources = Sources([], output=tmp_path / "out")
    sources.__class__ = type("Endless", (Sources,), {"__iter__": lambda _: endless()})
    done = predict(brightness(streams=2), sources, tmp_path / "out", Outputs(("map",)))
    for _ in range(50):
        next(done)
    done.close()
    assert 50 <= taken < 50 + 3 * (16 + 2) + 10  # the three stages' threads, and two ahead of each
    assert len(list((tmp_path / "out").glob("*_map.png"))) < taken


def test_every_kind_of_output(tmp_path: Path, brightness: Brightness) -> None:
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:, :45] = 255
    (tmp_path / "a.png").write_bytes(images.png(pixels))
    outputs = Outputs.of([*ALL, "coco"], float_format="tiff", overlay_format="png", overlay_side=45)
    (row,) = predict(brightness(), [tmp_path / "a.png"], tmp_path / "out", outputs)
    assert {kind: file.name for kind, file in row.outputs.items()} == {
        "map": "a_map.png", "map16": "a_map16.png", "float": "a_map.tiff", "overlay": "a_overlay.png",
        "cutout": "a_cutout.png", "contour": "a_contour.geojson", "thumbnail": "a_thumbnail.jpg",
    }  # fmt: skip
    focus = pixels[:, :, 0]
    read = {kind: Image.open(file) for kind, file in row.outputs.items() if kind != "contour"}
    assert np.array_equal(np.asarray(read["map"]), focus)
    assert np.array_equal(np.asarray(read["map16"]), focus.astype(np.int32) * 257)
    assert read["float"].mode == "F" and np.array_equal(np.asarray(read["float"]), focus / 255)
    assert np.array_equal(np.asarray(read["cutout"]), np.concatenate([pixels, focus[:, :, None]], 2))
    assert read["overlay"].size == (45, 30) and read["thumbnail"].format == "JPEG"
    contour = json.loads(row.outputs["contour"].read_text())
    (feature,) = contour["features"]
    assert feature["properties"]["area"] == pytest.approx(45 * 60, rel=0.01)
    assert np.ptp(feature["geometry"]["coordinates"][0], axis=0) == pytest.approx([45, 60])
    assert row.scores and (row.scores.in_focus, row.scores.region_right) == (0.5, 45.0)


def test_maps_can_be_smaller_and_floats_arrays(tmp_path: Path, brightness: Brightness) -> None:
    source = photograph(tmp_path / "a.png", 51, (80, 60))
    (row,) = predict(brightness(), [source], tmp_path / "out", Outputs(("map", "float"), map_side=20))
    assert row.map and Image.open(row.map).size == (20, 15)
    np.testing.assert_allclose(np.load(row.outputs["float"]), np.full((15, 20), 0.2), atol=1e-6)


def test_an_overlay_can_be_smaller_and_a_png(tmp_path: Path, brightness: Brightness) -> None:
    source = photograph(tmp_path / "a.png")
    for form, kind in (("png", "PNG"), ("jpg", "JPEG")):
        outputs = Outputs(overlay_side=4, overlay_format=form)  # type: ignore[arg-type]
        (row,) = predict(brightness(), [source], tmp_path / "out", outputs)
        assert row.overlay == tmp_path / "out" / f"a_overlay.{form}" and row.map
        with Image.open(row.overlay) as overlay, Image.open(row.map) as focus:
            assert (overlay.format, overlay.size) == (kind, (4, 3)) and focus.size == (8, 6)


def test_a_map_does_not_depend_on_what_else_is_saved(tmp_path: Path, brightness: Brightness) -> None:
    """The decoder reduces a large JPEG; what is drawn at its full size is read again."""
    large = images.resize(np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8), (3000, 4500))
    (tmp_path / "a.jpg").write_bytes(images.jpeg(large))
    found = []
    for save in (("map",), ("map", "cutout", "overlay")):
        (row,) = predict(brightness(), [tmp_path / "a.jpg"], tmp_path / "out", Outputs(save, map_side=600))
        found.append(row.map and row.map.read_bytes())
    assert found[0] == found[1] and row.scores
    assert (row.scores.width, row.scores.height) == (4500, 3000)
    with Image.open(row.outputs["cutout"]) as cutout:
        assert cutout.size == (4500, 3000)
        ours, whole = np.asarray(cutout)[:, :, :3], images.read(tmp_path / "a.jpg")
    shown = np.asarray(Image.open(row.outputs["cutout"]))[:, :, 3] > 0
    assert np.array_equal(ours[shown], whole[shown])  # not enlarged from the reduced one


def test_a_second_run_gives_the_same_bytes(tmp_path: Path, brightness: Brightness) -> None:
    for n in range(6):
        pixels = np.random.default_rng(n).integers(0, 256, (70 + n, 90, 3), np.uint8)
        photograph(tmp_path / "in" / f"{n}.png").write_bytes(images.png(pixels))
    found = []
    for _ in range(2):
        sources = Sources([tmp_path / "in"], output=tmp_path / "out")
        assert not [p for p in predict(brightness(streams=2), sources, tmp_path / "out", Outputs(ALL)) if p.error]
        found.append({p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()})
    assert found[0] == found[1] and len(found[0]) == 6 * len(ALL) + 1


@pytest.mark.parametrize("size", [(30, 20), (3000, 100), (1300, 900)])
def test_tiles_make_the_same_kinds_of_files(tmp_path: Path, brightness: Brightness, size: tuple[int, int]) -> None:
    """Of brightness, which is the same at every scale, also nearly the same ones."""
    low = np.random.default_rng(0).random((3, 4), np.float32)
    grey = images.grey(np.clip(images.resize(low, size[::-1]), 0, 1))
    (tmp_path / "a.png").write_bytes(images.png(np.repeat(grey[:, :, None], 3, 2)))
    outputs, found = Outputs(ALL, overlay_format="png"), []
    for tile in (None, 0.3):
        (row,) = predict(brightness(), [tmp_path / "a.png"], tmp_path / f"{tile}", outputs, tile=tile)
        assert row.error is None and row.outputs.keys() == set(ALL)
        found.append(row)
    whole, tiles = found
    for kind in ("map", "map16", "overlay", "cutout", "thumbnail"):
        one, other = (np.asarray(Image.open(row.outputs[kind]), np.float64) for row in (whole, tiles))
        assert one.shape == other.shape
        if kind in ("map", "map16"):
            assert (
                np.abs(one - other).max() < one.max() * 0.03
            )  # the whole was reduced to 640 pixels, and enlarged again
    assert np.load(tiles.outputs["float"]).shape == size[::-1]
    assert whole.scores and tiles.scores and tiles.scores.in_focus == pytest.approx(whole.scores.in_focus, abs=0.01)


def test_what_tiles_cannot_do_is_refused_at_once(tmp_path: Path, brightness: Brightness) -> None:
    source = photograph(tmp_path / "a.png")
    for outputs, overlap, said in (
        (Outputs(map_side=10), 0.3, "`map_side`"),
        (Outputs(("float",), float_format="tiff"), 0.3, "`float_format`"),
        (Outputs(), 0.95, "`overlap`"),
    ):
        with pytest.raises(UsageError, match=said):
            list(predict(brightness(), [source], tmp_path / "out", outputs, tile=overlap))
    assert not (tmp_path / "out").exists()


_PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from r2mrf_deploy import images
from r2mrf_deploy.predict import predict
from tests.predict.conftest import BrightnessRunner
from r2mrf_deploy.manifest import NEUTRAL
from r2mrf_deploy.predictor import Predictor

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

predictor = Predictor(BrightnessRunner("n", 1), NEUTRAL)
list(predict(predictor, [Path(sys.argv[1])], Path(sys.argv[3])))
before = peak()
(row,) = predict(predictor, [Path(sys.argv[2])], Path(sys.argv[3]))
assert row.map, row.error
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's figures of a process")
def test_a_large_photograph_takes_little_more_than_its_pixels_and_its_map(tmp_path: Path) -> None:
    """Per pixel 3 bytes of colour and 4 of the map stay, and Pillow decodes into 4; drawing takes 2 at this size."""
    large = tmp_path / "large.png"
    Image.new("RGB", (6000, 4000), (90, 120, 150)).save(large, compress_level=1)
    command = [sys.executable, "-c", _PEAK, photograph(tmp_path / "a.png"), large, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / (6000 * 4000) < 14
