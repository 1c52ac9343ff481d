"""BTBCRL: Defocus Blur Detection via Multi-Stream Bottom-Top-Bottom Network (Zhao et al., TPAMI 2020): BTBNet with CRLNet.

BTBNet's streams, with 1×1 convolutions at their first three steps, give a map for each scale. CRLNet goes through the scales
from the smallest up: at each, a residual learning network (RLNet) reads image and map and adds what it finds to the map of
the scale before.

What the paper leaves open was decided here, and is marked D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2mrf_deploy.networks.base import Detector, Inferred, NetworkConfig, Prediction
from r2mrf_deploy.networks.btbnet import (
    REFINED,
    SCALES,
    STEPS,
    WIDTHS,
    Stream,
    infer_streams,
    run_streams,
    scaled,
    stream_names,
    stream_scope,
)
from r2mrf_deploy.networks.upsample import resample

POINTWISE = 3
"""Steps of a stream that end in a 1×1 convolution."""


@dataclass(frozen=True)
class BTBCRLConfig(NetworkConfig):
    """What BTBCRL can be. The defaults are the paper's network of 2020."""

    steps: int = 3
    """RLNets, one for each scale, from the smallest up: 1 is {0.6}, 2 is {0.6, 0.8}, 3 is {0.6, 0.8, 1}."""
    width: float = 1.0
    """Of all channels: 1 as in the paper, 0.5 or 0.25 so that it can be run (D)."""
    share: bool = True
    """Whether the RLNets after the first share weights; false is the ablation CRLNet (unshare)."""
    image: bool = True
    """Whether an RLNet reads the image beside the map; false is the ablation MSCRLNet."""
    scales: Literal["multi", "single"] = "multi"
    """"single": the ablation SCCRLNet: one stream, and every RLNet, at scale 1."""
    cascade: bool = True
    """Whether an RLNet goes on from the one before; false is the ablation ARLNet: the map is the mean of what they give."""

    def check(self) -> None:
        self.one_of("steps", (1, 2, 3))
        self.one_of("width", WIDTHS)
        self.one_of("scales", ("multi", "single"))


PRESETS = {"btbcrl": BTBCRLConfig()}


class RLNet(nn.Module):
    """Residual learning network: six 3×3 convolutions with ReLU (D) and one to a map.

    `forward`: x [N, inside, h, w], and optionally the features of the RLNet before, [N, channels, h, w], to
    (its map [N, 1, h, w], its features). Those of the one before are added in the middle, after the third convolution (D:
    the residue that the paper adds there is taken to be the features that the residual map is read from).
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
    """The network. `forward`: normalised image [N, 3, H, W] to logits [N, 1, H, W]; the map is their sigmoid.

    With `all_steps=True` it returns (logits, side outputs): `stream{scale}_step{k}`, then the outputs of the RLNets `crl1`
    .. , all [N, 1, h, w] at their scale's size, in the order they are computed.
    """

    config_class = BTBCRLConfig
    presets = PRESETS

    def __init__(self, config: BTBCRLConfig) -> None:
        super().__init__()
        self.config = config
        self.scales = SCALES[::-1][: config.steps] if config.scales == "multi" else (SCALES[0],)
        self.streams = nn.ModuleList(Stream(config.width, POINTWISE) for _ in self.scales)
        inside, channels = 4 if config.image else 1, round(config.width * REFINED)
        self.first = RLNet(inside, channels)
        count = config.steps - 1
        self.later = nn.ModuleList(RLNet(inside, channels) for _ in range(min(count, 1) if config.share else count))

    def forward(self, image: Tensor, *, steps: int | None = None, all_steps: bool = False) -> Prediction:
        steps = self.check_steps(steps)
        outputs = run_streams(self.streams, self.scales, image)
        features: Tensor | None = None
        refined: list[Tensor] = []
        for step in range(steps):
            scale = self.scales[min(step, len(self.scales) - 1)]
            known = outputs[f"stream{scale}_step{STEPS}"]
            x = torch.cat((scaled(image, scale), known), 1) if self.config.image else known
            if features is None or not self.config.cascade:
                output, features = self._rlnet(step)(x, None)
            else:
                output, features = self._rlnet(step)(x, self._resized(features, known))
                output = output + self._resized(refined[-1], known)
            refined.append(output)
            outputs[f"crl{step + 1}"] = output
        whole = [resample(m, image.shape[-2:]) for m in (refined[-1:] if self.config.cascade else refined)]
        logits = torch.stack(whole).mean(0) if len(whole) > 1 else whole[0]
        return (logits, outputs) if all_steps else logits

    def _resized(self, x: Tensor, like: Tensor) -> Tensor:
        """To another scale's size; without change where there is only one."""
        return resample(x, like.shape[-2:]) if self.config.scales == "multi" else x

    def _rlnet(self, step: int) -> RLNet:
        return self.first if step == 0 else self.later[0 if self.config.share else step - 1]

    @property
    def steps_range(self) -> range:
        return range(self.config.steps, self.config.steps + 1)  # an RLNet for each scale

    def side_names(self, steps: int) -> list[str]:
        return [*stream_names(self.scales), *(f"crl{step}" for step in range(1, steps + 1))]

    def scope(self, path: str, call: int) -> str | None:
        parts = path.split(".")
        if parts == ["first"]:
            return "crl.step1"
        if parts[0] == "later" and len(parts) == 2:
            return f"crl.step{(call if self.config.share else int(parts[1])) + 2}"
        return stream_scope(path, self.scales)

    @staticmethod
    def infer(shapes: Mapping[str, tuple[int, ...]]) -> Inferred | None:
        found, first = infer_streams(shapes), shapes.get("first.convs.0.weight")
        if found is None or first is None:
            return None
        streams, sets = found["streams"], len({k.split(".")[1] for k in shapes if k.startswith("later.")})
        known = {"width": found["width"], "image": first[1] == 4}
        if streams == 1 and sets:  # RLNets of one scale, shared by any number of steps or two steps' own
            own = {"scales": "single"}
            return (known | own, ["steps"]) if sets == 1 else (known | own | {"steps": sets + 1, "share": False}, [])
        if streams == 1:  # one step at scale 0.6, or at scale 1
            return known | {"steps": 1}, ["scales"]
        return known | {"steps": streams, "share": sets == 1}, []
