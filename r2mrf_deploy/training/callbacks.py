"""Checkpoints of a training: `last.ckpt`, to resume from, and `best.pth`; and its progress."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from r2mrf_deploy.checkpoint import Checkpoint as Weights
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.metrics import Scores
from r2mrf_deploy.progress import ProgressCallback
from r2mrf_deploy.training.recipe import Iteration

LAST, BEST = "last.ckpt", "best.pth"


class AtomicCheckpoints(TorchCheckpointIO):
    """Write Lightning's checkpoints atomically: a process that is killed while writing leaves the previous one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))


class BestCheckpoint(Checkpoint):
    """Save the best weights, then everything that is needed to resume.

    All decisions depend on the iteration number alone, so that a resumed training validates at the same iterations as an
    uninterrupted one and gives the same result.

    Args:
        folder: folder of the run.
        family: the network's name in a checkpoint.
        record: what a checkpoint records about its training, beside the scores.
        every: iterations between checkpoints.
        validate_every: iterations between validations, a multiple of `every`. They begin when all steps are trained; the
            last iteration is always validated.
        progress: called in the first process with an `Iteration`, after every iteration and every validation.
        patience: the training stops after this many validations without improvement; None for never.
        deadline: `time.monotonic()` before which the training stops, judged by the duration of the previous iterations.
    """

    def __init__(
        self,
        folder: Path,
        family: str,
        record: Mapping[str, Any],
        *,
        every: int,
        validate_every: int,
        progress: ProgressCallback,
        patience: int | None = None,
        deadline: float | None = None,
    ) -> None:
        self._folder, self._family, self._record = folder, family, record
        self._every, self._validate_every = every, validate_every
        self._progress, self._patience, self._deadline = progress, patience, deadline
        self._kept = time.monotonic()
        self.best: float | None = None
        self.since_best = 0
        """Validations since the best one."""
        self.stopped_early = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kept = time.monotonic()
        trainer.should_stop = trainer.should_stop or self.stopped_early

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        done, loss = trainer.global_step, trainer.callback_metrics["loss"]
        last = done >= pl_module.recipe.iterations
        if trainer.is_global_zero:
            self._progress(Iteration("training", done, pl_module.recipe.iterations, float(loss)))
        if last or (done % self._validate_every == 0 and not pl_module.runs_one_step(done)):
            scores = pl_module.validate()
            trainer.logger.log_metrics({f"val_{k}": v for k, v in scores.to_dict().items()}, step=done)
            self._judge(trainer, pl_module, scores)
            if trainer.is_global_zero:
                self._progress(Iteration("training", done, pl_module.recipe.iterations, float(loss), scores))
        if last or done % self._every == 0:
            trainer.save_checkpoint(self._folder / LAST)
            late = trainer.strategy.broadcast(self._late())
            trainer.should_stop = trainer.should_stop or late or self.stopped_early

    def _late(self) -> bool:
        """Whether the iterations until the next checkpoint would pass the deadline."""
        now, before = time.monotonic(), self._kept
        self._kept = now
        return self._deadline is not None and now + (now - before) > self._deadline

    def _judge(self, trainer: Trainer, module: LightningModule, scores: Scores) -> None:
        self.since_best += 1
        if self.best is None or scores.mae < self.best:  # on composites, F is near 1 for good and bad weights alike
            self.best, self.since_best = scores.mae, 0
            if trainer.is_global_zero:
                self._save(trainer, module, scores)
        self.stopped_early = self._patience is not None and self.since_best >= self._patience

    def _save(self, trainer: Trainer, module: LightningModule, scores: Scores) -> None:
        facts = {**self._record, "iterations": trainer.global_step, "validation": scores.to_dict()}
        kept = Weights.of(self._family, module.kept, facts)
        plain = {name: value.detach().cpu().contiguous() for name, value in kept.state_dict.items()}
        replace(kept, state_dict=plain).save(self._folder / BEST)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The time limit may come before the first validation, or `best.pth` may have been deleted."""
        if self.best is None or not (self._folder / BEST).is_file():
            scores = pl_module.validate()
            if trainer.is_global_zero:
                self._save(trainer, pl_module, scores)

    @property
    def state_key(self) -> str:
        return "Keeper"  # the key in the checkpoints of existing runs

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best", "since_best", "stopped_early")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)
