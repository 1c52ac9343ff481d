"""Photographs and their masks on disk.

A mask does not show whether white means sharp or blurred, so the caller always says it. In this package 1 is in focus.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from r2mrf_deploy import images
from r2mrf_deploy.errors import InputError, UsageError, did_you_mean, no_file, reading
from r2mrf_deploy.files import document
from r2mrf_deploy.wording import count, first

_LOG = logging.getLogger(__name__)
White = Literal["sharp", "blurred"]

_FOLDERS = {
    "image": ("image", "images", "img", "imgs", "source", "test_image", "train_image"),
    "mask": ("gt", "gts", "mask", "masks", "groundtruth", "test_gt", "train_gt"),
}
"""Names of the two folders in the datasets' archives, most common first; case is ignored."""
_WORDS = {"image": ("image", "img", "source"), "mask": ("gt", "mask", "truth")}
"""Parts of less common names: `dut500-source`, `dut500-gt`."""

_SCALES = (1, 255, 65535)
"""What white is in masks: of two labels, of 8 and of 16 bits."""
_MOST_GREY = 0.25
"""Largest share of grey pixels in a mask. In those of CUHK and DUT, resampled edges make up 5 % at most."""

SPLITS = Path(__file__).parent / "data" / "splits"
"""Shipped splits, published ones and parts of these: `DATASET-NAME.txt` is what `split` DATASET-NAME stands for."""


@dataclass(frozen=True)
class Known:
    """A published dataset."""

    white: White
    test: int
    """How many photographs its test split has."""
    prefix: str = ""
    """Prefix of the names of its photographs, if the archive also contains others."""
    parts: Sequence[tuple[str, str]] = ()
    """Names of the folders of photographs and of masks in its archive, if they are not usual ones."""
    copy_of: str = ""
    """The dataset whose photographs these are, with other names and sizes."""


KNOWN = {
    # Shi, Xu and Jia (CVPR 2014), as released: 704 partly defocused photographs
    "cuhk": Known("blurred", 100, "out_of_focus"),
    # the same at 320×320, as distributed with DUT: 604 for training, 100 for testing, each numbered from 1
    "cuhk-320": Known("sharp", 100, copy_of="cuhk"),
    # Zhao et al. (CVPR 2018), at 320×320: 600 for training, 500 for testing
    "dut": Known(
        "sharp",
        500,
        parts=(("DUT500S-Testing", "DUT500GT-Testing"), ("DUT600S_Training", "DUT600GT_Training")),
    ),
    "ctcug": Known("blurred", 150),  # Tang et al. (CVPR 2019): all for testing
    # Jin et al. (ICME 2023): all for testing, 300 of them in focus everywhere. What is white is known from their test code
    # (github.com/yuxinjin-whu/D-DFFNet, test.py): it inverts the masks of CUHK and CTCUG, and not those of DUT and EBD.
    "ebd": Known("sharp", 1605),
}


@dataclass(frozen=True)
class Pair:
    """A photograph and its mask."""

    name: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Dataset:
    """Photographs and masks in a folder. Each file is read on demand."""

    folder: Path
    white: White
    pairs: Sequence[Pair]
    left_out: int = 0
    """Photographs in the folder that do not belong to the published dataset."""
    published: str = ""
    """Name of the published dataset, if it is one."""

    def __len__(self) -> int:
        return len(self.pairs)

    @property
    def is_test_split(self) -> bool:
        """Whether these are the photographs that papers test on, as far as names and numbers tell: those of the shipped
        split `NAME-test`, or for a dataset without one, or with other names, as many as its test split has."""
        if not self.published:
            return False
        if (split := SPLITS / f"{self.published}-test.txt").is_file():
            wanted = read_split(split)
            return len(self) == len(wanted) and {_number(p.name) for p in self.pairs} == {_number(n) for n in wanted}
        return len(self) == KNOWN[self.published].test

    def image(self, number: int) -> np.ndarray:
        """Photograph `number`, uint8 [H, W, 3] RGB. Raises InputError if it cannot be read."""
        return images.read(self.pairs[number].image)

    def mask(self, number: int) -> np.ndarray:
        """Mask `number`, float32 [H, W] in 0 .. 1, 1 = in focus; values in between come from resampling.

        Raises:
            InputError: it cannot be read, is coloured or doubtful, or differs in size from its photograph.
        """
        pair = self.pairs[number]
        white = read_mask(pair.mask)
        _check_size(pair, white.shape)
        return 1 - white if self.white == "blurred" else white

    def check_sizes(self) -> None:
        """Check from the file headers that every mask has the size of its photograph.

        Raises:
            InputError: the sizes differ, or a file is not an image.
        """
        for pair in self.pairs:
            _check_size(pair, images.size(pair.mask))

    def truth(self, number: int) -> np.ndarray:
        """Mask `number` thresholded at 0.5 for evaluation: bool [H, W], True = in focus."""
        return self.mask(number) > 0.5


def read_dataset(
    folder: Path | str,
    *,
    white: White,
    split: Path | str | None = None,
    image_folder: str | None = None,
    mask_folder: str | None = None,
    dataset: str | None = None,
) -> Dataset:
    """Find the photographs and masks below a folder: `image/` and `gt/`, or the names that the archives use.

    A photograph and a mask form a pair if their names without suffix are equal. If no names are equal, those that end in
    the same number form a pair (`out_of_focus0001.jpg`, `0001.png`).

    Args:
        folder: contains the two folders.
        white: what 255 means in the masks.
        split: a text file with one name per line, with or without a suffix, or the name of a shipped split (see
            `SPLITS`), if there is no such file. Only these photographs are used, in this order. Blank lines and comments
            after # are ignored. If none of the names is found, and either they or those of the photographs are bare
            numbers, equal numbers are the same photograph (`out_of_focus0001`, `0001`).
        image_folder: name of the photographs' folder, if it is not a usual one.
        mask_folder: the same for the masks' folder.
        dataset: name of a published dataset. Its archive may hold other photographs, which are left out.

    Raises:
        InputError: a folder is missing or empty, photographs have no mask, or the split names unknown photographs.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    known = KNOWN[dataset] if dataset else None
    image_folder, mask_folder = _parts(folder, known.parts if known else (), image_folder, mask_folder)
    everything = _by_name(_part(folder, "image", image_folder))
    prefix = known.prefix if known else ""
    # if no name has the prefix, the files were renamed: use them all
    photographs = {name: path for name, path in everything.items() if name.startswith(prefix)} or everything
    masks = _by_name(_part(folder, "mask", mask_folder))
    found = _partners(photographs, masks)
    if dataset and _shipped(split) and not str(split).startswith(f"{dataset}-"):
        raise InputError(f"`split` {split} names photographs of another dataset than {dataset}")
    names = list(photographs) if split is None else _split(split, photographs)
    if missing := [photographs[n].name for n in names if n not in found]:
        raise InputError(
            f"{folder}: there is no mask for {len(missing)} of {count(len(names), 'photograph')}: {first(missing, 3)}"
        )
    pairs = [Pair(n, photographs[n], found[n]) for n in names]
    _LOG.debug("%s: %d of %d photographs, each with a mask; white is %s", folder, len(pairs), len(everything), white)
    return Dataset(folder, white, pairs, len(everything) - len(photographs), dataset or "")


def polarity(dataset: str | None, white: White | None) -> White:
    """What is white in the masks: as given, or known from the name of a published dataset.

    Raises:
        UsageError: neither is given, the two disagree, or there is no such dataset.
    """
    if dataset is None:
        if white is None:
            raise UsageError("say what is white in the masks: `white` sharp or `white` blurred")
        return white
    if dataset not in KNOWN:
        raise UsageError(f"no dataset {dataset!r}: {did_you_mean(dataset, KNOWN)}")
    known = KNOWN[dataset].white
    if white not in (None, known):
        raise UsageError(f"in {dataset} white is {known}, not {white}; leave `dataset` out if your copy differs")
    return known


def read_mask(path: Path) -> np.ndarray:
    """Read the whiteness of a mask: float32 [H, W] in 0 .. 1.

    Whatever the type of its pixels, their values tell what white is: 1, 255 or 65535. An alpha channel is the mask where the
    colour is white everywhere.

    Raises:
        InputError: it cannot be read, is coloured, or is doubtful: values that reach far from each of the three, many greys,
            an alpha channel that contradicts the colour.
    """
    stored = images.channels(path).astype(np.float32)
    colours = stored[:, :, : stored.shape[2] - 1 + stored.shape[2] % 2]  # the last of 2 or 4 channels is alpha
    low, high = float(colours.min()), float(colours.max())
    scale = next((s for s in _SCALES if high <= s), None)
    if scale is None or not 0 <= low <= high or 0 < high < scale / 2:
        known = ", ".join(f"0 to {s}" for s in _SCALES)
        raise InputError(
            f"{path} has values from {low:g} to {high:g}, and a mask is read if they are {known}: save it as 0 and 255"
        )
    if np.ptp(colours, axis=2).max() > 32 / 255 * scale:  # a JPEG's grey is not quite grey
        raise InputError(f"{path} is coloured: not a mask")
    white = colours[:, :, 0] / np.float32(scale)
    if stored.shape[2] in (2, 4):
        white = _with_alpha(white, stored[:, :, -1] / np.float32(255), path)
    grey = float(((white > 0.1) & (white < 0.9)).mean())
    if grey > _MOST_GREY:
        raise InputError(
            f"{path}: {100 * grey:.0f} % of its pixels are neither black nor white: it is no mask of two classes"
        )
    return white


def _with_alpha(white: np.ndarray, alpha: np.ndarray, path: Path) -> np.ndarray:
    """The whiteness of a mask that has an alpha channel too."""
    if np.ptp(alpha) == 0:
        return white
    if white.min() == 1:
        return alpha
    if white.max() > 0 and np.array_equal(white > 0.5, white * alpha > 0.5):  # what is transparent is black as well
        return white
    raise InputError(
        f"{path}: its alpha channel differs from its colours: save the mask alone, as 0 and 255 without alpha"
    )


def _parts(
    folder: Path, parts: Sequence[tuple[str, str]], image_folder: str | None, mask_folder: str | None
) -> tuple[str | None, str | None]:
    """The folders of photographs and masks that are asked for, completed from those that a published archive has."""
    given = image_folder, mask_folder
    there = [part for part in parts if all((folder / name).is_dir() for name in part)]
    fitting = [part for part in there if all(g in (None, name) for g, name in zip(given, part, strict=True))]
    if len(fitting) > 1:
        names = ", ".join(images for images, _ in fitting)
        raise InputError(f"{folder} has {len(fitting)} folders of images: {names}; name one with `image_folder`")
    return fitting[0] if fitting else given


def _part(folder: Path, what: str, name: str | None) -> Path:
    if name and (folder / name).is_dir():
        return folder / name
    folders = sorted(path for path in folder.iterdir() if path.is_dir())
    named = {path.name.lower(): path for path in folders}
    usual = [named[n] for n in _FOLDERS[what] if n in named]
    found = usual[:1] or [path for path in folders if _means(path.name) == what]
    if not name and len(found) == 1:
        return found[0]
    if not name and found:
        names = ", ".join(path.name for path in found)
        raise InputError(f"{folder} has {len(found)} folders of {what}s: {names}; name one with `{what}_folder`")
    wanted = name or " or ".join(_FOLDERS[what][:4])
    raise InputError(f"{folder} has no folder of {what}s ({wanted}); name it with `{what}_folder`")


def _means(name: str) -> str | None:
    """Guess from its name what a folder contains: `image_gt` contains masks."""
    return next((w for w in ("mask", "image") if any(word in name.lower() for word in _WORDS[w])), None)


def _check_size(pair: Pair, mask: Sequence[int]) -> None:
    size = images.size(pair.image)
    if tuple(mask) != size:
        raise InputError(
            f"{pair.mask} is {mask[0]}×{mask[1]}, its photograph {size[0]}×{size[1]}: "
            "a mask must have the size of its photograph"
        )


def _by_name(folder: Path) -> dict[str, Path]:
    files: dict[str, Path] = {}
    for path in images.find([folder]):
        if path.stem in files:
            raise InputError(f"{folder}: {files[path.stem].name} and {path.name} have the same name")
        files[path.stem] = path
    numbered = all(stem.isdigit() for stem in files)
    return dict(sorted(files.items(), key=lambda item: int(item[0]))) if numbered else files


def _partners(photographs: dict[str, Path], masks: dict[str, Path]) -> dict[str, Path]:
    """The mask of each photograph that has one."""
    same = {name: masks[name] for name in photographs if name in masks}
    if same:
        return same
    numbers = {_number(name): path for name, path in masks.items()}
    distinct = len({_number(name) for name in photographs}) == len(photographs) and len(numbers) == len(masks)
    return {n: numbers[_number(n)] for n in photographs if _number(n) in numbers} if distinct else {}


def _number(name: str) -> str:
    """The number at the end of a name, or the name if it has none."""
    digits = re.search(r"[0-9]+$", name)
    return digits[0] if digits else name


def split_names() -> list[str]:
    """The names of the shipped splits."""
    return sorted(path.stem for path in SPLITS.glob("*.txt"))


def _shipped(split: Path | str | None) -> bool:
    return str(split) in split_names() and not Path(str(split)).is_file()


def read_split(split: Path | str) -> list[str]:
    """The names in a split: a file, or if there is none the shipped split of that name.

    Raises:
        InputError: there is neither, or it is not a text file, or names nothing.
    """
    path, shipped = Path(split), split_names()
    if _shipped(split):
        path = SPLITS / f"{split}.txt"
    elif not path.is_file():
        named = "" if path.exists() or path.suffix else f", and no shipped split; {did_you_mean(path.name, shipped)}"
        raise InputError(f"{no_file(path)}{named}")
    with reading(path, InputError, "is not a text file"):
        lines = [line.partition("#")[0].strip() for line in document(path).decode("utf-8-sig").splitlines()]
    names = [line for line in lines if line]
    if not names:
        raise InputError(f"{path} names no photograph")
    return names


def _split(split: Path | str, photographs: dict[str, Path]) -> list[str]:
    """The names of a split as the photographs have them."""
    names = [line if line in photographs else Path(line).stem for line in read_split(split)]
    if not any(name in photographs for name in names):
        names = _by_number(names, photographs)
    unknown = [name for name in names if name not in photographs]
    if unknown:
        raise InputError(
            f"{split}: the dataset lacks {len(unknown)} of {count(len(names), 'name')}: "
            f"{unknown[0]} ({did_you_mean(unknown[0], photographs)})"
        )
    if (twice := Counter(names).most_common(1)[0])[1] > 1:
        raise InputError(f"{split} names {twice[0]} more than once")
    return names


def _by_number(names: Sequence[str], photographs: dict[str, Path]) -> list[str]:
    """The names of a split, those of photographs with an equal number at the end replaced by theirs.

    Either all names or all photographs are bare numbers: `motion0001` is not `out_of_focus0001`. `1` is not `0001`: archives
    that number their photographs anew do so from 1.
    """
    numbered = {_number(name): name for name in photographs}
    bare = all(name.isdigit() for name in names) or all(name.isdigit() for name in photographs)
    if not bare or len(numbered) < len(photographs):
        return list(names)
    return [numbered.get(_number(name), name) for name in names]
