"""Inputs and outputs as a library finds them in a model, compared with what the manifest says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.manifest import TensorSpec


def layouts(artifact: Artifact) -> dict[str, Any]:
    """Tensor name -> layout, which model files do not contain."""
    contract = artifact.contract
    return {s.name: s.layout for s in (*contract.inputs, *contract.outputs)} if contract else {}


def difference(found: Sequence[TensorSpec], said: Sequence[TensorSpec]) -> str | None:
    """The first difference in words, or None: names first, then dtypes, ranks and sizes.

    A free dimension agrees with any size, since libraries infer different ones.
    """
    ours, theirs = {s.name: s for s in found}, {s.name: s for s in said}
    if set(ours) != set(theirs):
        return f"{sorted(ours)}, the manifest says {sorted(theirs)}"
    for name, spec in ours.items():
        other = theirs[name]
        same_rank = len(spec.shape) == len(other.shape)
        if spec.dtype != other.dtype or not same_rank or not all(map(_agree, spec.shape, other.shape)):
            return f"{spec}, the manifest says {other}"
    return None


def _agree(a: int | str, b: int | str) -> bool:
    return a == b or isinstance(a, str) or isinstance(b, str)
