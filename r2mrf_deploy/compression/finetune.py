"""Distillation: a compressed graph learns the full network's maps on photographs without masks (Hinton et al., 2015)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx

from r2mrf_deploy.files import scratch
from r2mrf_deploy.graph.prepare import standard
from r2mrf_deploy.progress import Progress, ProgressCallback

RATE = 2e-4
"""The largest learning rate (Adam); it falls as a cosine."""
SEED = 0


def distil(
    model: onnx.ModelProto,
    full: onnx.ModelProto,
    feeds: Sequence[Mapping[str, np.ndarray]],
    iterations: int,
    progress: ProgressCallback,
) -> onnx.ModelProto:
    """Fit the convolutions of an FP32 graph to the full network's map, one photograph per iteration, half of them mirrored.

    Two runs on the same machine give the same weights.

    Args:
        model: from an input [1, H, W, 3] or [1, 3, H, W] to `map`; not changed.
        full: with the same input and output.
        feeds: the photographs as inputs.

    Raises:
        GraphError: an operator cannot be turned into PyTorch.
    """
    import torch

    from r2mrf_deploy.graph.torch_module import to_module, weights

    at = [v.name for v in model.graph.output].index("map")
    module, convolved = to_module(model), _convolved(model)
    trained = {name: w.requires_grad_() for name, w in weights(module).items() if name in convolved}
    arrays = [array for feed in feeds for array in (*feed.values(), *(_mirrored(a) for a in feed.values()))]
    wanted = _maps(full, next(iter(feeds[0])), arrays)
    optimizer = torch.optim.Adam(trained.values(), RATE)
    order = np.random.default_rng(SEED)
    for iteration in range(iterations):
        for group in optimizer.param_groups:
            group["lr"] = RATE * 0.5 * (1 + math.cos(math.pi * iteration / iterations))
        number = int(order.integers(len(arrays)))
        found = module(torch.from_numpy(arrays[number].copy()))[at].clamp(1e-6, 1 - 1e-6)
        loss = torch.nn.functional.binary_cross_entropy(found, torch.from_numpy(wanted[number]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        progress(Progress(f"distilling, loss {loss.item():.4f}", iteration + 1, iterations))
    return _with(model, {name: w.detach().numpy() for name, w in trained.items()})


def _convolved(model: onnx.ModelProto) -> set[str]:
    """The names of the weights and biases of convolutions."""
    return {name for node in model.graph.node if standard(node, "Conv", "ConvTranspose") for name in node.input[1:]}


def _mirrored(array: np.ndarray) -> np.ndarray:
    """A photograph, NHWC bytes or an NCHW tensor, turned left to right."""
    return np.ascontiguousarray(array[:, :, ::-1] if array.dtype == np.uint8 else array[..., ::-1])


def _maps(model: onnx.ModelProto, name: str, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    import onnxruntime

    with scratch() as folder:
        file = folder / "full.onnx"
        onnx.save(model, file)
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        return [session.run(["map"], {name: array})[0] for array in arrays]


def _with(model: onnx.ModelProto, arrays: Mapping[str, np.ndarray]) -> onnx.ModelProto:
    """A copy of a graph with other weights."""
    done = onnx.ModelProto()
    done.CopyFrom(model)
    for tensor in done.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return done
