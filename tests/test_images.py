"""Photographs of every mode come in as upright uint8 RGB; what is not a photograph is refused."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import images
from r2mrf_deploy.errors import InputError

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
    shown = images.overlay(image, focus)
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
    shown = images.overlay(image, focus)
    assert shown.shape == (27, images.OVERLAY_SIDE, 3)
    assert np.array_equal(shown[13, 1900], image[0, 0]) and shown[13, 100].max() < 60
    assert images.overlay(image, focus, 3000).shape == image.shape
    assert images.overlay(image[:1, :1], focus[:1, :1], 1).shape == (1, 1, 3)


def test_what_is_encoded_is_what_is_read(tmp_path: Path) -> None:
    colours = np.dstack([RAMP, RAMP.T, 255 - RAMP])
    (tmp_path / "x.png").write_bytes(images.png(colours))
    (tmp_path / "x.jpg").write_bytes(images.jpeg(np.repeat(RAMP[:, :, None], 3, 2)))
    assert np.array_equal(images.read(tmp_path / "x.png"), colours)
    np.testing.assert_allclose(images.read(tmp_path / "x.jpg")[:, :, 1], RAMP, atol=6)
    assert np.array_equal(images.grey(np.array([[-1, 0, 0.5, 1, 2]], np.float32)), [[0, 0, 128, 255, 255]])
