"""Graphs that nobody here wrote: torchvision's networks as both of PyTorch's exporters write them, and a U-Net.

Both exporters leave much to be tidied, the older one whole chains of integer arithmetic on shapes. Whatever the rewrites
make of it loads in ONNX Runtime as it is, has the same outputs, and is not changed by a second run.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from r2mrf_deploy.graph.rewrites import optimize
from tests.graph.sessions import unoptimised

pytestmark = pytest.mark.artifact

CLASSIFIERS = (
    *("alexnet", "convnext_tiny", "densenet121", "efficientnet_b0", "efficientnet_v2_s", "googlenet", "inception_v3"),
    *("maxvit_t", "mnasnet0_5", "mobilenet_v2", "mobilenet_v3_large", "regnet_y_400mf", "resnet18", "resnet50"),
    *("resnext50_32x4d", "shufflenet_v2_x1_0", "squeezenet1_1", "swin_t", "swin_v2_t", "vgg11_bn", "vit_b_16"),
)
SEGMENTERS = ("fcn_resnet50", "deeplabv3_mobilenet_v3_large", "lraspp_mobilenet_v3_large")
DETECTORS = (
    *("fasterrcnn_mobilenet_v3_large_320_fpn", "fcos_resnet50_fpn", "keypointrcnn_resnet50_fpn"),
    *("maskrcnn_resnet50_fpn", "retinanet_resnet50_fpn", "ssdlite320_mobilenet_v3_large"),
)
SIZES = {"inception_v3": 96, **dict.fromkeys(("alexnet", "maxvit_t", "vgg11_bn", "vit_b_16"), 224)}
"""Pixels a side of the networks that need more than 64."""


@pytest.fixture(autouse=True)
def unfused_attention() -> Iterator[None]:
    """The older exporter does not know the fused one."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(before)


class UNet(nn.Module):
    """Three resolutions; the older exporter computes the sizes of the resized maps node by node."""

    def __init__(self) -> None:
        super().__init__()
        widths = ((3, 8), (8, 16), (16, 24), (24 + 16, 16), (16 + 8, 8))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU()) for a, b in widths
        )
        self.last = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.blocks[0](x)
        second = self.blocks[1](F.max_pool2d(first, 2))
        y = self.blocks[2](F.avg_pool2d(second, 2))
        for block, skip in ((self.blocks[3], second), (self.blocks[4], first)):
            y = block(torch.cat([F.interpolate(y, size=skip.shape[2:], mode="bilinear"), skip], 1))
        return torch.sigmoid(F.interpolate(self.last(y), scale_factor=2.0, mode="bilinear"))


def network(name: str) -> nn.Module:
    """With informative batch norms: those of a new network do nothing."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"init_weights": True} if name in ("googlenet", "inception_v3") else {}
    if name in (*SEGMENTERS, *DETECTORS):
        options = {"weights_backbone": None}
    if name in DETECTORS and not name.startswith("ssd"):  # they would enlarge the image
        options |= {"min_size": 64, "max_size": 96}
    found = UNet() if name == "unet" else torchvision.models.get_model(name, weights=None, **options)
    for layer in found.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
        elif isinstance(layer, nn.Linear) and not layer.weight.any():  # vit's last layer: its output would be flat
            nn.init.normal_(layer.weight, 0, 0.05)
    return found.eval()


def export(name: str, dynamo: bool, opset: int, free_batch: bool = False) -> tuple[onnx.ModelProto, np.ndarray]:
    """A network as one of the exporters writes it by itself, and an input; for a free batch, of one image more."""
    size, batch = SIZES.get(name, 64), 2 if free_batch else 1
    x = torch.rand(batch, 3, size, size)
    options: dict[str, Any] = {"input_names": ["x"], "opset_version": opset, "verbose": False}
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        if dynamo:
            options |= {"dynamic_shapes": ({0: "n"},)} if free_batch else {}
            program = torch.onnx.export(network(name), (x,), dynamo=True, optimize=False, **options)
            model = program.model_proto
        else:
            options |= {"dynamic_axes": {"x": {0: "n"}}} if free_batch else {}
            file = io.BytesIO()
            example = [x[0]] if name in DETECTORS else x
            torch.onnx.export(network(name), (example,), file, dynamo=False, **options)
            model = onnx.load_from_string(file.getvalue())
    return model, torch.rand(batch + free_batch, 3, size, size).numpy()


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    session = unoptimised(model)
    return list(session.run(None, {session.get_inputs()[0].name: x[0] if _is_image(model) else x}))


def _is_image(model: onnx.ModelProto) -> bool:
    """Whether the input is one image without a batch, as detectors take it."""
    return len(model.graph.input[0].type.tensor_type.shape.dim) == 3


def interface(model: onnx.ModelProto) -> list[tuple[str, int, int]]:
    types = [(value.name, value.type.tensor_type) for value in (*model.graph.input, *model.graph.output)]
    return [(name, tensor.elem_type, len(tensor.shape.dim)) for name, tensor in types]


def check(model: onnx.ModelProto, x: np.ndarray) -> None:
    """The function, its interface and its determinism stay; the cost does not rise."""
    untouched = model.SerializeToString(deterministic=True)
    result = optimize(model)
    assert model.SerializeToString(deterministic=True) == untouched
    onnx.checker.check_model(result.model, full_check=True)
    assert interface(result.model) == interface(model)
    for before, after in zip(run(model, x), run(result.model, x), strict=True):
        assert (after.dtype, after.shape) == (before.dtype, before.shape)
        if before.dtype.kind != "f":
            np.testing.assert_array_equal(after, before)
        elif before.size:
            assert before.std() > 1e-5, "a flat output would prove nothing"
            # float32 over fifty layers of random weights: folding batch norms reorders every one of them
            np.testing.assert_allclose(after, before, rtol=0, atol=5e-5 * before.std())
    again = optimize(result.model)
    assert again.records == []
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("opset", range(13, 22))
def test_a_u_net_of_the_older_exporter(opset: int) -> None:
    check(*export("unet", False, opset))


@pytest.mark.parametrize(("dynamo", "opset"), [(False, 14), (True, 18)])
def test_a_u_net_with_a_free_batch(dynamo: bool, opset: int) -> None:
    check(*export("unet", dynamo, opset, free_batch=True))


def test_a_small_network_of_the_older_exporter() -> None:
    check(*export("shufflenet_v2_x0_5", False, 17))


@pytest.mark.slow
@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.parametrize("name", [*CLASSIFIERS, *SEGMENTERS])
def test_every_family_by_both_exporters(name: str, dynamo: bool) -> None:
    """Each at one of the opsets that its exporter writes, in turn, so that every opset meets several families."""
    opsets = range(18, 22) if dynamo else range(13, 22)
    opset = opsets[(*CLASSIFIERS, *SEGMENTERS).index(name) % len(opsets)]
    check(*export(name, dynamo, opset))


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_by_the_older_exporter(name: str) -> None:
    """They take one image; their boxes are chosen within the graph, in loops and by sizes that depend on data."""
    check(*export(name, False, 16))


@pytest.mark.slow
def test_densenet_pools_before_its_transitions() -> None:
    """Each transition is a pointwise convolution and an average over 2×2: the other order is a quarter of the work."""
    model, _ = export("densenet121", True, 18)
    commute = next(r for r in optimize(model).records if r.name == "commute")
    # channels in and out, pixels a side for a 64×64 image
    transitions = [(256, 128, 16), (512, 256, 8), (1024, 512, 4)]
    assert commute.count == 3
    saved = commute.multiply_adds_before - commute.multiply_adds_after
    assert saved == sum(c * m * side * side * 3 // 4 for c, m, side in transitions)
