"""The BR²Net authors' checkpoints load key by key, and give their network's output.

The authors' network is built here as their code nests it, so that its state dict has their full list of keys and shapes.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import CheckpointError
from r2mrf_deploy.networks.br2net import BR2Net, BR2NetConfig
from r2mrf_deploy.networks.br2net_checkpoint import RULES, ours
from r2mrf_deploy.networks.initialise import initialise

pytestmark = pytest.mark.artifact

CHANNELS = (64, 256, 512, 1024, 2048)


class Table(nn.Sequential):
    """Torch 7's ConcatTable and CAddTable: the sum of what its children make. An empty child is the identity."""

    def forward(self, x: Tensor) -> Tensor:
        return sum(child(x) for child in self.children())


def block(inside: int, wide: int, out: int, stride: int) -> nn.Sequential:
    body = nn.Sequential(
        nn.Sequential(
            nn.Conv2d(inside, wide, 1, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=32, bias=False),
            nn.BatchNorm2d(wide),
            nn.ReLU(),
        ),
        nn.Conv2d(wide, out, 1, bias=False),
        nn.BatchNorm2d(out),
    )
    down = nn.Sequential(nn.Conv2d(inside, out, 1, stride, bias=False), nn.BatchNorm2d(out))
    return nn.Sequential(Table(body, down if inside != out else nn.Sequential()), nn.Sequential(), nn.ReLU())


def stage(depth: int, inside: int, out: int, stride: int) -> nn.Sequential:
    return nn.Sequential(*(block(out if i else inside, out // 2, out, 1 if i else stride) for i in range(depth)))


class CALayer(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_du = nn.Sequential(
            nn.Conv2d(channels, channels // 16, 1), nn.ReLU(), nn.Conv2d(channels // 16, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.conv_du(F.adaptive_avg_pool2d(x, 1))


def predict(channels: int) -> nn.Sequential:
    return nn.Sequential(
        *(nn.Conv2d(channels + 1, 128, 3, padding=1), nn.BatchNorm2d(128), nn.PReLU()),
        *(nn.Conv2d(128, 128, 3, padding=1), nn.BatchNorm2d(128), nn.PReLU()),
        nn.Conv2d(128, 1, 1),
    )


class Authors(nn.Module):
    """Their layers under their names; their first version has no attention, and gives the last L2H map."""

    def __init__(self, attention: bool = True) -> None:
        super().__init__()
        self.attention = attention
        stem = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        self.layer0 = nn.Sequential(*stem)
        self.layer1 = stage(3, 64, 256, 1)
        self.layer2 = stage(4, 256, 512, 2)
        self.layer3 = stage(23, 512, 1024, 2)
        self.layer4 = stage(3, 1024, 2048, 2)
        for i, c in enumerate(CHANNELS if attention else ()):
            setattr(self, f"CAlayer{i}", nn.Sequential(CALayer(c)))
        for name, channels in (("L2H", CHANNELS), ("H2L", CHANNELS[::-1])):
            setattr(self, f"predict{name}0", nn.Conv2d(channels[0], 1, 1))
            for k in range(1, 5):
                setattr(self, f"predict{name}{k}", predict(channels[k]))

    def forward(self, x: Tensor) -> Tensor:
        size, maps = x.shape[-2:], []
        for i in range(5):
            x = getattr(self, f"layer{i}")(x)
            maps.append(x)
        if self.attention:
            maps = [getattr(self, f"CAlayer{i}")(m) for i, m in enumerate(maps)]
        last = []
        for name, ordered in (("L2H", maps), ("H2L", maps[::-1])):
            p = getattr(self, f"predict{name}0")(ordered[0])
            for k in range(1, 5):
                feature = F.interpolate(ordered[k], p.shape[-2:], mode="bilinear", align_corners=False)
                p = getattr(self, f"predict{name}{k}")(torch.cat((p, feature), 1)) + p
            last.append(F.interpolate(p, size, mode="bilinear", align_corners=False))
        return torch.sigmoid((last[0] + last[1]) / 2 if self.attention else last[0])


def image() -> Tensor:
    return torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def authors() -> Authors:
    return lively(Authors())


def lively(network: Authors) -> Authors:
    torch.manual_seed(0)
    for name, norm in network.named_modules():
        if isinstance(norm, nn.BatchNorm2d):
            # the last of a residual branch is weak, so that 33 of them do not amplify rounding
            nn.init.uniform_(norm.weight, *((0.1, 0.3) if name.endswith(".0.0.2") else (0.8, 1.2)))
    initialise(network, torch.cat((image(), image() / 2)))
    return network.eval()


def test_every_key_has_its_place(authors: Authors) -> None:
    theirs = authors.state_dict()
    # 104 convolutions with batch norm; 5 attentions; 2 first predictions; 8 modules of 3 convolutions, 2 norms, 2 slopes
    assert len(theirs) == 104 * 6 + 5 * 4 + 2 * 2 + 8 * (3 * 2 + 2 * 5 + 2)
    assert "layer3.22.0.0.0.4.running_var" in theirs
    found = BR2Net.adopt(theirs)
    assert found is not None
    adopted, settled = found
    assert not settled
    mine = Checkpoint("br2net", BR2NetConfig(), adopted).module().state_dict()
    assert mine.keys() == adopted.keys() and len(mine) == len(theirs)
    for (name, value), (own, kept) in zip(
        theirs.items(), mine.items(), strict=True
    ):  # both in the order of computation
        assert ours(name) == own
        assert kept.shape == value.shape and (own.endswith("num_batches_tracked") or torch.equal(kept, value))


def test_every_rule_is_used(authors: Authors) -> None:
    modules = {k.rpartition(".")[0] for k in authors.state_dict()}
    for pattern, _ in RULES:
        assert any(re.fullmatch(pattern, m) for m in modules), pattern
    for module in modules:
        assert sum(re.fullmatch(pattern, module) is not None for pattern, _ in RULES) == 1, module


def _without_counters(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}


def _renamed(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k.replace("predict", "head").replace("CAlayer", "ca"): v for k, v in state.items()}


def _parallel(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"module.{k}": v for k, v in state.items()}


@pytest.mark.parametrize("change", [dict, _without_counters, _renamed, _parallel])
def test_their_file_loads_with_no_option_and_gives_their_output(
    authors: Authors, change: Callable[[dict[str, Tensor]], dict[str, Tensor]], tmp_path: Path
) -> None:
    path = tmp_path / "CA_6000.pth"
    # PyTorch 0.4 wrote no zip archives
    torch.save(OrderedDict(change(authors.state_dict())), path, _use_new_zipfile_serialization=False)
    loaded = Checkpoint.load(path)
    assert (loaded.network, loaded.config) == ("br2net", BR2NetConfig())
    with torch.no_grad():
        wanted, got = authors(image()), torch.sigmoid(loaded.module()(image()))
    assert wanted.std() > 0.05
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)  # the mean of the attention is summed in another order


@pytest.mark.parametrize("change", [dict, _renamed])
def test_their_first_version_is_told_by_its_lack_of_attention(
    change: Callable[[dict[str, Tensor]], dict[str, Tensor]], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    older = lively(Authors(attention=False))
    path = tmp_path / "6000.pth"
    torch.save(change(older.state_dict()), path)
    loaded = Checkpoint.load(path)
    assert loaded.config == BR2NetConfig(attention=False, output="l2h")
    assert "by its authors' version: attention=False, output=l2h" in caplog.text
    with torch.no_grad():
        wanted, got = older(image()), torch.sigmoid(loaded.module()(image()))
        fused = torch.sigmoid(Checkpoint.load(path, settings={"output": "fused"}).module()(image()))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-5)
    assert (fused - wanted).abs().max() > 0.05  # what was run before, in silence


def test_what_lacks_or_bends_a_tensor_is_refused_by_its_name(authors: Authors, tmp_path: Path) -> None:
    state = authors.state_dict()
    lacking = {k: v for k, v in state.items() if k != "predictL2H3.6.bias"}
    torch.save(lacking, tmp_path / "lacking.pth")
    with pytest.raises(CheckpointError, match=r"1 missing \(l2h.later.2.residual.bias\)"):
        Checkpoint.load(tmp_path / "lacking.pth")
    torch.save(state | {"predictH2L0.weight": torch.zeros(1, 9, 1, 1)}, tmp_path / "bent.pth")
    with pytest.raises(CheckpointError, match=r"1 misshapen \(h2l.first.weight is \[1, 9, 1, 1\]"):
        Checkpoint.load(tmp_path / "bent.pth")


def test_other_state_dicts_are_left_alone() -> None:
    assert BR2Net.adopt({}) is None
    assert BR2Net.adopt({"layer1.0.conv1.weight": torch.zeros(1)}) is None
