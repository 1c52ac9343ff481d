"""A network's weights are found in what training scripts save, whatever the keys and prefixes, and the choice is said."""

from __future__ import annotations

import argparse
import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from r2mrf_deploy import networks
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import CheckpointError, UsageError
from r2mrf_deploy.networks.base import Detector

State = dict[str, Tensor]

SMALL = {"steps": "2", "width": "4", "amdf_channels": "8", "initial_channels": "8"}
STEPS = {"steps": "2"}


@pytest.fixture(scope="module")
def module() -> Detector:
    torch.manual_seed(0)
    return networks.create(*networks.preset("r2mrf-edge", SMALL)).eval()


@pytest.fixture(scope="module")
def state(module: Detector) -> State:
    return dict(module.state_dict())


def under(prefix: str, state: State) -> State:
    return {f"{prefix}.{k}": v for k, v in state.items()}


def zeros(state: State) -> State:
    return {k: torch.zeros_like(v) for k, v in state.items()}


def load(tmp_path: Path, content: Any, **options: Any) -> Checkpoint:
    path = tmp_path / "saved.ckpt"
    torch.save(content, path)
    return Checkpoint.load(path, **{"settings": STEPS} | options)


def same(found: Checkpoint, state: State) -> bool:
    return found.state_dict.keys() == state.keys() and all(
        torch.equal(found.state_dict[k], v) for k, v in state.items()
    )


LAYOUTS: dict[str, Callable[[State], Any]] = {
    "torch.compile": lambda s: under("_orig_mod", s),
    "DataParallel of compiled": lambda s: under("module._orig_mod", s),
    "model.module": lambda s: under("model.module", s),
    "Lightning under net": lambda s: {"state_dict": under("net", s), "epoch": 3, "optimizer_states": [adam(s)]},
    "Lightning, loss beside": lambda s: {"state_dict": under("net", s) | {"loss.pos_weight": torch.ones(1)}},
    "DeepSpeed": lambda s: {"module": s, "ds_version": "0.16"},
    "two levels": lambda s: {"checkpoint": {"models": [under("detector", s)]}},
    "compiled backbone": lambda s: {k.replace("backbone.", "backbone._orig_mod."): v for k, v in s.items()},
    **{
        k: lambda s, k=k: {k: s, "step": 1} for k in ("model_ema", "ema_state_dict", "params", "weights", "model_state")
    },
    "no counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
    "half": lambda s: {k: v.half() if v.is_floating_point() else v for k, v in s.items()},
    "bfloat16": lambda s: {k: v.bfloat16() if v.is_floating_point() else v for k, v in s.items()},
    "double, with its counters": lambda s: {k: v.double() for k, v in s.items()},
    "parameters": lambda s: OrderedDict((k, nn.Parameter(v) if v.is_floating_point() else v) for k, v in s.items()),
    "options and scores": lambda s: {
        "model": s,
        "args": argparse.Namespace(lr=0.1, data=Path("data"), betas=(0.9, 0.99)),
        "best": np.float64(0.8),
        "epoch": np.int64(3),
        "stopped": np.bool_(True),
    },
}


def adam(state: State) -> dict[str, Any]:
    moments = {i: {"step": torch.tensor(1.0), "exp_avg": v, "exp_avg_sq": v} for i, v in enumerate(state.values())}
    return {"state": moments, "param_groups": [{"lr": 0.1, "params": [*moments]}]}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_training_scripts_save_loads(state: State, tmp_path: Path, layout: str) -> None:
    found = load(tmp_path, LAYOUTS[layout](state))
    rounded = {"half": torch.Tensor.half, "bfloat16": torch.Tensor.bfloat16}.get(layout, lambda v: v)
    assert same(found, {k: rounded(v).float() if v.is_floating_point() else v for k, v in state.items()})
    assert {v.dtype for k, v in found.state_dict.items() if not k.endswith("tracked")} == {torch.float32}
    with torch.no_grad():
        assert found.module()(torch.zeros(1, 3, 64, 64)).shape == (1, 1, 64, 64)


def test_an_averaged_model_of_pytorch_loads(module: Detector, state: State, tmp_path: Path) -> None:
    assert same(load(tmp_path, AveragedModel(module).state_dict()), state)  # n_averaged, and all under module


def test_two_that_fit_are_both_named_and_the_key_chooses(
    state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = {"ema": zeros(state), "model": under("module", state)}
    found = load(tmp_path, content)
    assert same(found, state) and found.found["prefix"] == "model.module" and found.found["also_there"] == ["ema"]
    (said,) = caplog.records
    assert said.levelno == logging.WARNING
    assert "from 'model.module'; other weights that fit: 'ema' (`weights_key` chooses)" in said.getMessage()
    for key in ("ema", "model", "model.module"):
        assert same(load(tmp_path, content, weights_key=key), zeros(state) if key == "ema" else state)
    with pytest.raises(UsageError, match=r"`weights_key` emo: .* did you mean 'ema'"):
        load(tmp_path, content, weights_key="emo")


def test_what_is_left_out_and_assumed_is_said(state: State, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    found = load(tmp_path, state | {"criterion.weight": torch.ones(3), "criterion.bias": torch.ones(3)})
    assert same(found, state) and found.found["left_out"] == {"criterion": 2}
    assert found.found["assumed"] == {"share": True, "refine": "residual", "output": "fused"}
    assert "left out: 'criterion'" in caplog.text and "assumed: share=True, refine=residual" in caplog.text


def test_a_tensor_among_the_networks_own_is_never_left_out(state: State, tmp_path: Path) -> None:
    """It would be used by the network that was trained, so another one would be run."""
    with pytest.raises(CheckpointError, match=r"1 unexpected \(later.0.4.extra.weight\)"):
        load(tmp_path, state | {"later.0.4.extra.weight": torch.ones(3)})
    with pytest.raises(
        CheckpointError, match=r"10 unexpected"
    ):  # F_1 for every branch, but with the layers for its own
        load(tmp_path, state, network="r2mrf-edge", settings=SMALL | {"initial": "first"})


def test_renamed_layers_load(state: State, tmp_path: Path) -> None:
    theirs = {k.replace("backbone.body.", "encoder.").replace("amdf.", "merge."): v for k, v in state.items()}
    rename = {"encoder": "backbone.body", "mer(g)e": "amdf"}
    assert same(load(tmp_path, {"net": under("net", theirs)}, rename=rename), state)
    with pytest.raises(CheckpointError, match=r"fits none of .*; tried 'no prefix', 'net', .*`rename` FROM=TO"):
        load(tmp_path, {"net": theirs})
    for old, new in (("enc", "x"), ("(", "x"), ("encoder", r"\7")):  # a part of a part; no expression; no such group
        with pytest.raises(UsageError, match="`rename`"):
            load(tmp_path, theirs, rename={old: new})
    with pytest.raises(UsageError, match="two tensors are called 'amdf'"):
        load(tmp_path, state, rename={"amdf.(weight|bias)": "amdf"})


def test_a_failure_names_what_was_tried(state: State, tmp_path: Path) -> None:
    lacking = {k: v for k, v in state.items() if k != "fusion.weight"}
    with pytest.raises(
        CheckpointError,
        match=r"do not fit r2mrf: 1 missing \(fusion.weight\) \(below 'state_dict.net'\); tried .*'ema'",
    ):
        load(tmp_path, {"state_dict": under("net", lacking), "ema": {str(i): torch.zeros(1) for i in range(30)}})
    backbone = next(k for k in state if k.startswith("backbone"))
    with pytest.raises(CheckpointError, match=r"1 misshapen .*backbone"):  # of the backbone that it nearly is
        load(tmp_path, state | {backbone: torch.zeros(2)})
    with pytest.raises(CheckpointError, match="holds no state dict"):
        load(tmp_path, {"epoch": 3, "state_dict": {}})


def test_content_that_has_no_end_is_refused(state: State, tmp_path: Path) -> None:
    loop: dict[str, Any] = {}
    loop["self"] = [loop, loop]
    with pytest.raises(CheckpointError, match=r"no state dict|entries"):
        load(tmp_path, loop)
    wide: Any = [0] * 1000
    for _ in range(6):
        wide = [wide] * 10
    with pytest.raises(CheckpointError, match="more than 1,000,000 entries"):
        load(tmp_path, {"model": state, "history": wide})


def test_odd_shapes_and_names_are_no_crash(state: State, tmp_path: Path) -> None:
    for odd in (
        {k: torch.tensor(1.0) for k in state},  # a scalar where a layer has weights
        {k: v.new_zeros((5000, *v.shape[1:])) if k == "amdf.weight" else v for k, v in state.items()},
        dict(enumerate(state.values())),  # names that are no texts
        {(k,): v for k, v in state.items()},
    ):
        with pytest.raises(CheckpointError):
            load(tmp_path, odd)
