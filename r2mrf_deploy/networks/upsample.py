"""Bilinear resampling to a given size, as every network here uses it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from r2mrf_deploy.networks.opaque import exporting


def upsample(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Bilinear with half-pixel centres (`align_corners=False`): [N, C, h, w] to [N, C, *size].

    Under torch.export it is one opaque operator. If PyTorch's own decomposition were traced, the free sizes of a dynamic
    graph would give expressions that take minutes to simplify (DenseNet-161), for a node that ONNX has anyway.
    """
    if exporting():
        return torch.ops.r2mrf.upsample_bilinear(x, size[0], size[1])
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def resample(x: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """The same as `upsample`, as two matrix products, for few channels and sizes that are not whole multiples.

    A runtime's own resizing computes the positions of the pixels from a rounded factor. At a few hundred pixels that moves
    them by 1e-5 of a pixel, differently in each runtime, and a deep network amplifies it to 4e-4 of its output's spread.
    """
    rows, columns = (_interpolation(old, new, x) for old, new in zip(x.shape[-2:], size, strict=True))
    return rows @ x @ columns.T


def _interpolation(old: int, new: int, like: Tensor) -> Tensor:
    """The weights [new, old] that interpolate `old` pixels linearly to `new`, in the dtype of `like`.

    Distances are whole numbers of 1 / (2 * `new`) pixels. So only the weights themselves are rounded, and a pixel that is
    not a neighbour has weight zero even where a runtime divides by multiplying with a reciprocal.
    """
    unit = 2 * new
    pixels = torch.arange(old, device=like.device)
    positions = ((2 * torch.arange(new, device=like.device) + 1) * old - new).clamp(0, unit * (old - 1))
    distances = (positions[:, None] - unit * pixels).abs()
    return (unit - distances).clamp(min=0).to(like.dtype) / unit


@torch.library.custom_op("r2mrf::upsample_bilinear", mutates_args=())  # type: ignore[untyped-decorator]
def _upsample_bilinear(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False).contiguous()


@_upsample_bilinear.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, height: int, width: int) -> Tensor:
    return x.new_empty((x.shape[0], x.shape[1], height, width))
