"""Recipes: the optimizer, its schedule, and the size of an iteration. A recipe is a value without state."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import nn

from r2mrf_deploy import networks
from r2mrf_deploy.errors import UsageError, did_you_mean
from r2mrf_deploy.metrics import Scores
from r2mrf_deploy.progress import Progress
from r2mrf_deploy.training.synthesis.rng import Range


@dataclass(frozen=True)
class Iteration(Progress):
    """The progress of a training after an iteration or a validation."""

    loss: float = math.nan
    """Cross-entropy of the fused map."""
    scores: Scores | None = None
    """Of a validation."""


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    name: str
    iterations: int
    batch: int
    """Pictures per iteration, over all devices."""
    size: int
    """Side of the pictures, pixels."""
    optimizer: Literal["sgd", "adamw"]
    learning_rate: float
    weight_decay: float
    """Applies to weights only; biases and normalisation parameters do not decay."""
    bias_rate: float
    """Learning rate of biases, as a multiple of that of the weights."""
    schedule: Literal["poly", "cosine"]
    warm_up: float
    """Share of the iterations in which the learning rate rises from 0."""
    clip: float | None
    """Largest gradient norm. The loss sums a cross-entropy per side output, so gradients are large when training starts from
    scratch."""
    average: float
    """Decay of the EMA of the weights, which is evaluated and saved; 0 uses the weights themselves."""
    one_step: float
    """Share of the iterations, from the first, in which a recurrent network runs one step instead of all. The backbone and
    the first step learn to tell sharp from blurred. The later steps cost most and are learned in the rest."""
    rotation: float
    """Largest rotation of dataset pictures, in degrees. Composites are not rotated."""
    scales: Range = (1.0, 1.0)
    """Scale of dataset pictures before they are cropped, log-uniformly: a smaller one shows more of a photograph."""
    aspect: Range = (1.0, 1.0)
    """Scale of their width, on top, log-uniformly. The papers test on photographs that are squeezed into a square."""
    augmented: bool = False
    """Whether dataset pictures are changed at random (`augmentation`). Composites always have a camera's effects."""
    backbone_rate: float = 1.0
    """Learning rate of the backbone, as a multiple of that of the other layers."""
    overlap: float = 0.0
    """Weight of the fused map's overlap with the mask (`losses.overlap`) in the loss."""

    def __post_init__(self) -> None:
        for field in ("iterations", "batch", "size", "learning_rate"):
            if not getattr(self, field) > 0:
                raise UsageError(f"`{field}` must be over 0, not {getattr(self, field)}")
        for field in ("average", "one_step"):
            if not 0 <= getattr(self, field) < 1:
                raise UsageError(f"`{field}` must be in [0, 1), not {getattr(self, field)}")

    def rate(self, share: float) -> float:
        """The learning rate at a share 0 .. 1 of the iterations."""
        if share < self.warm_up:
            return self.learning_rate * share / self.warm_up
        left = 1 - (share - self.warm_up) / (1 - self.warm_up)
        if self.schedule == "poly":
            return self.learning_rate * max(left, 0.0) ** 0.9
        return self.learning_rate * 0.5 * (1 - math.cos(math.pi * left))

    def runs_one_step(self, iteration: int) -> bool:
        """Whether an iteration (from 0) runs one recurrent step only."""
        return iteration < self.one_step * self.iterations

    def decay(self, iteration: int) -> float:
        """EMA decay after an iteration (from 0). It is smaller at first, so that the initial weights are soon forgotten."""
        return min(self.average, (1 + iteration) / (20 + iteration))

    def make_optimizer(self, network: nn.Module, *, fused: bool = True) -> torch.optim.Optimizer:
        """The optimizer of a network's trainable parameters; each group has a `multiple` of the learning rate."""
        groups: dict[tuple[bool, bool], dict[str, Any]] = {}
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                weight, slow = parameter.ndim > 1, self.backbone_rate != 1 and name.startswith("backbone.")
                multiple = (1.0 if weight else self.bias_rate) * (self.backbone_rate if slow else 1.0)
                decay = self.weight_decay if weight else 0.0
                group = groups.setdefault(
                    (slow, not weight), {"params": [], "weight_decay": decay, "multiple": multiple}
                )
                group["params"].append(parameter)
        ordered = [groups[key] for key in sorted(groups)]
        if self.optimizer == "sgd":
            return torch.optim.SGD(ordered, lr=self.learning_rate, momentum=0.9, fused=fused)
        return torch.optim.AdamW(ordered, lr=self.learning_rate, betas=(0.9, 0.99), fused=fused)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of every group to its multiple of `rate`."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["multiple"]


PAPER = Recipe(
    name="paper", iterations=6000, batch=4, size=300, optimizer="sgd", learning_rate=1e-3, weight_decay=5e-4,
    bias_rate=2.0, schedule="poly", warm_up=0.0, clip=None, average=0.0, one_step=0.0, rotation=10.0,
)  # fmt: skip
"""R²MRF's recipe, for a backbone pretrained on ImageNet. The paper gives the optimizer, the batch, the iterations and the
"poly" schedule; the learning rate, that of the biases and the augmentation are those of the code it descends from."""
PAPERS = {
    "r2mrf": PAPER,
    "br2net": replace(PAPER, batch=8),
    "defusionnet": replace(PAPER, iterations=10_000),
}
"""The papers' recipes by network. BR²Net's is that of its authors' code. DeFusionNet's paper gives only the iterations; the
rest is R²MRF's, by the same authors. No schedule is known for BTBNet and BTBCRL: they use R²MRF's."""
SCRATCH = Recipe(
    name="scratch", iterations=8000, batch=8, size=160, optimizer="adamw", learning_rate=3e-3, weight_decay=1e-2,
    bias_rate=1.0, schedule="cosine", warm_up=0.05, clip=5.0, average=0.998, one_step=0.7, rotation=10.0,
    scales=(0.35, 0.9), aspect=(0.67, 1.1), augmented=True, overlap=1.0,
)  # fmt: skip
"""For a network without a pretrained backbone."""
WIDE = replace(SCRATCH, learning_rate=5e-5, backbone_rate=10.0)
"""The same for R²MRF with a whole backbone. An iteration of AdamW moves each weight by the learning rate, and so the output
of a layer with n positive inputs by up to n times it and their mean; the AMDF has 3,904. Of its units in `r2mrf-r50`, none
fired on a photograph after a training at 3e-3; at 1e-3, 29 % still did after 150 iterations; at 2e-4, 61 % after 500."""
FINETUNE = replace(SCRATCH, name="finetune", iterations=6000, size=192, learning_rate=1e-3, backbone_rate=0.5)
"""For a pretrained backbone on photographs with masks: it trades the paper's optimizer for one that needs less care."""
NAMES = (PAPER.name, SCRATCH.name, FINETUNE.name)


def choose(preset: str, name: str | None, *, backbone: bool) -> tuple[Recipe, str]:
    """Choose the recipe of a preset.

    Args:
        preset: name of the preset.
        name: name of the recipe; None chooses the paper's if the backbone is pretrained, or `finetune` for the networks
            that no paper describes.
        backbone: whether the backbone is pretrained.

    Returns:
        (the recipe, the reason for the choice as a phrase).

    Raises:
        UsageError: there is no such preset or recipe.
    """
    family, _ = networks.preset(preset)
    unpublished = preset.endswith(("-edge", "-lite"))
    if name not in (None, *NAMES):
        raise UsageError(f"no recipe {name!r}: {did_you_mean(name, NAMES)}")
    if name is not None:
        why = "as requested"
    elif not backbone:
        name, why = SCRATCH.name, "the network starts from random weights"
    elif unpublished:
        name, why = FINETUNE.name, "the backbone is pretrained, and no paper describes this preset"
    else:
        name, why = PAPER.name, "the backbone is pretrained"
    if name == SCRATCH.name and family == "r2mrf" and not unpublished:
        return WIDE, why
    if name != PAPER.name:
        return {SCRATCH.name: SCRATCH, FINETUNE.name: FINETUNE}[name], why
    if family not in PAPERS:
        why += "; R²MRF's, because no schedule is known from its own paper"
    return PAPERS.get(family, PAPER), why
