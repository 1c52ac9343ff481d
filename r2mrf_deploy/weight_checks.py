"""What a network's weights must be before they are used: its names and shapes, floating point, finite."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from torch import Tensor

from r2mrf_deploy import networks
from r2mrf_deploy.errors import CheckpointError
from r2mrf_deploy.networks.base import COUNTER, NetworkConfig, Shapes, shapes_of
from r2mrf_deploy.wording import count, first

_USUAL_STEPS = 16
"""More recurrent steps than any network is trained with."""


def shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {k: tuple(v.shape) for k, v in state.items()}


def with_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict with batch norm's counters, where they are missing."""
    means = [k for k in state if k.endswith("running_mean")]
    counters = {k.removesuffix("running_mean") + COUNTER: torch.tensor(0) for k in means}
    return {**state, **{k: v for k, v in counters.items() if k not in state}}


def wanted_shapes(family: str, config: NetworkConfig, tensors: int) -> Shapes:
    """The shapes of a network's state dict.

    Making a network of hundreds of steps, each with its own weights, takes minutes. If one of fewer steps already has more
    than twice as many tensors as are given, its shapes are returned: these tensors cannot fit.
    """
    steps = _USUAL_STEPS
    while steps < int(config.to_dict().get("steps", 1)):
        fewer = shapes_of(networks.create, family, config.with_settings({"steps": str(steps)}))
        if len(fewer) > 2 * tensors:
            return fewer
        steps *= 2
    return shapes_of(networks.create, family, config)


def difference(
    wanted: Shapes, given: Shapes, owned: Callable[[], Collection[str]] | None = None
) -> tuple[str, list[str]]:
    """Compare a state dict with a network's.

    Args:
        owned: the first parts of the names that the network may have; tensors elsewhere are none of its business. Without
            it, every tensor must be the network's.

    Returns:
        (what does not fit, in words, or ""; the tensors that are left out).
    """
    surplus = [k for k in given if k not in wanted]
    theirs = owned() if owned and surplus else ()
    foreign = [k for k in surplus if owned and k.partition(".")[0] not in theirs]
    differing = {"missing": wanted.keys() - given.keys(), "unexpected": set(surplus).difference(foreign)}
    wrong = [f"{len(names)} {title} ({first(sorted(names), 2)})" for title, names in differing.items() if names]
    if bent := {k for k in wanted.keys() & given.keys() if wanted[k] != given[k]}:
        k = min(bent)
        wrong.append(f"{len(bent)} misshapen ({k} is {list(given[k])}, not {list(wanted[k])})")
    return "; ".join(wrong), foreign


def checked(path: Path, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict whose names and shapes fit, as float32.

    Raises:
        CheckpointError: a tensor has no values, or values that are no weights.
    """
    held = path.stat().st_size
    if (values := sum(v.numel() for v in state.values())) > held:  # a tensor may repeat the few values that it stores
        raise CheckpointError(f"{path}: its weights have {values:,} values, but the file has only {held:,} bytes")
    return {name: _float32(path, name, value) for name, value in state.items()}


def _float32(path: Path, name: str, value: Tensor) -> Tensor:
    counts = name.rpartition(".")[2] == COUNTER
    wrong = ""
    if value.layout is not torch.strided or value.is_nested or value.is_quantized:
        what = "quantised" if value.is_quantized else "sparse or nested"
        wrong = f"is {what}: save it as a dense tensor of floating point"
    elif value.device.type == "meta":
        wrong = "has a shape but no values (it is on PyTorch's meta device): save the weights after loading them"
    elif value.is_complex() or not (counts or value.is_floating_point()):
        wrong = f"has values of type {str(value.dtype).removeprefix('torch.')}, which are no weights"
    if wrong:
        raise CheckpointError(f"{path}: {name} {wrong}")
    value = value.detach().to(torch.int64 if counts else torch.float32)
    if not (counts or _is_finite(value)):
        bad = int((~value.isfinite()).sum())
        raise CheckpointError(f"{path}: {name} has {count(bad, 'value')} not finite; the training diverged")
    return value


def _is_finite(value: Tensor) -> bool:
    """Whether all values are, by the smallest and the largest: NaN becomes both, and no tensor of that size is made."""
    return value.numel() == 0 or all(bound.isfinite() for bound in value.aminmax())


def describe(state: Mapping[str, Tensor]) -> str:
    """The names and shapes of the first two tensors."""
    return first([f"{k} {list(v)}" for k, v in shapes(state).items()], 2)
