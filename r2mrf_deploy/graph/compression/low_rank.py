"""A convolution as two or three smaller ones, fitted to what photographs send through it.

A pointwise convolution is projected onto the principal components of its output (Zhang et al., "Accelerating Very Deep
Convolutional Networks", TPAMI 2016, section 3.1). A k×k one is projected at its input, at its output or at both, which is
Tucker-2 (Kim et al., "Compression of Deep Convolutional Neural Networks", ICLR 2016) with the reconstruction weighted by the
second moments of the activations instead of by nothing. At the input the moments are not centred, so that zero padding stays
exact; at the output they are, because a bias can carry the mean.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from r2mrf_deploy.graph.compression.moments import Moments, damped

BLOCK = 8
"""Ranks are multiples of it: kernels work on vectors of channels."""


@dataclass(frozen=True)
class Ranks:
    """The inner channels of a factored convolution; 0 where that side is not projected."""

    into: int = 0
    out: int = 0


@dataclass(frozen=True, eq=False)
class Factor:
    """One of the convolutions: weights [M, C, h, w] and a bias [M] or none."""

    weight: np.ndarray
    bias: np.ndarray | None
    spatial: bool
    """Whether it has the original's kernel, strides and padding; the others are 1×1."""


class LowRank:
    """How a convolution could be factored.

    Args:
        weight: [M, C, h, w], float32.
        bias: [M], or None.
        into: the moments of its input, C channels.
        made: the moments of its output, M channels.
        pointwise: whether it is 1×1 without padding.
    """

    def __init__(
        self, weight: np.ndarray, bias: np.ndarray | None, into: Moments, made: Moments, pointwise: bool
    ) -> None:
        self.weight, self.bias, self.pointwise = weight.astype(np.float64), bias, pointwise
        self._into, self._made = into, made

    @cached_property
    def _input(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the taps, the input being whitened: the energies, falling, the directions [C, C], and L with S = L Lᵀ."""
        root = np.linalg.cholesky(damped(self._into.second))
        taps = np.moveaxis(self.weight, 1, 3).reshape(-1, self.weight.shape[1]) @ root
        energies, directions = _principal(taps.T @ taps)
        return energies, directions, root

    @cached_property
    def _output(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the output: the energies, falling, and the directions [M, M]."""
        return _principal(self._made.covariance)

    def ranks(self, error: float) -> Iterator[Ranks]:
        """The smallest ranks of each kind that leave at most a share `error` of the output's energy unexplained."""
        out = _rank(self._output[0], error)
        if self.pointwise:
            yield Ranks(out=out)
            return
        yield Ranks(out=out)
        yield Ranks(into=_rank(self._input[0], error))
        yield Ranks(_rank(self._input[0], error / 2), _rank(self._output[0], error / 2))

    def error(self, ranks: Ranks) -> float:
        """The share of the output's energy that a choice leaves unexplained, as the moments have it."""
        into = _left(self._input[0], ranks.into) if ranks.into else 0.0
        return into + (_left(self._output[0], ranks.out) if ranks.out else 0.0)

    def factors(self, ranks: Ranks) -> list[Factor]:
        """The convolutions in order, each reading the one before."""
        weight, bias = self.weight, None if self.bias is None else self.bias.astype(np.float64)
        found: list[Factor] = []
        if ranks.into:
            _, directions, root = self._input
            basis = directions[:, : ranks.into]
            down = np.linalg.solve(root.T, basis).T  # basisᵀ L⁻¹
            found.append(Factor(_single(down[:, :, None, None]), None, False))
            weight = np.einsum("mchw,cr->mrhw", weight, root @ basis)
        if not ranks.out:
            return [*found, Factor(_single(weight), self.bias, True)]
        basis, mean = self._output[1][:, : ranks.out], self._made.mean
        offset = basis.T @ ((0 if bias is None else bias) - mean)
        found.append(Factor(_single(np.einsum("mr,mchw->rchw", basis, weight)), _single(offset), True))
        return [*found, Factor(_single(basis[:, :, None, None]), _single(mean), False)]


def _principal(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues of a symmetric matrix, falling and not negative, and its eigenvectors as columns.

    The sign of an eigenvector is arbitrary; it is chosen so that its largest entry is positive.
    """
    energies, directions = np.linalg.eigh(gram)
    directions = directions[:, ::-1]
    signs = np.sign(directions[np.abs(directions).argmax(0), np.arange(len(gram))])
    return np.maximum(energies[::-1], 0), directions * signs


def _left(energies: np.ndarray, rank: int) -> float:
    total = float(energies.sum())
    return float(energies[rank:].sum()) / total if total else 0.0


def _rank(energies: np.ndarray, error: float) -> int:
    """The smallest rank, a multiple of `BLOCK`, that leaves at most a share `error` of the energy."""
    left = 1 - np.cumsum(energies) / max(float(energies.sum()), np.finfo(np.float64).tiny)
    enough = int(np.argmax(left <= error)) + 1
    return min(-(-enough // BLOCK) * BLOCK, len(energies))


def _single(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, np.float32)
