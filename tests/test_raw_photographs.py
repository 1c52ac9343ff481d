"""Raw photographs are developed: in the right colours, upright, and at half the size where that is enough."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import images, raw_photographs
from r2mrf_deploy.errors import InputError
from tests.fuzzing import mutations, survivors

UPRIGHT = np.full((40, 64, 3), 0.2)
"""Linear values of a scene: red, green and blue quarters, and a grey one."""
UPRIGHT[:20, :32] = (0.8, 0.1, 0.1)
UPRIGHT[:20, 32:] = (0.1, 0.8, 0.1)
UPRIGHT[20:, :32] = (0.1, 0.1, 0.8)
STORED = {1: UPRIGHT, 3: UPRIGHT[::-1, ::-1], 6: np.rot90(UPRIGHT), 8: np.rot90(UPRIGHT, -1)}
"""EXIF orientation -> the scene as the sensor sees it."""


@pytest.fixture(autouse=True)
def _rawpy(request: pytest.FixtureRequest) -> None:
    if "without_rawpy" not in request.node.name:
        pytest.importorskip("rawpy", reason="needs rawpy")


def _mosaic(scene: np.ndarray) -> np.ndarray:
    """What a sensor with filters RG/GB sees of linear values [H, W, 3] in [0, 1]: uint16 [H, W]."""
    seen = scene[:, :, 1].copy()
    seen[::2, ::2], seen[1::2, 1::2] = scene[::2, ::2, 0], scene[1::2, 1::2, 2]
    return (seen * 65535).astype(np.uint16)


def _dng(seen: np.ndarray, orientation: int = 1, declared: tuple[int, int] | None = None, grey: bool = False) -> bytes:
    """An uncompressed DNG (Adobe, DNG 1.4) of a sensor's values, uint16 [H, W]; `declared` is the size that it claims."""
    height, width = declared or seen.shape
    to_camera = (3.2406, -1.5372, -0.4986, -0.9689, 1.8758, 0.0415, 0.0557, -0.2040, 1.0570)  # XYZ to linear sRGB
    tags: dict[int, tuple[int, bytes]] = {
        254: _longs(0), 256: _longs(width), 257: _longs(height), 258: _shorts(16), 259: _shorts(1),
        262: _shorts(34892 if grey else 32803), 271: _text("Maker"), 272: _text("Camera"), 273: _longs(0),
        274: _shorts(orientation), 277: _shorts(1), 278: _longs(height), 279: _longs(seen.nbytes), 284: _shorts(1),
        33421: _shorts(2, 2), 33422: (1, bytes([0, 1, 1, 2])), 50706: (1, bytes([1, 4, 0, 0])), 50708: _text("Camera"),
        50714: _longs(0), 50717: _longs(65535), 50721: (10, b"".join(_ratio(v) for v in to_camera)),
        50728: (5, 3 * _ratio(1)), 50778: _shorts(21),
    }  # fmt: skip
    if grey:
        for tag in (33421, 33422, 50721, 50728, 50778):
            del tags[tag]
    start = 8 + 2 + 12 * len(tags) + 4
    tags[273] = _longs(start + sum(len(v) + len(v) % 2 for _, v in tags.values() if len(v) > 4))
    entries, values = b"", b""
    for tag, (kind, value) in sorted(tags.items()):
        count = len(value) // {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 10: 8}[kind]
        where = struct.pack("<I", start + len(values)) if len(value) > 4 else value.ljust(4, b"\0")
        entries += struct.pack("<HHI", tag, kind, count) + where
        values += value + bytes(len(value) % 2) if len(value) > 4 else b""
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + values + seen.tobytes()


def _shorts(*values: int) -> tuple[int, bytes]:
    return 3, struct.pack(f"<{len(values)}H", *values)


def _longs(*values: int) -> tuple[int, bytes]:
    return 4, struct.pack(f"<{len(values)}I", *values)


def _text(value: str) -> tuple[int, bytes]:
    return 2, value.encode() + b"\0"


def _ratio(value: float) -> bytes:
    return struct.pack("<ii", round(10000 * value), 10000)


def _assert_is_the_scene(pixels: np.ndarray) -> None:
    height, width, _ = pixels.shape
    middles = [pixels[y * height // 4, x * width // 4].astype(int) for y in (1, 3) for x in (1, 3)]
    for channel, colour in enumerate(middles[:3]):
        assert colour.argmax() == channel and colour.max() > 2 * np.median(colour), middles
    assert np.ptp(middles[3]) < 10 and 60 < middles[3].mean() < 200, middles


@pytest.mark.parametrize("orientation", STORED)
def test_a_raw_photograph_is_developed_in_its_colours_and_upright(tmp_path: Path, orientation: int) -> None:
    path = tmp_path / "x.DNG"
    path.write_bytes(content := _dng(_mosaic(STORED[orientation]), orientation))
    assert images.size(path) == (40, 64) and images.is_picture(path) and images.find([tmp_path]) == [path]
    for at_least, shape in ((None, (40, 64)), (33, (40, 64)), (32, (20, 32)), (1, (20, 32)), ((20, 32), (20, 32))):
        found = images.load(path, at_least)
        assert (found.pixels.shape, found.pixels.dtype) == ((*shape, 3), np.uint8)
        assert (found.size, found.note) == ((40, 64), "")
        _assert_is_the_scene(found.pixels)
        assert np.array_equal(images.load(content, at_least, name="s3://x.dng").pixels, found.pixels)
    assert np.array_equal(images.read(path), images.load(path, name="the third").pixels)


def test_half_the_size_of_odd_sides_is_rounded_up() -> None:
    content = _dng(_mosaic(np.random.default_rng(0).random((41, 65, 3))))
    for at_least, shape in ((None, (41, 65, 3)), (33, (21, 33, 3)), (34, (41, 65, 3))):
        found = images.load(content, at_least, name="x.dng")
        assert (found.pixels.shape, found.size) == (shape, (41, 65))


def test_white_balance_is_the_cameras() -> None:
    """A grey scene under light in which the sensor sees twice as much green as red and blue."""
    scene = np.full((40, 64, 3), 0.25) * (0.5, 1, 0.5)
    content = bytearray(_dng(_mosaic(scene)))
    neutral = content.index(3 * _ratio(1))
    content[neutral : neutral + 24] = _ratio(0.5) + _ratio(1) + _ratio(0.5)
    pixels = images.load(bytes(content), name="x.dng").pixels
    assert np.ptp(pixels[20, 30].astype(int)) < 6, pixels[20, 30]


def test_a_sensor_without_colours_gives_grey() -> None:
    scene = np.repeat(np.linspace(0.05, 0.9, 64)[None, :, None], 40, 0).repeat(3, 2)
    found = images.load(_dng(_mosaic(scene), grey=True), name="x.dng").pixels
    assert found.shape == (40, 64, 3)
    assert np.array_equal(found[..., 0], found[..., 2]) and found[20, 60, 0] > found[20, 5, 0] + 50


@pytest.mark.parametrize(
    ("name", "head", "raw"),
    [
        ("a.dng", b"II*\0\x08\0\0\0", True),
        ("s3://bucket/a.NEF", b"MM\0*", True),
        ("a.tif", b"II*\0\x10\0\0\0CR\x02\0", True),
        ("a", b"\0\0\0\x18ftypcrx \0\0\0\1", True),
        ("a", b"FUJIFILMCCD-RAW 0201", True),
        ("a.tif", b"II*\0\x08\0\0\0", False),
        ("a.dng", b"\xff\xd8\xff\xe0\0\x10JFIF", False),
        ("a.nef", b"\x89PNG\r\n\x1a\n", False),
        ("dng", b"II*\0\x08\0\0\0", False),
        ("a.heic", b"\0\0\0\x18ftypheic", False),
    ],
)
def test_what_is_a_raw_photograph(name: str, head: bytes, raw: bool) -> None:
    assert raw_photographs.is_raw(name, head) is raw


def test_a_jpeg_with_the_name_of_a_raw_photograph_is_read(tmp_path: Path) -> None:
    Image.fromarray(np.full((8, 9, 3), 77, np.uint8)).save(tmp_path / "x.dng", "JPEG")
    np.testing.assert_allclose(images.read(tmp_path / "x.dng"), 77, atol=1)


@pytest.mark.parametrize("content", [b"", b"not a photograph", b"II*\0" + b"\xff" * 300, "cut", "no values"])
def test_what_is_damaged_is_an_input_error_that_names_it(tmp_path: Path, content: bytes | str) -> None:
    if isinstance(content, str):
        content = _dng(_mosaic(UPRIGHT))[: {"cut": 3000, "no values": 200}[content]]
    (tmp_path / "x.dng").write_bytes(content)
    for source, name in ((tmp_path / "x.dng", ""), (content, "s3://x.dng")):
        for at_least in (None, 10):
            with pytest.raises(
                InputError, match=r"x\.dng is damaged, or a raw photograph of an unknown kind: LibRaw says '"
            ):
                images.load(source, at_least, name=name)
    with pytest.raises(InputError, match="no such file"):
        images.read(tmp_path / "absent.dng")
    with pytest.raises(InputError, match="is a folder"):
        images.load(tmp_path, name="x.dng")


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_damage_ends_in_an_error_of_ours_or_in_a_photograph(tmp_path: Path, count: int) -> None:
    whole = _dng(_mosaic(UPRIGHT))
    for found in survivors(tmp_path / "x.dng", mutations(whole, count, range(600)), images.read, InputError):
        assert isinstance(found, np.ndarray) and found.dtype == np.uint8 and found.shape[2] == 3


def test_the_limit_on_pixels_holds_before_anything_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = _mosaic(UPRIGHT)
    path = tmp_path / "x.dng"
    path.write_bytes(_dng(seen, declared=(20000, 30000)))
    for call in (images.load, images.size):
        with pytest.raises(InputError, match=r"x\.dng has more than 179 million pixels: scale it down first"):
            call(path)
    path.write_bytes(_dng(seen))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40 * 64 // 2 - 1)
    with pytest.raises(InputError, match="million pixels"):
        images.read(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert images.read(path).shape == (40, 64, 3)


def test_without_rawpy_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.dng").write_bytes(_dng(_mosaic(UPRIGHT)))
    monkeypatch.setitem(sys.modules, "rawpy", None)
    for call in (images.read, images.size):
        with pytest.raises(InputError, match=r'x\.dng needs rawpy: pip install "r2mrf-deploy\[formats\]"'):
            call(tmp_path / "x.dng")
