"""Moments that can be factored, of what photographs really send through."""

from __future__ import annotations

import numpy as np
import pytest

from r2mrf_deploy.graph.compression import moments
from r2mrf_deploy.graph.compression.low_rank import LowRank, Ranks
from r2mrf_deploy.graph.compression.moments import Moments, damped


def observed(array: np.ndarray) -> Moments:
    return Moments(*moments._moments(array))


def test_many_channels_of_few_directions_stay_positive_definite() -> None:
    rng = np.random.default_rng(0)
    x = np.einsum("cr,nrhw->nchw", rng.standard_normal((1024, 8)), rng.standard_normal((1, 8, 20, 20)))
    root = np.linalg.cholesky(damped(observed((100 * x).astype(np.float32)).second))
    assert np.isfinite(root).all()


@pytest.mark.parametrize(("height", "width"), [(1024, 64), (512, 512), (320, 320)])
def test_pixels_are_taken_from_all_columns_and_rows(height: int, width: int) -> None:
    """A tensor whose channels are the share of the width and of the height: their means are near a half."""
    x = np.broadcast_to(np.linspace(0, 1, width, dtype=np.float32), (height, width))
    y = np.broadcast_to(np.linspace(0, 1, height, dtype=np.float32)[:, None], (height, width))
    found = observed(np.stack([x, y])[None])
    # 1024 of them: the mean of that many uniform numbers is off by 0.009 (one sigma), their spread is 0.289
    assert np.abs(found.mean - 0.5).max() < 0.04
    assert np.abs(np.sqrt(np.diag(found.covariance)) - 0.289).max() < 0.02


def test_a_layer_that_reads_zeros_is_factored_without_infinities() -> None:
    zeros = Moments(np.zeros(16), np.zeros((16, 16)))
    weight = np.random.default_rng(0).standard_normal((8, 16, 3, 3)).astype(np.float32)
    made = Moments(np.zeros(8), np.zeros((8, 8)))
    for factor in LowRank(weight, None, zeros, made, False).factors(Ranks(8, 8)):
        assert np.isfinite(factor.weight).all()
