"""Photographs find their masks, whatever the archives call them, and what is wrong is said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy.datasets import (
    KNOWN,
    Dataset,
    Pair,
    polarity,
    read_dataset,
    read_mask,
    read_split,
    split_names,
)
from r2mrf_deploy.errors import InputError, UsageError
from r2mrf_deploy.report.tables import evaluation_line

Made = Callable[..., Path]


@pytest.fixture
def made(tmp_path: Path) -> Made:
    """A dataset of photographs 12×16 whose mask is white on the left half."""

    def make(
        images: tuple[str, ...] = ("a.jpg", "b.jpg"),
        masks: tuple[str, ...] = ("a.png", "b.png"),
        folders: tuple[str, str] = ("image", "gt"),
    ) -> Path:
        for folder, names in zip(folders, (images, masks), strict=True):
            (tmp_path / folder).mkdir()
            for name in names:
                pixels = np.zeros((12, 16), np.uint8)
                pixels[:, :8] = 255
                Image.fromarray(pixels).save(tmp_path / folder / name)
        return tmp_path

    return make


@pytest.mark.parametrize(
    ("images", "masks", "folders"),
    [
        (("a.jpg", "b.jpg"), ("a.png", "b.png"), ("image", "gt")),
        (("out_of_focus0001.jpg", "out_of_focus0002.jpg"), ("0001.png", "0002.png"), ("images", "masks")),
        (("1.jpg", "2.jpg", "10.jpg"), ("10.bmp", "1.bmp", "2.bmp"), ("source", "gt")),
        (("a.jpg", "b.jpg"), ("a.png", "b.png"), ("Images", "GT")),
        (("a.jpg", "b.jpg"), ("a.png", "b.png"), ("dut500-source", "dut500-gt")),
        (("a.jpg", "b.jpg"), ("a.png", "b.png"), ("xu100-source", "xu100-gt")),
        (("a.jpg", "b.jpg"), ("a.png", "b.png"), ("My_images", "my_image_masks")),
    ],
)
def test_layouts(made: Made, images: tuple[str, ...], masks: tuple[str, ...], folders: tuple[str, str]) -> None:
    dataset = read_dataset(made(images, masks, folders), white="sharp")
    assert [p.image.name for p in dataset.pairs] == list(images)
    assert all(p.mask.stem.lstrip("0") in p.image.stem for p in dataset.pairs)
    assert dataset.image(0).shape == (12, 16, 3)


def test_polarity_is_what_is_said(made: Made) -> None:
    folder = made()
    sharp, blurred = (read_dataset(folder, white=w) for w in ("sharp", "blurred"))  # type: ignore[arg-type]
    assert sharp.truth(0)[:, :8].all() and not sharp.truth(0)[:, 8:].any()
    assert np.array_equal(blurred.mask(0), 1 - sharp.mask(0)) and sharp.mask(0).dtype == np.float32
    assert polarity("cuhk", None) == "blurred" and polarity("dut", "sharp") == "sharp" and polarity(None, "sharp")
    assert {k.white for k in KNOWN.values()} == {"sharp", "blurred"}
    for dataset, white, said in (
        (None, None, "`white`"),
        ("dut", "blurred", "sharp, not blurred"),
        ("dot", None, "dut"),
    ):
        with pytest.raises(UsageError, match=said):
            polarity(dataset, white)  # type: ignore[arg-type]


def test_folders_that_could_both_be_meant_are_not_guessed(made: Made) -> None:
    folder = made(folders=("test-source", "test-gt"))
    (folder / "train-source").mkdir()
    with pytest.raises(
        InputError, match=r"2 folders of images: test-source, train-source; name one with `image_folder`"
    ):
        read_dataset(folder, white="sharp")
    assert len(read_dataset(folder, white="sharp", image_folder="test-source")) == 2


def test_what_a_published_archive_holds_beside_it_is_left_out(made: Made) -> None:
    names = ("motion0001", "out_of_focus0001", "out_of_focus0002")
    folder = made(tuple(f"{n}.jpg" for n in names), tuple(f"{n}.png" for n in names))
    cuhk = read_dataset(folder, white="blurred", dataset="cuhk")
    assert [p.name for p in cuhk.pairs] == list(names[1:]) and cuhk.left_out == 1
    assert "(1 more in its folder" in evaluation_line(cuhk, "sharp", len(cuhk))
    assert len(read_dataset(folder, white="sharp", dataset="dut")) == len(read_dataset(folder, white="sharp")) == 3


def test_a_split_chooses_and_orders(made: Made, tmp_path: Path) -> None:
    folder, split = made(("a.jpg", "b.jpg", "c.jpg"), ("a.png", "b.png")), tmp_path / "split.txt"
    split.write_text("b.jpg\n\n# a comment\na  # without its suffix\n")
    assert [p.name for p in read_dataset(folder, white="sharp", split=split).pairs] == ["b", "a"]
    for text, said in (
        ("a\nbb\n", "did you mean 'b'|choose"),
        ("\n", "names no"),
        ("a\na\n", "a more than once"),
        ("c\n", "no mask"),
    ):
        split.write_text(text)
        with pytest.raises(InputError, match=said):
            read_dataset(folder, white="sharp", split=split)


def test_what_is_wrong_is_said(made: Made, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_dataset(tmp_path / "no", white="sharp")
    with pytest.raises(InputError, match="has no folder of images"):
        read_dataset(tmp_path, white="sharp")
    folder = made(("a.jpg", "b.jpg", "c.jpg"), ("a.png",))
    with pytest.raises(InputError, match=r"there is no mask for 2 of 3 photographs: b.jpg, c.jpg"):
        read_dataset(folder, white="sharp")
    with pytest.raises(InputError, match="no folder of masks"):
        read_dataset(folder, white="sharp", mask_folder="truth")
    (folder / "gt" / "b.png").write_bytes(b"no picture")
    (folder / "image" / "c.jpg").unlink()
    with pytest.raises(InputError, match=r"b.png is not an image"):
        read_dataset(folder, white="sharp").mask(1)
    Image.new("L", (5, 5)).save(folder / "gt" / "b.png")
    with pytest.raises(InputError, match="5×5, its photograph 12×16"):
        read_dataset(folder, white="sharp").mask(1)
    Image.new("RGB", (16, 12), "red").save(folder / "gt" / "b.png")
    with pytest.raises(InputError, match="coloured"):
        read_dataset(folder, white="sharp").mask(1)
    Image.new("L", (16, 12)).save(folder / "image" / "a.png")
    with pytest.raises(InputError, match="same name"):
        read_dataset(folder, white="sharp")


def _numbered(prefix: str, suffix: str, *numbers: int) -> tuple[str, ...]:
    return tuple(f"{prefix}{number:04}{suffix}" for number in numbers)


def test_the_published_split_of_cuhk() -> None:
    """Disjoint, and together the 704 photographs of the archive."""
    train, test = read_split("cuhk-train"), read_split("cuhk-test")
    assert (len(train), len(test)) == (604, 100) and not set(train) & set(test)
    assert sorted(train + test) == [f"out_of_focus{number:04}" for number in range(1, 705)]


def test_the_shipped_weights_validation_is_apart_from_what_they_are_trained_on() -> None:
    fit, validation, train = (read_split(f"cuhk-{name}") for name in ("fit", "validation", "train"))
    assert len(validation) == 60 and not set(fit) & set(validation)
    assert sorted(fit + validation) == sorted(train)


@pytest.mark.parametrize("name", split_names())
def test_every_split_in_the_package_is_one(name: str) -> None:
    """Of photographs of CUHK, none twice: a file in the folder is all that a split needs."""
    names = read_split(name)
    assert len(set(names)) == len(names) and set(names) <= set(read_split("cuhk-train") + read_split("cuhk-test"))


def test_a_published_split_is_known_by_its_name(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    names = _numbered("out_of_focus", "", *range(1, 705))
    folder = made(tuple(f"{n}.jpg" for n in names), tuple(f"{n}.png" for n in names))
    test = read_dataset(folder, white="blurred", split="cuhk-test", dataset="cuhk")
    assert [p.name for p in test.pairs] == read_split("cuhk-test") and test.is_test_split
    train = read_dataset(folder, white="blurred", split=Path("cuhk-train"), dataset="cuhk")
    assert len(train) == 604 and not train.is_test_split
    assert not read_dataset(folder, white="blurred", split="cuhk-test").is_test_split, "nobody said that this is CUHK"
    with pytest.raises(InputError, match="cuhk-tset: no such file, and no shipped split; did you mean 'cuhk-test'"):
        read_dataset(folder, white="blurred", split="cuhk-tset")
    monkeypatch.chdir(folder)
    Path("cuhk-test").mkdir()
    assert read_dataset(folder, white="blurred", split="cuhk-test", dataset="cuhk").is_test_split, (
        "a folder is no split"
    )
    Path("cuhk-test").rmdir()
    Path("cuhk-test").write_text("out_of_focus0026\n")
    found = read_dataset(folder, white="blurred", split="cuhk-test", dataset="cuhk")
    assert [p.name for p in found.pairs] == ["out_of_focus0026"] and not found.is_test_split, "a file wins"


def test_a_shipped_split_of_another_dataset_is_refused(made: Made) -> None:
    folder = made(_numbered("", ".jpg", *range(1, 705)), _numbered("", ".png", *range(1, 705)))
    for dataset in ("dut", "cuhk-320"):
        with pytest.raises(InputError, match=f"`split` cuhk-test names photographs of another dataset than {dataset}"):
            read_dataset(folder, white="sharp", split="cuhk-test", dataset=dataset)


def test_a_split_finds_photographs_by_the_number_at_the_end(made: Made, tmp_path: Path) -> None:
    split = tmp_path / "split.txt"
    split.write_text("out_of_focus0003.jpg\nout_of_focus0001.JPG\n")
    bare = made(_numbered("", ".jpg", 1, 2, 3), _numbered("", ".png", 1, 2, 3))
    assert [p.name for p in read_dataset(bare, white="sharp", split=split).pairs] == ["0003", "0001"]
    split.write_text("0002\n")
    assert [p.name for p in read_dataset(bare, white="sharp", split=split).pairs] == ["0002"]


@pytest.mark.parametrize(
    ("images", "masks", "lacking"),
    [
        (("1.jpg", "3.jpg"), ("1.png", "3.png"), 2),  # numbered anew, in another order
        (("motion0001.jpg", "motion0003.jpg"), ("motion0001.png", "motion0003.png"), 2),  # other photographs
        (("0001.jpg", "0002.jpg"), ("0001.png", "0002.png"), 1),  # one of them is missing
    ],
)
def test_another_photograph_is_never_taken_for_that_of_a_split(
    made: Made, tmp_path: Path, images: tuple[str, ...], masks: tuple[str, ...], lacking: int
) -> None:
    split = tmp_path / "split.txt"
    split.write_text("out_of_focus0001\nout_of_focus0003\n")
    with pytest.raises(InputError, match=f"the dataset lacks {lacking} of 2 names"):
        read_dataset(made(images, masks), white="blurred", split=split)


def test_the_folders_of_dut_s_archive(made: Made) -> None:
    """It names those of the photographs without a word for photograph, and holds two pairs."""
    folder = made(folders=("DUT500S-Testing", "DUT500GT-Testing"))
    assert len(read_dataset(folder, white="sharp", dataset="dut")) == 2
    for name in ("DUT600S_Training", "DUT600GT_Training"):
        (folder / name).mkdir()
        Image.new("L", (16, 12)).save(folder / name / "7.png")
    with pytest.raises(InputError, match="DUT500S-Testing, DUT600S_Training; name one with `image_folder`"):
        read_dataset(folder, white="sharp", dataset="dut")
    for given in ({"image_folder": "DUT600S_Training"}, {"mask_folder": "DUT600GT_Training"}):
        assert [p.name for p in read_dataset(folder, white="sharp", dataset="dut", **given).pairs] == ["7"]  # type: ignore[arg-type]


@pytest.mark.parametrize(("dataset", "test"), [("dut", 500), ("cuhk-320", 100), ("ebd", 1605)])
def test_a_dataset_without_names_is_the_test_split_if_it_has_as_many_photographs(dataset: str, test: int) -> None:
    pairs = [Pair(str(n), Path(), Path()) for n in range(test)]
    assert Dataset(Path(), "sharp", pairs, published=dataset).is_test_split
    assert not Dataset(Path(), "sharp", pairs[1:], published=dataset).is_test_split
    assert not Dataset(Path(), "sharp", pairs).is_test_split


LEFT = np.zeros((12, 16), np.uint8)
LEFT[:, :8] = 1


def _rgba(colour: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([colour, colour, colour, alpha]).astype(np.uint8), "RGBA")


def _palette(colours: list[int], **options: object) -> Image.Image:
    image = Image.fromarray(LEFT, "P")
    image.putpalette(colours)
    image.info |= options
    return image


MASKS = {
    "0 and 255": Image.fromarray(255 * LEFT),
    "0 and 1": Image.fromarray(LEFT),
    "0 and 1 in three channels": Image.fromarray(np.dstack([LEFT] * 3)),
    "one bit": Image.fromarray(LEFT > 0),
    "16 bits": Image.fromarray(65535 * LEFT.astype(np.uint16)),
    "0 and 1 in 16 bits": Image.fromarray(LEFT.astype(np.uint16)),
    "0 and 255 in 16 bits": Image.fromarray(255 * LEFT.astype(np.uint16)),
    "0 and 255 in 32 bits": Image.fromarray(255 * LEFT.astype(np.int32)),
    "0 and 1 in 32 bits": Image.fromarray(LEFT.astype(np.int32)),
    "float": Image.fromarray(LEFT.astype(np.float32)),
    "float to 255": Image.fromarray(255 * LEFT.astype(np.float32)),
    "in the alpha channel of white": _rgba(255 + 0 * LEFT, 255 * LEFT),
    "in the colour, all opaque": _rgba(255 * LEFT, 255 + 0 * LEFT),
    "in both": _rgba(255 * LEFT, 255 * LEFT),
    "grey and alpha": Image.merge("LA", [Image.fromarray(255 * LEFT), Image.new("L", (16, 12), 255)]),
    "a palette of black and white": _palette([0, 0, 0, 255, 255, 255]),
    "a palette of 0 and 1": _palette([0, 0, 0, 1, 1, 1]),
    "a palette whose white is transparent black": _palette([255, 255, 255, 255, 255, 255], transparency=0),
}


@pytest.mark.parametrize("kind", MASKS)
def test_a_mask_is_read_by_its_values(tmp_path: Path, kind: str) -> None:
    path = tmp_path / ("x.tif" if MASKS[kind].mode in "IF" else "x.png")
    MASKS[kind].save(path)
    found = read_mask(path)
    assert found.dtype == np.float32 and np.array_equal(found, LEFT), kind


@pytest.mark.parametrize("value", [0, 255])
def test_a_mask_of_one_class_is_a_mask(tmp_path: Path, value: int) -> None:
    Image.new("L", (16, 12), value).save(tmp_path / "x.png")
    assert np.array_equal(read_mask(tmp_path / "x.png"), np.full((12, 16), value / 255))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.fromarray(2 * LEFT), "from 0 to 2, and a mask is read if they are 0 to 1, 0 to 255, 0 to 65535"),
        (Image.fromarray(100 * LEFT), "from 0 to 100"),
        (Image.fromarray(LEFT.astype(np.int32) << 30), "from 0 to 1.0"),
        (Image.fromarray(-LEFT.astype(np.int32)), "from -1 to 0"),
        (Image.fromarray(LEFT.astype(np.float32) * np.float32("nan")), "from nan"),
        (
            Image.fromarray(np.repeat(np.arange(0, 256, 16, dtype=np.uint8)[None], 12, 0)),
            "81 % of its pixels are neither",
        ),
        (Image.fromarray(128 + 127 * LEFT), "50 % of its pixels are neither black nor white"),
        (Image.fromarray(np.dstack([LEFT, 0 * LEFT, 0 * LEFT])), "is coloured"),
        (_palette([0, 0, 0, 128, 0, 0]), "is coloured"),
        (_rgba(0 * LEFT, 255 * LEFT), "alpha channel differs from its colours: save the mask alone"),
        (_rgba(255 * LEFT, 255 * (1 - LEFT)), "alpha channel differs"),
    ],
)
def test_a_doubtful_mask_is_refused(tmp_path: Path, image: Image.Image, said: str) -> None:
    path = tmp_path / ("x.tif" if image.mode in "IF" else "x.png")
    image.save(path)
    with pytest.raises(InputError, match=said):
        read_mask(path)
