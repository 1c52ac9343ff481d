import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from r2mrf_deploy.errors import InputError, UsageError
from r2mrf_deploy.training.synthesis import Composites, Synthesis, convolve, kernels

SIZE = 64
CLEAN = Synthesis(size=SIZE, gain=(1.0, 1.0), noise=(0.0, 0.0), scales=(1.0,))


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


@pytest.mark.parametrize("shape", [0, 1, 2])
def test_kernels_have_unit_sum_their_radius_and_no_offset(shape):
    radius = torch.tensor([2.0, 5.0, 8.0]).view(1, 3, 1, 1)
    form = torch.full((1, 1, 1, 1), shape)
    k = kernels(radius, form, torch.full_like(form, 6), torch.zeros(1, 1, 1, 1), reach=16)
    line = torch.arange(-16.0, 17)
    assert k.sum((2, 3)) == pytest.approx(torch.ones(1, 3).numpy(), abs=1e-5)
    assert (k.sum(2) * line).sum(2).abs().max() < 1e-5
    variance = (k.sum(2) * line**2).sum(2).flatten()
    # A disc's variance is r² / 4 along each axis, a hexagon's of inner radius r 10/9 of 0.25 r²; the rim adds up to 1/6.
    expected = radius.flatten() ** 2 / 4 * (10 / 9 if shape == 1 else 1)
    assert torch.allclose(variance, expected, rtol=0.03, atol=0.2)


def test_convolution_by_fourier_is_the_convolution():
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(2, 3, 20, 27, generator=generator)
    k = torch.rand(2, 2, 9, 9, generator=generator)
    padded = F.pad(x, (4,) * 4, mode="replicate")
    direct = torch.stack(
        [
            torch.stack([F.conv2d(p.unsqueeze(1), w.flip(0, 1)[None, None]).squeeze(1) for w in ks])
            for p, ks in zip(padded, k, strict=True)
        ]
    )
    # float32 sums of 81 products of about 0.25, by another order of operations
    assert torch.allclose(convolve(x, k), direct, rtol=0, atol=1e-4)


def test_bad_photographs_and_settings_are_refused(texture):
    with pytest.raises(InputError, match="at least one"):
        Composites([])
    with pytest.raises(InputError, match="96×128 is too small"):
        Composites(texture, Synthesis(size=100))
    with pytest.raises(InputError, match=r"uint8 \[H, W, 3\]"):
        Composites([texture[0].astype(np.float32)], CLEAN)
    with pytest.raises(UsageError, match="radius"):
        Synthesis(radius=(4.0, 2.0))
