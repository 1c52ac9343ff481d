"""BTBNet: Defocus Blur Detection via Multi-Stream Bottom-Top-Bottom Network (Zhao et al., CVPR 2018), with FRRNet.

Each scale of the image has a stream: VGG-16's convolutions without its pooling, and features that flow back from the top to
the bottom step by step, each step predicting where the image is in focus. FRRNet fuses the streams' last maps and refines
the result recursively, together with the image. Everything is at full resolution, about 2,470 G multiply-adds for one stream
of 320×320 pixels (1,510 G up, 960 G back); `width` narrows it.

What the paper leaves open was decided here and is marked D.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2mrf_deploy.networks.base import MOST, Detector, Inferred, NetworkConfig, Prediction, Shapes, Value, entries
from r2mrf_deploy.networks.upsample import resample

SCALES = (100, 80, 60)
"""In per cent of the image's sides."""
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of VGG-16's blocks."""
STEPS = len(BLOCKS)
WIDTHS = (1.0, 0.5, 0.25)
REFINED = 64
"""Channels of the refining networks (D)."""


@dataclass(frozen=True)
class BTBNetConfig(NetworkConfig):
    """The options of BTBNet. The defaults are the paper's network of 2018."""

    streams: Literal[1, 2, 3] = 3
    """The first so many of the scales 1, 0.8 and 0.6; 1 is the ablation BTBNet(1S)."""
    width: Annotated[float, WIDTHS] = 1.0
    """Factor of all channels: 1 as in the paper, 0.5 or 0.25 to make it affordable (D)."""
    refine: Literal["frr", "none"] = "frr"
    """"none": the map is the mean of the streams' maps (D)."""
    steps: int = 3
    """Recursions of FRRNet, which share their weights."""


class Stream(nn.Module):
    """One scale. `forward`: image [N, 3, h, w] to the maps of the five steps, the top's first, each [N, 1, h, w].

    D_5 = ReLU(conv(F_5)), D_k = ReLU(conv(D_{k+1})) + ReLU(conv(F_k)), all 3×3; a step's map is a 1×1 convolution of D_k.

    Args:
        width: factor of all channels.
        pointwise: how many steps, counted from the top (D), end in a 1×1 convolution and a ReLU, as BTBCRL's do.
    """

    def __init__(self, width: float, pointwise: int = 0) -> None:
        super().__init__()
        channels = [round(width * c) for c, _ in BLOCKS]
        self.blocks = nn.ModuleList(
            _series(before, c, count) for before, c, (_, count) in zip([3, *channels], channels, BLOCKS, strict=False)
        )
        back = channels[::-1]
        self.across = nn.ModuleList(nn.Conv2d(c, c, 3, padding=1) for c in back)
        self.down = nn.ModuleList(nn.Conv2d(above, c, 3, padding=1) for above, c in pairwise(back))
        self.pointwise = nn.ModuleList(nn.Conv2d(c, c, 1) for c in back[:pointwise])
        self.predict = nn.ModuleList(nn.Conv2d(c, 1, 1) for c in back)

    def forward(self, image: Tensor) -> list[Tensor]:
        features, x = [], image
        for block in self.blocks:
            x = block(x)
            features.append(x)
        maps: list[Tensor] = []
        d: Tensor | None = None
        for step, feature in enumerate(reversed(features)):
            own = F.relu(self.across[step](feature))
            d = own if d is None else F.relu(self.down[step - 1](d)) + own
            if step < len(self.pointwise):
                d = F.relu(self.pointwise[step](d))
            maps.append(self.predict[step](d))
        return maps


class Streams(nn.ModuleList):
    """A `Stream` for each scale, in per cent, with weights of its own (D).

    Their side outputs are `stream{scale}_step{k}` [N, 1, h, w] at each stream's own size, k = 1 at the top.
    """

    def __init__(self, scales: tuple[int, ...], width: float, pointwise: int = 0) -> None:
        super().__init__(Stream(width, pointwise) for _ in scales)
        self.scales = scales

    def maps(self, image: Tensor) -> dict[str, Tensor]:
        """The side outputs by name; the image is scaled for each stream, its sides rounded down (D)."""
        outputs = [m for stream, scale in zip(self, self.scales, strict=True) for m in stream(scaled(image, scale))]
        return dict(zip(self.names(), outputs, strict=True))

    def names(self) -> list[str]:
        """The names of the side outputs, in the order they are computed."""
        return [f"stream{scale}_step{step}" for scale in self.scales for step in range(1, STEPS + 1)]

    def scope(self, path: str) -> str | None:
        """The scope of a module of a stream, such as `stream80.block3` or `stream80.step2`; None for any other module."""
        parts = path.split(".")
        if parts[0] != "streams" or len(parts) != 4:
            return None
        kind, number = parts[2], int(parts[3])
        what = f"block{number + 1}" if kind == "blocks" else f"step{number + (2 if kind == 'down' else 1)}"
        return f"stream{self.scales[int(parts[1])]}.{what}"


class Refiner(nn.Module):
    """Three 3×3 convolutions with ReLU and one to a map (D). `forward`: [N, inside, H, W] to [N, 1, H, W]."""

    def __init__(self, inside: int, channels: int) -> None:
        super().__init__()
        self.series = _series(inside, channels, 3)
        self.predict = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(self.series(x))


class BTBNet(Detector):
    """The network. Its side outputs are those of `Streams`, then FRRNet's fusion `frr0` and recursions `frr1` .. ."""

    config: BTBNetConfig
    config_class = BTBNetConfig
    presets: ClassVar = {"btbnet": BTBNetConfig(), "btbnet-1s": BTBNetConfig(streams=1, refine="none")}

    def __init__(self, config: BTBNetConfig) -> None:
        super().__init__(config)
        self.streams = Streams(SCALES[: config.streams], config.width)
        if config.refine == "frr":
            channels = round(config.width * REFINED)
            self.fuse = Refiner(config.streams, channels)
            self.recur = Refiner(3 + 1, channels)

    def forward(self, image: Tensor, *, steps: int | None = None, all_steps: bool = False) -> Prediction:
        steps = self.check_steps(steps)
        outputs = self.streams.maps(image)
        lasts = {s: outputs[f"stream{s}_step{STEPS}"] for s in self.streams.scales}
        maps = [last if s == 100 else resample(last, image.shape[-2:]) for s, last in lasts.items()]
        if self.config.refine == "none":
            logits = torch.stack(maps).mean(0) if len(maps) > 1 else maps[0]
        else:
            logits = outputs["frr0"] = self.fuse(torch.cat(maps, 1))
            for step in range(1, steps + 1):
                logits = outputs[f"frr{step}"] = self.recur(torch.cat((image, logits), 1))
        return (logits, outputs) if all_steps else logits

    @property
    def steps_range(self) -> range:
        return range(1, MOST + 1) if self.default_steps else range(1)  # recursions share their weights

    @property
    def default_steps(self) -> int:
        return 0 if self.config.refine == "none" else self.config.steps

    def side_names(self, steps: int) -> list[str]:
        frr = [f"frr{step}" for step in range(steps + 1)] if self.config.refine == "frr" else []
        return [*self.streams.names(), *frr]

    def scope(self, path: str, call: int) -> str | None:
        if path in ("fuse", "recur"):
            return "frr.fuse" if path == "fuse" else f"frr.step{call + 1}"
        return self.streams.scope(path)

    @staticmethod
    def infer(shapes: Shapes) -> Inferred | None:
        width = infer_width(shapes)
        if width is None or "first.predict.weight" in shapes:  # BTBCRL's
            return None
        known: dict[str, Value] = {"streams": entries(shapes, "streams"), "width": width}
        if "recur.predict.weight" in shapes:
            return known | {"refine": "frr"}, ["steps"]
        return known | {"refine": "none"}, []


def scaled(image: Tensor, scale: int) -> Tensor:
    """The image [N, C, H, W] at `scale` per cent of its sides, bilinear."""
    height, width = image.shape[-2:]
    return image if scale == 100 else resample(image, (height * scale // 100, width * scale // 100))


def infer_width(shapes: Shapes) -> float | None:
    """The `width` of a state dict; None if it has no streams of an allowed width."""
    first = shapes.get("streams.0.blocks.0.0.weight", (0,))
    return next((width for width in WIDTHS if width * BLOCKS[0][0] == first[0]), None)


def _series(inside: int, channels: int, count: int) -> nn.Sequential:
    """`count` 3×3 convolutions, each followed by a ReLU."""
    layers: list[nn.Module] = []
    for i in range(count):
        layers += [nn.Conv2d(channels if i else inside, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)
