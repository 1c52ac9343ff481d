"""BR²Net is its authors' equations: each is recomputed here from the module's own parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from r2mrf_deploy import networks
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.networks.br2net import BR2Net, BR2NetConfig
from r2mrf_deploy.networks.initialise import initialise

SMALL: dict[str, Any] = {"backbone": "mobilenet_v3_large", "width": 4}
VARIANTS: list[dict[str, Any]] = [
    {},
    {"attention": False},
    {"refine": "direct"},
    {"fusion": "conv"},
    {"output": "l2h"},
    {"output": "h2l"},
]


def image(height: int = 72, width: int = 96) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def network(**changes: Any) -> BR2Net:
    """A small network whose weights give varied maps."""
    net = BR2Net(BR2NetConfig(**(SMALL | changes)))
    initialise(net, image(128, 160).repeat(2, 1, 1, 1) * torch.tensor([1.0, 0.5]).view(2, 1, 1, 1))
    return net.eval()


def resize(x: torch.Tensor, size: Any) -> torch.Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def rlrm(net: BR2Net, pathway: str, k: int, x: torch.Tensor) -> torch.Tensor:
    parts = getattr(net, pathway).later[k - 1]
    for number in (1, 2):
        x = getattr(parts, f"norm{number}")(getattr(parts, f"conv{number}")(x))
        slope = getattr(parts, f"act{number}").weight
        x = torch.where(x > 0, x, slope * x)
    return F.conv2d(x, parts.residual.weight, parts.residual.bias)


@torch.no_grad()
def recompute(net: BR2Net, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The authors' forward, written out without the module's own."""
    f = list(net.backbone(x))
    if net.config.attention:
        for i, parts in enumerate(net.attention):
            hidden = F.relu(parts.squeeze(F.adaptive_avg_pool2d(f[i], 1)))
            f[i] = f[i] * torch.sigmoid(parts.excite(hidden))
    side: dict[str, torch.Tensor] = {}
    for pathway, maps in (("l2h", f), ("h2l", f[::-1])):
        p = getattr(net, pathway).first(maps[0])
        side[f"{pathway}0"] = p
        for k in range(1, 5):
            r = rlrm(net, pathway, k, torch.cat([p, resize(maps[k], maps[0].shape[-2:])], 1))
            p = side[f"{pathway}{k}"] = r + p if net.config.refine == "residual" else r
    low, high = resize(side["l2h4"], x.shape[-2:]), resize(side["h2l4"], x.shape[-2:])
    if net.config.output != "fused":
        return low if net.config.output == "l2h" else high, side
    return net.fusion(torch.cat([low, high], 1)) if net.config.fusion == "conv" else (low + high) / 2, side


@pytest.mark.parametrize("changes", VARIANTS)
def test_forward_is_the_authors(changes: dict[str, Any]) -> None:
    net, x = network(**changes), image()
    logits, side = net(x, all_steps=True)
    expected, expected_side = recompute(net, x)
    assert list(side) == list(expected_side) == net.side_names(net.check_steps(None))
    assert logits.shape == (1, 1, 72, 96) and logits.std() > 0.05
    # one product for another in PReLU, one mean for another in the attention: a few roundings of values of order one
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)
    for name in side:
        torch.testing.assert_close(side[name], expected_side[name], rtol=0, atol=1e-5)


def test_a_pathway_works_at_the_size_of_its_first_map() -> None:
    _, side = network()(image(96, 160), all_steps=True)
    assert {tuple(v.shape[-2:]) for k, v in side.items() if k.startswith("l2h")} == {(24, 40)}
    assert {tuple(v.shape[-2:]) for k, v in side.items() if k.startswith("h2l")} == {(3, 5)}


@pytest.mark.parametrize("changes", VARIANTS[1:3])
def test_an_ablation_changes_the_map(changes: dict[str, Any]) -> None:
    whole, x = network(), image()
    net = BR2Net(BR2NetConfig(**(SMALL | changes))).eval()
    net.load_state_dict(whole.state_dict(), strict=False)
    assert not torch.allclose(net(x), whole(x), atol=1e-2)


def test_the_fusion_begins_as_the_mean() -> None:
    mean, x = network(), image()
    conv = BR2Net(BR2NetConfig(**SMALL, fusion="conv")).eval()
    conv.load_state_dict(mean.state_dict(), strict=False)
    torch.testing.assert_close(conv(x), mean(x), rtol=0, atol=1e-6)  # the same sum of two halves


def test_attention_only_ever_weakens() -> None:
    net = network()
    for weigh, x in zip(net.attention, net.backbone(image()), strict=True):
        ratio = (weigh(x) / x)[x != 0]
        assert ratio.min() >= 0 and ratio.max() <= 1


def test_other_steps_are_refused() -> None:
    net = network()
    assert net.check_steps(5) == 5
    with pytest.raises(UsageError, match="these weights run with 5 steps, not 4"):
        net(image(), steps=4)


@pytest.mark.parametrize(("preset", "multiply_adds", "parameters"), [("br2net", 48.7, 50.6)])
def test_cost_is_that_of_the_authors_code(preset: str, multiply_adds: float, parameters: float) -> None:
    with torch.device("meta"):
        net = networks.create(*networks.preset(preset)).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.empty(1, 3, 320, 320))
    assert counter.get_total_flops() / 2e9 == pytest.approx(multiply_adds, abs=0.05)
    assert sum(p.numel() for p in net.parameters()) / 1e6 == pytest.approx(parameters, abs=0.05)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("backbone", "vgg", "did you mean 'vgg16'"),
        ("width", 0, "from 1 to 1024"),
        ("fusion", "max", "not allowed"),
        ("output", "h2", "did you mean 'h2l'"),
        ("refine", "none", "not allowed"),
    ],
)
def test_a_config_that_means_nothing_is_refused(field: str, value: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        BR2NetConfig(**{field: value})


@pytest.mark.parametrize("changes", VARIANTS[:4])
def test_the_config_is_found_again_from_the_shapes(changes: dict[str, Any]) -> None:
    config = BR2NetConfig(**(SMALL | changes))
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in BR2Net(config).state_dict().items()}
    known, asked = BR2Net.infer(shapes) or ({}, ["all"])
    assert not asked
    # what is added to what is not in the weights
    assert BR2NetConfig(**known, refine=config.refine) == config


def test_a_step_s_word_is_its_module() -> None:
    net = network()
    paths = {module: path for path, module in net.named_modules()}
    for pathway, word in ((net.l2h, "low_to_high"), (net.h2l, "high_to_low")):
        assert net.scope(paths[pathway.first], 0) == f"{word}.step1"
        assert [net.scope(paths[m], 0) for m in pathway.later] == [f"{word}.step{t}" for t in (2, 3, 4, 5)]
        assert net.scope(paths[pathway.later], 0) is None and net.scope(paths[pathway], 0) is None
    assert net.scope("attention.3.squeeze", 0) == "attention"
