"""EMA of the weights, and BatchNorm statistics for the averaged weights, which never run in training mode."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def averaged_copy(network: nn.Module) -> nn.Module:
    """A copy for the EMA, without gradients."""
    return copy.deepcopy(network).requires_grad_(False)


@torch.no_grad()  # type: ignore[untyped-decorator]
def average_into(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Move every parameter of `average` to decay × itself + (1 - decay) × the network's; buffers are copied."""
    into, of = list(average.parameters()), list(network.parameters())
    torch._foreach_lerp_(into, of, 1 - decay)
    for kept, buffer in zip(average.buffers(), network.buffers(), strict=True):
        kept.copy_(buffer)


@torch.no_grad()  # type: ignore[untyped-decorator]
def estimate_statistics(network: nn.Module, images: Iterable[Tensor]) -> None:
    """Set BatchNorm's running statistics to plain averages over batches; without BatchNorm nothing happens.

    Args:
        network: its training or evaluation mode is preserved.
        images: normalised batches [N, 3, H, W].
    """
    norms = [m for m in network.modules() if isinstance(m, _BatchNorm)]
    if not norms:
        return
    training, momenta = network.training, [norm.momentum for norm in norms]
    network.train()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a cumulative average
    for image in images:
        network(image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    network.train(training)
