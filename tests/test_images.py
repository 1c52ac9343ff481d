"""Photographs of every mode come in as upright uint8 RGB; what is not a photograph is refused."""

from __future__ import annotations

import io
import os
import re
import struct
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import drawing, image_files, images
from r2mrf_deploy.errors import InputError
from tests.fuzzing import mutations, survivors

RAMP = np.arange(256, dtype=np.uint8).reshape(16, 16)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "1", "CMYK"])
def test_modes(tmp_path: Path, mode: str) -> None:
    path = tmp_path / ("x.tif" if mode == "CMYK" else "x.png")
    Image.fromarray(RAMP).convert("RGB").convert(mode).save(path)
    found = images.read(path)
    assert (found.shape, found.dtype) == ((16, 16, 3), np.uint8)
    if mode not in ("1", "P"):  # those keep fewer tones
        np.testing.assert_allclose(found, np.repeat(RAMP[:, :, None], 3, 2), atol=1)


def test_sixteen_bits_are_scaled_and_not_clipped(tmp_path: Path) -> None:
    wide = RAMP.astype(np.uint16) * 257
    for name in ("x.png", "x.tif"):
        Image.fromarray(wide).save(tmp_path / name)
        assert np.array_equal(images.read(tmp_path / name)[:, :, 1], RAMP)


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    upright = np.zeros((8, 4, 3), np.uint8)
    upright[0] = 255
    Image.fromarray(np.rot90(upright)).save(tmp_path / "x.png", exif=exif)
    assert np.array_equal(images.read(tmp_path / "x.png"), upright)


@pytest.mark.parametrize("name", ["text", "truncated", "empty", "float", "absent"])
def test_what_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.png"
    if name == "text":
        path.write_text("not an image")
    elif name == "truncated":
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)).save(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif name == "empty":
        path.write_bytes(b"")
    elif name == "float":
        path = tmp_path / "x.tif"
        Image.fromarray(RAMP.astype(np.float32)).save(path)
    with pytest.raises(InputError, match=path.name):
        images.read(path)


def test_find(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    a, b = tmp_path / "a.png", tmp_path / "b.jpg"
    assert images.find([tmp_path]) == [a, b]
    assert images.find([str(tmp_path / "*")]) == [a, b]
    assert images.find([b, tmp_path]) == [b, a], "an image is taken once"
    with pytest.raises(InputError, match="no such file"):
        images.find([tmp_path / "absent.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no images"):
        images.find([tmp_path / "empty"])


def test_overlay_shows_what_is_in_focus_and_darkens_the_rest() -> None:
    image = np.full((40, 40, 3), (200, 100, 50), np.uint8)
    focus = np.zeros((40, 40), np.float32)
    focus[10:30, 10:30] = 1
    shown = drawing.overlay(image, focus)
    assert np.array_equal(shown[20, 20], image[20, 20])
    assert len(set(shown[2, 2].tolist())) == 1 and shown[2, 2, 0] < 60
    assert np.array_equal(shown[10, 20], (255, 210, 0)), "the outline"


@pytest.mark.filterwarnings("error")
def test_the_limit_on_pixels_is_said_in_our_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns from there, and refuses from twice that on
    assert images.read(path).shape == (40, 40, 3) and images.size(path) == (40, 40)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)
    for call in (images.read, images.size):
        with pytest.raises(InputError, match="million pixels: scale it down"):
            call(path)


def _stored(upright: np.ndarray, orientation: int) -> Image.Image:
    """An image as a camera stores it that is upright once the EXIF orientation is applied (CIPA DC-008, table 6)."""
    inverse = {
        2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }  # fmt: skip
    image = Image.fromarray(upright)
    return image.transpose(inverse[orientation]) if orientation in inverse else image


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["x.png", "x.webp", "x.tif", "lzw.tif"])
def test_every_orientation_is_applied_once_to_pixels_and_size(tmp_path: Path, name: str, orientation: int) -> None:
    """Some versions of Pillow turn a TIFF, or its size, themselves."""
    upright = np.random.default_rng(0).integers(0, 256, (5, 9, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"x.tif": {"tiffinfo": {0x0112: orientation}}, "x.webp": {"lossless": True, "exif": exif}}
    options["lzw.tif"] = options["x.tif"] | {"compression": "tiff_lzw"}
    path = tmp_path / name
    _stored(upright, orientation).save(path, **options.get(name, {"exif": exif}))
    assert np.array_equal(images.read(path), upright) and images.size(path) == (5, 9)


ODD_EXIF = {
    "an entry beyond the end": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x05\0\0\0\xff\xff\xff\x7f\0\0\0\0",
    "no directory": b"II*\0\xff\xff\xff\x7f",
    "cut off": b"II*\0\x08\0\0\0\xff\xff\x12\x01",
    "not TIFF": b"not a TIFF header",
    "empty": b"",
    "a text for orientation": b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0six\0\0\0\0\0",
    "orientation 900": b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x84\x03\0\0\0\0\0\0",
}


@pytest.mark.parametrize("what", ODD_EXIF)
@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.webp"])
@pytest.mark.filterwarnings("error")
def test_pixels_are_read_where_exif_is_broken(tmp_path: Path, name: str, what: str) -> None:
    path = tmp_path / name
    Image.fromarray(RAMP).save(path, exif=b"Exif\0\0" + ODD_EXIF[what], **({"quality": 100} if name != "x.png" else {}))
    np.testing.assert_allclose(images.read(path)[:, :, 0], RAMP, atol=4)
    assert images.size(path) == (16, 16)


@pytest.mark.parametrize("broken", [struct.error("unpack"), TypeError("NoneType"), RuntimeError("codec"), KeyError(7)])
def test_whatever_a_library_raises_over_exif_the_pixels_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Exception
) -> None:
    def raises(_: object) -> None:
        raise broken

    for name in ("x.png", "x.tif"):
        Image.fromarray(RAMP).save(tmp_path / name)
    monkeypatch.setattr(Image.Image, "getexif", raises)
    for name in ("x.png", "x.tif"):
        assert np.array_equal(images.read(tmp_path / name)[:, :, 0], RAMP) and images.size(tmp_path / name) == (16, 16)


@pytest.mark.parametrize("broken", [struct.error("unpack"), RuntimeError("Failed to decode frame 0"), MemoryError()])
def test_whatever_a_decoder_raises_is_an_input_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: Exception
) -> None:
    def raises(_: object) -> None:
        raise broken

    Image.fromarray(RAMP).save(tmp_path / "x.png")
    monkeypatch.setattr(Image.Image, "load", raises)
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", raises)
    with pytest.raises(InputError, match=r"x\.png (is damaged, or of|does not fit in memory)"):
        images.read(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("kind", "values"), [("int32", RAMP), ("uint16", RAMP), ("int32", 257 * RAMP.astype(np.int32))]
)
def test_values_of_8_bits_in_a_wider_type_are_not_black(tmp_path: Path, kind: str, values: np.ndarray) -> None:
    path = tmp_path / "x.tif"
    Image.fromarray(values.astype(kind)).save(path)
    assert np.array_equal(images.read(path)[:, :, 2], RAMP)


@pytest.mark.skipif(os.name == "nt", reason="the program is a shell script")
def test_no_image_starts_a_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """For an EPS, whatever its name, Pillow runs the program `gs`."""
    program = tmp_path / "gs"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / "x.png"
    Image.fromarray(np.dstack([RAMP] * 3)).save(path, "EPS")
    for call in (images.read, images.size, images.channels):
        with pytest.raises(InputError, match=r"not an image of a supported format \(JPEG, PNG"):
            call(path)
    assert not (tmp_path / "started").exists()


def test_every_format_that_is_read_can_be(tmp_path: Path) -> None:
    Image.init()
    for number, (name, suffixes) in enumerate(images.FORMATS.items()):
        if name in Image.SAVE:
            path = tmp_path / f"{number}{suffixes[0]}"
            Image.fromarray(np.dstack([RAMP] * 3)).save(path)
            np.testing.assert_allclose(images.read(path).astype(int).mean(), RAMP.mean(), atol=3)
    assert len(images.find([tmp_path])) > 7


def test_what_macos_puts_beside_a_file_is_no_photograph(tmp_path: Path) -> None:
    for name in ("a.jpg", "._a.jpg"):
        (tmp_path / name).write_bytes(b"\0\x05\x16\x07")
    assert images.find([tmp_path]) == images.find([str(tmp_path / "*")]) == [tmp_path / "a.jpg"]


def test_a_photograph_of_many_strips_is_that_of_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (53, 41, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    _stored(upright, 6).save(tmp_path / "x.png", exif=exif)
    focus = upright[:7, :9, 0].astype(np.float32) / 255
    whole, shrunk = images.resize(focus, (500, 300)), images.resize(upright, (20, 30))
    monkeypatch.setattr(images, "STRIP", 100)
    assert np.array_equal(images.read(tmp_path / "x.png"), upright)
    # Pillow takes a strip's edges as float32
    np.testing.assert_allclose(images.resize(focus, (500, 300)), whole, atol=1e-5)
    np.testing.assert_allclose(images.resize(upright, (20, 30)), shrunk, atol=1)


def test_a_large_overlay_is_drawn_at_the_size_at_which_it_is_looked_at() -> None:
    image = np.full((40, 3000, 3), (200, 100, 50), np.uint8)
    focus = np.zeros((40, 3000), np.float32)
    focus[:, 1500:] = 1
    shown = drawing.overlay(image, focus)
    assert shown.shape == (27, drawing.OVERLAY_SIDE, 3)
    assert np.array_equal(shown[13, 1900], image[0, 0]) and shown[13, 100].max() < 60
    assert drawing.overlay(image, focus, 3000).shape == image.shape
    assert drawing.overlay(image[:1, :1], focus[:1, :1], 1).shape == (1, 1, 3)


def test_what_is_encoded_is_what_is_read(tmp_path: Path) -> None:
    colours = np.dstack([RAMP, RAMP.T, 255 - RAMP])
    (tmp_path / "x.png").write_bytes(images.png(colours))
    (tmp_path / "x.jpg").write_bytes(images.jpeg(np.repeat(RAMP[:, :, None], 3, 2)))
    assert np.array_equal(images.read(tmp_path / "x.png"), colours)
    np.testing.assert_allclose(images.read(tmp_path / "x.jpg")[:, :, 1], RAMP, atol=6)
    assert np.array_equal(images.grey(np.array([[-1, 0, 0.5, 1, 2]], np.float32)), [[0, 0, 128, 255, 255]])


def _corners(height: int, width: int) -> np.ndarray:
    """Four colours, one in each quarter: which way up they are can be seen at any size and after any compression."""
    shown = np.full((height, width, 3), 120, np.uint8)
    shown[: height // 2, : width // 2] = (200, 30, 30)
    shown[: height // 2, width // 2 :] = (30, 200, 30)
    shown[height // 2 :, : width // 2] = (30, 30, 200)
    return shown


def _differ(found: np.ndarray, expected: np.ndarray) -> float:
    """Mean difference of two images of any sizes of the same proportions, in levels."""
    small = images.resize(np.ascontiguousarray(found), expected.shape[:2])
    return float(np.abs(small.astype(int) - expected).mean())


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif.tobytes()


@pytest.mark.parametrize(
    ("kind", "note"),
    [("GIF", "the first of 3 frames"), ("PNG", "the first of 3 frames"), ("WEBP", "the first of 3 frames"),
     ("TIFF", "the first of 3 pages"), ("MPO", "")],
)  # fmt: skip
def test_a_note_says_which_of_several_pictures_was_read(tmp_path: Path, kind: str, note: str) -> None:
    shown = _corners(40, 64)
    frames = [Image.fromarray(a) for a in (shown, shown[::-1].copy(), 255 - shown)]
    content = _encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    (tmp_path / "x.jpg").write_bytes(content)
    for source in (content, tmp_path / "x.jpg"):
        found = images.load(source)
        assert (found.note, found.size, found.pixels.shape) == (note, (40, 64), (40, 64, 3))
        assert _differ(found.pixels, shown) < 8, "lossy formats"
    assert np.array_equal(images.read(tmp_path / "x.jpg"), found.pixels)
    assert images.load(_encoded(frames[0], kind)).note == ""


def test_pages_that_are_damaged_do_not_keep_the_first_from_being_read(tmp_path: Path) -> None:
    shown = Image.fromarray(_corners(40, 64))
    content = _encoded(shown, "TIFF", save_all=True, append_images=[shown])
    first = struct.unpack_from("<I", content, 4)[0]
    entries = struct.unpack_from("<H", content, first)[0]
    second = struct.unpack_from("<I", content, first + 2 + 12 * entries)[0]
    damaged = bytearray(content)
    damaged[second : second + 2] = b"\xff\xff"
    found = images.load(bytes(damaged))
    assert np.array_equal(found.pixels, np.asarray(shown)) and found.note.startswith("the first of ")


@pytest.mark.parametrize(
    ("at_least", "expected"),
    [(None, (4000, 6000)), (3001, (4000, 6000)), (3000, (2000, 3000)), (2048, (2000, 3000)), (1500, (1000, 1500)),
     (10, (500, 750)), (9000, (4000, 6000)), ((1000, 1501), (2000, 3000)), ((1000, 1500), (1000, 1500))],
)  # fmt: skip
def test_a_jpeg_is_reduced_by_its_decoder_but_not_below_what_is_enough(
    large_jpeg: bytes, at_least: Any, expected: tuple[int, int]
) -> None:
    found = images.load(large_jpeg, at_least)
    assert (found.pixels.shape, found.size, found.note) == ((*expected, 3), (4000, 6000), "")
    assert _differ(found.pixels, _corners(40, 60)) < 2


@pytest.fixture(scope="module")
def large_jpeg() -> bytes:
    return _encoded(Image.fromarray(_corners(4000, 6000)), "JPEG")


@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_reduced_jpeg_is_upright_and_its_size_is_the_files(kind: str, orientation: int) -> None:
    upright = _corners(161, 243)  # neither is a multiple of 2
    exif = _oriented(orientation)
    stored = _stored(upright, orientation)
    several = {"save_all": True, "append_images": [stored]} if kind == "MPO" else {}
    content = _encoded(stored, kind, exif=exif, quality=95, **several)
    assert images.size(content) == (161, 243)
    for at_least, side in ((122, (81, 122)), (61, (41, 61)), ((41, 61), (41, 61)), ((42, 61), (81, 122))):
        found = images.load(content, at_least)
        assert (found.pixels.shape, found.size) == ((*side, 3), (161, 243))
        assert _differ(found.pixels, images.resize(upright, (20, 30))) < 4


def test_other_formats_are_read_whole(tmp_path: Path) -> None:
    upright = np.random.default_rng(0).integers(0, 256, (50, 90, 3), np.uint8)
    content = _encoded(_stored(upright, 6), "PNG", exif=_oriented(6))
    found = images.load(content, 10)
    assert np.array_equal(found.pixels, upright) and found.size == images.size(content) == (50, 90)


def test_content_is_read_as_the_file_is_and_messages_say_its_name(tmp_path: Path) -> None:
    colours = np.dstack([RAMP, RAMP.T, 255 - RAMP])
    (tmp_path / "x.png").write_bytes(content := images.png(colours))
    for at_least in (None, 4):
        assert np.array_equal(images.load(content, at_least).pixels, images.load(tmp_path / "x.png", at_least).pixels)
    for bad in (b"", b"not an image", content[:200]):
        with pytest.raises(InputError, match=r"^s3://photographs/a\.png (is|has)"):
            images.load(bad, name="s3://photographs/a.png")
        with pytest.raises(InputError, match=r"^the image is"):
            images.load(bad)
    with pytest.raises(InputError, match=r"^s3://a"):
        images.size(b"", name="s3://a")


def test_the_preview_in_a_raw_photograph_is_not_taken_for_it(tmp_path: Path) -> None:
    """The first directory of most raw photographs is a thumbnail, which Pillow would read whatever the suffix is."""
    Image.fromarray(RAMP).save(tmp_path / "x.tif", tiffinfo={254: 1, 330: 8})
    for call in (images.load, images.size, images.channels):
        with pytest.raises(InputError, match=r"x\.tif is a raw photograph: give it the suffix"):
            call(tmp_path / "x.tif")


def _heic(image: Image.Image, **options: Any) -> bytes:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    file = io.BytesIO()
    pillow_heif.from_pillow(image).save(file, **({"quality": 90} | options))
    return file.getvalue()


@pytest.mark.parametrize("suffix", [".heic", ".HIF", ".heif", ".jpg"])
def test_heic_is_read_whatever_it_is_called(tmp_path: Path, suffix: str) -> None:
    shown = _corners(40, 64)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(_heic(Image.fromarray(shown)))
    found = images.load(path, 10)
    assert (found.size, images.size(path), found.note) == ((40, 64), (40, 64), "")
    assert found.pixels.shape == shown.shape and _differ(found.pixels, shown) < 3
    assert images.find([tmp_path]) == [path] and images.is_picture(path)
    assert np.array_equal(images.load(path.read_bytes()).pixels, images.read(path))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_of_heic_is_applied_once(orientation: int) -> None:
    """It is written twice: as properties of the picture, which libheif applies, and in EXIF."""
    pytest.importorskip("pillow_heif", reason="needs pillow-heif").register_heif_opener()
    upright = _corners(40, 64)
    content = _encoded(_stored(upright, orientation), "HEIF", exif=_oriented(orientation), quality=90)
    assert orientation == 1 or b"irot" in content or b"imir" in content
    found = images.load(content)
    assert found.size == images.size(content) == (40, 64)
    assert _differ(found.pixels, upright) < 3


def test_orientation_in_exif_alone_means_nothing_in_heic() -> None:
    """ISO/IEC 23008-12, annex A: it is for information, and the properties of the picture are what counts."""
    pytest.importorskip("pillow_heif", reason="needs pillow-heif").register_heif_opener()
    upright = _corners(40, 64)
    exif = Image.Exif()
    exif[0x0112] = 6
    content = _encoded(Image.fromarray(upright), "HEIF", exif=exif, quality=90)
    if b"irot" in content:
        pytest.skip("this version of pillow-heif writes the property too")
    assert _differ(images.load(content).pixels, upright) < 3


def test_heic_of_10_bits_with_alpha_grey_and_of_several_pictures() -> None:
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    shown = _corners(40, 64)
    file = io.BytesIO()
    pillow_heif.from_bytes("RGB;16", (64, 40), (257 * shown.astype(np.uint16)).tobytes()).save(file, quality=90)
    assert _differ(images.load(file.getvalue()).pixels, shown) < 3
    alpha = np.dstack([shown, np.full((40, 64), 99, np.uint8)])
    assert _differ(images.load(_heic(Image.fromarray(alpha))).pixels, shown) < 3
    grey = Image.fromarray(shown).convert("L")
    assert _differ(images.load(_heic(grey)).pixels, np.asarray(grey.convert("RGB"))) < 3
    several = pillow_heif.from_pillow(Image.fromarray(255 - shown))
    several.add_from_pillow(Image.fromarray(shown))
    file = io.BytesIO()
    several.save(file, quality=90, primary_index=1)
    found = images.load(file.getvalue())
    assert found.note == "the main one of 2 pictures" and _differ(found.pixels, shown) < 3


def test_heic_without_pillow_heif_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.heic").write_bytes(b"\0\0\0\x1cftypheic\0\0\0\0mif1heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    image_files._register_heif.cache_clear()
    for call in (images.read, images.size, images.channels):
        with pytest.raises(InputError, match=r'x\.heic needs pillow-heif: pip install "r2mrf-deploy\[formats\]"'):
            call(tmp_path / "x.heic")


@pytest.mark.parametrize(
    ("brands", "heif"),
    [(b"heic\0\0\0\0mif1heic", True), (b"mif1\0\0\0\0mif1heic", True), (b"mif1\0\0\0\0mif1avif", False),
     (b"avif\0\0\0\0mif1miaf", False), (b"crx \0\0\0\1crx isom", False), (b"isom\0\0\0\0isommp42", False)],
)  # fmt: skip
def test_heif_is_known_by_its_brands(brands: bytes, heif: bool) -> None:
    head = struct.pack(">I", 8 + len(brands)) + b"ftyp" + brands
    assert image_files._is_heif(head) is heif
    assert not image_files._is_heif(head[:4] + b"free" + head[8:]) and not image_files._is_heif(b"")


@pytest.mark.parametrize("count", [10, pytest.param(300, marks=pytest.mark.slow)])
def test_damaged_heic_is_an_input_error_that_names_it(tmp_path: Path, count: int) -> None:
    whole = _heic(Image.fromarray(_corners(40, 64)))
    for length in (30, 200, len(whole) // 2, len(whole) - 50):
        (tmp_path / "x.heic").write_bytes(whole[:length])
        for source, name in ((tmp_path / "x.heic", ""), (whole[:length], "s3://x.heic")):
            with pytest.raises(InputError, match=r"x\.heic is damaged, or"):
                images.load(source, name=name)
    for found in survivors(tmp_path / "x.heic", mutations(whole, count), images.read, InputError):
        assert found.dtype == np.uint8 and found.shape[2] == 3


def test_the_limit_on_pixels_holds_for_heic_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _heic(Image.fromarray(_corners(40, 64)))
    (tmp_path / "x.heic").write_bytes(
        re.sub(rb"(?s)(ispe....)........", rb"\1" + struct.pack(">II", 30000, 30000), whole)
    )
    monkeypatch.setattr("pillow_heif.HeifImage.load", lambda _: pytest.fail("decoded"))
    for call in (images.read, images.size):
        with pytest.raises(InputError, match=r"x\.heic has more than 179 million pixels"):
            call(tmp_path / "x.heic")


def test_avif_is_read_by_pillow() -> None:
    Image.init()
    if "AVIF" not in Image.SAVE:
        pytest.skip("this Pillow has no AVIF")
    shown = _corners(40, 64)
    upright = _encoded(_stored(shown, 6), "AVIF", exif=_oriented(6), quality=90)
    assert images.load(upright).size == images.size(upright) == (40, 64)
    assert _differ(images.load(upright).pixels, shown) < 3


def test_half_a_reduction_by_the_decoder_is_near_that_of_the_whole() -> None:
    """Noise has the highest frequencies there are; smooth photographs differ less."""
    rough = np.random.default_rng(0).integers(0, 256, (320, 480, 3), np.uint8)
    content = _encoded(Image.fromarray(rough), "JPEG", quality=95)
    whole, reduced = images.load(content).pixels, images.load(content, 240).pixels
    assert reduced.shape == (160, 240, 3)
    expected, found = (images.resize(a, (80, 120)).astype(float) for a in (whole, reduced))
    assert 0.8 < found.std() / expected.std() < 1.1 and np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.95
