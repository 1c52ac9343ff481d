"""The exponential moving average (EMA) of a network's weights."""

from __future__ import annotations

import torch
from torch import nn


@torch.no_grad()  # type: ignore[untyped-decorator]
def average_into(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move every parameter of `average` to decay × itself + (1 - decay) × the network's; buffers are copied."""
    into, of = list(average.parameters()), list(network.parameters())
    torch._foreach_lerp_(into, of, 1 - decay)
    for kept, buffer in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(buffer)
