"""R²MRF: Defocus Blur Detection via Recurrently Refining Multi-Scale Residual Features (Tang et al., AAAI 2020).

A backbone gives five feature maps. AMDF merges them all. Five branches, one for each map, predict where the image is in
focus and refine the prediction step by step, each by a residual it learns from the AMDF, from its own last prediction and
from the branch below it. A convolution fuses the five last predictions.

The paper leaves some things open; what was decided here is a field of the config, and is marked D.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2mrf_deploy.networks import backbone
from r2mrf_deploy.networks.base import MOST, Detector, Inferred, NetworkConfig, Prediction
from r2mrf_deploy.networks.upsample import upsample

BRANCHES = 5
Output = Literal["fused", "branch1", "branch2", "branch3", "branch4", "branch5"]


@dataclass(frozen=True)
class R2MRFConfig(NetworkConfig):
    """What R²MRF can be. The defaults are the paper's network."""

    backbone: str = "resnext101_32x4d"
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
    """D: one RRM a branch for t = 1 and one for all t > 1; otherwise each step has its own."""
    refine: Literal["residual", "direct"] = "residual"
    """"direct": the ablation without residual learning (R2MRF_no_RRM): O_t = R_t."""
    output: Output = "fused"
    """Which prediction is the network's map; "branch1" .. "branch5" are the ablations R2MRF_O1 .. O5."""

    def check(self) -> None:
        self.one_of("backbone", backbone.NAMES)
        self.one_of("amdf_kernel", (1, 3))
        self.one_of("initial", ("own", "first"))
        self.one_of("refine", ("residual", "direct"))
        self.one_of("output", get_args(Output))
        for name in ("steps", "width", "amdf_channels", "initial_channels"):
            self.count(name)


PRESETS = {
    "r2mrf": R2MRFConfig(),
    "r2mrf-r50": R2MRFConfig(backbone="resnext50_32x4d"),
    "r2mrf-vgg16": R2MRFConfig(backbone="vgg16"),
    "r2mrf-densenet161": R2MRFConfig(backbone="densenet161"),
    "r2mrf-edge": R2MRFConfig(backbone="mobilenet_v3_large", steps=3, width=16, amdf_channels=64),
}


class RRM(nn.Module):
    """Residual refinement module (Fig. 3): two paths of different kernels that exchange what they found.

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
    """The network. `forward`: normalised image [N, 3, H, W] to logits [N, 1, H, W]; the map is their sigmoid.

    With `all_steps=True` it returns (logits, side outputs): each O_t^l [N, 1, h, w] at F_1's size, named
    `step{t}_branch{l}`, in the order they are computed.
    """

    config_class = R2MRFConfig
    presets = PRESETS

    def __init__(self, config: R2MRFConfig) -> None:
        super().__init__()
        self.config = config
        self.backbone = backbone.Backbone(config.backbone)
        channels = self.backbone.channels
        k = config.amdf_kernel
        self.amdf = nn.Conv2d(sum(channels), config.amdf_channels, k, padding=k // 2)
        if config.initial == "own":
            self.initial = nn.ModuleList(nn.Conv2d(c, config.initial_channels, 1) for c in channels)
            first = config.initial_channels
        else:
            first = channels[0]
        self.first = nn.ModuleList(self._rrm(first, branch) for branch in range(1, BRANCHES + 1))
        self.later = nn.ModuleList(
            nn.ModuleList(self._rrm(1, branch) for branch in range(1, BRANCHES + 1))
            for _ in range(min(config.steps - 1, 1) if config.share else config.steps - 1)
        )
        self.fusion = nn.Conv2d(BRANCHES, 1, 1)
        nn.init.constant_(self.fusion.weight, 1 / BRANCHES)
        nn.init.zeros_(self.fusion.bias)

    def _rrm(self, state: int, branch: int) -> RRM:
        above = 1 if branch < BRANCHES else 0
        return RRM(state + above + self.config.amdf_channels, self.config.width)

    def forward(self, image: Tensor, *, steps: int | None = None, all_steps: bool = False) -> Prediction:
        steps = self.check_steps(steps)
        features = self.backbone(image)
        size = features[0].shape[-2:]
        amdf = F.relu(self.amdf(torch.cat([features[0], *(upsample(f, size) for f in features[1:])], 1)))  # Eq. 1
        state = self._initial(features)  # X_1^l

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
            logits = self.fusion(torch.cat(state, 1))  # Eq. 5, before its ReLU (D): a sigmoid of a ReLU stays over 0.5
        else:
            logits = outputs[f"step{steps}_{self.config.output}"]
        logits = upsample(logits, image.shape[-2:])
        return (logits, outputs) if all_steps else logits

    def _initial(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        if self.config.initial == "first":
            return [features[0]] * BRANCHES
        size = features[0].shape[-2:]
        return [upsample(reduce(f), size) for reduce, f in zip(self.initial, features, strict=True)]

    def rrm(self, t: int, branch: int) -> RRM:
        """The RRM of step t = 1.. and branch l = 1..5."""
        if t == 1:
            return self.first[branch - 1]
        return self.later[0 if self.config.share else t - 2][branch - 1]

    @property
    def steps_range(self) -> range:
        most = MOST if self.config.share and len(self.later) else self.config.steps
        return range(1, most + 1)

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
    def infer(shapes: Mapping[str, tuple[int, ...]]) -> Inferred | None:
        name = backbone.identify(shapes)
        amdf, rrm, top = (shapes.get(k) for k in ("amdf.weight", "first.0.first3.weight", "first.4.first3.weight"))
        if name is None or amdf is None or rrm is None or top is None:
            return None
        sets = len({k.split(".")[1] for k in shapes if k.startswith("later.")})
        known: dict[str, Any] = {
            "backbone": name,
            "width": rrm[0],
            "amdf_channels": amdf[0],
            "amdf_kernel": amdf[2],
            "initial": "own" if "initial.0.weight" in shapes else "first",
        }
        if known["initial"] == "own":
            known["initial_channels"] = shapes["initial.0.weight"][0]
        if sets == 1:  # shared by any number of steps, or two steps of their own: the function differs
            return known, ["steps"]
        return known | {"steps": sets + 1, "share": sets == 0}, []
