import dataclasses

import numpy as np
import pytest
import torch

from r2mrf_deploy import images
from r2mrf_deploy.datasets import read_dataset
from r2mrf_deploy.errors import InputError
from r2mrf_deploy.training import data
from r2mrf_deploy.training.augmentation import Augmentation
from r2mrf_deploy.training.data import Dataset, Mixed, Pictures
from r2mrf_deploy.training.recipe import PAPER
from r2mrf_deploy.training.synthesis.rng import Rng


def labelled(count, height=50, width=60):
    """Photographs whose red channel is their number, and whose green is their mask."""
    masks = [np.random.default_rng(n).integers(0, 2, (height, width)).astype(np.float32) for n in range(count)]
    shown = [np.dstack([np.full_like(m, n), 255 * m, 0 * m]).astype(np.uint8) for n, m in enumerate(masks)]
    return Pictures(shown, masks)


def recipe(**fields):
    return dataclasses.replace(PAPER, size=32, **fields)


def numbers(source, count):
    return [round(float(255 * image[0].mean())) for image in source.batch(count)[0]]


def test_every_picture_comes_once_in_each_pass_and_passes_differ():
    source = Dataset(labelled(12), recipe(rotation=0), seed=0)
    passes = [[n for _ in range(3) for n in numbers(source, 4)] for _ in range(3)]
    assert all(sorted(p) == list(range(12)) for p in passes)
    assert len({tuple(p) for p in passes}) == 3


def test_processes_share_a_pass_without_overlap():
    source, seen = Dataset(labelled(12), recipe(rotation=0), seed=0), []
    for iteration in range(2):
        for rank in range(3):
            source.seek(iteration, rank, 3)
            seen += numbers(source, 2)
    assert sorted(seen) == list(range(12))


def test_a_batch_follows_from_its_iteration_alone():
    source, other = (Dataset(labelled(5), recipe(rotation=10), seed=4) for _ in range(2))
    for _ in range(3):
        wanted = source.batch(4)
    other.seek(2)
    assert all(torch.equal(a, b) for a, b in zip(wanted, other.batch(4), strict=True))


@pytest.mark.parametrize("rotation", [0.0, 10.0])
def test_image_and_mask_are_cropped_mirrored_and_turned_together(rotation):
    image, mask = Dataset(labelled(3), recipe(rotation=rotation), seed=0).batch(8)
    assert image.shape == (8, 3, 32, 32) and mask.shape == (8, 1, 32, 32)
    assert torch.allclose(image[:, 1:2], mask, atol=1e-6)
    assert 0.3 < mask.mean() < 0.7


def test_what_is_smaller_than_a_crop_is_enlarged():
    image, _ = Dataset(labelled(2, 20, 48), recipe(rotation=0), seed=0).batch(2)
    assert image.shape[2:] == (32, 32)


def test_what_is_held_out_is_not_trained_on():
    for count in (*range(2, 40), 100):
        kept, held = data.held_out(range(count))
        assert held and not set(kept) & set(held) and sorted(kept + held) == list(range(count))
    assert data.held_out([7]) == ([7], [7])


def test_masks_are_read_by_their_polarity(tmp_path):
    white = np.zeros((8, 8), np.uint8)
    white[:3] = 255
    (tmp_path / "m.png").write_bytes(images.png(white))
    assert (data.read_masks(tmp_path, "sharp")[0] == white).all()
    assert (data.read_masks(tmp_path, "blurred")[0] == 255 - white).all()


def test_photographs_too_small_are_left_out_and_large_ones_reduced(tmp_path):
    for name, side in (("small", 40), ("fits", 70), ("large", 520)):
        (tmp_path / f"{name}.png").write_bytes(images.png(np.zeros((side, side, 3), np.uint8)))
    assert sorted(p.shape[0] for p in data.read_photographs(tmp_path, 64)) == [70, 260]
    with pytest.raises(InputError, match="of 3 photographs, none has at least 600×600 pixels"):
        data.read_photographs(tmp_path, 600)


def test_a_dataset_is_read_with_its_polarity(tmp_path):
    made = labelled(2)
    for folder, arrays in (("image", made.images), ("gt", [(255 * (1 - m)).astype(np.uint8) for m in made.masks])):
        (tmp_path / folder).mkdir()
        for n, array in enumerate(arrays):
            (tmp_path / folder / f"{n}.png").write_bytes(images.png(array))
    read = data.in_memory(read_dataset(tmp_path, white="blurred"))
    for a, b in zip((*read.images, *read.masks), (*made.images, *made.masks), strict=True):
        assert np.array_equal(a, b)


def test_a_scale_decides_how_much_of_a_photograph_a_crop_shows():
    """A ramp over the width: its range in a crop says how many columns the crop shows."""
    ramp = np.broadcast_to(np.linspace(0, 255, 256).astype(np.uint8)[None, :, None], (200, 256, 3))
    pictures = Pictures([ramp], [np.ones((200, 256), np.float32)])

    def columns(**fields):
        image, mask = Dataset(pictures, recipe(rotation=0.0, **fields), seed=1).batch(40)
        assert image.shape == (40, 3, 32, 32) and (mask == 1).all()
        return (255 * (image.amax((1, 2, 3)) - image.amin((1, 2, 3)))).numpy()

    assert np.allclose(columns(), 31, atol=1.5)  # to the grey level
    half = columns(scales=(0.25, 0.5))  # 64 to 128 columns; the filter loses some at both ends
    assert half.min() > 55 and half.max() < 130 and np.ptp(half) > 30
    squeezed = columns(aspect=(0.5, 0.5))
    assert np.allclose(squeezed, 63, atol=3)


def test_a_crop_never_shows_more_than_the_photograph():
    image, _ = Dataset(labelled(2, 40, 44), recipe(rotation=0.0, scales=(0.1, 0.2)), seed=0).batch(4)
    assert image.shape == (4, 3, 32, 32)


@pytest.fixture
def pictures():
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(64, 3, 48, 48, generator=generator)
    mask = torch.ones(64, 1, 48, 48)
    return image, mask


def changed(augmentation, image, mask, seed=3):
    rng = Rng()
    rng.seek(seed)
    return augmentation(image.clone(), mask.clone(), rng)


NOTHING = Augmentation(
    soft=0, flat=0, gain=(1, 1), noise=(0, 0), jpeg=0, gamma=(1, 1), tint=0, grey=0, defocused=0
)  # fmt: skip


def test_a_defocused_region_is_smooth_and_says_so(pictures):
    image, mask = pictures
    found, told = changed(dataclasses.replace(NOTHING, defocused=1.0), image, mask)
    same = (told == 1).expand_as(image)
    assert torch.allclose(found[same], image[same], atol=1e-6)  # of a float32 power
    gone = (told == 0).expand_as(image)
    assert 0.1 < gone.float().mean() < 0.8
    assert found[gone].std() < 0.5 * image[gone].std()  # noise through a disc of at least 2 pixels


def test_augmentation_keeps_masks_and_ranges_and_follows_from_its_key(pictures):
    image, mask = pictures
    untouched = changed(NOTHING, image, mask)
    assert torch.allclose(untouched[0], image, atol=1e-6) and torch.equal(untouched[1], mask)
    first, again, other = (changed(Augmentation(), image, mask, seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])
    assert first[0].min() >= 0 and first[0].max() <= 1 and ((first[1] >= 0) & (first[1] <= 1)).all()
    assert torch.equal(changed(Augmentation(defocused=0), image, mask)[1], mask)


def test_a_batch_mixes_both_sources_and_follows_from_its_iteration():
    class Constant:
        def seek(self, *key):
            self.key = key

        def batch(self, count):
            return torch.ones(count, 3, 32, 32), torch.full((count, 1, 32, 32), float(self.key[0]))

    made = Mixed(Dataset(labelled(5), recipe(rotation=0.0), seed=0), Constant(), 0.3)
    made.seek(7, 0, 1)
    image, mask = made.batch(8)
    assert made._composites.key == (7, 0, 1, 1)  # not the dataset's random numbers
    assert image.shape == (8, 3, 32, 32) and (mask[6:] == 7).all() and (image[6:] == 1).all()  # round(0.3 · 8) = 2
    alone = Dataset(labelled(5), recipe(rotation=0.0), seed=0)
    alone.seek(7, 0, 1)
    assert torch.equal(alone.batch(6)[0], image[:6])
