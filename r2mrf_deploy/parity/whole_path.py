"""The whole path, from a photograph to its map at its size: how far an artifact's is from the checkpoint's own.

Parity compares what two runners compute from the same input. What an artifact does to a photograph before that, its size
and what becomes of another aspect, changes its map more than any rounding, and only this comparison shows it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from r2mrf_deploy.metrics import agreement
from r2mrf_deploy.predictor import Predictor


@dataclass(frozen=True)
class WholePath:
    """Averages over photographs."""

    mae: float
    """Mean absolute difference of the maps."""
    f: float
    """F (β² = 0.3) of the artifact's in-focus region against the checkpoint's."""


def whole_path(artifact: Predictor, checkpoint: Predictor, photographs: Sequence[np.ndarray]) -> WholePath:
    """Compare the maps of photographs, uint8 [H, W, 3], at their sizes."""
    pairs = [(artifact(photograph), checkpoint(photograph)) for photograph in photographs]
    return WholePath(
        mae=float(np.mean([np.abs(found - wanted).mean() for found, wanted in pairs])),
        f=float(np.mean([agreement(found, wanted) for found, wanted in pairs])),
    )
