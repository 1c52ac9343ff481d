"""The loss of R²MRF (Eqs. 6 and 7) and its siblings: every side output is supervised, and the fusion."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from r2mrf_deploy.networks.upsample import upsample


def overlap(logits: Tensor, mask: Tensor) -> Tensor:
    """1 - intersection / union of a soft map with its mask, the mean over both classes and all pictures (Rahman and Wang,
    ISVC 2016).

    Cross-entropy is content with a map that is nearly right everywhere; this asks for a decision.

    Args:
        logits: [N, 1, H, W].
        mask: [N, 1, H, W] in 0 .. 1.
    """
    found = torch.sigmoid(logits)
    found, wanted = torch.cat([found, 1 - found], 1), torch.cat([mask, 1 - mask], 1)
    both = (found * wanted).sum((2, 3))
    either = (found + wanted).sum((2, 3)) - both
    return 1 - ((both + 1) / (either + 1)).mean()  # + 1 pixel: a class that is neither there nor found is found well


def deep_supervision(logits: Tensor, side_outputs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Mean binary cross-entropy of the fusion, plus that of each side output (R²MRF: T·5); all weights are 1.

    Args:
        logits: the fused logits [N, 1, H, W].
        side_outputs: by name, each [N, 1, h, w] logits of any size; they are upsampled to the mask.
        mask: [N, 1, H, W] in 0 .. 1, 1 = in focus; values between, as at resampled edges, are soft targets.

    Returns:
        A scalar: the n side outputs' cross-entropies and one more, so that an undecided network costs (n + 1) · ln 2.
    """
    fused = F.binary_cross_entropy_with_logits(logits, mask)
    if not side_outputs:
        return fused
    by_size: dict[torch.Size, list[Tensor]] = {}
    for side in side_outputs.values():
        by_size.setdefault(side.shape[-2:], []).append(side)
    sides = torch.cat([upsample(torch.cat(maps, 1), mask.shape[-2:]) for maps in by_size.values()], 1)
    return fused + len(side_outputs) * F.binary_cross_entropy_with_logits(sides, mask.expand_as(sides))
