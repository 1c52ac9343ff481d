"""BTBNet and BTBCRL are their equations: each is recomputed here from the modules' own parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.networks.btbcrl import BTBCRL, BTBCRLConfig
from r2mrf_deploy.networks.btbnet import BTBNet, BTBNetConfig, Stream
from r2mrf_deploy.networks.initialise import initialise

NARROW: dict[str, Any] = {"width": 0.25}
BTBNETS: list[dict[str, Any]] = [{}, {"refine": "none"}, {"streams": 1, "refine": "none"}, {"streams": 2, "steps": 1}]
BTBCRLS: list[dict[str, Any]] = [
    {},
    {"share": False},
    {"image": False},
    {"cascade": False},
    {"scales": "single"},
    {"steps": 2},
    {"steps": 1},
]
Side = dict[str, torch.Tensor]


def image(height: int = 21, width: int = 33) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


def btbnet(**changes: Any) -> BTBNet:
    net = BTBNet(BTBNetConfig(**(NARROW | changes)))
    initialise(net, image())
    return net.eval()


def btbcrl(**changes: Any) -> BTBCRL:
    net = BTBCRL(BTBCRLConfig(**(NARROW | changes)))
    initialise(net, image())
    return net.eval()


def resize(x: torch.Tensor, size: Any) -> torch.Tensor:
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def at(x: torch.Tensor, scale: int) -> torch.Tensor:
    return resize(x, (int(x.shape[2] * scale / 100), int(x.shape[3] * scale / 100)))


def stream(parts: Stream, x: torch.Tensor, pointwise: int) -> list[torch.Tensor]:
    f = []
    for block in parts.blocks:
        for layer in block:
            x = F.relu(F.conv2d(x, layer.weight, layer.bias, padding=1)) if isinstance(layer, nn.Conv2d) else x
        f.append(x)
    d = F.relu(parts.across[0](f[4]))
    maps = []
    for k in (5, 4, 3, 2, 1):
        if k < 5:
            d = F.relu(parts.down[4 - k](d)) + F.relu(parts.across[5 - k](f[k - 1]))
        if 5 - k < pointwise:
            d = F.relu(parts.pointwise[5 - k](d))
        maps.append(parts.predict[5 - k](d))
    return maps


def streams(net: BTBNet | BTBCRL, x: torch.Tensor, pointwise: int) -> Side:
    return {
        f"stream{s}_step{k}": m
        for s, parts in zip(net.streams.scales, net.streams, strict=True)
        for k, m in enumerate(stream(parts, at(x, s), pointwise), 1)
    }


@torch.no_grad()
def recompute_btbnet(net: BTBNet, x: torch.Tensor) -> tuple[torch.Tensor, Side]:
    side = streams(net, x, pointwise=0)
    maps = torch.cat([resize(side[f"stream{s}_step5"], x.shape[-2:]) for s in net.streams.scales], 1)
    if net.config.refine == "none":
        return maps.mean(1, keepdim=True), side
    m = side["frr0"] = net.fuse.predict(net.fuse.series(maps))
    for t in range(1, net.config.steps + 1):
        m = side[f"frr{t}"] = net.recur.predict(net.recur.series(torch.cat([x, m], 1)))
    return m, side


@torch.no_grad()
def recompute_btbcrl(net: BTBCRL, x: torch.Tensor) -> tuple[torch.Tensor, Side]:
    config = net.config
    side = streams(net, x, pointwise=3)
    scales = (60, 80, 100)[: config.steps] if config.scales == "multi" else (100,) * config.steps
    maps: list[torch.Tensor] = []
    hidden = None
    for n, s in enumerate(scales):
        parts = net.first if n == 0 else net.later[0 if config.share else n - 1]
        known = side[f"stream{s}_step5"]
        h = torch.cat([at(x, s), known], 1) if config.image else known
        for i in range(3):
            h = F.relu(parts.convs[i](h))
        if n and config.cascade:
            h = h + resize(hidden, known.shape[-2:])
        for i in range(3, 6):
            h = F.relu(parts.convs[i](h))
        m = parts.predict(h)
        if n and config.cascade:
            m = m + resize(maps[-1], known.shape[-2:])
        hidden = h
        maps.append(m)
        side[f"crl{n + 1}"] = m
    whole = [resize(m, x.shape[-2:]) for m in maps]
    return (whole[-1] if config.cascade else torch.stack(whole).mean(0)), side


def assert_same(net: Any, expected: torch.Tensor, expected_side: Side) -> None:
    with torch.no_grad():
        logits, side = net(image().double(), all_steps=True)
    assert list(side) == list(expected_side) == net.side_names(net.check_steps(None))
    assert logits.shape == (1, 1, 21, 33) and logits.std() > 0.05
    # in float64: two ways of resampling
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-10)
    for name in side:
        torch.testing.assert_close(side[name], expected_side[name], rtol=0, atol=1e-10)


@pytest.mark.parametrize("changes", BTBNETS)
def test_btbnet_is_the_papers(changes: dict[str, Any]) -> None:
    net = btbnet(**changes)
    assert_same(net, *recompute_btbnet(net.double(), image().double()))


@pytest.mark.parametrize("changes", BTBCRLS)
def test_btbcrl_is_the_papers(changes: dict[str, Any]) -> None:
    net = btbcrl(**changes)
    assert_same(net, *recompute_btbcrl(net.double(), image().double()))


def test_a_stream_keeps_its_scale_s_resolution() -> None:
    _, side = btbnet(streams=3)(image(40, 30), all_steps=True)
    sizes = {s: {tuple(v.shape[-2:]) for k, v in side.items() if k.startswith(f"stream{s}_")} for s in (100, 80, 60)}
    assert sizes == {100: {(40, 30)}, 80: {(32, 24)}, 60: {(24, 18)}}


def test_streams_do_not_share_and_later_rlnets_do() -> None:
    net, own = btbcrl(), btbcrl(share=False)
    assert len({id(p) for s in net.streams for p in s.parameters()}) == 3 * len(list(net.streams[0].parameters()))
    assert len(net.later) == 1 and len(own.later) == 2


def test_recursions_are_as_many_as_one_asks_for() -> None:
    net = btbnet()
    _, side = net(image(), steps=5, all_steps=True)
    assert list(side) == net.side_names(5) and len(net.side_names(5)) == 15 + 6
    with pytest.raises(UsageError, match="run with no steps, not 2"):
        btbnet(refine="none").check_steps(2)
    with pytest.raises(UsageError, match="with 1 to 1024 steps, not 0"):
        net.check_steps(0)
    with pytest.raises(UsageError, match="with 3 steps, not"):
        btbcrl().check_steps(2)


@pytest.mark.parametrize(("width", "multiply_adds"), [(1.0, 2471), (0.5, 617.6), (0.25, 154.4)])
def test_a_stream_s_cost(width: float, multiply_adds: float) -> None:
    """VGG-16's convolutions at 320×320 pixels are 14.7 M weights at each, 1,510 G multiply-adds; the way back adds 960 G."""
    with torch.device("meta"):
        net = Stream(width).eval()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            net(torch.empty(1, 3, 320, 320))
    assert counter.get_total_flops() / 2e9 == pytest.approx(multiply_adds, rel=0.002)
    forward = sum(p.numel() for p in net.blocks.parameters() if p.ndim > 1) * 320 * 320 / 1e9
    assert forward == pytest.approx(1507 * width**2, rel=0.002)


@pytest.mark.parametrize("changes", BTBNETS)
def test_btbnet_s_config_is_found_again(changes: dict[str, Any]) -> None:
    config = BTBNetConfig(**(NARROW | changes))
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in BTBNet(config).state_dict().items()}
    known, asked = BTBNet.infer(shapes) or ({}, [])
    assert asked == (["steps"] if config.refine == "frr" else [])
    assert BTBNetConfig(**known, **{n: getattr(config, n) for n in asked}) == config
    assert BTBCRL.infer(shapes) is None


@pytest.mark.parametrize("changes", [c for c in BTBCRLS if c.get("cascade", True)])
def test_btbcrl_s_config_is_found_again(changes: dict[str, Any]) -> None:
    config = BTBCRLConfig(**(NARROW | changes))
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in BTBCRL(config).state_dict().items()}
    known, asked = BTBCRL.infer(shapes) or ({}, [])
    assert BTBCRLConfig(**({"share": True} | known), **{n: getattr(config, n) for n in asked}) == config or (
        config.steps == 1  # then nothing is shared
    )
    assert BTBNet.infer(shapes) is None


@pytest.mark.parametrize(("field", "value"), [("streams", 4), ("width", 0.3), ("refine", "crl"), ("steps", 0)])
def test_a_btbnet_that_means_nothing_is_refused(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=field):
        BTBNetConfig(**{field: value})


@pytest.mark.parametrize(("field", "value"), [("steps", 4), ("width", 2.0), ("scales", "multy")])
def test_a_btbcrl_that_means_nothing_is_refused(field: str, value: Any) -> None:
    with pytest.raises(UsageError, match=field):
        BTBCRLConfig(**{field: value})


def test_words() -> None:
    net, crl = btbnet(), btbcrl()
    assert net.scope("streams.1.blocks.2", 0) == "stream80.block3" and net.scope("streams.1", 0) is None
    assert net.scope("streams.0.across.0", 0) == "stream100.step1" == net.scope("streams.0.predict.0", 0)
    assert net.scope("streams.0.down.0", 0) == "stream100.step2" and net.scope("streams.0.blocks", 0) is None
    assert [net.scope("fuse", 0), net.scope("recur", 0), net.scope("recur", 2)] == [
        "frr.fuse",
        "frr.step1",
        "frr.step3",
    ]
    assert crl.scope("streams.0.pointwise.1", 0) == "stream60.step2"
    assert [crl.scope("first", 0), crl.scope("later.0", 0), crl.scope("later.0", 1)] == [
        "crl.step1",
        "crl.step2",
        "crl.step3",
    ]
