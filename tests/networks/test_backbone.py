"""Backbones give five maps of the stated channels and strides, and load torchvision's weights by name."""

from __future__ import annotations

import re

import pytest
import torch
import torchvision

from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.networks import backbone
from r2mrf_deploy.networks.backbone import Backbone
from r2mrf_deploy.networks.r2mrf import R2MRFConfig

pytestmark = pytest.mark.artifact

# channels @ stride of each tap, as the specification lists them
RESNET = [(64, 4), (256, 4), (512, 8), (1024, 16), (2048, 32)]
TAPS = {
    "resnext101_32x4d": RESNET,
    "resnext50_32x4d": RESNET,
    "resnext101_32x8d": RESNET,
    "resnext101_64x4d": RESNET,
    "vgg16": [(64, 4), (128, 4), (256, 4), (512, 8), (512, 16)],
    "densenet161": [(96, 4), (384, 4), (768, 8), (2112, 16), (2208, 32)],
    "mobilenet_v3_large": [(16, 4), (24, 4), (40, 8), (112, 16), (960, 32)],
    "efficientnet_lite0": [(16, 4), (24, 4), (40, 8), (112, 16), (320, 32)],
    "efficientnet_lite1": [(16, 4), (24, 4), (40, 8), (112, 16), (320, 32)],
    "efficientnet_lite2": [(16, 4), (24, 4), (48, 8), (120, 16), (352, 32)],
}


def test_every_backbone_is_listed() -> None:
    assert set(backbone.NAMES) == set(TAPS)


@pytest.mark.parametrize("name", TAPS)
def test_taps(name: str) -> None:
    with torch.device("meta"):
        net = Backbone(name).eval()
        maps = net(torch.empty(2, 3, 64, 96))
    assert [(m.shape[1], 64 // m.shape[2], 96 // m.shape[3]) for m in maps] == [(c, s, s) for c, s in TAPS[name]]
    assert net.channels == tuple(c for c, _ in TAPS[name])


@pytest.mark.parametrize(
    ("name", "last"), [("resnext50_32x4d", "layer4"), ("mobilenet_v3_large", "features"), ("vgg16", "features")]
)
def test_the_last_tap_is_torchvision_s(name: str, last: str) -> None:
    """Same weights, same deepest feature map as torchvision's own network."""
    reference = torchvision.models.get_model(name, weights=None).eval()
    net = Backbone(name).eval()
    prefix = "features." if last == "features" else ""
    net.body.load_state_dict(
        {k: reference.state_dict()[prefix + k] for k in net.body.state_dict()},
    )
    kept: list[torch.Tensor] = []
    layer = reference.get_submodule(last if last != "features" else ("features.29" if name == "vgg16" else "features"))
    layer.register_forward_hook(lambda _, __, y: kept.append(y.clone()))
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        reference(x)
        found = net(x)[-1]
    # the mean of squeeze-and-excitation is summed in another order than torchvision's pooling
    torch.testing.assert_close(found, kept[0], rtol=1e-4, atol=1e-5 * float(kept[0].std()) + 1e-9)


def test_a_later_layer_does_not_overwrite_a_tap() -> None:
    net = Backbone("densenet161").eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        whole = net(x)
        first = x
        for child in net.taps[0].children:
            first = net.body[child](first)
    assert torch.equal(whole[0], first)


def test_imagenet_weights_are_loaded_by_torchvision_s_names() -> None:
    reference = torchvision.models.resnext50_32x4d(weights=None)
    net = Backbone("resnext50_32x4d")
    net.load_imagenet(reference.state_dict())
    assert torch.equal(net.body["layer4"][2].conv3.weight, reference.layer4[2].conv3.weight)
    with pytest.raises(UsageError, match=r"not the ImageNet weights of resnext101_32x8d: '.*' is missing or misshapen"):
        Backbone("resnext101_32x8d").load_imagenet(reference.state_dict())
    with pytest.raises(UsageError, match=r"not the ImageNet weights of vgg16: '0.weight' is missing"):
        Backbone("vgg16").load_imagenet({})


def test_densenet_s_imagenet_weights_load_by_their_old_names() -> None:
    """torchvision's file names `norm.1` what its module names `norm1`, and has no counters of batches."""
    reference = torchvision.models.densenet161(weights=None).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", k): v for k, v in reference.items()}
    old = {k: v for k, v in old.items() if not k.endswith("num_batches_tracked")}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    net = Backbone("densenet161")
    net.load_imagenet(old)
    for name, value in net.body.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, reference[f"features.{name}"])


def test_a_backbone_is_identified_by_its_shapes() -> None:
    for name in ("resnext50_32x4d", "resnext101_64x4d", "vgg16", "efficientnet_lite0", "efficientnet_lite2"):
        with torch.device("meta"):
            state = Backbone(name).state_dict()
        assert backbone.identify({f"backbone.{k}": tuple(v.shape) for k, v in state.items()}) == name
    assert backbone.identify({"backbone.conv1.weight": (1, 2, 3)}) is None


def test_an_unknown_backbone_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'densenet161'"):
        R2MRFConfig(backbone="densenet121")
