"""The two ends of a served pipeline are `predict`'s own steps, to the byte, and bounded."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import predict, sample_photographs
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, InputError
from r2mrf_deploy.manifest import Contract, Preprocess, TensorSpec
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.serving.pipeline import VERDICTS, Limits, decode, draw

EVERYTHING = ("png", "map", "scores", "verdict")


def contract(height: int | str, width: int | str, **preprocess: object) -> Contract:
    return Contract(
        kind="onnx",
        inputs=[TensorSpec(name="image", dtype="uint8", shape=[1, height, width, 3], layout="NHWC")],
        outputs=[TensorSpec(name="map", dtype="float32", shape=[1, 1, height, width], layout="NCHW")],
        preprocess=Preprocess(mean=(0, 0, 0), std=(1, 1, 1), **preprocess),  # type: ignore[arg-type]
    )


def jpeg(pixels: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels, and has none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.artifact
def test_a_file_becomes_what_predict_writes(exported: Path, tmp_path: Path) -> None:
    """Of an upright photograph, a large one that the decoder reduces, a turned one, and a tall one."""
    sample = sample_photographs.sample(sample_photographs.DEMO)
    turned = Image.Exif()
    turned[274] = 6
    files = {
        "plain.jpg": jpeg(sample),
        "large.jpg": jpeg(np.kron(sample, np.ones((12, 12, 1), np.uint8))),
        "turned.jpg": jpeg(sample, exif=turned),
        "tall.jpg": jpeg(sample[:, 100:140]),
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    own = Artifact.open(exported).contract
    assert own is not None
    with Predictor.open(exported) as predictor:
        paths = [tmp_path / name for name in files]
        wanted = list(predict.predict(predictor, paths, tmp_path / "out", predict.Outputs(("map", "scores"))))
        for prediction, (name, content) in zip(wanted, files.items(), strict=True):
            image, size = decode(content, own, Limits())
            focus = predictor.runner.run({"image": image})["map"][0, 0]
            found = draw(focus, size, own, EVERYTHING, Limits())
            assert prediction.map is not None and prediction.scores is not None
            assert found["png"] == prediction.map.read_bytes(), name
            assert json.loads(found["scores"]) == prediction.scores.to_dict(), name
            verdict = np.zeros(4)
            verdict[VERDICTS.index(prediction.scores.verdict)] = 1
            assert (found["verdict"] == verdict).all()
            small = found["map"]
            assert isinstance(small, np.ndarray) and small.dtype == np.float32
            assert small.shape[0] / small.shape[1] == pytest.approx(size[0] / size[1], rel=0.1) and small.std() > 0.01


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"<svg onload='alert(1)'/>", "is not an image"),
        (png_header(26755, 26755), "million pixels"),
        (png_header(11000, 11000), "has 121,000,000 pixels, and at most 100,000,000"),
        (jpeg(np.zeros((400, 400, 3), np.uint8))[:700], "is damaged"),
        (b"\xff\xd8" * 2000, "has 4,000 bytes, and at most 3,000"),
    ],
)
def test_what_is_no_photograph_is_refused(content: bytes, said: str) -> None:
    with pytest.raises(InputError, match=said):
        decode(content, contract(32, 32), Limits(bytes=3000))


def test_only_what_is_wanted_is_drawn() -> None:
    ramp = np.linspace(0, 1, 32 * 32, dtype=np.float32).reshape(32, 32)
    own = contract(32, 32)
    for kind in EVERYTHING:
        assert set(draw(ramp, (64, 48), own, {kind}, Limits())) == {kind}
    assert draw(ramp, (64, 48), own, (), Limits()) == {}


@pytest.mark.parametrize("size", [(0, 0), (-5, 7), (1, 2_000_000_000), (11_000, 11_000)])
def test_no_more_is_drawn_than_is_decoded(size: tuple[int, int]) -> None:
    """Whoever asks the drawing model itself names a size."""
    with pytest.raises(InputError, match="cannot be drawn: at most 100,000,000 pixels"):
        draw(np.zeros((32, 32), np.float32), size, contract(32, 32), EVERYTHING, Limits())


def test_a_map_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ArtifactError, match="not finite"):
        draw(np.full((32, 32), np.nan, np.float32), (64, 48), contract(32, 32), EVERYTHING, Limits())


def test_the_map_is_that_of_the_photograph_and_not_of_the_mirrored_edges() -> None:
    """A letterboxed input: the map between the edges is the content's."""
    own = contract(32, 32, fit="letterbox")
    focus = np.zeros((32, 32), np.float32)
    focus[8:24] = 1  # the content of a photograph twice as wide as high
    found = draw(focus, (100, 200), own, {"png", "map"}, Limits())
    assert isinstance(found["map"], np.ndarray) and found["map"].shape == (16, 32) and found["map"].min() == 1
    assert isinstance(found["png"], bytes)
    pixels = np.asarray(Image.open(io.BytesIO(found["png"])))
    assert pixels.shape == (100, 200) and pixels.min() == 255
