"""Tensors that are no weights are refused by name, before a network is made and before memory is taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from r2mrf_deploy import networks
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import CheckpointError
from r2mrf_deploy.networks.base import Value

SMALL = {"steps": "2", "width": "4", "amdf_channels": "8", "initial_channels": "8"}


@pytest.fixture(scope="module")
def content() -> dict[str, object]:
    module = networks.create(*networks.preset("r2mrf-edge", SMALL))
    return {
        "format": "r2mrf-checkpoint/1",
        "network": "r2mrf",
        "config": module.config.to_dict(),
        "state_dict": dict(module.state_dict()),
    }


def saved(tmp_path: Path, content: dict[str, object], ours: bool = True) -> Path:
    torch.save(content if ours else content["state_dict"], tmp_path / "c.pth")
    return tmp_path / "c.pth"


@pytest.mark.filterwarnings("ignore:torch.quantize")
@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (torch.Tensor.to_sparse, "amdf.weight is sparse"),
        (lambda v: v.to("meta"), "amdf.weight has a shape but no values"),
        (lambda v: v.to(torch.complex64), "amdf.weight has values of type complex64"),
        (lambda v: v.long(), "amdf.weight has values of type int64"),
        (lambda v: v > 0, "amdf.weight has values of type bool"),
        (lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8), "amdf.weight is quantised"),
        (lambda v: v.double() + 1e300, "amdf.weight has .* not finite"),
    ],
    ids=["sparse", "meta", "complex", "int64", "bool", "quantised", "too large"],
)
def test_what_is_no_weight_is_refused_by_name(
    content: dict[str, object], tmp_path: Path, make: Callable[[Tensor], Tensor], message: str, ours: bool
) -> None:
    state = content["state_dict"]
    assert isinstance(state, dict)
    path = saved(tmp_path, content | {"state_dict": state | {"amdf.weight": make(state["amdf.weight"])}}, ours)
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.load(path, settings={"steps": "2"})


def test_a_file_that_repeats_few_values_takes_no_memory(content: dict[str, object], tmp_path: Path) -> None:
    width = 1024
    family, config = networks.preset("r2mrf-edge", {"width": str(width)})
    with torch.device("meta"):
        wanted = networks.create(family, config).state_dict()
    huge = {k: torch.zeros(1).expand(v.shape) if v.dim() else torch.tensor(0) for k, v in wanted.items()}
    path = saved(tmp_path, content | {"config": config.to_dict(), "state_dict": huge})
    assert path.stat().st_size < 1_000_000 < sum(v.numel() for v in huge.values())
    with pytest.raises(CheckpointError, match="is larger than the file"):
        Checkpoint.load(path)


@pytest.mark.parametrize("changes", [{}, {"amdf_kernel": 3}])
def test_names_are_compared_before_a_large_network_is_made(
    content: dict[str, object], tmp_path: Path, changes: dict[str, Value]
) -> None:
    config = content["config"]
    assert isinstance(config, dict)
    path = saved(tmp_path, content | {"config": config | {"steps": 1024, "share": False} | changes})
    started = time.process_time()
    with pytest.raises(CheckpointError, match=r"do not fit r2mrf: \d+ missing \(later\."):
        Checkpoint.load(path)
    assert time.process_time() - started < 20  # all 1024 steps take minutes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metrics": 5}, "'metrics' are not a dictionary"),
        ({"metrics": {3: 1}}, "'metrics' are not a dictionary"),
        ({"state_dict": {3: torch.zeros(1)}}, "a tensor's name is 3, not a text"),
        ({"format": torch.zeros(3)}, "do not|does not say|fits none"),
    ],
    ids=["metrics", "metrics' names", "name", "format"],
)
def test_fields_of_a_wrong_type_are_refused(
    content: dict[str, object], tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        Checkpoint.load(saved(tmp_path, content | changes))
