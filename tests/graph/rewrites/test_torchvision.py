"""Graphs that nobody here wrote: torchvision's networks as PyTorch exports them before any clean-up."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torchvision

from r2mrf_deploy.graph import cost
from r2mrf_deploy.graph.rewrites import optimize

pytestmark = pytest.mark.slow
NETWORKS = [
    *("resnet50", "densenet121", "googlenet", "mobilenet_v3_large", "fcn_resnet50", "deeplabv3_mobilenet_v3_large"),
]


def traced(name: str) -> tuple[onnx.ModelProto, np.ndarray]:
    """A network with informative batch norms, and an input."""
    torch.manual_seed(0)
    options = {"weights_backbone": None} if name in ("fcn_resnet50", "deeplabv3_mobilenet_v3_large") else {}
    options |= {"init_weights": True} if name == "googlenet" else {}
    network = torchvision.models.get_model(name, weights=None, **options).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(layer.weight, 0.5, 1.5)
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 1.5)
    x = torch.randn(1, 3, 96, 96)
    program = torch.onnx.export(network, (x,), dynamo=True, optimize=False, input_names=["x"], verbose=False)
    return program.model_proto, x.numpy()


def run(model: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, {"x": x}))


@pytest.mark.parametrize("name", NETWORKS)
def test_the_function_stays_and_the_cost_does_not_rise(name: str) -> None:
    model, x = traced(name)
    result = optimize(model)
    onnx.checker.check_model(result.model, full_check=True)
    assert optimize(result.model).records == []
    assert cost.multiply_adds(result.model) <= cost.multiply_adds(model)
    assert cost.cost(result.model).peak_activation_bytes <= cost.cost(model).peak_activation_bytes
    for before, after in zip(run(model, x), run(result.model, x), strict=True):
        assert before.std() > 1e-3, "a flat output would prove nothing"
        # float32 over fifty layers of random weights: folding batch norms reorders every one of them
        np.testing.assert_allclose(after, before, rtol=0, atol=2e-5 * before.std())


def test_densenet_pools_before_its_transitions() -> None:
    """Each transition is a pointwise convolution and an average over 2×2: the other order is a quarter of the work."""
    model, _ = traced("densenet121")
    commute = next(r for r in optimize(model).records if r.name == "commute")
    transitions = [
        (256, 128, 24),
        (512, 256, 12),
        (1024, 512, 6),
    ]  # channels in and out, pixels a side for a 96×96 image
    assert commute.count == 3
    saved = commute.multiply_adds_before - commute.multiply_adds_after
    assert saved == sum(c * m * side * side * 3 // 4 for c, m, side in transitions)
