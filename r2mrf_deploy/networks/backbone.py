"""Backbones: five feature maps F_1 .. F_5 of an image, shallow to deep.

All are classification networks without their classifiers: torchvision's, whose parameters keep their names below `body`, and
EfficientNet-Lite.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, TypeAlias

import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.resnet import Bottleneck, ResNet

from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.manifest import Preprocess
from r2mrf_deploy.networks import efficientnet_lite
from r2mrf_deploy.networks.base import IMAGENET, Shapes, shapes_of


@dataclass(frozen=True)
class Tap:
    """One feature map: the children of `body` that lead to it from the tap before, and what comes out."""

    children: tuple[str, ...]
    channels: int
    stride: int
    pool: int = 1
    """Max-pooling factor that brings a map finer than stride 4 to stride 4."""


def _numbered(first: int, last: int) -> tuple[str, ...]:
    return tuple(map(str, range(first, last + 1)))


_RESNET = (
    Tap(("conv1", "bn1", "relu", "maxpool"), 64, 4),
    Tap(("layer1",), 256, 4),
    Tap(("layer2",), 512, 8),
    Tap(("layer3",), 1024, 16),
    Tap(("layer4",), 2048, 32),
)

VGG16_OWN_STRIDES = (
    Tap(_numbered(0, 3), 64, 1),  # conv1_2
    Tap(_numbered(4, 8), 128, 2),  # conv2_2
    Tap(_numbered(9, 15), 256, 4),  # conv3_3
    Tap(_numbered(16, 22), 512, 8),  # conv4_3
    Tap(_numbered(23, 29), 512, 16),  # conv5_3
    Tap(_numbered(30, 30), 512, 32),  # pool5
)
"""VGG-16's six maps at their own strides, for DeFusionNet."""


def _lite(name: str) -> tuple[Tap, ...]:
    """EfficientNet-Lite's last map of each stride."""
    lasting = {
        0: (4, 2),
        1: (4, 1),
        2: (8, 1),
        4: (16, 1),
        6: (32, 1),
    }  # after stages 3 and 5 comes one of the same stride
    taps, first, last = [], 0, 0  # the stem is child 0
    for stage, (channels, blocks) in enumerate(efficientnet_lite.stages(name)):
        last += blocks
        if stage in lasting:
            taps.append(Tap(_numbered(first, last), channels, *lasting[stage]))
            first = last + 1
    return tuple(taps)


# R²MRF paper, "Effectiveness of Different Backbone Network Architectures", for ResNeXt, VGG-16 and DenseNet-161
_TAPS = {
    "resnext101_32x4d": _RESNET,
    "resnext50_32x4d": _RESNET,
    "resnext101_32x8d": _RESNET,
    "resnext101_64x4d": _RESNET,
    "vgg16": tuple(replace(t, stride=max(t.stride, 4), pool=max(4 // t.stride, 1)) for t in VGG16_OWN_STRIDES[:5]),
    "densenet161": (
        Tap(("conv0", "norm0", "relu0", "pool0"), 96, 4),
        Tap(("denseblock1",), 384, 4),
        Tap(("transition1", "denseblock2"), 768, 8),
        Tap(("transition2", "denseblock3"), 2112, 16),
        Tap(("transition3", "denseblock4"), 2208, 32),
    ),
    "mobilenet_v3_large": (
        Tap(_numbered(0, 1), 16, 4, pool=2),
        Tap(_numbered(2, 3), 24, 4),
        Tap(_numbered(4, 6), 40, 8),
        Tap(_numbered(7, 12), 112, 16),
        Tap(_numbered(13, 16), 960, 32),
    ),
    **{name: _lite(name) for name in efficientnet_lite.NAMES},
}


def preprocess(name: str) -> Preprocess:
    """What a backbone's ImageNet weights expect of an image."""
    return efficientnet_lite.PREPROCESS if name in efficientnet_lite.NAMES else IMAGENET


NAMES = tuple(_TAPS)
BackboneName: TypeAlias = Annotated[str, NAMES]


class Backbone(nn.Module):
    """`forward`: image [N, 3, H, W] to (F_1 .. F_5), each [N, C_l, ~H/s_l, ~W/s_l].

    F_1 is at stride 4 for every backbone: R²MRF works at F_1's size. Maps that are finer (VGG-16, MobileNet) are max-pooled,
    as ResNeXt's own first map is; averaging would remove the high frequencies that tell sharp from blurred.

    Args:
        name: one of `NAMES`, which a config has checked.
        taps: to use in place of the backbone's own.
    """

    def __init__(self, name: str, taps: tuple[Tap, ...] | None = None) -> None:
        super().__init__()
        self.name = name
        self.taps = taps or _TAPS[name]
        model = efficientnet_lite.features(name) if name in efficientnet_lite.NAMES else _torchvision(name)
        model = getattr(model, "features", model)  # the convolutional part, where it is a module of its own
        self.body = nn.ModuleDict({c: model.get_submodule(c) for tap in self.taps for c in tap.children})
        for module in self.body.modules():
            if hasattr(module, "inplace"):  # would overwrite the taps
                module.inplace = False
            for name, child in module.named_children():
                if isinstance(child, nn.AdaptiveAvgPool2d):  # its export is a Gather, a Reshape and more
                    setattr(module, name, GlobalMean())

    @property
    def channels(self) -> tuple[int, ...]:
        return tuple(tap.channels for tap in self.taps)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        maps = []
        x = image
        for tap in self.taps:
            for child in tap.children:
                x = self.body[child](x)
            maps.append(F.max_pool2d(x, tap.pool, ceil_mode=True) if tap.pool > 1 else x)
        return tuple(maps)

    def load_imagenet(self, state: Mapping[str, Tensor] | None = None) -> None:
        """Load ImageNet weights: a state dict of torchvision's, or of the package of an EfficientNet-Lite.

        Args:
            state: by default torchvision's download.

        Raises:
            UsageError: torchvision has no ImageNet weights for this backbone, or the given ones do not fit it.
        """
        state = imagenet(self.name) if state is None else state
        state = efficientnet_lite.rename(state) if self.name in efficientnet_lite.NAMES else state
        own = self.body.state_dict()
        given = {k: v for k, v in own.items() if k.endswith("num_batches_tracked")}  # which old weights lack
        given |= {_DENSENET.sub(r"\1\2", k.removeprefix("features.")): v for k, v in state.items()}
        if wrong := [k for k, v in own.items() if k not in given or given[k].shape != v.shape]:
            raise UsageError(f"these are not the ImageNet weights of {self.name}: {wrong[0]!r} is missing or misshapen")
        self.body.load_state_dict({k: given[k] for k in own})


_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])")
"""A layer in DenseNet's ImageNet weights, which are older than torchvision's present names."""


def imagenet(name: str) -> Mapping[str, Tensor]:
    """torchvision's ImageNet weights of a network, downloaded if they are not cached.

    Raises:
        UsageError: torchvision has none.
    """
    if name not in torchvision.models.list_models():
        raise UsageError(f"torchvision has no ImageNet weights for {name}; give a local file")
    return torchvision.models.get_model_weights(name).DEFAULT.get_state_dict()


class GlobalMean(nn.Module):
    """`forward`: [N, C, H, W] to [N, C, 1, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3), keepdim=True)


def identify(shapes: Shapes) -> str | None:
    """The backbone of a network's state dict: the one whose tensors differ least; None if more than half differ."""
    found = {(k.removeprefix("backbone."), v) for k, v in shapes.items() if k.startswith("backbone.")}
    if not found:
        return None
    differing = {name: len(found ^ shapes_of(Backbone, name).items()) for name in NAMES}
    nearest = min(NAMES, key=lambda name: differing[name])
    return nearest if 2 * differing[nearest] < len(found) else None


def _torchvision(name: str) -> nn.Module:
    if name == "resnext101_32x4d":  # torchvision has the layers but not this combination (44.2 M with its classifier)
        return ResNet(Bottleneck, [3, 4, 23, 3], groups=32, width_per_group=4)
    return torchvision.models.get_model(name, weights=None)
