"""TensorFlow's "same" padding: ceil(n / stride) pixels come out of n, and an odd pixel of padding comes after."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2mrf_deploy.networks.opaque import exporting


class SameConv2d(nn.Conv2d):
    """A convolution of an odd kernel, [N, C, h, w] to [N, C', ceil(h / s), ceil(w / s)].

    How much a strided one pads before its first pixel depends on whether a side is even. Under torch.export it is one opaque
    operator, as `upsample` is, and in ONNX a Conv that pads the same way by itself, so that free sizes stay free.
    """

    def __init__(self, channels: int, out: int, kernel: int, *, stride: int = 1, groups: int = 1, bias: bool) -> None:
        super().__init__(channels, out, kernel, stride, kernel // 2, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == (1, 1):
            return super().forward(x)
        if exporting():
            return torch.ops.r2mrf.conv_same(x, self.weight, self.bias, list(self.stride), self.groups)
        return conv_same(x, self.weight, self.bias, self.stride, self.groups)


def conv_same(
    x: Tensor, weight: Tensor, bias: Tensor | None, strides: tuple[int, ...] | list[int], groups: int
) -> Tensor:
    """F.conv2d with "same" padding."""
    (top, bottom), (left, right) = map(pads, x.shape[2:], weight.shape[2:], strides)
    if (top, left) == (bottom, right):
        return F.conv2d(x, weight, bias, strides, (top, left), groups=groups)
    return F.conv2d(F.pad(x, (left, right, top, bottom)), weight, bias, strides, groups=groups)


def pads(pixels: int, kernel: int, stride: int) -> tuple[int, int]:
    """How many pixels are added before and after a side: max((ceil(n / s) - 1) * s + k - n, 0) in all."""
    added = max(kernel - 1 - (pixels - 1) % stride, 0)
    return added // 2, added - added // 2


@torch.library.custom_op("r2mrf::conv_same", mutates_args=())  # type: ignore[untyped-decorator]
def _conv_same(x: Tensor, weight: Tensor, bias: Tensor | None, strides: list[int], groups: int) -> Tensor:
    return conv_same(x, weight, bias, strides, groups).contiguous()


@_conv_same.register_fake  # type: ignore[untyped-decorator]
def _(x: Tensor, weight: Tensor, bias: Tensor | None, strides: list[int], groups: int) -> Tensor:
    height, width = ((n - 1) // s + 1 for n, s in zip(x.shape[2:], strides, strict=True))
    return x.new_empty((x.shape[0], weight.shape[0], height, width))
