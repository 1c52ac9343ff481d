"""Cutting a map to a given size, from its top left corner."""

from __future__ import annotations

import torch
from torch import Tensor

from r2mrf_deploy.networks.opaque import exporting


def crop(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """[N, C, h, w] to [N, C, *size]; no side of `size` is longer than x's.

    Under torch.export it is one opaque operator, as `upsample` is: otherwise, with free sizes, the exporter would have to
    prove that a multiple of ceil(H / 32) is at least H.
    """
    if exporting():
        return torch.ops.r2mrf.crop(x, size[0], size[1])
    return x[:, :, : size[0], : size[1]]


@torch.library.custom_op("r2mrf::crop", mutates_args=())  # type: ignore[untyped-decorator]
def _crop(x: Tensor, height: int, width: int) -> Tensor:
    return x[:, :, :height, :width].clone(memory_format=torch.contiguous_format)


@_crop.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, height: int, width: int) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], height, width))
