"""A graph as PyTorch's own program, which exporters of PyTorch's formats start from."""

from __future__ import annotations

import inspect
from typing import Any

import torch

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import BuildError, RuntimeUnavailable, first_line
from r2mrf_deploy.manifest import Contract, TensorSpec
from r2mrf_deploy.progress import quiet


def contract_of(source: Artifact) -> Contract:
    """The contract of an artifact with one input.

    Raises:
        BuildError: it has none, or further inputs.
    """
    said = source.contract
    if said is None or len(said.inputs) != 1:
        raise BuildError(f"{source.path.name} has no contract of one input: export it with `r2mrf export`")
    return said


def traced(module: torch.nn.Module, contract: Contract, device: str) -> Any:
    """The module as PyTorch's own operators, an ExportedProgram.

    Args:
        contract: of one input, which says what sizes are free and between what bounds.

    Raises:
        BuildError: PyTorch cannot trace it.
        RuntimeUnavailable: this PyTorch is too old for free sizes.
    """
    (spec,) = contract.inputs
    further: dict[str, Any] = {}
    shape = [d if isinstance(d, int) else 1 for d in spec.shape]
    if not spec.static:
        if "prefer_deferred_runtime_asserts_over_guards" not in inspect.signature(torch.export.export).parameters:
            raise RuntimeUnavailable("this PyTorch cannot export free sizes: pip install -U torch, or fix the `size`")
        profile = contract.profiles[spec.name]
        free = [axis for axis, d in enumerate(spec.shape) if not isinstance(d, int)]
        dims = {a: torch.export.Dim(str(spec.shape[a]), min=profile["min"][a], max=profile["max"][a]) for a in free}
        further = {"dynamic_shapes": ((dims,),), "prefer_deferred_runtime_asserts_over_guards": True}
        shape = _example(spec, profile)
    with quiet(), torch.no_grad():
        try:
            example = torch.zeros(shape, dtype=getattr(torch, spec.dtype), device=device)
            return torch.export.export(module.eval(), (example,), strict=False, **further)
        except Exception as e:  # its exceptions share no base class
            raise BuildError(f"PyTorch cannot trace the graph: {first_line(e)}") from None


def _example(spec: TensorSpec, profile: dict[str, list[int]]) -> list[int]:
    """A shape whose free sizes are odd and differ from each other and from 1, so that PyTorch assumes nothing of them."""
    shape, (y, x) = list(profile["opt"]), spec.spatial_axes
    shape[0] = 2
    for axis in (y, x):
        shape[axis] = min(shape[axis] | 1, profile["max"][axis] - 1)
    if shape[x] == shape[y]:
        shape[x] += 2 if shape[x] + 2 <= profile["max"][x] else -2
    return shape
