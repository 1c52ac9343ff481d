"""Photographs of every mode come in as upright uint8 RGB; what is not a photograph is refused."""

from __future__ import annotations

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
