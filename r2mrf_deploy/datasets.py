"""Photographs with masks, read as people have them on disk; inside the toolkit 1 is in focus, always.

A mask's polarity is part of a dataset's definition and cannot be guessed from its pixels, so it is stated: by a known
dataset's name, or as what white means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

import numpy as np
from PIL import Image, UnidentifiedImageError

from r2mrf_deploy import images
from r2mrf_deploy.errors import InputError, UsageError, did_you_mean

White = Literal["sharp", "blurred"]
"""What 255 in a mask means."""

IMAGE_FOLDERS = ("image", "images", "img", "imgs", "source", "src")
MASK_FOLDERS = ("gt", "mask", "masks", "label", "labels")
"""Names that the folders of a pair go by, tried in this order."""


@dataclass(frozen=True)
class Known:
    """A published dataset, as released or as redistributed."""

    white: White
    """As released."""
    redistributed: White
    """At 320x320, as the DUT group gives it out."""


KNOWN = {
    "cuhk": Known("blurred", "sharp"),
    "dut": Known("sharp", "sharp"),
    "ctcug": Known("blurred", "blurred"),
}
REDISTRIBUTED_SIZE = (320, 320)


@dataclass(frozen=True)
class Labelled:
    """A photograph and its mask."""

    name: str
    """The stem that both files share."""
    image: Path
    mask: Path


class Dataset(Sequence[Labelled]):
    """Labelled photographs; nothing is decoded before it is asked for.

    Args:
        pairs: at least one.
        white: what 255 in the masks means.
    """

    def __init__(self, pairs: Sequence[Labelled], white: White) -> None:
        self.pairs = tuple(pairs)
        self.white = white

    def __len__(self) -> int:
        return len(self.pairs)

    @overload
    def __getitem__(self, index: int) -> Labelled: ...
    @overload
    def __getitem__(self, index: slice) -> Dataset: ...
    def __getitem__(self, index: int | slice) -> Labelled | Dataset:
        return Dataset(self.pairs[index], self.white) if isinstance(index, slice) else self.pairs[index]

    def image(self, index: int) -> np.ndarray:
        """The photograph, uint8 [H, W, 3] RGB. Raises InputError where it cannot be read."""
        return images.read(self.pairs[index].image)

    def mask(self, index: int) -> np.ndarray:
        """The mask, float32 [H, W] in [0, 1], 1 = in focus; grey where the file is.

        Raises:
            InputError: it cannot be read, or is not of the photograph's size.
        """
        pair = self.pairs[index]
        white = read_mask(pair.mask)
        wanted = _upright_size(pair.image)
        if white.shape != wanted:
            (h, w), (ih, iw) = white.shape, wanted
            raise InputError(f"{pair.mask} is {h}x{w}, its photograph {ih}x{iw}: they must be of one size")
        return white if self.white == "sharp" else 1 - white

    def binary(self, index: int) -> np.ndarray:
        """The mask at 0.5, bool [H, W], True = in focus, as the protocols score it. Raises as `mask`."""
        return self.mask(index) >= 0.5

    def load(self) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
        """Name, photograph and binary mask of each, in order. Raises as `image` and `mask`."""
        for i, pair in enumerate(self.pairs):
            yield pair.name, self.image(i), self.binary(i)


def read_dataset(
    folder: Path | str,
    *,
    white: White,
    split: Path | None = None,
    image_folder: str | None = None,
    mask_folder: str | None = None,
) -> Dataset:
    """Pairs of a folder: files of one stem, one in its image folder and one in its mask folder.

    Args:
        folder: holds `image/` and `gt/`, or folders called otherwise (`IMAGE_FOLDERS`, `MASK_FOLDERS`).
        white: what 255 in the masks means.
        split: a text file with a name per line, with or without suffix; the order is kept. By default all, sorted.
        image_folder, mask_folder: the folders' names, where they are others.

    Raises:
        InputError: a folder is missing or empty, a photograph or mask has no counterpart, or a name of the split is
            not there. Without a split every file must have its counterpart; with one, those it names.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    photographs = _by_stem(_subfolder(folder, image_folder, IMAGE_FOLDERS, "photographs"))
    masks = _by_stem(_subfolder(folder, mask_folder, MASK_FOLDERS, "masks"))
    if split is None:
        chosen = sorted(photographs)
        if orphans := sorted(masks.keys() - photographs.keys()):
            raise InputError(f"{folder}: no photograph for {_few(orphans, masks)}")
    else:
        chosen = read_split(split)
        if unknown := [n for n in chosen if n not in photographs]:
            hint = did_you_mean(unknown[0], photographs) if len(photographs) <= 20 else _near(unknown[0], photographs)
            raise InputError(f"{split}: {len(unknown)} of its names are not in {folder}, first {unknown[0]!r}: {hint}")
    if missing := [n for n in chosen if n not in masks]:
        raise InputError(f"{folder}: no mask for {_few(missing, photographs)}")
    return Dataset([Labelled(n, photographs[n], masks[n]) for n in chosen], white)


def read_known(name: str, folder: Path | str, *, split: Path | None = None) -> Dataset:
    """A dataset by its name (`KNOWN`), with its own polarity.

    CUHK has two: as released white is blurred, as redistributed at 320x320 white is sharp; the first mask's size tells
    them apart.

    Raises:
        UsageError: there is no dataset of that name.
        InputError: as `read_dataset`.
    """
    if name not in KNOWN:
        raise UsageError(f"no dataset {name!r}: {did_you_mean(name, KNOWN)}")
    known = KNOWN[name]
    read = read_dataset(folder, white=known.white, split=split)
    if known.redistributed != known.white and _upright_size(read[0].mask) == REDISTRIBUTED_SIZE:
        return Dataset(read.pairs, known.redistributed)
    return read


def read_split(path: Path) -> list[str]:
    """The names of a split, without suffixes or folders; blank lines and what follows `#` are left out.

    Raises:
        InputError: it cannot be read, is empty, or names something twice.
    """
    try:
        lines = [line.partition("#")[0].strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as e:
        raise InputError(f"{path} is not a split, a text file with a name per line: {e}") from None
    names = [_stem(line.replace("\\", "/").rpartition("/")[2]) for line in lines if line]
    if not names:
        raise InputError(f"{path}: no names in it; a split has a name per line")
    if twice := sorted({n for n in names if names.count(n) > 1}):
        raise InputError(f"{path}: {twice[0]!r} is in it twice")
    return names


def read_mask(path: Path) -> np.ndarray:
    """A mask's white as float32 [H, W] in [0, 1], whatever it means.

    Raises:
        InputError: it is not an image, or is damaged.
    """
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("L"), np.float32) / 255
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except UnidentifiedImageError:
        raise InputError(f"{path} is not an image that Pillow reads: it cannot be a mask") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise InputError(f"{path} is damaged: {e}") from None


def _subfolder(folder: Path, given: str | None, usual: Sequence[str], what: str) -> Path:
    for name in (given,) if given else usual:
        if (folder / name).is_dir():
            return folder / name
    raise InputError(f"{folder}: no folder of {what} in it ({given or ', '.join(usual)})")


def _by_stem(folder: Path) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in images.find([folder]):
        if path.stem in found:
            raise InputError(f"{folder}: {found[path.stem].name} and {path.name} have one name; remove one")
        found[path.stem] = path
    return found


def _stem(name: str) -> str:
    suffix = Path(name).suffix
    return name[: -len(suffix)] if suffix.lower() in images.SUFFIXES else name


def _upright_size(path: Path) -> tuple[int, int]:
    """(height, width) without decoding the pixels; turned where EXIF says so."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            return (width, height) if image.getexif().get(0x0112, 1) >= 5 else (height, width)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
        raise InputError(f"{path} cannot be read: {e}") from None


def _few(names: Sequence[str], files: dict[str, Path]) -> str:
    """The first three files, and how many more there are."""
    rest = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(files[n].name for n in names[:3]) + rest


def _near(name: str, known: dict[str, Path]) -> str:
    """As `did_you_mean`, without listing hundreds of names."""
    hint = did_you_mean(name, known)
    return hint if hint.startswith("did") else f"there are {len(known)} others, as {min(known)!r}"
