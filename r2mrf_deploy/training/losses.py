"""The loss of R²MRF (Eqs. 6 and 7): every side output is supervised, and the fusion."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from r2mrf_deploy.networks.upsample import upsample


def deep_supervision(logits: Tensor, side_outputs: Mapping[str, Tensor], mask: Tensor) -> Tensor:
    """Mean binary cross-entropy of the fusion, plus that of each of the T·5 side outputs; all weights are 1.

    Args:
        logits: the fused logits [N, 1, H, W].
        side_outputs: O_t^l by name, each [N, 1, h, w] logits; they are upsampled to the mask.
        mask: [N, 1, H, W] in 0 .. 1, 1 = in focus; values between, as at resampled edges, are soft targets.

    Returns:
        A scalar: T·5 + 1 cross-entropies, so that an undecided network costs (T·5 + 1) · ln 2.
    """
    fused = F.binary_cross_entropy_with_logits(logits, mask)
    if not side_outputs:
        return fused
    sides = upsample(torch.cat(list(side_outputs.values()), 1), mask.shape[-2:])
    return fused + len(side_outputs) * F.binary_cross_entropy_with_logits(sides, mask.expand_as(sides))
