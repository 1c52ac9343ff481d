"""Datasets as they lie on disk, made by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy.datasets import read_dataset, read_known, read_mask, read_split
from r2mrf_deploy.errors import InputError, UsageError


def make(folder: Path, names: tuple[str, ...] = ("a", "b", "c"), size: tuple[int, int] = (6, 8)) -> Path:
    """The left half of every mask is white."""
    for name in names:
        for sub in ("image", "gt"):
            (folder / sub).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size[::-1], (10, 20, 30)).save(folder / "image" / f"{name}.jpg")
        mask = np.zeros(size, np.uint8)
        mask[:, : size[1] // 2] = 255
        Image.fromarray(mask).save(folder / "gt" / f"{name}.png")
    return folder


def test_polarity_is_what_white_means(tmp_path: Path) -> None:
    make(tmp_path)
    sharp, blurred = (read_dataset(tmp_path, white=w) for w in ("sharp", "blurred"))
    assert [p.name for p in sharp] == ["a", "b", "c"] and len(sharp[1:]) == 2
    assert sharp.image(0).shape == (6, 8, 3) and sharp.image(0).dtype == np.uint8
    assert sharp.mask(0).dtype == np.float32 and sharp.mask(0)[:, :4].all() and not sharp.mask(0)[:, 4:].any()
    np.testing.assert_array_equal(blurred.mask(0), 1 - sharp.mask(0))
    np.testing.assert_array_equal(blurred.binary(0), ~sharp.binary(0))


def test_a_split_chooses_and_orders(tmp_path: Path) -> None:
    make(tmp_path)
    split = tmp_path / "test.txt"
    split.write_text("c.jpg  # with a suffix\n\nimage/a\n")
    assert [p.name for p in read_dataset(tmp_path, white="sharp", split=split)] == ["c", "a"]
    split.write_text("a\nax\n")
    with pytest.raises(InputError, match=r"1 of its names are not .* 'ax'"):
        read_dataset(tmp_path, white="sharp", split=split)


@pytest.mark.parametrize(("text", "message"), [("\n", "no names"), ("a\nb\na.png\n", "'a' is in it twice")])
def test_a_wrong_split(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "s.txt").write_text(text)
    with pytest.raises(InputError, match=message):
        read_split(tmp_path / "s.txt")


def test_names_with_dots_are_whole(tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("out_of_focus0.5\n")
    assert read_split(tmp_path / "s.txt") == ["out_of_focus0.5"]


def test_missing_and_wrong_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_dataset(tmp_path / "none", white="sharp")
    with pytest.raises(InputError, match="no folder of photographs"):
        read_dataset(tmp_path, white="sharp")
    make(tmp_path)
    (tmp_path / "gt" / "b.png").unlink()
    with pytest.raises(InputError, match=r"no mask for b\.jpg"):
        read_dataset(tmp_path, white="sharp")
    (tmp_path / "image" / "b.jpg").unlink()
    (tmp_path / "image" / "a.jpg").unlink()
    with pytest.raises(InputError, match=r"no photograph for a\.png"):
        read_dataset(tmp_path, white="sharp")
    (tmp_path / "image" / "c.jpg").unlink()
    with pytest.raises(InputError, match="holds no images"):
        read_dataset(tmp_path, white="sharp")


def test_sizes_must_match_and_masks_be_images(tmp_path: Path) -> None:
    make(tmp_path)
    Image.new("L", (3, 3)).save(tmp_path / "gt" / "a.png")
    (tmp_path / "gt" / "b.png").write_text("no image")
    data = read_dataset(tmp_path, white="sharp")
    with pytest.raises(InputError, match="is 3x3, its photograph 6x8"):
        data.mask(0)
    with pytest.raises(InputError, match="cannot be a mask"):
        data.mask(1)


def test_one_bit_and_colour_masks_are_read(tmp_path: Path) -> None:
    for mode, white in (("1", 1), ("L", 255), ("RGB", (255, 255, 255))):
        Image.new(mode, (4, 2), white).save(tmp_path / "m.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png"), np.ones((2, 4), np.float32))


def test_known_datasets_carry_their_polarity(tmp_path: Path) -> None:
    released, small = make(tmp_path / "released"), make(tmp_path / "small", ("a",), (320, 320))
    assert [read_known(n, released).white for n in ("cuhk", "dut", "ctcug")] == ["blurred", "sharp", "blurred"]
    assert [read_known(n, small).white for n in ("cuhk", "dut", "ctcug")] == ["sharp", "sharp", "blurred"]
    with pytest.raises(UsageError, match="did you mean 'cuhk'"):
        read_known("cuhkk", released)
