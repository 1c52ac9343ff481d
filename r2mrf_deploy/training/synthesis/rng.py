"""Random choices that are determined by a few integers and are the same on every device."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

Range = tuple[float, float]


class Rng:
    """Random numbers that can be restarted from any sequence of integers.

    Choices are drawn on the CPU and moved to the device, so that they do not depend on it. Only the noise of whole pictures
    is drawn on the device.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self._choices = torch.Generator()
        self._noise = torch.Generator(self.device)

    def seek(self, *key: int) -> None:
        """Start the sequence of `key`, integers of at least 0 such as (seed, iteration, rank)."""
        choices, noise = np.random.SeedSequence(key).generate_state(2, np.uint32).tolist()
        self._choices.manual_seed(choices)
        self._noise.manual_seed(noise)

    def uniform(self, count: int, interval: Range) -> Tensor:
        """Uniform numbers in an interval, [N, 1, 1, 1]."""
        low, high = interval
        return self._move(low + (high - low) * torch.rand(count, 1, 1, 1, generator=self._choices))

    def chance(self, count: int, probability: float) -> Tensor:
        """True with a probability, bool [N, 1, 1, 1]."""
        return self._move(torch.rand(count, 1, 1, 1, generator=self._choices) < probability)

    def some(self, count: int, probability: float) -> Tensor:
        """Increasing indices below `count`, each chosen with a probability, int64 [n]."""
        return self._move(torch.nonzero(torch.rand(count, generator=self._choices) < probability).flatten())

    def whole(self, count: int, low: int, stop: int) -> Tensor:
        """Integers low .. stop - 1, int64 [N, 1, 1, 1]."""
        return self._move(torch.randint(low, stop, (count, 1, 1, 1), generator=self._choices))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return self._move(torch.randn(shape, generator=self._choices))

    def noise(self, like: Tensor) -> Tensor:
        """Standard normal numbers of the shape of `like`, drawn on the device."""
        return torch.randn(like.shape, generator=self._noise, device=self.device)

    def integer(self, stop: int) -> int:
        """One integer 0 .. stop - 1."""
        return int(torch.randint(stop, (), generator=self._choices))

    def real(self, interval: Range) -> float:
        """One number in an interval."""
        low, high = interval
        return low + (high - low) * float(torch.rand((), generator=self._choices))

    def order(self, count: int) -> list[int]:
        """A random permutation of 0 .. count - 1."""
        return torch.randperm(count, generator=self._choices).tolist()

    def _move(self, x: Tensor) -> Tensor:
        return x.to(self.device, non_blocking=True)
