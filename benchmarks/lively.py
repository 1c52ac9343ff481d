"""Measures how far PyTorch, ONNX graphs and FP64 are apart with lively random weights, which pass rounding on.

    python benchmarks/lively.py --network r2mrf-edge br2net --sets 10 --json results/lively.json

Every set of weights is drawn anew: convolutions from N(0, 2 / fan_in), with random biases, scales and statistics, so that
nothing keeps the activations near 1; only the predictions are scaled, since a map of zeros and ones would hide all
differences. Given are the largest distances of the map's logits from PyTorch in FP64, relative to their spread: of PyTorch
in FP32, of the graph as traced and of the rewritten one; and the verdict of `r2mrf export`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from r2mrf_deploy import networks, runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.export import onnx
from r2mrf_deploy.graph.rewrites import optimize
from r2mrf_deploy.graph.trace import trace
from r2mrf_deploy.networks.deployed import Deployed
from r2mrf_deploy.parity.compare import compare, logit, photographs_for, sample_inputs
from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", default=list(networks.presets()), metavar="PRESET")
    parser.add_argument("--sets", type=int, default=10, help="sets of weights of each network")
    parser.add_argument("--size", type=int, default=320, help="height and width in pixels")
    parser.add_argument(
        "--spread", type=float, default=1, help="of each prediction; from 10 on, most of a map is 0 or 1"
    )
    parser.add_argument("--json", type=Path, help="where to write the results, after every set")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for preset in given.network:
        for seed in range(given.sets):
            about = {"network": preset, "seed": seed, "size": given.size, "spread": given.spread}
            rows.append(about | measure(preset, seed, given.size, given.spread))
            print(json.dumps(rows[-1]), flush=True)
            if given.json:
                given.json.parent.mkdir(parents=True, exist_ok=True)
                given.json.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")


def measure(preset: str, seed: int, size: int, spread: float) -> dict[str, Any]:
    """The distances from FP64 with one set of weights, and the verdict on the rewritten graph."""
    family, config = networks.preset(preset)
    module = networks.create(family, config)
    enliven(module, seed)
    bring_out(module, size, spread)
    checkpoint = Checkpoint.of(family, module)
    deployed = Deployed(checkpoint.module(), checkpoint.preprocess)
    traced = trace(deployed, (size, size))
    (image,) = sample_inputs(deployed.input_spec(1, size, size), checkpoint.preprocess, photographs_for(None)[:1])
    pytorch = partial(PyTorchRunner, checkpoint)
    with tempfile.TemporaryDirectory() as folder, pytorch() as reference, pytorch(double=True) as exact:
        wanted = logit(exact.run({"image": image})["map"])
        runners = {"pytorch": reference}
        for name, graph in (("traced", traced), ("rewritten", optimize(traced).model)):
            file = Path(folder) / f"{name}.onnx"
            onnx.write(graph, onnx.describe(graph), file)
            runners[name] = runtimes.open(file, "onnxruntime")
        found: dict[str, Any] = {
            name: float(np.abs(logit(runner.run({"image": image})["map"]) - wanted).max() / wanted.std())
            for name, runner in runners.items()
        }
        judged = compare(Artifact.open(file), runners["rewritten"], reference, [image], exact=lambda: exact)
    found |= {"from_pytorch": judged.map.relative, "map_spread": judged.reference_spread}
    return found | {"verdict": judged.verdict, "reason": judged.reason}


def enliven(module: nn.Module, seed: int) -> None:
    """Draw weights in place, from a seed."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, (nn.Conv2d, nn.ConvTranspose2d)):
            nn.init.normal_(part.weight, 0, (2 / part.weight[0].numel()) ** 0.5, generator=generator)
            if part.bias is not None:
                nn.init.uniform_(part.bias, -0.5, 0.5, generator=generator)
        elif isinstance(part, nn.BatchNorm2d):
            for tensor, low, high in (
                *((part.weight, 0.5, 1.5), (part.bias, -0.5, 0.5)),
                *((part.running_mean, -0.2, 0.2), (part.running_var, 0.5, 2.0)),
            ):
                nn.init.uniform_(tensor, low, high, generator=generator)


def bring_out(module: nn.Module, size: int, wanted: float) -> None:
    """Scale each prediction (a convolution to one channel), in place, to mean 0 and a wanted spread on a photograph."""
    scaled: set[nn.Conv2d] = set()

    def scale(part: nn.Conv2d, _: object, made: Tensor) -> Tensor | None:
        if part in scaled:  # a later recurrent step
            return None
        scaled.add(part)
        spread, mean = made.std() / wanted, made.mean() if part.bias is not None else 0
        part.weight /= spread
        if part.bias is not None:
            part.bias.copy_((part.bias - mean) / spread)
        return (made - mean) / spread

    predictions = [part for part in module.modules() if isinstance(part, nn.Conv2d) and part.out_channels == 1]
    hooks = [part.register_forward_hook(scale) for part in predictions]
    deployed = Deployed(module.eval(), module.config.preprocess)
    (image,) = sample_inputs(deployed.input_spec(1, size, size), module.config.preprocess, photographs_for(None)[:1])
    with torch.no_grad():
        deployed(torch.from_numpy(image))
    for hook in hooks:
        hook.remove()


if __name__ == "__main__":
    main()
