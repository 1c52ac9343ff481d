"""Properties that every baseline must have."""

from __future__ import annotations

import numpy as np
import pytest

from r2mrf_deploy import baselines
from r2mrf_deploy.errors import UsageError

pytest.importorskip("scipy")


def half_blurred(size: int = 128) -> np.ndarray:
    """Texture; the right half under a Gaussian of 3 pixels."""
    from scipy.ndimage import gaussian_filter

    texture = gaussian_filter(np.random.default_rng(0).standard_normal((size, size)), 0.7)
    picture = texture / texture.std() * 40
    picture[:, size // 2 :] = gaussian_filter(picture, 3)[:, size // 2 :]
    return np.repeat(np.clip(picture + 128, 0, 255).astype(np.uint8)[:, :, None], 3, 2)


@pytest.mark.parametrize("name", baselines.names())
def test_what_is_sharp_scores_higher_and_the_same_each_time(name: str) -> None:
    image = half_blurred()
    found = baselines.get(name)(image)
    assert found.dtype == np.float32 and found.shape == image.shape[:2] and 0 <= found.min() <= found.max() <= 1
    assert found[:, :40].mean() > found[:, -40:].mean() + 0.1
    np.testing.assert_array_equal(found, baselines.get(name)(image))


@pytest.mark.parametrize("name", baselines.names())
@pytest.mark.parametrize("size", [(1, 1), (2, 5), (9, 3)])
def test_tiny_and_constant_images(name: str, size: tuple[int, int]) -> None:
    for value in (0, 128):
        flat = baselines.get(name)(np.full((*size, 3), value, np.uint8))
        assert flat.shape == size and np.isfinite(flat).all()
        assert flat.max() < 1e-6  # nothing to be in focus; SVD's rounding
    noisy = baselines.get(name)(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8))
    assert noisy.shape == size and np.isfinite(noisy).all()


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'hifst'"):
        baselines.get("hifs")
