"""Whatever a program has a photograph in becomes the same uint8 RGB; what is no photograph is refused with the cure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import images
from r2mrf_deploy.errors import InputError
from r2mrf_deploy.pixels import as_pixels

RGB = np.random.default_rng(0).integers(0, 256, (7, 9, 3), np.uint8)
RGB[0, 0], RGB[0, 1] = 0, 255
GREY = RGB[:, :, 0]


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a,
        lambda a: a.astype(np.uint16) * 257,
        lambda a: a.astype(np.uint16),
        lambda a: (a.astype(np.uint16) * 257).astype(">u2"),
        lambda a: a.astype(np.float32) / 255,
        lambda a: a.astype(np.float64) / 255,
        lambda a: (a / 255).astype(np.float16),
        lambda a: np.asfortranarray(a),
        lambda a: a.repeat(2, 1)[:, ::2],
    ],
)
def test_arrays_of_every_type_and_shape(change: Any) -> None:
    grey_alpha = np.dstack([RGB, GREY])
    grey = GREY[:, :, None].repeat(3, 2)
    for given, expected in ((RGB, RGB), (grey_alpha, RGB), (GREY, grey), (GREY[:, :, None], grey)):
        value = change(given)
        before = value.copy()
        found = as_pixels(value)
        assert (found.dtype, found.flags.c_contiguous) == (np.uint8, True)
        assert np.array_equal(found, expected) and np.array_equal(value, before)


def test_what_is_right_already_is_not_copied() -> None:
    assert np.shares_memory(as_pixels(RGB), RGB)


def test_bool_is_black_and_white() -> None:
    found = as_pixels(GREY > 100)
    assert found.shape == (7, 9, 3) and np.array_equal(found[:, :, 1], np.where(GREY > 100, 255, 0))


def test_floats_are_rounded_to_the_nearest_level_and_may_overshoot_by_half_a_one() -> None:
    values = np.array([[0, 0.5, 1, 1.001, -0.001, 100.4 / 255, 100.6 / 255]], np.float32)
    assert as_pixels(values)[0, :, 0].tolist() == [0, 128, 255, 255, 0, 100, 101]


def test_floats_are_converted_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "STRIP", 20)
    assert np.array_equal(as_pixels(RGB.astype(np.float32) / 255), RGB)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I", "I;16", "YCbCr", "HSV", "LAB"])
def test_pillow_images_of_every_mode(mode: str) -> None:
    image = Image.fromarray(RGB)
    if mode in ("I", "I;16"):
        image = Image.fromarray(GREY).convert("I").convert(mode)
    elif mode == "LAB":
        image = Image.new("LAB", (9, 7), (50, 128, 128))
    else:
        image = image.convert(mode)
    found = as_pixels(image)
    assert (found.shape, found.dtype) == ((7, 9, 3), np.uint8)
    if mode in ("RGB", "RGBA", "CMYK"):
        assert np.array_equal(found, RGB)
    if mode in ("I", "I;16"):
        assert np.array_equal(found, GREY[:, :, None].repeat(3, 2))


def test_pillow_images_are_turned_upright_as_files_are(tmp_path: Any) -> None:
    image = Image.fromarray(RGB)
    image.getexif()[0x0112] = 6
    assert np.array_equal(as_pixels(image), np.rot90(RGB, -1))
    image.save(tmp_path / "x.png", exif=image.getexif())
    with Image.open(tmp_path / "x.png") as opened:
        assert np.array_equal(as_pixels(opened), images.read(tmp_path / "x.png"))
    with pytest.raises(InputError, match="the Pillow image: float pixels"):
        as_pixels(Image.fromarray(GREY.astype(np.float32)))
    (tmp_path / "x.png").write_bytes((tmp_path / "x.png").read_bytes()[:120])
    with Image.open(tmp_path / "x.png") as opened, pytest.raises(InputError, match="the Pillow image is damaged"):
        as_pixels(opened)


def test_tensors() -> None:
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    colour = torch.from_numpy(RGB.copy()).permute(2, 0, 1)
    grey = GREY[:, :, None].repeat(3, 2)
    cases = ((colour, RGB), (colour[:1], grey), (colour[0], grey))
    for tensor, expected in cases:
        for given in (tensor, tensor / 255, (tensor / 255).double(), (tensor / 255).half().requires_grad_()):
            assert np.array_equal(as_pixels(given), expected)
    rough = as_pixels((colour / 255).bfloat16())
    np.testing.assert_allclose(rough.astype(int), RGB, atol=1)  # 8 bits of mantissa
    assert np.array_equal(as_pixels(colour > 100), np.where(RGB > 100, 255, 0))
    refused = {
        r"use \.permute\(2, 0, 1\)": colour.permute(1, 2, 0),
        "one photograph at a time": colour[None],
        "convert it to RGB": torch.zeros(5, 4, 5),
        "is empty": colour[:, :0],
        "undo a normalisation": colour.float(),
        "not int64": colour.long(),
        r"a tensor \[H, W\]": colour[0, 0],
    }
    for cure, bad in refused.items():
        with pytest.raises(InputError, match=cure):
            as_pixels(bad)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (RGB.transpose(2, 0, 1), r"this is \[3, 7, 9\]: use \.transpose\(1, 2, 0\)"),
        (RGB[None], r"this is \[1, 7, 9, 3\]: give one photograph at a time"),
        (np.zeros((7, 9, 2), np.uint8), "convert it to RGB"),
        (np.zeros(7, np.uint8), r"an array \[H, W\], .*this is \[7\]"),
        (np.zeros((), np.uint8), r"this is \[\]"),
        (np.zeros((0, 9, 3), np.uint8), "is empty"),
        (np.zeros((7, 0)), "is empty"),
        (RGB.astype(np.float32), "from 0 to 255: divide them by what white is"),
        (RGB / 127.5 - 1, r"in \[0, 1\], and these are from -1 to 1"),
        (np.full((7, 9), np.nan), "from nan to nan"),
        (np.where(GREY == 255, np.nan, 0.5), "replace NaN"),
        (np.where(GREY == 255, np.inf, 0.5), "to inf"),
        (RGB.astype(np.int64), "not int64: if they are 0 to 255, convert them to uint8"),
        (RGB.astype(np.complex64), "not complex64"),
        (RGB.astype(object), "not object"),
        (RGB.tolist(), "an array, a Pillow image or a tensor, not list: read a file"),
        ("cat.jpg", r"not str: read a file with r2mrf_deploy\.images\.read"),
        (None, "not NoneType"),
    ],
)
def test_what_is_no_photograph_is_refused_with_the_cure(value: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_pixels(value)
