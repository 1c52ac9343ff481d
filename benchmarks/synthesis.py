"""Measures how fast composites are made, and which share of a training iteration that takes.

    python benchmarks/synthesis.py --size 160 --batch 8
    python benchmarks/synthesis.py --sharp DIR --masks DIR --masks-white blurred --device cuda --batch 64 --precision bf16

Composites are timed in one CPU thread, as in training. The network's step (forward, loss, backward, optimizer) uses all
threads. The two are interleaved, and times are medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from r2mrf_deploy import environment, networks, sample_photographs
from r2mrf_deploy.training import data
from r2mrf_deploy.training.losses import deep_supervision
from r2mrf_deploy.training.recipe import SCRATCH
from r2mrf_deploy.training.synthesis.composites import Composites, Synthesis

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="r2mrf-edge", help="preset whose step is timed")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--sharp", type=Path, help="folder of sharp photographs (default: those of scikit-image)")
    parser.add_argument("--masks", type=Path)
    parser.add_argument("--masks-white", choices=["sharp", "blurred"], default="blurred")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=list(PRECISIONS), action="append", help="may be given several times")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    results = measure(given, torch.device(given.device))
    print(json.dumps(results, indent=2))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(results, indent=2) + "\n")


def measure(given: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Rates and shares, from the median seconds of a batch of composites and of a step in each precision."""
    sharp = data.read_photographs(given.sharp, given.size) if given.sharp else sample_photographs.sharp()
    sharp = [p for p in sharp if min(p.shape[:2]) >= given.size]
    masks = data.read_masks(given.masks, given.masks_white) if given.masks else []
    made = Composites(sharp, Synthesis(size=given.size), masks=masks, device=device)
    candidates: dict[str, Callable[[], object]] = {"composites": lambda: _composites(made, given.batch)}
    family, config = networks.preset(given.network)
    network = networks.create(family, config).to(device, memory_format=torch.channels_last).train()
    optimizer = SCRATCH.make_optimizer(network)
    image, mask = made.batch(given.batch)
    for name in given.precision or ["fp32", "bf16"]:
        candidates[name] = lambda name=name: _step(network, optimizer, image, mask, PRECISIONS[name])
    seconds = _interleaved(candidates, given.seconds, device)
    making = seconds.pop("composites")
    return {
        "network": given.network, "size": given.size, "batch": given.batch, "device": str(device),
        "threads": torch.get_num_threads(), "composites_per_second": given.batch / making,
        "steps": {
            name: {"iterations_per_second": 1 / (making + s), "share_of_composites": making / (making + s)}
            for name, s in seconds.items()
        },
        "machine": environment.describe(),
    }  # fmt: skip


def _interleaved(candidates: dict[str, Callable[[], object]], limit: float, device: torch.device) -> dict[str, float]:
    for run in candidates.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in candidates}
    start = time.perf_counter()
    while time.perf_counter() - start < limit or len(times["composites"]) < 5:
        for name, run in candidates.items():
            _wait(device)
            before = time.perf_counter()
            run()
            _wait(device)
            times[name].append(time.perf_counter() - before)
    return {name: statistics.median(t) for name, t in times.items()}


def _composites(made: Composites, count: int) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    made.batch(count)
    torch.set_num_threads(threads)


def _step(
    network: nn.Module,
    optimizer: torch.optim.Optimizer,
    image: torch.Tensor,
    mask: torch.Tensor,
    reduced: torch.dtype | None,
) -> None:
    with torch.autocast(image.device.type, reduced, enabled=reduced is not None):
        logits, sides = network(
            data.normalise(image, network.config.preprocess).contiguous(memory_format=torch.channels_last),
            all_steps=True,
        )
    loss = deep_supervision(logits.float(), {name: side.float() for name, side in sides.items()}, mask)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
