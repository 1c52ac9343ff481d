"""A network trained from nothing in about a minute on two cores: enough for a demo, not for a result.

The recipe: AdamW with decoupled weight decay, a linear warm-up and a cosine decay to zero, gradients clipped. Every
iteration has fresh composites, small and few: in a minute, many steps teach more than large batches. BatchNorm's running
statistics lag far behind in so short a training, so in the end they are estimated again, as plain averages over fresh
composites and the final weights.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.training.averaging import estimate_statistics
from r2mrf_deploy.training.data import normalise
from r2mrf_deploy.training.losses import deep_supervision
from r2mrf_deploy.training.recipe import SCRATCH, set_rate
from r2mrf_deploy.training.synthesis import Composites, Synthesis

RECIPE = replace(SCRATCH, name="quick", iterations=480, batch=4, size=96, learning_rate=4e-3, warm_up=0.1, average=0.0)
"""About a minute for `r2mrf-edge` on two cores."""
ITERATIONS = RECIPE.iterations
COMPOSITES = Synthesis(scales=(1.4, 1.2, 1.0, 0.8, 0.6), plain=0.0, shrunk=0.0, soft=0.0, flat=0.0, jpeg=0.0)
"""In a minute a network learns the lens, not the camera's file."""
STATISTICS = 12
"""Batches over which BatchNorm's statistics are estimated in the end."""
FIRST_GUESS = 100
"""Iterations that a time limit may allow, before the first one has been timed."""

Progress = Callable[[int, int, float], None]


@dataclass(frozen=True)
class QuickRun:
    """What a quick training did."""

    iterations: int
    seconds: float
    loss: float
    """Cross-entropy of the fused map, averaged over the last tenth of the iterations; an undecided network has ln 2."""
    shortened: bool
    """The time limit was near, and the schedule was brought to its end in fewer iterations than asked for."""


def train_quick(
    network: nn.Module,
    photographs: Sequence[np.ndarray],
    *,
    seconds: float | None = None,
    iterations: int | None = ITERATIONS,
    seed: int = 0,
    size: int = RECIPE.size,
    batch: int = RECIPE.batch,
    progress: Progress | None = None,
) -> QuickRun:
    """Train a network in place, on the device it is on, and leave it in evaluation mode.

    The same initial weights, photographs, iterations, seed, size and batch give the same weights on the same machine, as
    long as no time limit interferes. Where the limit would be passed, the learning rate falls to zero in the iterations
    that still fit: the network is always trained to an end.

    Args:
        network: with `forward(image, all_steps=True)` giving (logits, side outputs), as R2MRF.
        photographs: sharp all over, uint8 [H, W, 3], none smaller than `size`.
        seconds: a time limit; None for none.
        iterations: how many; None for as many as `seconds` allow.
        seed: of the composites. Initial weights are the caller's.
        size: side of the composites, pixels.
        batch: composites in an iteration.
        progress: called after each iteration with (iterations done, iterations to do in all, loss of the fused map).

    Raises:
        UsageError: neither a number of iterations nor a time limit, or one that is not positive.
        InputError: photographs that cannot be used.
    """
    _check(seconds, iterations, batch)
    start = time.monotonic()
    device = next(network.parameters()).device
    composites = Composites(photographs, replace(COMPOSITES, size=size), seed=seed, device=device)
    network.train()
    losses: list[float] = []
    with _channels_last(network):
        optimizer = RECIPE.make_optimizer(network)
        done, share = 0, 0.0
        while (left := _left(done, time.monotonic() - start, seconds, iterations)) > 0:
            share += (1 - share) / left  # of the schedule; 1 at the last iteration, however few remain
            losses.append(_iterate(network, optimizer, composites.batch(batch), _learning_rate(share)))
            done += 1
            if progress is not None:
                progress(done, done + left - 1, losses[-1])
        estimate_statistics(network, (normalise(composites.batch(batch)[0]) for _ in range(STATISTICS)))
    network.eval()
    loss = float(np.mean(losses[-math.ceil(done / 10) :]))
    return QuickRun(done, time.monotonic() - start, loss, iterations is not None and done < iterations)


def _check(seconds: float | None, iterations: int | None, batch: int) -> None:
    if seconds is None and iterations is None:
        raise UsageError("give a number of iterations, or a time limit in seconds, or both")
    for name, value in (("seconds", seconds), ("iterations", iterations), ("batch", batch)):
        if value is not None and value <= 0:
            raise UsageError(f"{name} must be over 0, not {value}")


def _left(done: int, elapsed: float, seconds: float | None, iterations: int | None) -> int:
    """Iterations still to do: those asked for, or fewer if at the pace so far only those fit in the time left."""
    if iterations is not None and (seconds is None or done == 0):
        return iterations - done
    assert seconds is not None
    if done == 0:
        return FIRST_GUESS
    fitting = (seconds - elapsed) * done / elapsed - STATISTICS / 3  # a forward pass takes a third of an iteration
    return max(0, int(fitting if iterations is None else min(iterations - done, fitting)))


def _iterate(
    network: nn.Module, optimizer: torch.optim.Optimizer, composites: tuple[Tensor, Tensor], learning_rate: float
) -> float:
    """One step; the cross-entropy of the fused map before it."""
    image, mask = composites
    logits, side_outputs = network(normalise(image).contiguous(memory_format=torch.channels_last), all_steps=True)
    loss = deep_supervision(logits, side_outputs, mask)
    optimizer.zero_grad()
    loss.backward()
    assert RECIPE.clip is not None
    nn.utils.clip_grad_norm_(network.parameters(), RECIPE.clip)
    set_rate(optimizer, learning_rate)
    optimizer.step()
    return float(deep_supervision(logits.detach(), {}, mask))


def _learning_rate(share: float) -> float:
    """At a share 0 .. 1 of the schedule."""
    return RECIPE.rate(share)


@contextmanager
def _channels_last(network: nn.Module) -> Iterator[None]:
    """Weights in the layout that convolutions train fastest in on a CPU (by a fifth), and back again."""
    network.to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        network.to(memory_format=torch.contiguous_format)
