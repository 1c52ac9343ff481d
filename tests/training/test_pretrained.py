from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision

from r2mrf_deploy import networks
from r2mrf_deploy.errors import CheckpointError, InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.networks.backbone import Backbone
from r2mrf_deploy.training import pretrained
from r2mrf_deploy.training.data import Pictures

pytestmark = pytest.mark.artifact

SETTINGS = {"width": "4", "amdf_channels": "8", "initial_channels": "4", "steps": "2"}


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return Pictures([rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)] * 2, [np.zeros((64, 64), np.float32)] * 2)


def create(pictures, backbone=None, seed=0, preset="r2mrf-edge"):
    return pretrained.create(preset, SETTINGS, pictures, backbone=backbone, seed=seed)[1]


def test_weights_follow_from_the_seed_and_logits_vary(pictures):
    first, again, other = (create(pictures, seed=seed) for seed in (0, 0, 1))
    equal = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(equal)
    assert not torch.equal(first.amdf.weight, other.amdf.weight)


def test_a_backbone_is_taken_from_a_file(pictures, tmp_path):
    torch.manual_seed(5)
    given = Backbone("mobilenet_v3_large").body.state_dict()
    torch.save({f"features.{k}": v for k, v in given.items()}, tmp_path / "b.pth")
    loaded = create(pictures, str(tmp_path / "b.pth")).backbone.body.state_dict()
    assert all(torch.equal(loaded[k], given[k]) for k in given)


def test_weights_that_are_not_to_be_had_are_refused_with_the_cure(pictures, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="no such file"):
        create(pictures, str(tmp_path / "none.pth"))
    with pytest.raises(UsageError, match="give a local file"):
        create(pictures, "imagenet", preset="r2mrf")

    def offline(*_, **__):
        raise URLError("no network")

    monkeypatch.setattr("torch.hub.load_state_dict_from_url", offline)
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(RuntimeUnavailable, match="`backbone` FILE"):
        create(pictures, "imagenet")


def test_what_is_no_file_of_weights_is_one_line(pictures, tmp_path):
    (tmp_path / "photo.jpg").write_bytes(b"\xff\xd8\xff\xe0 no weights")
    torch.save(Backbone("mobilenet_v3_large").body.state_dict(), tmp_path / "whole.pth")
    whole = (tmp_path / "whole.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    for name, said in (("photo.jpg", "is not a PyTorch checkpoint"), ("cut.pth", "damaged, truncated")):
        with pytest.raises(CheckpointError, match=f"`backbone`: .*{said}"):
            create(pictures, str(tmp_path / name))


@pytest.mark.parametrize("preset", ["btbnet", "btbcrl"])
def test_streams_begin_with_vgg_16_s_convolutions(pictures, tmp_path, preset):
    shapes = {k: v.shape for k, v in torchvision.models.vgg16(weights=None).features.state_dict().items()}
    given = {f"features.{k}": torch.full(shape, float(n)) for n, (k, shape) in enumerate(shapes.items())}
    torch.save(given | {"classifier.0.bias": torch.zeros(1)}, tmp_path / "vgg16.pth")
    network = pretrained.create(preset, {}, pictures, backbone=str(tmp_path / "vgg16.pth"), seed=0)[1]
    for stream in network.streams:
        found = [p.flatten()[0].item() for p in stream.blocks.parameters()]
        assert found == list(range(26))  # 13 weights and their biases, in VGG-16's order
        assert stream.across[0].weight.std() > 0
    with pytest.raises(UsageError, match=r"these have 0\.25 of it; use `settings` width=1"):
        pretrained.create(preset, {"width": "0.25"}, pictures, backbone=str(tmp_path / "vgg16.pth"), seed=0)
    torch.save(given | {"features.0.weight": torch.zeros(64, 3, 5, 5)}, tmp_path / "other.pth")
    with pytest.raises(UsageError, match="not VGG-16's"):
        pretrained.create(preset, {}, pictures, backbone=str(tmp_path / "other.pth"), seed=0)


def test_a_network_without_a_backbone_takes_none(pictures, monkeypatch):
    monkeypatch.setattr(networks, "create", lambda *_: torch.nn.Conv2d(3, 1, 1))
    with pytest.raises(UsageError, match="has no backbone"):
        create(pictures, "imagenet")
