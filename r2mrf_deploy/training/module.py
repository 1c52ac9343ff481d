"""The Lightning module: the training step, the EMA of the weights, and validation.

Everything random in an iteration depends only on (seed, iteration, process): the composites, their noise, and PyTorch's own
generator. Lightning's checkpoint (weights, optimizer and counters) is therefore enough to resume.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim.swa_utils import update_bn

from r2mrf_deploy import metrics
from r2mrf_deploy.networks.base import Detector
from r2mrf_deploy.training.data import Pictures, Source, normalise
from r2mrf_deploy.training.ema import average_into
from r2mrf_deploy.training.losses import deep_supervision, overlap
from r2mrf_deploy.training.recipe import Recipe, set_rate

STATISTICS = 24
"""Number of batches from which BatchNorm's statistics are estimated for the averaged weights, which never run in training
mode."""
APART = 1 << 40
"""The iteration number of the first of these batches; no training reaches it."""


class Training(LightningModule):
    """A network in training.

    Args:
        network: `forward(image, all_steps=True)` gives (logits, side outputs).
        recipe: how to train it.
        source: makes the source of batches on a device.
        validation: photographs and masks to score.
        seed: of everything random except the initial weights, which the caller sets.
    """

    def __init__(
        self,
        network: Detector,
        recipe: Recipe,
        source: Callable[[torch.device], Source],
        validation: Pictures,
        *,
        seed: int,
    ) -> None:
        super().__init__()
        self.network = network.train().to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(network).requires_grad_(False) if recipe.average else None
        self.recipe = recipe
        self._make_source = source
        self._validation = validation
        self._recurrent = 1 in network.steps_range and network.default_steps > 1
        self._seed = seed

    @property
    def kept(self) -> Detector:
        """The network that is evaluated and saved: the averaged one, if the recipe uses an EMA."""
        return self.network if self.averaged is None else self.averaged

    @cached_property
    def source(self) -> Source:
        return self._make_source(self.device)

    def runs_one_step(self, iteration: int) -> bool:
        """Whether an iteration (from 0) runs the first recurrent step only. The later steps are not trained yet."""
        return self._recurrent and self.recipe.runs_one_step(iteration)

    def train_dataloader(self) -> Iterator[int]:
        """Endless and empty, because `training_step` makes the batches on the device. Lightning sees one endless epoch, so
        it cannot miscount the length of an epoch when it resumes."""
        return itertools.repeat(0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # In mixed precision Lightning refuses to clip the gradients of a fused optimizer
        return self.recipe.make_optimizer(self.network, fused=self.trainer.precision == "32-true")

    def training_step(self, _: int) -> Tensor:
        iteration, rank, ranks = self.global_step, self.global_rank, self.trainer.world_size
        key = np.random.SeedSequence((self._seed, iteration, rank))
        torch.manual_seed(int(key.generate_state(1)[0]))  # for dropout, if the network has any
        set_rate(self.optimizers().optimizer, self.recipe.rate((iteration + 1) / self.recipe.iterations))
        image, mask = self._batch(iteration, rank, ranks, self.recipe.batch // ranks)
        steps = {"steps": 1} if self.runs_one_step(iteration) else {}
        logits, sides = self.network(image, all_steps=True, **steps)
        with torch.autocast(self.device.type, enabled=False):
            logits, sides = logits.float(), {name: side.float() for name, side in sides.items()}
            loss = deep_supervision(logits, sides, mask)
            if self.recipe.overlap:
                loss = loss + self.recipe.overlap * overlap(logits, mask)
            self.log("loss", deep_supervision(logits.detach(), {}, mask))
        self.log_dict({"loss_deep": loss.detach(), "learning_rate": self.optimizers().optimizer.param_groups[0]["lr"]})
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        iteration = self.global_step
        super().optimizer_step(*args, **kwargs)
        if self.averaged is not None:
            average_into(self.averaged, self.network, self.recipe.decay(iteration))

    def validate(self) -> metrics.Scores:
        """Score the weights that would be saved now. Every process computes the same, so no communication is needed."""
        if self.averaged is not None:
            batches = (self._batch(APART + n, 0, 1, self.recipe.batch)[0] for n in range(STATISTICS))
            update_bn(batches, self.averaged)
        training, found = self.kept.training, []
        self.kept.eval()
        with torch.inference_mode(), torch.autocast(self.device.type, enabled=False):
            for image in self._validation.images:
                pixels = torch.from_numpy(image).to(self.device).permute(2, 0, 1)[None].float() / 255
                logits = self.kept(
                    normalise(pixels, self.network.config.preprocess).contiguous(memory_format=torch.channels_last)
                )
                found.append(torch.sigmoid(logits)[0, 0].float().cpu().numpy())
        self.kept.train(training)
        scores, _ = metrics.score(zip(found, [mask >= 0.5 for mask in self._validation.masks], strict=True))
        return scores

    def _batch(self, iteration: int, rank: int, ranks: int, count: int) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, enabled=False), torch.no_grad(), _one_thread(self.device):
            self.source.seek(iteration, rank, ranks)
            image, mask = self.source.batch(count)
            return normalise(image, self.network.config.preprocess).contiguous(memory_format=torch.channels_last), mask


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Composites are many small operations: on a CPU, several threads cost more time than they save."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
