"""`resample` is bilinear interpolation, and nearer to it in float32 than a runtime's own."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from r2mrf_deploy.networks.upsample import resample

SIZES = [((96, 96), (76, 76)), ((317, 451), (253, 360)), ((190, 270), (317, 451)), ((7, 5), (7, 5)), ((1, 2), (3, 1))]


@pytest.mark.parametrize(("old", "new"), SIZES)
def test_it_is_bilinear_with_half_pixel_centres(old: tuple[int, int], new: tuple[int, int]) -> None:
    x = torch.rand(2, 3, *old, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = F.interpolate(x, size=new, mode="bilinear", align_corners=False)
    assert torch.allclose(resample(x, new), wanted, rtol=0, atol=1e-12)
    # one rounding of each of two weights and of each sum, twice: a few units in the last place of 1
    assert (resample(x.float(), new) - wanted).abs().max() < 5e-7


def test_float32_takes_pixels_from_where_they_are() -> None:
    x = torch.rand(1, 1, 317, 451, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    wanted = F.interpolate(x, size=(253, 360), mode="bilinear", align_corners=False)
    own = F.interpolate(x.float(), size=(253, 360), mode="bilinear", align_corners=False)
    assert (own - wanted).abs().max() > 20 * (resample(x.float(), (253, 360)) - wanted).abs().max()
