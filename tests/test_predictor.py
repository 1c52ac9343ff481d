"""Photographs of any size in; maps and overlays of the same size out; one bad image does not stop the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import environment, images, sample_photographs
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.cli import main
from r2mrf_deploy.errors import ArtifactError, InputError, UsageError
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.predict import Outputs, predict
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.runtimes import OpenOptions

pytestmark = pytest.mark.artifact


@pytest.mark.parametrize("size", [(1, 1), (31, 200), (300, 451)])
def test_the_map_has_the_photograph_s_size(exported: Path, size: tuple[int, int]) -> None:
    photograph = np.asarray(Image.fromarray(sample_photographs.sample("chelsea")).resize(size[::-1]))
    with Predictor.open(exported) as predictor:
        focus = predictor(photograph)
    assert (focus.shape, focus.dtype) == (size, np.float32)
    assert focus.min() >= 0 and focus.max() <= 1


def test_every_kind_of_artifact_gives_the_same_map(
    small: Path, exported: Path, export: Callable[..., Path], tmp_path: Path
) -> None:
    """At the artifact's own size, so that no resizing differs."""
    photograph = np.asarray(Image.fromarray(sample_photographs.sample("chelsea")).resize((128, 96)))
    tensor, dynamic, batch = export(io="tensor"), export(dynamic=True), export(batch=2)
    xml = build_artifact(exported, tmp_path / "x.xml").path
    with Predictor.open(small) as predictor:
        expected = predictor(photograph)
    assert expected.std() > 0.05
    for path in (exported, tensor, dynamic, batch, xml):
        with Predictor.open(path) as predictor:
            # rounding in another order, as in parity
            np.testing.assert_allclose(predictor(photograph), expected, atol=1e-4)


@pytest.mark.parametrize("size", [(96, 128), (31, 201), (230, 115)])
def test_flipped_too_the_mirrored_photograph_has_the_mirrored_map(exported: Path, size: tuple[int, int]) -> None:
    """To the bit, wherever the photograph lies in the input: in one of odd width, the mirrored one lies elsewhere."""
    photograph = images.resize(sample_photographs.sample("chelsea"), size)
    mirrored = photograph[:, ::-1]
    with Predictor.open(exported) as alone, Predictor.open(exported, flip=True) as both:
        focus, other = alone(photograph), alone(mirrored)[:, ::-1]
        assert np.abs(focus - other).max() > 0.01  # the network itself does not have the property
        np.testing.assert_array_equal(both(photograph), (focus + other) / 2)
        np.testing.assert_array_equal(both(mirrored), both(photograph)[:, ::-1])
        sides, mirrored_sides, single = both.sides(photograph), both.sides(mirrored), alone.sides(photograph)
        assert sides.keys() == single.keys() and sides
        for name, side in sides.items():
            np.testing.assert_array_equal(mirrored_sides[name], side[:, ::-1])
        assert any((sides[name] != single[name]).any() for name in sides)


@pytest.mark.parametrize("options", [{"batch": 2}, {"dynamic": True}])
def test_flip_is_exact_for_every_kind_of_input(export: Callable[..., Path], options: dict[str, Any]) -> None:
    photograph = images.resize(sample_photographs.sample("coffee"), (90, 121))
    with Predictor.open(export(**options), flip=True) as predictor:
        found = predictor(photograph)
        assert found.std() > 0.02
        np.testing.assert_array_equal(predictor(photograph[:, ::-1]), found[:, ::-1])


def test_a_map_that_is_not_finite_is_an_error(tiny_onnx) -> None:  # type: ignore[no-untyped-def]
    with Predictor.open(tiny_onnx()) as predictor:
        runner = predictor.runner
        run = runner.run
        runner.run = lambda arrays: {"map": run(arrays)["map"] * np.float32("nan")}  # type: ignore[method-assign]
        with pytest.raises(ArtifactError, match="not finite"):
            predictor(sample_photographs.sample("chelsea"))


def test_files(exported: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "cat.png", tmp_path / "bad.png"
    Image.fromarray(sample_photographs.sample("chelsea")).save(good)
    bad.write_text("not an image")
    with Predictor.open(exported) as predictor:
        broken, done = predict(predictor, [bad, good], tmp_path / "out", Outputs(overlay_format="png"))
    assert broken.map is None and "not an image" in (broken.error or "")
    assert done.map and done.overlay and done.error is None
    with Image.open(done.map) as focus, Image.open(done.overlay) as overlay:
        assert (focus.mode, focus.size) == ("L", (451, 300))
        assert (overlay.mode, overlay.size) == ("RGB", (451, 300))
        assert done.in_focus == pytest.approx((np.asarray(focus) >= 128).mean(), abs=0.01)
    expected = ["cat_map.png", "cat_overlay.png", "predictions.jsonl"]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == expected


def test_the_command_flips(exported: Path, tmp_path: Path) -> None:
    photograph = sample_photographs.sample("chelsea")
    (tmp_path / "cat.png").write_bytes(images.png(photograph))
    assert main(["predict", str(exported), str(tmp_path / "cat.png"), "-o", str(tmp_path / "o"), "--flip"]) == 0
    with Predictor.open(exported, flip=True) as both, Image.open(tmp_path / "o" / "cat_map.png") as written:
        assert np.array_equal(np.asarray(written), images.grey(both(photograph)))


def test_no_photograph_is_overwritten(exported: Path, tmp_path: Path) -> None:
    before = {}
    for name in ("cat.jpg", "cat_map.png"):
        (tmp_path / name).write_bytes(images.png(sample_photographs.sample("chelsea")))
        before[name] = (tmp_path / name).read_bytes()
    sources = [tmp_path / name for name in before]
    with Predictor.open(exported) as predictor:
        with pytest.raises(UsageError, match=r"made from .*cat\.jpg would overwrite .*cat_map\.png: choose another"):
            list(predict(predictor, sources, tmp_path))
        with pytest.raises(UsageError, match="is a file: name a folder"):
            list(predict(predictor, sources, sources[0]))
        assert {p.name: p.read_bytes() for p in tmp_path.glob("cat*")} == before
        assert all(p.map for p in predict(predictor, sources, tmp_path / "out"))


def test_images_of_one_name_do_not_overwrite_each_other(exported: Path, tmp_path: Path) -> None:
    sources = [tmp_path / "a" / "x.png", tmp_path / "b" / "x.png", tmp_path / "y.png", tmp_path / "y.bmp"]
    for path in sources:
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(sample_photographs.sample("chelsea")[:64, :64]).save(path)
    with Predictor.open(exported) as predictor:
        done = list(predict(predictor, sources, tmp_path / "out", Outputs(("map",))))
    assert len({p.map for p in done}) == 4
    assert len(list((tmp_path / "out").glob("*.png"))) == 4


def test_a_model_that_takes_no_photograph_is_refused(tiny_onnx) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match="no contract that says"):
        Predictor.open(tiny_onnx(manifest=False))


def test_the_scale_is_the_checkpoint_s(small: Path, tmp_path: Path) -> None:
    """A photograph of any size is reduced to it, and what is exported by default does the same."""
    large = images.resize(sample_photographs.sample("coffee"), (500, 800))
    with Predictor.open(small) as predictor:
        found, reduced = predictor(large), predictor(images.resize(large, (200, 320)))
    assert np.allclose(found, np.clip(images.resize(reduced, (500, 800)), 0, 1), atol=1e-6)
    checkpoint = Checkpoint.load(small)
    scale = checkpoint.preprocess.model_copy(update={"longest_side": 96})
    path = replace(checkpoint, preprocess=scale).save(tmp_path / "x.pth")
    with Predictor.open(path) as predictor, Predictor.open(export_artifact(path).artifact) as artifact:
        assert artifact.runner.inputs[0].shape == [1, 96, 96, 3]
        square = large[:, :500]  # it fills the artifact, so that both see the same pixels
        np.testing.assert_allclose(artifact(square), predictor(square), atol=1e-4)
        assert predictor(square).std() > 0.02


@pytest.mark.parametrize(("options", "batch"), [({}, None), ({"batch": 2}, None), ({"dynamic": True}, 3)])
def test_a_stream_of_photographs_has_the_maps_of_each(
    export: Callable[..., Path], options: dict[str, Any], batch: int | None
) -> None:
    """Arrays, PIL images and tensors of several sizes; batches are filled, and cut where the size changes."""
    torch = pytest.importorskip("torch")
    sizes = [(90, 120), (90, 120), (90, 120), (60, 150), (90, 120)]
    arrays = [images.resize(sample_photographs.sample("coffee")[10 * n :], size) for n, size in enumerate(sizes)]
    given = [arrays[0], Image.fromarray(arrays[1]), torch.from_numpy(arrays[2]).permute(2, 0, 1), *arrays[3:]]
    with Predictor.open(export(**options), many=True) as predictor:
        assert predictor.streams == min(8, environment.cores())
        found = list(predictor.map(iter(given), batch))
        for focus, array in zip(found, arrays, strict=True):
            np.testing.assert_allclose(focus, predictor(array), atol=1e-5)  # a batch may round in another order
            assert focus.std() > 0.02
        with pytest.raises(InputError, match="photograph"):
            list(predictor.map([arrays[0], "a.png"]))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_side_by_side_the_maps_are_the_same(exported: Path, runtime: str) -> None:
    if runtime == "openvino":
        pytest.importorskip("openvino")
    photograph = sample_photographs.sample("coffee")
    with Predictor.open(exported, runtime) as one, Predictor.open(exported, runtime, many=True) as many:
        alone = one(photograph)
        for focus in many.map([photograph] * 6):
            np.testing.assert_allclose(focus, alone, atol=1e-5)  # another number of threads adds up in another order


def test_a_runtime_that_computes_one_at_a_time_says_so(small: Path) -> None:
    with Predictor.open(small, many=True) as predictor:
        assert predictor.streams == 1
    with pytest.raises(UsageError, match="does not support `streams`"):
        Predictor.open(small, options=OpenOptions(streams=2))
