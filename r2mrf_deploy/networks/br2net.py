"""BR²Net: Defocus Blur Detection via a Bidirectional Channel Attention Residual Refining Network (Tang et al., TMM 2020).

A backbone gives five feature maps, each weighted by channel attention. Two pathways predict where the image is in focus and
refine the prediction map by map: L2H from the shallowest map to the deepest at F_1's size, H2L from the deepest to the
shallowest at F_5's size. Their last predictions are fused.

The source is the authors' code (github.com/ChangTang/BR2Net, `model.py`); what is not in it is marked D. The authors'
checkpoints load (see `br2net_checkpoint`). Their map is 1 where their masks are white, and so is this one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from r2mrf_deploy.manifest import Preprocess
from r2mrf_deploy.networks.backbone import Backbone, BackboneName, GlobalMean, identify, preprocess
from r2mrf_deploy.networks.base import Adopted, Detector, Inferred, NetworkConfig, Prediction, Shapes, shapes_of
from r2mrf_deploy.networks.br2net_checkpoint import adopt
from r2mrf_deploy.networks.upsample import upsample

STEPS = 5
"""Recurrent steps of a pathway: one for each feature map."""
REDUCTION = 16


@dataclass(frozen=True)
class BR2NetConfig(NetworkConfig):
    """The options of BR²Net. The defaults are the authors' network."""

    backbone: BackboneName = "resnext101_32x4d"
    width: int = 128
    """Channels inside an RLRM."""
    attention: bool = True
    """Channel attention on each feature map; false is the ablation without it."""
    refine: Literal["residual", "direct"] = "residual"
    """"direct": the ablation BR2Net_no_RLRM: P_k is the module's output, with nothing added."""
    fusion: Literal["mean", "conv"] = "mean"
    """"mean" as in the code; "conv" as in the paper, a convolution over both. Its ReLU is left out, because the sigmoid of a
    ReLU is never below 0.5, and its kernel is 1×1 (D)."""
    output: Literal["fused", "l2h", "h2l"] = "fused"
    """Which prediction is the network's map; "l2h" and "h2l" are the ablations O_LH and O_HL."""

    @property
    def preprocess(self) -> Preprocess:
        return preprocess(self.backbone)


class Attention(nn.Module):
    """Channel attention. `forward`: [N, C, h, w] to the same, each channel scaled by a number from 0 to 1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.mean = GlobalMean()
        self.squeeze = nn.Conv2d(channels, channels // REDUCTION, 1)
        self.excite = nn.Conv2d(channels // REDUCTION, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.excite(torch.relu(self.squeeze(self.mean(x)))))


class RLRM(nn.Module):
    """Residual learning and refining module. `forward`: [N, channels, h, w] to the residual map [N, 1, h, w]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.act1 = nn.PReLU()
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(width)
        self.act2 = nn.PReLU()
        self.residual = nn.Conv2d(width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.norm1(self.conv1(x)))
        return self.residual(self.act2(self.norm2(self.conv2(x))))


class Pathway(nn.Module):
    """One direction. `forward`: five maps, in the order it reads them, to P_0 .. P_4, each [N, 1, h, w] at the first's size.

    P_0 is a 1×1 convolution of the first map; P_k = RLRM_k(Cat(P_{k-1}, resized map k)) + P_{k-1}.
    """

    def __init__(self, channels: tuple[int, ...], width: int, refine: str) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels[0], 1, 1)
        self.later = nn.ModuleList(RLRM(c + 1, width) for c in channels[1:])
        self.residual = refine == "residual"

    def forward(self, maps: tuple[Tensor, ...]) -> list[Tensor]:
        size = maps[0].shape[-2:]
        outputs = [self.first(maps[0])]
        for rlrm, feature in zip(self.later, maps[1:], strict=True):
            known = outputs[-1]
            refined = rlrm(torch.cat((known, upsample(feature, size)), 1))
            outputs.append(refined + known if self.residual else refined)
        return outputs


class BR2Net(Detector):
    """The network. Its side outputs are `l2h0` .. `l2h4` at F_1's size and `h2l0` .. `h2l4` at F_5's, each [N, 1, h, w]."""

    config: BR2NetConfig
    config_class = BR2NetConfig
    presets: ClassVar = {"br2net": BR2NetConfig(), "br2net-vgg16": BR2NetConfig(backbone="vgg16")}

    def __init__(self, config: BR2NetConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone)
        channels = self.backbone.channels
        if config.attention:
            self.attention = nn.ModuleList(Attention(c) for c in channels)
        self.l2h = Pathway(channels, config.width, config.refine)
        self.h2l = Pathway(channels[::-1], config.width, config.refine)
        if config.fusion == "conv":
            self.fusion = nn.Conv2d(2, 1, 1)
            nn.init.constant_(self.fusion.weight, 1 / 2)
            nn.init.zeros_(self.fusion.bias)

    def forward(self, image: Tensor, *, steps: int | None = None, all_steps: bool = False) -> Prediction:
        self.check_steps(steps)
        features = self.backbone(image)
        if self.config.attention:
            features = tuple(weigh(f) for weigh, f in zip(self.attention, features, strict=True))
        low, high = self.l2h(features), self.h2l(features[::-1])
        logits = self._fuse(low[-1], high[-1], image.shape[-2:])
        return (logits, dict(zip(self.side_names(STEPS), (*low, *high), strict=True))) if all_steps else logits

    def _fuse(self, low: Tensor, high: Tensor, size: torch.Size) -> Tensor:
        if self.config.output != "fused":
            return upsample(low if self.config.output == "l2h" else high, size)
        low, high = upsample(low, size), upsample(high, size)
        return self.fusion(torch.cat((low, high), 1)) if self.config.fusion == "conv" else (low + high) / 2

    @property
    def last(self) -> nn.Conv2d | None:
        return self.fusion if self.config.output == "fused" and self.config.fusion == "conv" else None

    @property
    def steps_range(self) -> range:
        return range(STEPS, STEPS + 1)  # one for each feature map

    def side_names(self, steps: int) -> list[str]:
        return [f"{pathway}{k}" for pathway in ("l2h", "h2l") for k in range(steps)]

    def scope(self, path: str, call: int) -> str | None:
        first, *rest = path.split(".")
        if first in ("backbone", "attention", "fusion"):
            return first
        pathway = {"l2h": "low_to_high", "h2l": "high_to_low"}.get(first)
        if pathway is None or not rest or rest == ["later"]:
            return None
        return f"{pathway}.step{1 if rest[0] == 'first' else int(rest[1]) + 2}" if len(rest) <= 2 else None

    @staticmethod
    def infer(shapes: Shapes) -> Inferred | None:
        name = identify(shapes)
        rlrm = shapes.get("l2h.later.0.conv1.weight")
        if name is None or rlrm is None or "h2l.first.weight" not in shapes:
            return None
        return {
            "backbone": name,
            "width": rlrm[0],
            "attention": "attention.0.squeeze.weight" in shapes,
            "fusion": "conv" if "fusion.weight" in shapes else "mean",
        }, []

    @classmethod
    def adopt(cls, state: Mapping[str, Tensor]) -> Adopted | None:
        return adopt(state, lambda attention: shapes_of(cls, BR2NetConfig(attention=attention)))
