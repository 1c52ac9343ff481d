import pytest
import torch
from torch.nn import functional as F

from r2mrf_deploy.training.synthesis.lens import convolve, kernels


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
