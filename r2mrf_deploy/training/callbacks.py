"""The checkpoints of a training (one to resume from, and the best weights), its validations and its progress."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.plugins import TorchCheckpointIO

from r2mrf_deploy.checkpoint import Checkpoint as Weights
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.manifest import Preprocess
from r2mrf_deploy.metrics import Scores
from r2mrf_deploy.progress import ProgressCallback
from r2mrf_deploy.training.recipe import Iteration


class AtomicCheckpoints(TorchCheckpointIO):
    """Write Lightning's checkpoints atomically: a process that is killed while writing leaves the previous one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        write_atomically(Path(path), lambda temporary: torch.save(checkpoint, temporary))


@dataclass(eq=False)
class BestCheckpoint(Checkpoint):
    """Validate, and save the best weights, then everything that is needed to resume.

    All decisions depend on the iteration number alone, so that a resumed training validates at the same iterations as an
    uninterrupted one and gives the same result.
    """

    last_path: Path
    """The file to resume from."""
    best_path: Path
    """The checkpoint of the best weights."""
    family: str
    """The network's name in a checkpoint."""
    record: Mapping[str, Any]
    """What a checkpoint records about its training, beside the scores."""
    preprocess: Preprocess
    """What a checkpoint says of the photographs that it is for."""
    every: int
    """Iterations between checkpoints."""
    validate_every: int
    """Iterations between validations, a multiple of `every`. They begin when all steps are trained; the last iteration is
    always validated."""
    progress: ProgressCallback
    """Called in the first process with an `Iteration`, after every iteration and every validation."""
    patience: int | None
    """The training stops after this many validations without improvement; None for never."""
    deadline: float | None
    """Value of `time.monotonic()` before which the training stops, predicted from the previous iterations."""
    best: float | None = field(default=None, init=False)
    since_best: int = field(default=0, init=False)
    """Validations since the best one."""
    stopped_early: bool = field(default=False, init=False)
    began: bool = field(default=False, init=False)
    """Whether everything was restored and the first iteration is next."""
    _kept: float = field(default=0.0, init=False)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._kept, self.began = time.monotonic(), True
        trainer.should_stop = trainer.should_stop or self.stopped_early

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: object) -> None:
        done, total = trainer.global_step, pl_module.recipe.iterations
        loss, last = trainer.callback_metrics["loss"], done >= total
        if trainer.is_global_zero:
            self.progress(Iteration("training", done, total, float(loss)))
        if last or (done % self.validate_every == 0 and not pl_module.runs_one_step(done)):
            scores = pl_module.validate()
            trainer.logger.log_metrics({f"val_{k}": v for k, v in scores.to_dict().items()}, step=done)
            self._judge(trainer, pl_module, scores)
            if trainer.is_global_zero:
                self.progress(Iteration("training", done, total, float(loss), scores))
        if last or done % self.every == 0:
            trainer.save_checkpoint(self.last_path)
            late = trainer.strategy.broadcast(self._late())
            trainer.should_stop = trainer.should_stop or late or self.stopped_early

    def _late(self) -> bool:
        """Whether the iterations until the next checkpoint would pass the deadline."""
        now, before = time.monotonic(), self._kept
        self._kept = now
        return self.deadline is not None and now + (now - before) > self.deadline

    def _judge(self, trainer: Trainer, module: LightningModule, scores: Scores) -> None:
        self.since_best += 1
        if self.best is None or scores.mae < self.best:  # on composites, F is near 1 for good and bad weights alike
            self.best, self.since_best = scores.mae, 0
            self._save(trainer, module, scores)
        self.stopped_early = self.patience is not None and self.since_best >= self.patience

    def _save(self, trainer: Trainer, module: LightningModule, scores: Scores) -> None:
        if trainer.is_global_zero:
            facts = {**self.record, "iterations": trainer.global_step, "validation": scores.to_dict()}
            plain = {name: value.detach().cpu().contiguous() for name, value in module.kept.state_dict().items()}
            Weights(self.family, module.kept.config, plain, self.preprocess, facts).save(self.best_path)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save weights if there are none: the time limit came before the first validation, or the file was deleted."""
        if self.best is None or not self.best_path.is_file():
            self._save(trainer, pl_module, pl_module.validate())

    @property
    def state_key(self) -> str:
        return "Keeper"  # the key in the checkpoints of existing runs

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("best", "since_best", "stopped_early")}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for name, value in state_dict.items():
            setattr(self, name, value)
