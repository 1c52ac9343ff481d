"""BTBNet: Defocus Blur Detection via Multi-Stream Bottom-Top-Bottom Network (Zhao et al., CVPR 2018), with FRRNet.

One stream for each scale of the image: VGG-16's convolutions without its pooling, and features that flow back from the top
to the bottom step by step, each step predicting where the image is in focus. FRRNet fuses the streams' last maps and refines
the result recursively beside the image. Everything is at full resolution, about 2,470 G multiply-adds for one stream of
320×320 pixels (1,510 G up, 960 G back); `width` narrows it.

What the paper leaves open was decided here, and is marked D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2mrf_deploy.networks.base import MOST, Detector, Inferred, NetworkConfig, Prediction
from r2mrf_deploy.networks.upsample import resample

SCALES = (100, 80, 60)
"""Per cent of the image's sides."""
BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
"""Channels and convolutions of VGG-16's blocks."""
STEPS = len(BLOCKS)
WIDTHS = (1.0, 0.5, 0.25)
REFINED = 64
"""Channels of the refining networks (D)."""


@dataclass(frozen=True)
class BTBNetConfig(NetworkConfig):
    """What BTBNet can be. The defaults are the paper's network of 2018."""

    streams: int = 3
    """Scales 1, 0.8 and 0.6 in this order; 1 is the ablation BTBNet(1S)."""
    width: float = 1.0
    """Of all channels: 1 as in the paper, 0.5 or 0.25 so that it can be run (D)."""
    refine: Literal["frr", "none"] = "frr"
    """"none": the map is the mean of the streams' (D; of one stream, its own)."""
    steps: int = 3
    """Recursions of FRRNet, which share their weights."""

    def check(self) -> None:
        self.one_of("streams", (1, 2, 3))
        self.one_of("width", WIDTHS)
        self.one_of("refine", ("frr", "none"))
        self.count("steps")


PRESETS = {
    "btbnet": BTBNetConfig(),
    "btbnet-1s": BTBNetConfig(streams=1, refine="none"),
}


class Stream(nn.Module):
    """One scale. `forward`: image [N, 3, h, w] to the maps of the five steps, the top's first, each [N, 1, h, w].

    D_5 = ReLU(conv(F_5)), D_k = ReLU(conv(D_{k+1})) + ReLU(conv(F_k)), all 3×3; a step's map is a 1×1 convolution of D_k.

    Args:
        width: of all channels.
        pointwise: the first so many steps end in a 1×1 convolution and a ReLU (BTBCRL's; D: counted from the top).
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


class Refiner(nn.Module):
    """Three 3×3 convolutions with ReLU and one to a map (D). `forward`: [N, inside, H, W] to [N, 1, H, W]."""

    def __init__(self, inside: int, channels: int) -> None:
        super().__init__()
        self.series = _series(inside, channels, 3)
        self.predict = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.predict(self.series(x))


class BTBNet(Detector):
    """The network. `forward`: normalised image [N, 3, H, W] to logits [N, 1, H, W]; the map is their sigmoid.

    With `all_steps=True` it returns (logits, side outputs): `stream{scale}_step{k}` at each stream's own size, k = 1 at the
    top, then FRRNet's fusion `frr0` and recursions `frr1` .. , all [N, 1, h, w], in the order they are computed.
    """

    config_class = BTBNetConfig
    presets = PRESETS

    def __init__(self, config: BTBNetConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = SCALES[: config.streams]
        self.streams = nn.ModuleList(Stream(config.width) for _ in self.scales)  # D: each its own weights
        if config.refine == "frr":
            channels = round(config.width * REFINED)
            self.fuse = Refiner(config.streams, channels)
            self.recur = Refiner(3 + 1, channels)

    def forward(self, image: Tensor, *, steps: int | None = None, all_steps: bool = False) -> Prediction:
        steps = self.check_steps(steps)
        outputs = run_streams(self.streams, self.scales, image)
        lasts = {s: outputs[f"stream{s}_step{STEPS}"] for s in self.scales}
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
        return [*stream_names(self.scales), *frr]

    def scope(self, path: str, call: int) -> str | None:
        if path in ("fuse", "recur"):
            return "frr.fuse" if path == "fuse" else f"frr.step{call + 1}"
        return stream_scope(path, self.scales)

    @staticmethod
    def infer(shapes: Mapping[str, tuple[int, ...]]) -> Inferred | None:
        known = infer_streams(shapes)
        if known is None or any(k.startswith(("crl.", "first.", "later.")) for k in shapes):
            return None
        if "recur.predict.weight" in shapes:
            return known | {"refine": "frr"}, ["steps"]
        return known | {"refine": "none"}, []


def run_streams(streams: nn.ModuleList, scales: Sequence[int], image: Tensor) -> dict[str, Tensor]:
    """All steps' maps of all streams by name; the image is scaled for each, its sides rounded down (D)."""
    outputs: dict[str, Tensor] = {}
    for stream, scale in zip(streams, scales, strict=True):
        for step, output in enumerate(stream(scaled(image, scale)), 1):
            outputs[f"stream{scale}_step{step}"] = output
    return outputs


def scaled(image: Tensor, scale: int) -> Tensor:
    """The image [N, C, H, W] at `scale` per cent of its sides, bilinear."""
    height, width = image.shape[-2:]
    return image if scale == 100 else resample(image, (height * scale // 100, width * scale // 100))


def stream_names(scales: Sequence[int]) -> list[str]:
    """The names of the streams' side outputs, in the order they are computed."""
    return [f"stream{scale}_step{step}" for scale in scales for step in range(1, STEPS + 1)]


def stream_scope(path: str, scales: Sequence[int]) -> str | None:
    """The scope of a module of a stream, such as `stream80.block3` or `stream80.step2`; None for any other module."""
    parts = path.split(".")
    if parts[0] != "streams" or len(parts) != 4:
        return None
    kind, number = parts[2], int(parts[3])
    what = f"block{number + 1}" if kind == "blocks" else f"step{number + (2 if kind == 'down' else 1)}"
    return f"stream{scales[int(parts[1])]}.{what}"


def infer_streams(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any] | None:
    """`streams` and `width` from shapes; None where there are no streams of a known width."""
    first = shapes.get("streams.0.blocks.0.0.weight")
    width = first[0] / BLOCKS[0][0] if first else None
    if width not in WIDTHS:
        return None
    return {"streams": len({k.split(".")[1] for k in shapes if k.startswith("streams.")}), "width": width}


def _series(inside: int, channels: int, count: int) -> nn.Sequential:
    """`count` times a 3×3 convolution and a ReLU."""
    layers: list[nn.Module] = []
    for i in range(count):
        layers += [nn.Conv2d(channels if i else inside, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)
