"""R²MRF: Defocus Blur Detection via Recurrently Refining Multi-Scale Residual Features (Tang et al., AAAI 2020).

A backbone gives five feature maps, and AMDF merges them all. Five branches, one for each map, predict where the image is in
focus and refine the prediction step by step, each by a residual learnt from the AMDF, from its own last prediction and from
the next deeper branch. A convolution fuses the five last predictions.

What the paper leaves open was decided here: it is marked D, and is a field of the config.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2mrf_deploy.manifest import Preprocess
from r2mrf_deploy.networks.backbone import Backbone, BackboneName, identify, preprocess
from r2mrf_deploy.networks.base import MOST, Detector, Inferred, NetworkConfig, Prediction, Shapes, Value, entries
from r2mrf_deploy.networks.upsample import upsample

BRANCHES = 5


@dataclass(frozen=True)
class R2MRFConfig(NetworkConfig):
    """The options of R²MRF. The defaults are the paper's network."""

    backbone: BackboneName = "resnext101_32x4d"
    steps: int = 6
    """T, the number of recurrent steps; the paper uses 6."""
    width: int = 32
    """n, the channels of each path of an RRM (D: calibrated on the paper's training time)."""
    amdf_channels: int = 256
    amdf_kernel: Literal[1, 3] = 1
    """D: 1; DeFusionNet, by the same authors, merges with 1×1."""
    initial: Literal["own", "first"] = "own"
    """X_1^l: "own" reduces F_l (D), "first" takes F_1 for every branch, as Eqs. 2 and 3 are printed."""
    initial_channels: int = 64
    share: bool = True
    """D: each branch has one RRM for t = 1 and one for all t > 1; otherwise each step has its own."""
    refine: Literal["residual", "direct"] = "residual"
    """"direct": the ablation without residual learning (R2MRF_no_RRM): O_t = R_t."""
    output: Literal["fused", "branch1", "branch2", "branch3", "branch4", "branch5"] = "fused"
    """Which prediction is the network's map; "branch1" .. "branch5" are the ablations R2MRF_O1 .. O5."""

    @property
    def preprocess(self) -> Preprocess:
        return preprocess(self.backbone)


class RRM(nn.Module):
    """Residual refinement module (Fig. 3): two paths of different kernel sizes that exchange their features.

    `forward`: [N, channels, h, w] to the residual map R [N, 1, h, w]. D, after MSRN: the paths are 3×3 and 5×5, and each
    reads both paths' first features.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.first3 = nn.Conv2d(channels, width, 3, padding=1)
        self.first5 = nn.Conv2d(channels, width, 5, padding=2)
        self.second3 = nn.Conv2d(2 * width, 2 * width, 3, padding=1)
        self.second5 = nn.Conv2d(2 * width, 2 * width, 5, padding=2)
        self.residual = nn.Conv2d(4 * width, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat((F.relu(self.first3(x)), F.relu(self.first5(x))), 1)
        return self.residual(torch.cat((F.relu(self.second3(y)), F.relu(self.second5(y))), 1))


class R2MRF(Detector):
    """The network. Its side outputs are each O_t^l, `step{t}_branch{l}`, [N, 1, h, w] at F_1's size."""

    config: R2MRFConfig
    config_class = R2MRFConfig
    presets: ClassVar = {
        "r2mrf": R2MRFConfig(),
        "r2mrf-r50": R2MRFConfig(backbone="resnext50_32x4d"),
        "r2mrf-vgg16": R2MRFConfig(backbone="vgg16"),
        "r2mrf-densenet161": R2MRFConfig(backbone="densenet161"),
        "r2mrf-edge": R2MRFConfig(backbone="mobilenet_v3_large", steps=3, width=16, amdf_channels=64),
        "r2mrf-lite": R2MRFConfig(
            backbone="efficientnet_lite0", steps=1, width=8, amdf_channels=32, initial_channels=16
        ),
    }

    def __init__(self, config: R2MRFConfig) -> None:
        super().__init__(config)
        self.backbone = Backbone(config.backbone)
        channels = self.backbone.channels
        k = config.amdf_kernel
        self.amdf = nn.Conv2d(sum(channels), config.amdf_channels, k, padding=k // 2)
        initial = channels[0]
        if config.initial == "own":
            initial = config.initial_channels
            self.initial = nn.ModuleList(nn.Conv2d(c, initial, 1) for c in channels)
        self.first = self._rrms(initial)
        sets = min(config.steps - 1, 1) if config.share else config.steps - 1
        self.later = nn.ModuleList(self._rrms(1) for _ in range(sets))
        self.fusion = nn.Conv2d(BRANCHES, 1, 1)
        nn.init.constant_(self.fusion.weight, 1 / BRANCHES)
        nn.init.zeros_(self.fusion.bias)

    def _rrms(self, state: int) -> nn.ModuleList:
        above = (1,) * (BRANCHES - 1) + (0,)  # channels of O_t^{l+1}, which the deepest branch lacks
        return nn.ModuleList(RRM(state + a + self.config.amdf_channels, self.config.width) for a in above)

    def forward(self, image: Tensor, *, steps: int | None = None, all_steps: bool = False) -> Prediction:
        steps = self.check_steps(steps)
        features = self.backbone(image)
        size = features[0].shape[-2:]
        amdf = F.relu(self.amdf(torch.cat([features[0], *(upsample(f, size) for f in features[1:])], 1)))  # Eq. 1
        if self.config.initial == "own":  # X_1^l
            state = [upsample(reduce(f), size) for reduce, f in zip(self.initial, features, strict=True)]
        else:
            state = [features[0]] * BRANCHES

        outputs: dict[str, Tensor] = {}
        for t in range(1, steps + 1):
            above: Tensor | None = None  # O_t^{l+1}
            for branch in range(BRANCHES, 0, -1):
                known = state[branch - 1]
                x = torch.cat([known, amdf] if above is None else [known, above, amdf], 1)
                residual = self.rrm(t, branch)(x)  # Eqs. 2 and 3
                refined = residual + known if t > 1 and self.config.refine == "residual" else residual  # Eq. 4, O_0 = 0
                state[branch - 1] = above = refined
                outputs[f"step{t}_branch{branch}"] = refined

        if self.config.output == "fused":
            # Eq. 5, before its ReLU (D): a sigmoid of a ReLU is never below 0.5
            logits = self.fusion(torch.cat(state, 1))
        else:
            logits = outputs[f"step{steps}_{self.config.output}"]
        logits = upsample(logits, image.shape[-2:])
        return (logits, outputs) if all_steps else logits

    def rrm(self, t: int, branch: int) -> RRM:
        """The RRM of step t = 1.. and branch l = 1..5."""
        rrms = self.first if t == 1 else self.later[0 if self.config.share else t - 2]
        return rrms[branch - 1]

    @property
    def last(self) -> nn.Conv2d | None:
        return self.fusion if self.config.output == "fused" else None

    @property
    def steps_range(self) -> range:
        return range(1, (MOST if self.config.share and self.config.steps > 1 else self.config.steps) + 1)

    @property
    def default_steps(self) -> int:
        return self.config.steps

    def side_names(self, steps: int) -> list[str]:
        return [f"step{t}_branch{branch}" for t in range(1, steps + 1) for branch in range(BRANCHES, 0, -1)]

    def scope(self, path: str, call: int) -> str | None:
        first, *rest = path.split(".")
        if first in ("backbone", "amdf", "initial", "fusion"):
            return first
        if first == "first" and len(rest) == 1:
            return f"step1.branch{int(rest[0]) + 1}"
        if first == "later" and len(rest) == 2:
            step = call if self.config.share else int(rest[0])
            return f"step{step + 2}.branch{int(rest[1]) + 1}"
        return None

    @staticmethod
    def infer(shapes: Shapes) -> Inferred | None:
        name = identify(shapes)
        amdf, rrm, top = (shapes.get(k) for k in ("amdf.weight", "first.0.first3.weight", "first.4.first3.weight"))
        if name is None or amdf is None or rrm is None or top is None:
            return None
        known: dict[str, Value] = {
            "backbone": name,
            "width": rrm[0],
            "amdf_channels": amdf[0],
            "amdf_kernel": amdf[2],
            "initial": "own" if "initial.0.weight" in shapes else "first",
        }
        if known["initial"] == "own":
            known["initial_channels"] = shapes["initial.0.weight"][0]
        sets = entries(shapes, "later")
        if sets == 1:  # shared by any number of steps, or the second of two
            return known, ["steps"]
        return known | {"steps": sets + 1, "share": sets == 0}, []
