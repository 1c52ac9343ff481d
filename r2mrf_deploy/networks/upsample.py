"""Bilinear resampling to a given size, as every network here does it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def upsample(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bilinear with half-pixel centres (`align_corners=False`): [N, C, h, w] to [N, C, *size].

    Under torch.export it is one opaque operator: traced into PyTorch's own decomposition, the free sizes of a dynamic
    graph make expressions that take minutes to simplify (DenseNet-161), for a node that ONNX has anyway.
    """
    if torch.compiler.is_exporting():
        return torch.ops.r2mrf.upsample_bilinear(x, size[0], size[1])
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


@torch.library.custom_op("r2mrf::upsample_bilinear", mutates_args=())  # type: ignore[untyped-decorator]
def _upsample_bilinear(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


@_upsample_bilinear.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, height: int, width: int) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], height, width))
