"""DeFusionNet: Defocus Blur Detection via Recurrently Fusing and Refining Multi-Scale Deep Features (Tang et al. CVPR 2019).

VGG-16 gives six feature maps, which are brought to the image's size. The three shallow ones are fused (FSHF), and so are the
three deep ones (FSEF); each refines the layers of the other kind, step by step. At every step every layer predicts where the
image is in focus, and a convolution fuses the six last predictions.

What the paper leaves open is marked S where sibling code (RADF, which this network extends) suggests it, D where it was
decided here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2mrf_deploy.networks.backbone import VGG16_OWN_STRIDES, Backbone, identify
from r2mrf_deploy.networks.base import MOST, Detector, Inferred, NetworkConfig, Prediction, Shapes, Value, entries
from r2mrf_deploy.networks.crop import crop

LAYERS = 6
SHALLOW = 3
"""m: the first layers are shallow, the rest deep."""
EXTRA = ((3, 128), (3, 128), (5, 256), (5, 256), (5, 512), (7, 512))
"""Kernel and channels of the two convolutions on each tap (S)."""


@dataclass(frozen=True)
class DeFusionNetConfig(NetworkConfig):
    """The options of DeFusionNet. The defaults are the paper's network."""

    steps: int = 3
    """Recurrent steps."""
    width: int = 32
    """Channels of each layer's features and of FSHF and FSEF (S)."""
    share: bool = False
    """Whether all steps have the same weights; S: each has its own."""
    refine: Literal["ffrm", "none"] = "ffrm"
    """"none": the ablation DeFusionNet_noFFRM: the layers predict from their initial features."""
    output: Literal["fused", "layer1", "layer2", "layer3", "layer4", "layer5", "layer6"] = "fused"
    """Which prediction is the network's map; "layer1" .. "layer6" are the ablations O1 .. O6."""


class Layer(nn.Module):
    """F_i^0 of one tap. `forward`: [N, C, h, w] and the image's size to [N, width, H, W], after two convolutions (P, S).

    The transposed convolution has kernel 2s and stride s (S); the first tap has the image's size and needs none (D).
    """

    def __init__(self, channels: int, stride: int, kernel: int, extra: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, extra, kernel, padding=kernel // 2)
        self.conv2 = nn.Conv2d(extra, extra, kernel, padding=kernel // 2)
        self.reduce = nn.Conv2d(extra, width, 1)
        self.up = nn.ConvTranspose2d(width, width, 2 * stride, stride, stride // 2) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        x = self.up(self.reduce(F.relu(self.conv2(F.relu(self.conv1(x))))))
        return x if isinstance(self.up, nn.Identity) else crop(x, size)


class FFRM(nn.Module):
    """Feature fusing and refining module: one step. `forward`: six F_i^{j-1} to six F_i^j, all [N, width, H, W]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.shallow = nn.Conv2d(SHALLOW * width, width, 1)
        self.deep = nn.Conv2d((LAYERS - SHALLOW) * width, width, 1)
        self.refine = nn.ModuleList(nn.Conv2d(2 * width, width, 3, padding=1) for _ in range(LAYERS))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        fshf = F.relu(self.shallow(torch.cat(features[:SHALLOW], 1)))
        fsef = F.relu(self.deep(torch.cat(features[SHALLOW:], 1)))
        other = [fsef] * SHALLOW + [fshf] * (LAYERS - SHALLOW)
        pairs = zip(self.refine, features, other, strict=True)
        return [F.relu(refine(torch.cat((known, fused), 1))) for refine, known, fused in pairs]


class DeFusionNet(Detector):
    """The network. Its side outputs are the layers' predictions `step{j}_layer{i}` [N, 1, H, W]; without FFRM, step 0's."""

    config: DeFusionNetConfig
    config_class = DeFusionNetConfig
    presets: ClassVar = {"defusionnet": DeFusionNetConfig()}

    def __init__(self, config: DeFusionNetConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone("vgg16", VGG16_OWN_STRIDES)
        for module in self.backbone.modules():
            if isinstance(module, nn.MaxPool2d):  # D: then s times a tap's side is never less than the image's
                module.ceil_mode = True
        self.layers = nn.ModuleList(
            Layer(tap.channels, tap.stride, *extra, config.width)
            for tap, extra in zip(self.backbone.taps, EXTRA, strict=True)
        )
        own = min(self.default_steps, 1) if config.share else self.default_steps
        self.steps = nn.ModuleList(FFRM(config.width) for _ in range(own))
        self.score = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(config.width, 1, 1) for _ in range(LAYERS)) for _ in range(max(own, 1))
        )
        self.fusion = nn.Conv2d(LAYERS, 1, 1)
        nn.init.constant_(self.fusion.weight, 1 / LAYERS)
        nn.init.zeros_(self.fusion.bias)

    def forward(self, image: Tensor, *, steps: int | None = None, all_steps: bool = False) -> Prediction:
        steps = self.check_steps(steps)
        size = image.shape[-2:]
        features = [layer(tap, size) for layer, tap in zip(self.layers, self.backbone(image), strict=True)]
        scores: list[Tensor] = [] if steps else self._predict(features, 0)
        for step in range(steps):
            features = self.steps[0 if self.config.share else step](features)
            scores += self._predict(features, step)
        outputs = dict(zip(self.side_names(steps), scores, strict=True))
        if self.config.output == "fused":
            logits = self.fusion(torch.cat(scores[-LAYERS:], 1))
        else:
            logits = outputs[f"step{steps}_{self.config.output}"]
        return (logits, outputs) if all_steps else logits

    def _predict(self, features: list[Tensor], step: int) -> list[Tensor]:
        score = self.score[0 if self.config.share else step]
        return [predict(f) for predict, f in zip(score, features, strict=True)]

    @property
    def last(self) -> nn.Conv2d | None:
        return self.fusion if self.config.output == "fused" else None

    @property
    def steps_range(self) -> range:
        most = MOST if self.config.share else self.config.steps
        return range(1, most + 1) if self.default_steps else range(1)

    @property
    def default_steps(self) -> int:
        return 0 if self.config.refine == "none" else self.config.steps

    def side_names(self, steps: int) -> list[str]:
        return [f"step{j}_layer{i}" for j in (range(1, steps + 1) if steps else (0,)) for i in range(1, LAYERS + 1)]

    def scope(self, path: str, call: int) -> str | None:
        first, *rest = path.split(".")
        if first in ("backbone", "fusion"):
            return first
        if first == "layers" and len(rest) == 1:
            return f"layer{int(rest[0]) + 1}"
        step = (call if self.config.share else int(rest[0])) + 1 if rest else 0
        if first == "steps" and len(rest) == 1:
            return f"step{step}"
        if first == "score" and len(rest) == 2:
            return f"score.step{step if len(self.steps) else 0}"
        return None

    @staticmethod
    def infer(shapes: Shapes) -> Inferred | None:
        reduce = shapes.get("layers.0.reduce.weight")
        if reduce is None or identify(shapes) != "vgg16":
            return None
        known: dict[str, Value] = {"width": reduce[0]}
        steps = entries(shapes, "steps")
        if not steps:
            return known | {"refine": "none"}, []
        return (known, ["steps", "share"]) if steps == 1 else (known | {"steps": steps, "share": False}, [])
