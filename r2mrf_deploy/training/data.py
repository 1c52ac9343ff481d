"""Training data: batches as a function of the iteration, from sharp photographs or from a dataset.

After `seek(iteration, rank, ranks)` a source gives the batch of that iteration and process, whatever came before. Resuming
therefore needs no saved state of the data, and several processes share the work without communication. All files are read
into memory once, before the training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from r2mrf_deploy import images
from r2mrf_deploy.datasets import Dataset as Files
from r2mrf_deploy.datasets import White, read_mask
from r2mrf_deploy.errors import InputError
from r2mrf_deploy.manifest import Preprocess
from r2mrf_deploy.training.augmentation import Augmentation
from r2mrf_deploy.training.recipe import Recipe
from r2mrf_deploy.training.synthesis.composites import Composites, Synthesis, resized
from r2mrf_deploy.training.synthesis.rng import Rng
from r2mrf_deploy.wording import count

T = TypeVar("T")
HELD_OUT = 16
"""One photograph in this many is held out for validation, unless validation data is given."""
VALIDATED = 48
"""Number of composites in the validation set."""
VALIDATION_SIDE = 256
LARGEST = 3
"""Large photographs are reduced when read, by a whole factor that leaves their shorter side at least this many times that
of a composite."""


class Source(Protocol):
    """Batches for training."""

    def seek(self, iteration: int, rank: int, ranks: int, /) -> None:
        """Go to the batch of an iteration and a process."""

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        """(images float [N, 3, S, S] in 0 .. 1, masks float [N, 1, S, S], 1 = in focus)."""


@dataclass(frozen=True)
class Pictures:
    """Photographs uint8 [H, W, 3] and, for each, its mask float32 [H, W], 1 = in focus."""

    images: Sequence[np.ndarray]
    masks: Sequence[np.ndarray]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class TrainingData:
    """Sharp photographs and drawn masks (uint8, 255 = in focus) or a dataset, and the pictures to validate on."""

    validation: Pictures
    photographs: Sequence[np.ndarray] = field(default_factory=list)
    masks: Sequence[np.ndarray] = field(default_factory=list)
    dataset: Pictures | None = None
    scale: float = 1.0
    """Middle of the dataset's scales in training. `r2mrf-lite` has the same MAE at 1.1 times it, and a larger one at 0.9."""
    mix: float = 0.5
    """Share of composites where there are both."""
    left_out: int = 0
    """Number of photographs in the folder that do not belong to the published dataset."""

    @property
    def longest_side(self) -> int:
        """The scale of the training: the median of the photographs' longest sides, as they are trained on, in pixels."""
        if self.dataset is None:
            return longest_side(self.photographs)
        return round(self.scale * longest_side(self.dataset.images))

    def source(self, recipe: Recipe, seed: int, device: torch.device) -> Source:
        """The source of batches on a device."""
        if self.dataset is not None:
            dataset = Dataset(self.dataset, recipe, seed=seed, device=device)
            if not self.photographs:
                return dataset
        composites = Composites(
            self.photographs, Synthesis(size=recipe.size), masks=self.masks, seed=seed, device=device
        )
        return composites if self.dataset is None else Mixed(dataset, composites, self.mix)


class Mixed:
    """Batches of which a share, to the nearest picture, are composites; the others are of a dataset."""

    def __init__(self, dataset: Dataset, composites: Composites, share: float) -> None:
        self._dataset, self._composites, self._share = dataset, composites, share

    def seek(self, iteration: int, rank: int, ranks: int, /) -> None:
        self._dataset.seek(iteration, rank, ranks)
        self._composites.seek(iteration, rank, ranks, 1)  # other random numbers than the dataset's

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        made = round(self._share * count)
        parts = [source.batch(n) for source, n in ((self._dataset, count - made), (self._composites, made)) if n]
        images, masks = zip(*parts, strict=True)
        return torch.cat(images), torch.cat(masks)


class Dataset:
    """Photographs with their masks, cropped, mirrored, rotated and, as the recipe says, resized and changed. Each comes once
    in every pass, in a random order.

    Args:
        pictures: at least one, of any size; those smaller than a crop are enlarged.
        recipe: `size`, `rotation`, `scales`, `aspect` and `augmented` are used.
        seed: of the order and the crops.
        device: where the batches are made.
    """

    def __init__(self, pictures: Pictures, recipe: Recipe, *, seed: int, device: torch.device | str = "cpu") -> None:
        self._stacked = [_stack(i, m, recipe.size) for i, m in zip(pictures.images, pictures.masks, strict=True)]
        self._size, self._rotation, self._seed = recipe.size, recipe.rotation, seed
        self._scales = [(math.log(low), math.log(high)) for low, high in (recipe.scales, recipe.aspect)]
        self._augment = Augmentation() if recipe.augmented else None
        self._rng = Rng(device)
        self.seek(0)

    def seek(self, iteration: int, rank: int = 0, ranks: int = 1, /) -> None:
        self._place = iteration, rank, ranks
        self._rng.seek(self._seed, iteration, rank, ranks)

    def batch(self, count: int) -> tuple[Tensor, Tensor]:
        iteration, rank, ranks = self._place
        first = (iteration * ranks + rank) * count
        crops = torch.stack([self._crop(self._at(place)) for place in range(first, first + count)])
        both = self._turn(crops.to(self._rng.device).float() / 255)
        image, mask = both[:, :3], both[:, 3:]
        if self._augment is not None:
            image, mask = self._augment(image, mask, self._rng)
        self.seek(iteration + 1, rank, ranks)
        return image, mask

    def _at(self, place: int) -> Tensor:
        number, within = divmod(place, len(self._stacked))
        order = np.random.default_rng((self._seed, number)).permutation(len(self._stacked))
        return self._stacked[order[within]]

    def _crop(self, picture: Tensor) -> Tensor:
        size, rng = self._size, self._rng
        height, width = size, size
        if any(any(interval) for interval in self._scales):
            scale, aspect = (math.exp(rng.real(interval)) for interval in self._scales)
            height, width = (
                min(round(size / s), side) for s, side in zip((scale, scale * aspect), picture.shape[1:], strict=True)
            )
        top, left = (rng.integer(side - cut + 1) for side, cut in zip(picture.shape[1:], (height, width), strict=True))
        crop = picture[:, top : top + height, left : left + width]
        crop = crop.flip(2) if rng.integer(2) else crop
        return resized(crop, (size, size))

    def _turn(self, pictures: Tensor) -> Tensor:
        limit = math.radians(self._rotation)
        if not limit:
            return pictures
        angle = self._rng.uniform(len(pictures), (-limit, limit)).flatten()
        cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
        theta = torch.stack([cos, -sin, zero, sin, cos, zero], 1).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(pictures.shape), align_corners=False)
        return F.grid_sample(pictures, grid, "bilinear", "reflection", align_corners=False)


def normalise(image: Tensor, preprocess: Preprocess) -> Tensor:
    """Normalise an image [N, 3, H, W] in 0 .. 1 by a network's mean and standard deviation."""
    mean, std = (image.new_tensor(values).view(1, 3, 1, 1) for values in (preprocess.mean, preprocess.std))
    return (image - mean) / std


def read_photographs(folder: Path, size: int) -> list[np.ndarray]:
    """The sharp photographs of a folder, uint8 [H, W, 3]. Those too small for composites of `size` are left out.

    Raises:
        InputError: there is none, or none is large enough.
    """
    large, paths = [], images.find([folder])
    for path in paths:
        photograph = images.read(path)
        shorter = min(photograph.shape[:2])
        if (factor := shorter // (LARGEST * size)) > 1:
            photograph = np.array(Image.fromarray(photograph).reduce(factor))
        if shorter >= size:
            large.append(photograph)
    if not large:
        raise InputError(
            f"{folder}: of {count(len(paths), 'photograph')}, none has at least {size}×{size} pixels; reduce `size`"
        )
    return large


def read_masks(folder: Path, white: White) -> list[np.ndarray]:
    """The drawn masks of a folder, uint8 [H, W], 255 = in focus, whatever `white` means in the files."""
    masks = [np.rint(255 * read_mask(path)).astype(np.uint8) for path in images.find([folder])]
    return [255 - mask for mask in masks] if white == "blurred" else masks


def in_memory(dataset: Files) -> Pictures:
    """Read the photographs and masks of a dataset.

    Raises:
        InputError: one cannot be read, or a mask differs in size from its photograph.
    """
    dataset.check_sizes()  # before minutes of reading
    numbers = range(len(dataset))
    return Pictures([dataset.image(n) for n in numbers], [dataset.mask(n) for n in numbers])


def held_out(items: Sequence[T]) -> tuple[list[T], list[T]]:
    """(to train on, to validate on): every 16th item, or the last of fewer, is held out; a single item serves both."""
    held = range(len(items))[HELD_OUT // 2 :: HELD_OUT] if len(items) >= HELD_OUT else range(len(items))[-1:]
    return [item for n, item in enumerate(items) if n not in held] or list(items), [items[n] for n in held]


def composites_to_validate(photographs: Sequence[np.ndarray], masks: Sequence[np.ndarray], size: int) -> Pictures:
    """Composites with outlines. They are the same for every training on the same photographs."""
    side = min(max(size, VALIDATION_SIDE), *(min(p.shape[:2]) for p in photographs))
    synthesis = Synthesis(size=side, plain=0.0, gradual=0.0, scales=(1.0,), shrunk=0.0)
    made = Composites(photographs, synthesis, masks=masks, seed=0)
    batches = [made.batch(1) for _ in range(VALIDATED)]
    pixels = [(255 * image[0]).round().byte().permute(1, 2, 0).numpy() for image, _ in batches]
    return Pictures(pixels, [mask[0, 0].numpy() for _, mask in batches])


def longest_side(photographs: Sequence[np.ndarray]) -> int:
    """The median of the longest sides of photographs [H, W, 3], in pixels."""
    return int(np.median([max(photograph.shape[:2]) for photograph in photographs]))


def dataset_to_validate(dataset: Files, longest: int) -> Pictures:
    """Read a dataset, each picture reduced as `predict` reduces it: to sides of at most `longest`. Raises as `in_memory`."""
    pictures = in_memory(dataset)
    sizes = [images.within(image.shape[:2], (longest, longest)) for image in pictures.images]
    return Pictures(
        *(
            [images.resize(item, size) for item, size in zip(items, sizes, strict=True)]
            for items in (pictures.images, pictures.masks)
        )
    )


def _stack(image: np.ndarray, mask: np.ndarray, size: int) -> Tensor:
    """Image and mask as one uint8 [4, H, W], enlarged until neither side is below `size`."""
    height, width = image.shape[:2]
    grown = max(1.0, size / height, size / width)
    target = (max(size, round(height * grown)), max(size, round(width * grown)))
    image, mask = images.resize(image, target), images.resize(mask, target)
    return torch.from_numpy(np.dstack([image, np.rint(255 * mask).astype(np.uint8)])).permute(2, 0, 1).contiguous()
