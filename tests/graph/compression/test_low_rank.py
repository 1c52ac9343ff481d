"""A factored convolution: exact at full rank, and as far off as it says below."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r2mrf_deploy.graph.compression.low_rank import Factor, LowRank, Ranks
from r2mrf_deploy.graph.compression.moments import Moments

RNG = np.random.default_rng(0)


def correlated(channels: int, rank: int) -> np.ndarray:
    """A photograph's tensor [1, C, 40, 40], smooth, most of it in a few directions, and not centred."""
    smooth = torch.from_numpy(RNG.standard_normal((1, rank, 10, 10)))
    x = torch.nn.functional.interpolate(smooth, (40, 40), mode="bicubic")
    mixed = torch.einsum("cr,nrhw->nchw", torch.from_numpy(RNG.standard_normal((channels, rank))), x)
    return (mixed + 0.05 * torch.from_numpy(RNG.standard_normal((1, channels, 40, 40))) + 1.0).numpy()


def moments(x: np.ndarray) -> Moments:
    pixels = x.transpose(1, 0, 2, 3).reshape(x.shape[1], -1)
    return Moments(pixels.mean(1), pixels @ pixels.T / pixels.shape[1])


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None) -> np.ndarray:
    given = None if bias is None else torch.from_numpy(bias.astype(np.float64))
    weights = torch.from_numpy(weight.astype(np.float64))
    return torch.nn.functional.conv2d(torch.from_numpy(x), weights, given, padding=weight.shape[2] // 2).numpy()


def run(x: np.ndarray, factors: list[Factor]) -> np.ndarray:
    for factor in factors:
        x = convolve(x, factor.weight, factor.bias)
    return x


def layer(
    filters: int, channels: int, kernel: int, rank: int = 6
) -> tuple[np.ndarray, np.ndarray, np.ndarray, LowRank]:
    """(the input, the weights, the output, how it could be factored)."""
    x = correlated(channels, rank)
    weight = RNG.standard_normal((filters, channels, kernel, kernel)).astype(np.float32)
    bias = RNG.standard_normal(filters).astype(np.float32)
    y = convolve(x, weight, bias)
    return x, weight, y, LowRank(weight, bias, moments(x), moments(y), kernel == 1)


@pytest.mark.parametrize("ranks", [Ranks(into=24), Ranks(out=16), Ranks(24, 16)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_full_ranks_change_nothing(kernel: int, ranks: Ranks) -> None:
    x, _, y, found = layer(16, 24, kernel)
    assert np.abs(run(x, found.factors(ranks)) - y).max() < 1e-4 * y.std()  # the factors are stored in FP32


def test_the_error_of_an_output_projection_is_the_one_it_says() -> None:
    x, _, y, found = layer(16, 24, 3)
    for rank in (2, 4, 8):
        lost = np.square(run(x, found.factors(Ranks(out=rank))) - y).sum()
        whole = np.square(y - y.mean((2, 3), keepdims=True)).sum()
        assert lost / whole == pytest.approx(found.error(Ranks(out=rank)), rel=1e-3)


def test_what_photographs_send_through_decides_and_not_the_weights_alone() -> None:
    x, weight, _, found = layer(32, 32, 3, rank=5)
    flat = weight.astype(np.float64).transpose(0, 2, 3, 1).reshape(-1, 32)
    basis = np.linalg.svd(flat, full_matrices=False)[2][:8]
    plain = [Factor(basis[:, :, None, None], None, False)]
    plain.append(Factor(np.einsum("mchw,rc->mrhw", weight, basis), None, True))
    wanted = convolve(x, weight, None)  # the bias is the same on both sides, and left out
    weighted = [*found.factors(Ranks(into=8))]
    weighted[-1] = Factor(weighted[-1].weight, None, True)
    errors = [np.square(run(x, factors) - wanted).mean() for factors in (weighted, plain)]
    assert errors[0] < 0.05 * errors[1]


def test_ranks_grow_as_the_error_falls_and_are_multiples_of_a_block() -> None:
    *_, found = layer(64, 48, 3, rank=20)
    outs = [next(iter(found.ranks(error))).out for error in (0.3, 0.1, 0.01, 1e-4)]
    assert outs == sorted(outs) and all(rank % 8 == 0 for rank in outs)
    for ranks in found.ranks(0.05):
        assert found.error(ranks) <= 0.05


def test_zero_padding_stays_exact_where_the_input_is_projected() -> None:
    """The directions that are kept explain all: the border, where zeros are read, must be right as well."""
    basis = RNG.standard_normal((24, 4))
    x = np.einsum("cr,nrhw->nchw", basis, RNG.standard_normal((1, 4, 20, 20)) + 2)
    weight = RNG.standard_normal((8, 24, 3, 3)).astype(np.float32)
    y = convolve(x, weight, None)
    found = LowRank(weight, None, moments(x), moments(y), False)
    assert np.abs(run(x, found.factors(Ranks(into=4))) - y).max() < 1e-3 * y.std()
