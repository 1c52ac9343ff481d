"""The training as Lightning runs it: one step, the average of the weights, and validation at the end of every round.

Everything random in an iteration follows from (seed, iteration, process): the composites, their noise, and PyTorch's own
generator. What must be kept to resume is therefore only what Lightning keeps: weights, optimizer and counters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from r2mrf_deploy import metrics
from r2mrf_deploy.training import averaging
from r2mrf_deploy.training.data import Pictures, Source, normalise
from r2mrf_deploy.training.losses import deep_supervision
from r2mrf_deploy.training.recipe import Recipe, set_rate

STATISTICS = 24
"""Batches over which BatchNorm's statistics are estimated for averaged weights."""
APART = 1 << 40
"""Iterations that no training reaches: batches for those statistics."""


class Training(LightningModule):
    """A network in training.

    Args:
        network: `forward(image, all_steps=True)` gives (logits, side outputs).
        recipe: how.
        source: makes the source of batches for a device.
        validation: photographs and masks to score.
        seed: of everything random but the initial weights, which are the caller's.
        round_length: iterations in a round, which is an epoch to Lightning.
        validate_every: rounds between validations; the last round is always validated.
    """

    def __init__(
        self,
        network: nn.Module,
        recipe: Recipe,
        source: Callable[[torch.device], Source],
        validation: Pictures,
        *,
        seed: int,
        round_length: int,
        validate_every: int,
    ) -> None:
        super().__init__()
        self.network = network.train().to(memory_format=torch.channels_last)
        self.averaged = averaging.averaged_copy(network) if recipe.average else None
        self.recipe = recipe
        self._make_source = source
        self._source: Source | None = None
        self._validation = validation
        self.scores: metrics.Scores | None = None
        """Of the round that has just ended, where it was validated."""
        self._seed, self._round, self._validate_every = seed, round_length, validate_every

    @property
    def kept(self) -> nn.Module:
        """The network that is evaluated and kept: the averaged one, where the recipe averages."""
        return self.network if self.averaged is None else self.averaged

    @property
    def source(self) -> Source:
        if self._source is None:
            self._source = self._make_source(self.device)
        return self._source

    def train_dataloader(self) -> DataLoader:
        """The iterations of a round: batches are made on the device, by `training_step`."""
        return DataLoader(range(self._round), batch_size=None)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # The scaler of FP16 has to see gradients before they are clipped, which a fused optimizer does not let it
        return self.recipe.make_optimizer(self.network, fused=self.trainer.precision != "16-mixed")

    def training_step(self, _: int) -> Tensor:
        iteration, rank, ranks = self.global_step, self.global_rank, self.trainer.world_size
        key = np.random.SeedSequence((self._seed, iteration, rank))
        torch.manual_seed(int(key.generate_state(1)[0]))  # of dropout, where a network has it
        set_rate(self.optimizers().optimizer, self.recipe.rate((iteration + 1) / self.recipe.iterations))
        image, mask = self._batch(iteration, rank, ranks, self.recipe.batch // ranks)
        logits, sides = self.network(image, all_steps=True)
        with torch.autocast(self.device.type, enabled=False):
            logits, sides = logits.float(), {name: side.float() for name, side in sides.items()}
            loss = deep_supervision(logits, sides, mask)
            self.log("loss", deep_supervision(logits.detach(), {}, mask))
        self.log("loss_deep", loss.detach())
        return loss

    def on_train_batch_end(self, *_: object) -> None:
        if self.averaged is not None:
            averaging.average_into(self.averaged, self.network, self.recipe.decay(self.global_step - 1))

    def on_train_epoch_end(self) -> None:
        self.log("learning_rate", self.optimizers().optimizer.param_groups[0]["lr"])
        done = self.global_step >= self.recipe.iterations
        # By iterations: Lightning counts a round once more when it is resumed at its end
        due = done or self.global_step // self._round % self._validate_every == 0
        self.scores = self.validate() if due else None
        if self.scores is not None:
            self.log_dict({f"val_{name}": float(value) for name, value in self.scores.to_dict().items()})

    def validate(self) -> metrics.Scores:
        """Score what would be kept now. Every process does the same, so that all agree without talking."""
        if self.averaged is not None:
            batches = (self._batch(APART + n, 0, 1, self.recipe.batch)[0] for n in range(STATISTICS))
            averaging.estimate_statistics(self.averaged, batches)
        scores, _ = evaluate(self.kept, self._validation, self.device)
        return scores

    def _batch(self, iteration: int, rank: int, ranks: int, count: int) -> tuple[Tensor, Tensor]:
        with torch.autocast(self.device.type, enabled=False), torch.no_grad(), _one_thread(self.device):
            self.source.seek(iteration, rank, ranks)
            image, mask = self.source.batch(count)
            return normalise(image).contiguous(memory_format=torch.channels_last), mask


def evaluate(network: nn.Module, pictures: Pictures, device: torch.device) -> tuple[metrics.Scores, metrics.Curves]:
    """Score a network's maps of pictures, each at its own size; the network is left in the mode it was in."""
    training = network.training
    network.eval()
    with torch.inference_mode(), torch.autocast(device.type, enabled=False):
        found = [_focus(network, image, device) for image in pictures.images]
    network.train(training)
    return metrics.score(zip(found, [mask >= 0.5 for mask in pictures.masks], strict=True))


def _focus(network: nn.Module, image: np.ndarray, device: torch.device) -> np.ndarray:
    pixels = torch.from_numpy(image).to(device).permute(2, 0, 1)[None].float() / 255
    logits = network(normalise(pixels).contiguous(memory_format=torch.channels_last))
    return torch.sigmoid(logits)[0, 0].float().cpu().numpy()


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """Composites are many small operations: on a CPU, sharing them among threads costs more than it gives."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
