"""BTBCRL: Defocus Blur Detection via Multi-Stream Bottom-Top-Bottom Network (Zhao et al., TPAMI 2020): BTBNet with CRLNet.

BTBNet's streams, with 1×1 convolutions at their first three steps, give a map for each scale. CRLNet goes through the scales
from the smallest up: at each, a residual learning network (RLNet) reads the image and the map and adds a residual to its
predecessor's map.

What the paper leaves open was decided here and is marked D.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2mrf_deploy.networks.base import Detector, Inferred, NetworkConfig, Prediction, Shapes, Value, entries
from r2mrf_deploy.networks.btbnet import REFINED, SCALES, STEPS, WIDTHS, Streams, infer_width, scaled
from r2mrf_deploy.networks.upsample import resample

POINTWISE = 3
"""How many steps of a stream end in a 1×1 convolution."""


@dataclass(frozen=True)
class BTBCRLConfig(NetworkConfig):
    """The options of BTBCRL. The defaults are the paper's network of 2020."""

    steps: Literal[1, 2, 3] = 3
    """The number of RLNets, one for each scale, from the smallest up: 1 is {0.6}, 2 is {0.6, 0.8}, 3 is {0.6, 0.8, 1}."""
    width: Annotated[float, WIDTHS] = 1.0
    """Factor of all channels: 1 as in the paper, 0.5 or 0.25 to make it affordable (D)."""
    share: bool = True
    """Whether the RLNets after the first share weights; false is the ablation CRLNet (unshare)."""
    image: bool = True
    """Whether an RLNet reads the image as well as the map; false is the ablation MSCRLNet."""
    scales: Literal["multi", "single"] = "multi"
    """"single": the ablation SCCRLNet: one stream at scale 1, which every RLNet reads."""
    cascade: bool = True
    """Whether an RLNet continues from its predecessor; false is the ablation ARLNet: the map is the mean of theirs."""


class RLNet(nn.Module):
    """Residual learning network: six 3×3 convolutions with ReLU (D) and one to a map.

    `forward`: x [N, inside, h, w] and its predecessor's features [N, channels, h, w], if any, to (its map [N, 1, h, w], its
    features). The predecessor's features are added in the middle, after the third convolution (D: the residue that the paper
    adds there is taken to be the features that the residual map is predicted from).
    """

    def __init__(self, inside: int, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels if i else inside, channels, 3, padding=1) for i in range(6))
        self.predict = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, x: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        for i, conv in enumerate(self.convs):
            x = F.relu(conv(x))
            if i == 2 and before is not None:
                x = x + before
        return self.predict(x), x


class BTBCRL(Detector):
    """The network. Its side outputs are those of `Streams`, then the RLNets' `crl1` .. at their scale's size."""

    config: BTBCRLConfig
    config_class = BTBCRLConfig
    presets: ClassVar = {"btbcrl": BTBCRLConfig()}

    def __init__(self, config: BTBCRLConfig) -> None:
        super().__init__(config)
        scales = SCALES[::-1][: config.steps] if config.scales == "multi" else SCALES[:1]
        self.streams = Streams(scales, config.width, POINTWISE)
        inside, channels = 4 if config.image else 1, round(config.width * REFINED)
        self.first = RLNet(inside, channels)
        count = config.steps - 1
        self.later = nn.ModuleList(RLNet(inside, channels) for _ in range(min(count, 1) if config.share else count))

    def forward(self, image: Tensor, *, steps: int | None = None, all_steps: bool = False) -> Prediction:
        steps = self.check_steps(steps)
        outputs = self.streams.maps(image)
        refined: list[Tensor] = []
        for step in range(steps):
            scale = self.streams.scales[min(step, len(self.streams) - 1)]
            known = outputs[f"stream{scale}_step{STEPS}"]
            x = torch.cat((scaled(image, scale), known), 1) if self.config.image else known
            rlnet = self.first if step == 0 else self.later[0 if self.config.share else step - 1]
            if step == 0 or not self.config.cascade:
                output, features = rlnet(x, None)
            else:
                output, features = rlnet(x, self._resized(features, known))
                output = output + self._resized(refined[-1], known)
            refined.append(output)
            outputs[f"crl{step + 1}"] = output
        whole = [resample(m, image.shape[-2:]) for m in (refined[-1:] if self.config.cascade else refined)]
        logits = torch.stack(whole).mean(0) if len(whole) > 1 else whole[0]
        return (logits, outputs) if all_steps else logits

    def _resized(self, x: Tensor, like: Tensor) -> Tensor:
        """At the size of `like`; unchanged where there is only one scale."""
        return resample(x, like.shape[-2:]) if self.config.scales == "multi" else x

    @property
    def steps_range(self) -> range:
        return range(self.config.steps, self.config.steps + 1)  # an RLNet for each scale

    def side_names(self, steps: int) -> list[str]:
        return [*self.streams.names(), *(f"crl{step}" for step in range(1, steps + 1))]

    def scope(self, path: str, call: int) -> str | None:
        parts = path.split(".")
        if parts == ["first"]:
            return "crl.step1"
        if parts[0] == "later" and len(parts) == 2:
            return f"crl.step{(call if self.config.share else int(parts[1])) + 2}"
        return self.streams.scope(path)

    @staticmethod
    def infer(shapes: Shapes) -> Inferred | None:
        width, first = infer_width(shapes), shapes.get("first.convs.0.weight")
        if width is None or first is None:
            return None
        known: dict[str, Value] = {"width": width, "image": first[1] == 4}
        streams, sets = entries(shapes, "streams"), entries(shapes, "later")
        if streams > 1:
            return known | {"steps": streams, "share": sets == 1}, []
        if not sets:  # one step, at scale 0.6 or at scale 1
            return known | {"steps": 1}, ["scales"]
        known["scales"] = "single"
        if sets == 1:  # shared by any number of steps, or the second of two
            return known, ["steps"]
        return known | {"steps": sets + 1, "share": False}, []
