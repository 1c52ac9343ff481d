"""DeFusionNet is its equations: each is recomputed here from the module's own parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.networks.defusionnet import DeFusionNet, DeFusionNetConfig
from r2mrf_deploy.networks.initialise import initialise

pytestmark = pytest.mark.artifact

SMALL: dict[str, Any] = {"width": 4}
VARIANTS: list[dict[str, Any]] = [{}, {"share": True}, {"refine": "none"}, {"steps": 1}, {"steps": 4}]


def image(height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def network(**changes: Any) -> DeFusionNet:
    """A small network whose weights give varied maps."""
    net = DeFusionNet(DeFusionNetConfig(**(SMALL | changes)))
    initialise(net, image())
    return net.eval()


@torch.no_grad()
def recompute(net: DeFusionNet, x: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The paper's equations, written out without the module's own forward."""
    height, width = x.shape[-2:]
    f = []
    for i, (tap, parts) in enumerate(zip(net.backbone(x), net.layers, strict=True)):
        y = parts.reduce(F.relu(parts.conv2(F.relu(parts.conv1(tap)))))
        s = 2**i
        if s > 1:
            y = F.conv_transpose2d(y, parts.up.weight, parts.up.bias, stride=s, padding=s // 2)
        f.append(y[:, :, :height, :width])
    side = {}
    steps = net.config.steps if net.config.refine == "ffrm" else 0
    for j in range(steps):
        own = 0 if net.config.share else j
        parts = net.steps[own]
        fshf = F.relu(parts.shallow(torch.cat(f[:3], 1)))
        fsef = F.relu(parts.deep(torch.cat(f[3:], 1)))
        f = [F.relu(parts.refine[i](torch.cat([f[i], fsef if i < 3 else fshf], 1))) for i in range(6)]
        side |= {f"step{j + 1}_layer{i + 1}": net.score[own][i](f[i]) for i in range(6)}
    if not steps:
        side = {f"step0_layer{i + 1}": net.score[0][i](f[i]) for i in range(6)}
    return net.fusion(torch.cat([side[f"step{steps}_layer{i}"] for i in range(1, 7)], 1)), side


@pytest.mark.parametrize("changes", VARIANTS)
def test_forward_is_the_papers(changes: dict[str, Any]) -> None:
    net, x = network(**changes), image()
    logits, side = net(x, all_steps=True)
    expected, expected_side = recompute(net, x)
    assert list(side) == list(expected_side) == net.side_names(net.check_steps(None))
    assert logits.std() > 0.05
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-6)  # the same operations in the same order
    for name in side:
        torch.testing.assert_close(side[name], expected_side[name], rtol=0, atol=1e-6)


def test_taps_are_at_their_own_strides() -> None:
    maps = network().backbone(image(64, 96))
    strides = [(c.shape[1], 64 // c.shape[2], 96 // c.shape[3]) for c in maps]
    assert strides == [(64, 1, 1), (128, 2, 2), (256, 4, 4), (512, 8, 8), (512, 16, 16), (512, 32, 32)]


@pytest.mark.parametrize("size", [(32, 32), (33, 65), (63, 95)])
def test_all_predictions_have_the_image_s_size(size: tuple[int, int]) -> None:
    logits, side = network(steps=1)(image(*size), all_steps=True)
    assert {tuple(v.shape) for v in (logits, *side.values())} == {(1, 1, *size)}


def test_deep_features_refine_shallow_layers_and_the_reverse() -> None:
    module, f = network().steps[0], [torch.rand(1, 4, 8, 8) for _ in range(6)]
    deeper = module([*f[:5], f[5] + 1])
    before = module(f)
    changed = [not torch.equal(a, b) for a, b in zip(before, deeper, strict=True)]
    assert changed == [True, True, True, False, False, True]


def test_output_selects_a_layer_and_changes_nothing_else() -> None:
    fused, x = network(), image()
    _, side = fused(x, all_steps=True)
    for i in range(1, 7):
        with torch.device("meta"):  # VGG-16's random weights would take a second each time
            net = DeFusionNet(DeFusionNetConfig(**SMALL, output=f"layer{i}")).eval()
        net.load_state_dict(fused.state_dict(), assign=True)
        assert torch.equal(net(x), side[f"step3_layer{i}"])


def test_steps() -> None:
    own, shared, none = network(), network(share=True), network(refine="none")
    assert list(shared(image(), steps=5, all_steps=True)[1]) == shared.side_names(5)
    assert list(own(image(), steps=2, all_steps=True)[1]) == own.side_names(2)
    assert none.check_steps(None) == none.check_steps(0) == 0
    for net, steps, message in ((own, 4, "with 1 to 3 steps"), (own, 0, "with 1 to 3"), (none, 2, "with no steps")):
        with pytest.raises(UsageError, match=message):
            net(image(), steps=steps)


@pytest.mark.parametrize("changes", VARIANTS)
def test_the_config_is_found_again_from_the_shapes(changes: dict[str, Any]) -> None:
    config = DeFusionNetConfig(**(SMALL | changes))
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in DeFusionNet(config).state_dict().items()}
    known, asked = DeFusionNet.infer(shapes) or ({}, [])
    # one set of weights is one step, or any number of steps that share it
    assert asked == (["steps", "share"] if config.share or config.steps == 1 else [])
    assert DeFusionNetConfig(**known, **{name: getattr(config, name) for name in asked}) == config


@pytest.mark.parametrize(("field", "value"), [("refine", "ffrn"), ("output", "layer7"), ("steps", 0), ("width", 0)])
def test_a_config_that_means_nothing_is_refused(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=field):
        DeFusionNetConfig(**{field: value})


@pytest.mark.parametrize("share", [True, False])
def test_a_step_s_word_is_its_module(share: bool) -> None:
    net = network(share=share)
    for step in range(3):
        path = f"steps.{0 if share else step}"
        assert net.scope(path, step if share else 0) == f"step{step + 1}"
    assert net.scope("layers.3", 0) == "layer4" and net.scope("layers", 0) is None and net.scope("steps", 0) is None
    assert net.scope("score.0.2", 0) == "score.step1" and net.scope("score.0", 0) is None
