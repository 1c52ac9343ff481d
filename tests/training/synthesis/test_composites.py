import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from r2mrf_deploy.errors import InputError, UsageError
from r2mrf_deploy.training.synthesis.composites import Composites, Synthesis

SIZE = 64
CLEAN = Synthesis(
    size=SIZE, gain=(1.0, 1.0), noise=(0.0, 0.0), scales=(1.0,), plain=0.0, shrunk=0.0, soft=0.0, flat=0.0, jpeg=0.0
)


@pytest.fixture(scope="module")
def texture():
    """White noise: sharp everywhere, and its variance after a blur says how much was blurred."""
    return [np.random.default_rng(i).integers(0, 256, (96, 128, 3), dtype=np.uint8) for i in range(2)]


def laplacian(image):
    """Energy of the second differences of the grey image, [N, 1, S - 2, S - 2]."""
    kernel = torch.tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    return F.conv2d(image.mean(1, keepdim=True), kernel) ** 2


def test_one_seed_gives_one_sequence(texture):
    runs = [Composites(texture, CLEAN, seed=seed) for seed in (3, 3, 4)]
    first, again, other = ([run.batch(4) for _ in range(2)] for run in runs)
    for (a, b), (c, d) in zip(first, again, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)
    assert not torch.equal(first[0][0], first[1][0])
    assert not torch.equal(first[0][0], other[0][0])


def test_shapes_and_ranges(texture):
    image, mask = Composites(texture, dataclasses.replace(CLEAN, noise=(0.1, 0.1))).batch(5)
    assert image.shape == (5, 3, SIZE, SIZE) and mask.shape == (5, 1, SIZE, SIZE)
    for x in (image, mask):
        assert x.dtype == torch.float32 and x.isfinite().all() and x.min() >= 0 and x.max() <= 1


@pytest.mark.parametrize("front", [0.0, 1.0])
@pytest.mark.parametrize("one", [0.0, 1.0])
def test_the_mask_says_where_it_is_sharp(texture, front, one):
    synthesis = dataclasses.replace(
        CLEAN, foreground_in_focus=front, one_photograph=one, gradual=0.0, radius=(2.0, 6.0), area=(0.3, 0.6)
    )
    image, mask = Composites(texture, synthesis).batch(16)
    energy, inner = laplacian(image), mask[:, :, 1:-1, 1:-1]
    sharp, blurred = (torch.stack([e[where].mean() for e, where in zip(energy, part, strict=True)]) for part in
                      (inner > 0.99, inner < 0.01))  # fmt: skip
    # A disc of radius 2 covers 12.6 pixels: the variance of white noise falls 12-fold, that of its Laplacian by more.
    assert (sharp > 12 * blurred).all()


def test_the_share_in_focus_is_what_was_asked_for(texture):
    for front, low, high in ((1.0, 0.2, 0.4), (0.0, 0.6, 0.8)):
        synthesis = dataclasses.replace(CLEAN, area=(0.2, 0.4), foreground_in_focus=front, gradual=0.0)
        share = Composites(texture, synthesis).batch(32)[1].mean((1, 2, 3))
        # The threshold is a quantile of one pixel in sixteen, and a defocused outline loses a little at the border.
        assert share.min() > low - 0.06 and share.max() < high + 0.06


def test_a_sharp_foreground_is_the_photograph_itself_and_its_edge_is_sharp(texture):
    synthesis = dataclasses.replace(CLEAN, foreground_in_focus=1.0, one_photograph=1.0, gradual=0.0)
    photograph = [np.full_like(texture[0], 200)]
    photograph[0][:, ::2] = 50
    image, mask = Composites(photograph, synthesis).batch(8)
    inside = image[(mask == 1).expand_as(image)]
    assert set((255 * inside).round().int().unique().tolist()) == {50, 200}
    between = ((mask > 0) & (mask < 1)).float().mean()
    assert between < 0.1  # an outline of about one pixel


def test_a_defocused_foreground_bleeds_and_a_defocused_background_does_not(texture):
    """A white layer and a black one: the outline of a sharp object stays, a blurred object spreads past its own."""
    pair = [np.zeros((SIZE, SIZE, 3), np.uint8), np.full((SIZE, SIZE, 3), 255, np.uint8)]
    mixed = {}
    for front in (0.0, 1.0):
        synthesis = dataclasses.replace(
            CLEAN, foreground_in_focus=front, one_photograph=0.0, radius=(6.0, 6.0), area=(0.4, 0.6)
        )
        image, _ = Composites(pair, synthesis).batch(32)
        differing = image.flatten(1).amax(1) - image.flatten(1).amin(1) > 0.5
        mixed[front] = ((image > 0.1) & (image < 0.9)).float().mean((1, 2, 3))[differing]
        assert len(mixed[front]) > 4
    assert mixed[0.0].min() > mixed[1.0].max()


def test_a_key_gives_its_batch_whatever_came_before(texture):
    run, other = Composites(texture, Synthesis(size=SIZE), seed=3), Composites(texture, Synthesis(size=SIZE), seed=3)
    run.seek(7, 1)
    wanted = run.batch(4)
    other.batch(3)
    for key, equal in (((7, 1), True), ((7, 0), False), ((8, 1), False)):
        other.seek(*key)
        assert all(torch.equal(a, b) == equal for a, b in zip(wanted, other.batch(4), strict=True))


def test_every_effect_at_once_keeps_shapes_and_ranges(texture):
    everything = Synthesis(size=SIZE, scales=(1.3, 1.0, 0.8), plain=0.2, shrunk=1.0, soft=1.0, flat=1.0, jpeg=1.0)
    image, mask = Composites(texture, everything, masks=[drawn()]).batch(8)
    assert image.shape == (8, 3, SIZE, SIZE) and mask.shape == (8, 1, SIZE, SIZE)
    assert all(x.min() >= 0 and x.max() <= 1 for x in (image, mask))


def test_some_pictures_are_all_in_focus_and_some_not_at_all(texture):
    image, mask = Composites(texture, dataclasses.replace(CLEAN, plain=1.0)).batch(16)
    share = mask.mean((1, 2, 3))
    assert set(share.tolist()) == {0.0, 1.0}
    energy = laplacian(image).mean((1, 2, 3))
    assert energy[share == 1].min() > 12 * energy[share == 0].max()  # as below: a disc of 1.5 pixels covers 7


def drawn(height=100, width=110):
    """In focus: the left half."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, : width // 2] = 255
    return mask


@pytest.mark.parametrize("front", [0.0, 1.0])
def test_a_drawn_mask_says_what_is_in_focus_whichever_layer_that_is(texture, front):
    synthesis = dataclasses.replace(
        CLEAN, drawn=1.0, foreground_in_focus=front, gradual=0.0, one_photograph=0.0, radius=(2.0, 2.0)
    )
    image, mask = Composites(texture, synthesis, masks=[drawn()]).batch(24)
    columns = mask.mean(2).squeeze(1)
    vertical = (mask - columns[:, None, None]).abs().amax((1, 2, 3)) < 0.01
    assert vertical.sum() >= 8  # cuts that do not meet the outline are replaced by generated shapes
    for column, energy in zip(columns[vertical], laplacian(image)[vertical].mean((1, 2)), strict=True):
        left = column[0] > 0.5  # or mirrored
        steps = column.diff().abs() > 1e-3
        assert 1 <= steps.sum() <= 8  # one outline, at most as wide as a polygon of inner radius 2
        assert (energy[:3].mean() > 4 * energy[-3:].mean()) == bool(left)


def test_a_drawn_mask_s_outline_is_a_pixel_wide_however_far_it_is_enlarged(texture):
    big = [np.random.default_rng(0).integers(0, 256, (512, 512, 3), dtype=np.uint8)]
    synthesis = dataclasses.replace(CLEAN, size=512, drawn=1.0, foreground_in_focus=1.0, gradual=0.0)
    _, mask = Composites(big, synthesis, masks=[drawn()]).batch(4)
    between = ((mask > 0) & (mask < 1)).float().sum(3)
    assert between.max() <= 4


def test_bad_photographs_and_settings_are_refused(texture):
    with pytest.raises(InputError, match="at least one"):
        Composites([])
    with pytest.raises(InputError, match="96×128 is too small"):
        Composites(texture, Synthesis(size=100))
    with pytest.raises(InputError, match=r"uint8 \[H, W, 3\]"):
        Composites([texture[0].astype(np.float32)], CLEAN)
    with pytest.raises(InputError, match=r"uint8 \[H, W\]"):
        Composites(texture, CLEAN, masks=[drawn().astype(bool)])
    with pytest.raises(UsageError, match="radius"):
        Synthesis(radius=(4.0, 2.0))
