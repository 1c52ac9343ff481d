"""A small U-Net (Ronneberger, Fischer and Brox, MICCAI 2015) as a detector: a network that has no recurrent steps.

Four levels of two 3×3 convolutions; each but the first has half the size and twice the channels of the one before. On the
way back, each level is resized to the one before, concatenated with it and convolved. A 1×1 convolution gives the logits.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2mrf_deploy.networks.base import Detector, Inferred, NetworkConfig, Prediction, Shapes, entries
from r2mrf_deploy.networks.upsample import upsample


@dataclass(frozen=True)
class UNetConfig(NetworkConfig):
    """The options of the network; `r2mrf init unet --set width=8` sets them."""

    width: int = 16
    """Channels of the first level."""
    levels: int = 4
    """How many sizes there are."""


class Block(nn.Sequential):
    """Two 3×3 convolutions: [N, inputs, H, W] to [N, outputs, H, W]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        pairs = ((inputs, outputs), (outputs, outputs))
        super().__init__(
            *(
                layer
                for a, b in pairs
                for layer in (nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU())
            )
        )


class UNet(Detector):
    """The network: float32 [N, 3, H, W] to logits [N, 1, H, W]."""

    config: UNetConfig
    config_class = UNetConfig
    presets: ClassVar = {"unet": UNetConfig(), "unet-tiny": UNetConfig(width=4, levels=3)}

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        channels = [config.width * 2**level for level in range(config.levels)]
        self.down = nn.ModuleList(Block(a, b) for a, b in zip([3, *channels], channels, strict=False))
        self.up = nn.ModuleList(Block(a + b, a) for a, b in pairwise(channels))
        self.score = nn.Conv2d(config.width, 1, 1)

    def forward(self, image: Tensor, *, steps: int | None = None, all_steps: bool = False) -> Prediction:
        self.check_steps(steps)
        features = [self.down[0](image)]
        for block in list(self.down)[1:]:
            # an odd size rounds up, so that nothing at the border is lost
            features.append(block(F.max_pool2d(features[-1], 2, ceil_mode=True)))
        found = features.pop()
        for block in reversed(self.up):
            level = features.pop()
            found = block(torch.cat((level, upsample(found, level.shape[-2:])), 1))
        logits = self.score(found)
        return (logits, {}) if all_steps else logits

    @property
    def last(self) -> nn.Conv2d:
        return self.score

    @property
    def steps_range(self) -> range:
        return range(1)  # none

    def side_names(self, steps: int) -> list[str]:
        return []

    def scope(self, path: str, call: int) -> str | None:
        return path if path == "score" or path.count(".") == 1 else None  # down.0, up.2

    @staticmethod
    def infer(shapes: Shapes) -> Inferred | None:
        first = shapes.get("down.0.0.weight")
        if first is None or "up.0.0.weight" not in shapes:
            return None
        return {"width": first[0], "levels": entries(shapes, "down")}, []
