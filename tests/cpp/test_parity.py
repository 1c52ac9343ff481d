"""C++ and Python compute the same map from the same artifact and photograph."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import pytest
from PIL import Image

from r2mrf_deploy import images, sample_photographs
from r2mrf_deploy.datasets import read_dataset
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.predictor import Predictor

from .conftest import OpenEngine

pytestmark = pytest.mark.artifact

SIZES = [(1, 1), (1, 300), (317, 451), (451, 317), (96, 128), (96, 500), (500, 128), (3000, 4000)]


@pytest.fixture
def artifact(
    exported: Path,
    export: Callable[..., Path],
    converted: Callable[[str], Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> Callable[[str], Path]:
    """Makes an artifact of the same network, of any kind that C++ opens on a CPU."""
    exports = {"tensor": {"io": "tensor"}, "dynamic": {"dynamic": True}, "batch": {"batch": 2}}

    def make(kind: str) -> Path:
        if kind == "fp32":
            return exported
        if kind == "xml":
            return build_artifact(exported, tmp_path / "x.xml").path
        if kind == "compressed":
            return Path(request.getfixturevalue("small_compressed"))
        return export(**exports[kind]) if kind in exports else converted(kind)

    return make


def photograph(size: tuple[int, int]) -> np.ndarray:
    """uint8 [H, W, 3]: a photograph with noise, so that neighbouring pixels differ at any size."""
    resized = np.asarray(Image.fromarray(sample_photographs.sample("chelsea")).resize(size[::-1]), np.int16)
    noise = np.random.default_rng(0).integers(-20, 21, resized.shape, np.int16)
    return np.clip(resized + noise, 0, 255).astype(np.uint8)


def assert_same_map(file: Path, open_engine: OpenEngine, images_: list[np.ndarray]) -> None:
    engine = open_engine(file)
    with Predictor.open(file, "openvino") as predictor:
        for image in images_:
            expected, found = predictor(image), engine(image)
            difference = np.abs(found - expected)
            # if sums are split over threads differently, a rounding may go the other way
            assert difference.max() <= 1 / 255, image.shape
            assert difference.mean() <= 1e-4, image.shape


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_at_any_size(artifact: Callable[[str], Path], open_engine: OpenEngine, kind: str) -> None:
    assert_same_map(artifact(kind), open_engine, [photograph(size) for size in SIZES])


@pytest.mark.parametrize(
    "kind",
    [
        "xml",
        "tensor",
        "compressed",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("fp16", "bf16", "batch", "dynamic")),
    ],
)
def test_of_any_kind(artifact: Callable[[str], Path], open_engine: OpenEngine, kind: str) -> None:
    """Also with a free size, where images are scaled down to the largest size of the profile."""
    assert_same_map(artifact(kind), open_engine, [photograph(size) for size in ((1, 1), (317, 451), (40, 700))])


@pytest.mark.parametrize("kind", ["fp32", "int8"])
def test_on_photographs(artifact: Callable[[str], Path], open_engine: OpenEngine, kind: str, dut5: Path) -> None:
    dataset = read_dataset(dut5, white="sharp")
    found = [dataset.image(number) for number in range(len(dataset))]
    assert len(found) == 5
    assert_same_map(artifact(kind), open_engine, found)


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 13 changed the order of its passes")
@pytest.mark.parametrize("dynamic", [False, True])
def test_resizing_is_pillow_s_to_the_last_bit(tiny_onnx, open_engine: OpenEngine, dynamic: bool) -> None:  # type: ignore[no-untyped-def]
    """Both compute a network of three convolutions alike, so any differing bit comes from resizing. Python resizes large
    maps in strips, where a value may be rounded otherwise."""
    file = tiny_onnx(dynamic=dynamic)
    engine = open_engine(file)
    with Predictor.open(file, "openvino") as predictor:
        for size in [*SIZES, (64, 64), (65, 63), (2, 1000), (129, 127), (400, 30)]:
            rounding = 1e-7 if size[0] * size[1] > images.STRIP else 0
            found, wanted = engine(photograph(size)), predictor(photograph(size))
            np.testing.assert_allclose(found, wanted, rtol=0, atol=rounding, err_msg=str(size))


def reference(model: Path, image: np.ndarray, ranges: list[tuple[int, int]]) -> np.ndarray:
    """The map of a photograph that keeps its aspect, by NumPy, Pillow and OpenVINO alone.

    `ranges`: the least and the most that the input's height and width can be.
    """
    import openvino

    def resized(array: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        same = array.shape[:2] == size
        return array if same else np.asarray(Image.fromarray(array).resize(size[::-1], Image.Resampling.BILINEAR))

    sides = image.shape[:2]
    scale = min(1.0, *(most / side for (_, most), side in zip(ranges, sides, strict=True)))
    content = tuple(max(1, int(np.floor(side * scale + 0.5))) for side in sides)
    canvas = tuple(max(least, side) for (least, _), side in zip(ranges, content, strict=True))
    corner = tuple((outer - inner) // 2 for outer, inner in zip(canvas, content, strict=True))
    margins = [(c, o - i - c) for c, o, i in zip(corner, canvas, content, strict=True)]
    placed = np.pad(resized(image, content), [*margins, (0, 0)], mode="symmetric")
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    focus = compiled(placed[None])["map"][0, 0]
    if content == canvas:
        return np.clip(resized(focus, sides), 0, 1)
    focus = resized(focus, canvas)
    cut = focus[corner[0] : corner[0] + content[0], corner[1] : corner[1] + content[1]]
    return np.clip(resized(np.ascontiguousarray(cut), sides), 0, 1)


@pytest.mark.skipif(int(PIL.__version__.split(".")[0]) < 13, reason="Pillow 13 changed the order of its passes")
@pytest.mark.parametrize(
    ("dynamic", "fields", "ranges"),
    [
        (False, {"fit": "letterbox"}, [(64, 64), (64, 64)]),
        (True, {"fit": "letterbox"}, [(32, 640), (32, 640)]),
        (True, {"longest_side": 200}, [(32, 200), (32, 200)]),
    ],
)
def test_a_photograph_keeps_its_aspect(
    tiny_onnx: Callable[..., Path],
    open_engine: OpenEngine,
    dynamic: bool,
    fields: dict[str, Any],
    ranges: list[tuple[int, int]],
) -> None:
    """Its own mirrored pixels fill an input that it does not fill; the map is the same to the last bit."""
    file = tiny_onnx(dynamic=dynamic)
    document = file.with_name(f"{file.name}.json")
    said = json.loads(document.read_text(encoding="utf-8"))
    said["profiles"] = {}
    said["preprocess"] = (said["preprocess"] or {"mean": [0, 0, 0], "std": [1, 1, 1]}) | fields
    document.write_text(json.dumps(said), encoding="utf-8")
    engine = open_engine(file)
    for size in [*SIZES[:-1], (64, 64), (20, 1000), (10, 12), (1000, 20), (63, 65)]:
        expected = reference(file, photograph(size), ranges)
        np.testing.assert_array_equal(engine(photograph(size)), expected, err_msg=str(size))


def test_bytes_are_what_predict_writes(exported: Path, open_engine: OpenEngine) -> None:
    """Also for a crop, whose rows have gaps between them."""
    image = photograph((317, 451))[10:200, 20:300]
    assert not image.flags.c_contiguous
    engine = open_engine(exported)
    np.testing.assert_array_equal(engine(image, np.uint8), np.round(engine(image) * 255).astype(np.uint8))
    np.testing.assert_array_equal(engine(image), engine(np.ascontiguousarray(image)))
