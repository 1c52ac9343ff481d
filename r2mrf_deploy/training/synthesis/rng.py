"""Random choices that follow from a few integers, and are the same for every device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Range = tuple[float, float]


class Rng:
    """Random numbers, begun anew from any sequence of integers.

    Choices are drawn on the CPU and moved to the device, so that they do not depend on it; only the noise of whole
    pictures is drawn where they are.

    Args:
        device: where the numbers are wanted.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._choices = torch.Generator()
        self._noise = torch.Generator(self.device)

    def seek(self, *key: int) -> None:
        """Begin the sequence that belongs to `key`: (seed, iteration, rank) and the like, each at least 0."""
        choices, noise = np.random.SeedSequence(key).generate_state(2, np.uint32).tolist()
        self._choices.manual_seed(choices)
        self._noise.manual_seed(noise)

    def uniform(self, count: int, interval: Range) -> Tensor:
        """[N, 1, 1, 1] in an interval."""
        low, high = interval
        return self._there(low + (high - low) * torch.rand(count, 1, 1, 1, generator=self._choices))

    def chance(self, count: int, probability: float) -> Tensor:
        """bool [N, 1, 1, 1]."""
        return self._there(torch.rand(count, 1, 1, 1, generator=self._choices) < probability)

    def some(self, count: int, probability: float) -> Tensor:
        """Indices below `count`, each with this probability: int64 [n], increasing."""
        return self._there(torch.nonzero(torch.rand(count, generator=self._choices) < probability).flatten())

    def whole(self, count: int, low: int, stop: int) -> Tensor:
        """int64 [N, 1, 1, 1], low .. stop - 1."""
        return self._there(torch.randint(low, stop, (count, 1, 1, 1), generator=self._choices))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal choices."""
        return self._there(torch.randn(shape, generator=self._choices))

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal, as many as in `like`, drawn on the device."""
        return torch.randn(like.shape, generator=self._noise, device=self.device)

    def integer(self, stop: int) -> int:
        """0 .. stop - 1."""
        return int(torch.randint(stop, (), generator=self._choices))

    def real(self, interval: Range) -> float:
        """One number in an interval."""
        low, high = interval
        return low + (high - low) * float(torch.rand((), generator=self._choices))

    def order(self, count: int) -> list[int]:
        """A permutation of 0 .. count - 1."""
        return torch.randperm(count, generator=self._choices).tolist()

    def _there(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True)
