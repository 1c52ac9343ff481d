"""R²MRF is its equations: each is recomputed here from the module's own parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from r2mrf_deploy import networks
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.networks.initialise import initialise
from r2mrf_deploy.networks.r2mrf import BRANCHES, R2MRF, R2MRFConfig

SMALL: dict[str, Any] = {
    "backbone": "mobilenet_v3_large",
    "steps": 3,
    "width": 4,
    "amdf_channels": 8,
    "initial_channels": 6,
}


def image(height: int = 72, width: int = 96) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def network(**changes: Any) -> R2MRF:
    """A small network whose weights give varied maps."""
    net = R2MRF(R2MRFConfig(**(SMALL | changes)))
    initialise(net, image())
    return net.eval()


def up(x: torch.Tensor, size: Any) -> torch.Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


@torch.no_grad()
def recompute(net: R2MRF, x: torch.Tensor, steps: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The paper's Eqs. 1-5, written out without the module's own forward."""
    f = net.backbone(x)
    size = f[0].shape[-2:]
    amdf = F.relu(net.amdf(torch.cat([up(v, size) for v in f], 1)))
    own = net.config.initial == "own"
    start = {b: up(net.initial[b - 1](f[b - 1]), size) if own else f[0] for b in range(1, 6)}
    o: dict[tuple[int, int], torch.Tensor] = {}
    for t in range(1, steps + 1):
        for b in (5, 4, 3, 2, 1):
            parts = [start[b] if t == 1 else o[t - 1, b]]
            if b < 5:
                parts.append(o[t, b + 1])
            r = net.rrm(t, b)(torch.cat([*parts, amdf], 1))
            o[t, b] = r + o[t - 1, b] if t > 1 and net.config.refine == "residual" else r
    fused = net.fusion(torch.cat([o[steps, b] for b in range(1, 6)], 1))
    return up(fused, x.shape[-2:]), {f"step{t}_branch{b}": v for (t, b), v in o.items()}


@pytest.mark.parametrize(
    "changes", [{}, {"initial": "first"}, {"share": False}, {"refine": "direct"}, {"amdf_kernel": 3}]
)
def test_forward_is_equations_1_to_5(changes: dict[str, Any]) -> None:
    net, x = network(**changes), image()
    logits, side = net(x, all_steps=True)
    expected, expected_side = recompute(net, x, 3)
    assert list(side) == list(expected_side) == net.side_names(3)
    assert logits.std() > 0.05
    # the same operations in the same order
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
    for name in side:
        torch.testing.assert_close(side[name], expected_side[name], rtol=0, atol=1e-6)


def test_a_step_runs_from_the_deepest_branch_to_the_shallowest() -> None:
    net = network()
    calls: list[int] = []
    for number in range(BRANCHES):
        net.later[0][number].register_forward_hook(lambda *_, n=number: calls.append(n + 1))
    net(image())
    assert calls == [5, 4, 3, 2, 1] * 2


def test_each_output_adds_its_residual_to_the_output_before() -> None:
    net = network()
    residuals: list[torch.Tensor] = []
    for number in (4, 3, 2, 1, 0):
        net.later[0][number].register_forward_hook(lambda _, __, r: residuals.append(r))
    _, side = net(image(), all_steps=True)
    names = [n for n in side if not n.startswith("step1")]
    assert len(names) == len(residuals) == 10
    for name, residual in zip(names, residuals, strict=True):
        step, branch = name.split("_")
        before = side[f"step{int(step[4:]) - 1}_{branch}"]
        torch.testing.assert_close(side[name], residual + before, rtol=0, atol=0)


def test_sharing_shares_and_not_sharing_does_not() -> None:
    shared, own = network(share=True), network(share=False)
    assert shared.rrm(2, 3) is shared.rrm(3, 3)
    assert shared.rrm(1, 3) is not shared.rrm(2, 3)
    assert own.rrm(2, 3) is not own.rrm(3, 3)
    of_steps = sum(p.numel() for p in shared.later.parameters())
    assert sum(p.numel() for p in own.parameters()) - sum(p.numel() for p in shared.parameters()) == of_steps


def test_a_shared_checkpoint_runs_any_number_of_steps() -> None:
    net, x = network(steps=2), image()
    for steps in (1, 2, 5):
        logits, side = net(x, steps=steps, all_steps=True)
        expected, _ = recompute(net, x, steps)
        torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)
        assert len(side) == 5 * steps
    assert not torch.allclose(net(x, steps=2), net(x, steps=5), atol=1e-3)


def test_steps_that_the_weights_do_not_hold_are_refused() -> None:
    with pytest.raises(UsageError, match="with 1 to 3 steps, not"):
        network(share=False)(image(), steps=4)
    with pytest.raises(UsageError, match="with 1 step, not"):
        network(steps=1)(image(), steps=2)
    with pytest.raises(UsageError, match="with 1 to"):
        network()(image(), steps=0)


def test_output_selects_a_branch_and_changes_nothing_else() -> None:
    fused, x = network(), image()
    _, side = fused(x, all_steps=True)
    for branch in range(1, 6):
        net = R2MRF(R2MRFConfig(**SMALL, output=f"branch{branch}")).eval()
        net.load_state_dict(fused.state_dict())
        logits, same = net(x, all_steps=True)
        torch.testing.assert_close(logits, up(side[f"step3_branch{branch}"], x.shape[-2:]), rtol=0, atol=0)
        assert all(torch.equal(side[k], same[k]) for k in side)


def test_direct_refinement_differs_only_after_the_first_step() -> None:
    residual, x = network(), image()
    direct = R2MRF(R2MRFConfig(**SMALL, refine="direct")).eval()
    direct.load_state_dict(residual.state_dict())
    a, b = residual(x, all_steps=True)[1], direct(x, all_steps=True)[1]
    assert all(torch.equal(a[k], b[k]) for k in a if k.startswith("step1_"))
    assert not any(torch.allclose(a[k], b[k], atol=1e-3) for k in a if k.startswith("step3_"))


def test_fusion_begins_as_the_mean_of_the_branches() -> None:
    net = R2MRF(R2MRFConfig(**SMALL))
    assert torch.equal(net.fusion.weight, torch.full((1, 5, 1, 1), 0.2))
    assert net.fusion.bias.item() == 0


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (97, 131)])
def test_the_map_has_the_image_s_size(size: tuple[int, int]) -> None:
    assert network()(image(*size)).shape == (1, 1, *size)


# Multiply-adds at 320x320 and parameters, in units of 1e9 and 1e6. The published figures of 50.0 M and 30.8 M parameters
# count the backbone's unused ImageNet classifier (2.05 M), which is not built here.
@pytest.mark.parametrize(
    ("preset", "multiply_adds", "parameters", "classifier"),
    [("r2mrf", 106, 50.0, 2.049), ("r2mrf-r50", 98, 30.8, 2.049)],
)
def test_cost_is_the_specification_s(preset: str, multiply_adds: float, parameters: float, classifier: float) -> None:
    with torch.device("meta"):
        net = networks.create(*networks.preset(preset)).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.empty(1, 3, 320, 320))
    assert counter.get_total_flops() / 2e9 == pytest.approx(multiply_adds, abs=0.5)
    assert sum(p.numel() for p in net.parameters()) / 1e6 + classifier == pytest.approx(parameters, abs=0.05)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("backbone", "resnext101", "did you mean 'resnext101"),
        ("steps", 0, "from 1 to 1024"),
        ("steps", 10**9, "from 1 to 1024"),
        ("amdf_channels", 99999999, "from 1 to 1024"),
        ("amdf_kernel", 2, "not allowed"),
        ("output", "branch6", "did you mean 'branch"),
        ("steps", "6", "must be int"),
        ("share", 1, "must be bool"),
    ],
)
def test_a_config_that_means_nothing_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        R2MRFConfig(**{field: value})


def test_presets_are_named_and_near_names_are_offered() -> None:
    with pytest.raises(UsageError, match="did you mean 'r2mrf-edge'"):
        networks.preset("r2mrf-edg")
    _, config = networks.preset("r2mrf", {"steps": "8", "share": "false"})
    assert (config.steps, config.share) == (8, False)
    with pytest.raises(UsageError, match="did you mean 'steps'"):
        networks.preset("r2mrf", {"step": "8"})
    with pytest.raises(UsageError, match="give a whole number"):
        networks.preset("r2mrf", {"steps": "many"})


@pytest.mark.parametrize("changes", [{}, {"share": False}, {"initial": "first"}, {"amdf_kernel": 3}, {"steps": 1}])
def test_the_config_is_found_again_from_the_shapes(changes: dict[str, Any]) -> None:
    config = R2MRFConfig(**(SMALL | changes))
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in R2MRF(config).state_dict().items()}
    known, asked = R2MRF.infer(shapes) or ({}, [])
    # with sharing the number of steps is not in the weights
    assert asked == (["steps"] if config.share and config.steps > 1 else [])
    fields = known | ({"steps": config.steps} if asked else {})
    if config.initial == "first":
        fields["initial_channels"] = config.initial_channels  # means nothing there
    found = R2MRFConfig(**fields)
    assert found == config or (config.steps == 1 and found.steps == 1)
