"""What a training leaves in its folder: `last.ckpt` to resume from, `best.pth`, and the line it shows while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from r2mrf_deploy.checkpoint import Checkpoint as Weights
from r2mrf_deploy.manifest import write_atomically
from r2mrf_deploy.metrics import Scores

Say = Callable[[int, float, Scores | None], None]
LAST, BEST = "last.ckpt", "best.pth"


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints, whole or not at all: a process killed while it writes leaves the one before."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))


class Keeper(Checkpoint):
    """After every round: the best weights so far, then everything that is needed to go on.

    A round that has been kept is never done again; what follows it is, after a kill, with the same result.

    Args:
        folder: where.
        family: the network's name in a checkpoint.
        record: what a checkpoint says of its training, beside its scores.
        say: called on the first process with (iterations done, cross-entropy of the fused map, scores or None), after every
            iteration and after every validation.
        patience: validations without a better one after which the training stops; None for never.
        deadline: `time.monotonic()` at which it stops, at the end of the round that would pass it.
    """

    def __init__(
        self,
        folder: Path,
        family: str,
        record: Mapping[str, Any],
        *,
        say: Say,
        patience: int | None = None,
        deadline: float | None = None,
    ) -> None:
        self._folder, self._family, self._record = folder, family, record
        self._say, self._patience, self._deadline = say, patience, deadline
        self._began = time.monotonic()
        self.best: float | None = None
        self.since_best = 0
        """Validations since the best one."""
        self.judged = 0
        """Iterations at the last validation."""
        self.stopped_early = False

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        if trainer.is_global_zero:
            self._say(trainer.global_step, float(trainer.callback_metrics["loss"]), None)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if pl_module.scores is not None:
            self._judge(trainer, pl_module, pl_module.scores)
        trainer.save_checkpoint(self._folder / LAST)
        if self._deadline is not None:
            now = time.monotonic()
            late = trainer.strategy.broadcast(now + (now - self._began) > self._deadline)
            trainer.should_stop = trainer.should_stop or late
        if self.stopped_early:
            trainer.should_stop = True

    def _judge(self, trainer: Trainer, module: LightningModule, scores: Scores) -> None:
        if trainer.global_step == self.judged:  # resumed from here, and Lightning ends the round once more
            return
        self.judged = trainer.global_step
        self.since_best += 1
        if self.best is None or scores.mae < self.best:  # on composites, F is near 1 for good and bad weights alike
            self.best, self.since_best = scores.mae, 0
            if trainer.is_global_zero:
                self._save(trainer, module, scores)
        if trainer.is_global_zero:
            self._say(trainer.global_step, float(trainer.callback_metrics["loss"]), scores)
        self.stopped_early = self._patience is not None and self.since_best >= self._patience

    def _save(self, trainer: Trainer, module: LightningModule, scores: Scores) -> None:
        said = {**self._record, "iterations": trainer.global_step, "validation": scores.to_dict()}
        kept = Weights.of(self._family, module.kept, said)
        plain = {name: value.detach().cpu().contiguous() for name, value in kept.state_dict.items()}
        replace(kept, state_dict=plain).save(self._folder / BEST)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A time limit may come before the first validation."""
        if not (self._folder / BEST).is_file():
            scores = pl_module.validate()
            if trainer.is_global_zero:
                self._save(trainer, pl_module, scores)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best", "since_best", "judged", "stopped_early")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)
