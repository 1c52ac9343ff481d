"""`r2mrf train`: from a preset and a folder of photographs to a checkpoint.

The folder of a run contains `training.json` (the configuration), `last.ckpt` (to resume from), `best.pth`, the logs and, at
the end, the checkpoint, which is named after the preset.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import logging
import math
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from r2mrf_deploy import environment, images
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.datasets import Dataset, White, read_dataset
from r2mrf_deploy.errors import ArtifactError, CheckpointError, R2mrfError, RuntimeUnavailable, UsageError, first_line
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.progress import Notice, Progress, ProgressCallback, silent
from r2mrf_deploy.training import data as reading
from r2mrf_deploy.training import pretrained, resuming
from r2mrf_deploy.training.data import TrainingData
from r2mrf_deploy.training.recipe import Recipe
from r2mrf_deploy.training.resuming import BEST, LAST
from r2mrf_deploy.wording import count

Precision = Literal["32", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that the result of a training depends on."""

    preset: str
    recipe: Recipe
    settings: Mapping[str, str] = field(default_factory=dict)
    data: Path | None = None
    """A dataset: photographs with their masks."""
    white: White = "sharp"
    split: Path | None = None
    dataset: str | None = None
    """Name of a published dataset, see `datasets.KNOWN`."""
    image_folder: str | None = None
    """Folder of the photographs in `data`; `mask_folder` is that of the masks."""
    mask_folder: str | None = None
    sharp: Path | None = None
    """Sharp photographs to make composites of. Beside `data`, its masks are the shapes."""
    mix: float | None = None
    """Share of composites where there is `data` too; None for half of the pictures."""
    masks: Path | None = None
    masks_white: White = "blurred"
    val: Path | None = None
    """A dataset to validate on, instead of held-out data."""
    val_white: White = "sharp"
    val_split: Path | None = None
    backbone: str | None = None
    """"imagenet", or a file of weights for the backbone."""
    seed: int = 0
    precision: Precision = "32"
    processes: int = 1
    patience: int | None = None
    """The training stops after this many validations without improvement; None for never."""
    every: int = 50
    """Iterations between checkpoints. A killed training loses at most this many."""
    validate_every: int = 500
    """Iterations between validations, rounded up to a multiple of `every`: see `validates_every`."""

    def __post_init__(self) -> None:
        if self.data is None and self.sharp is None:
            raise UsageError("give `data`, photographs with masks, or `sharp`, sharp photographs, or both")
        if self.masks is not None and (self.sharp is None or self.data is not None):
            raise UsageError("`masks` goes with `sharp` alone: a dataset has masks of its own")
        if self.mix is not None and (self.data is None or self.sharp is None):
            raise UsageError("`mix` is the share of composites beside a dataset: it goes with `data` and `sharp`")
        if self.mix is not None and not 0 < self.mix < 1:
            raise UsageError(f"`mix` must be between 0 and 1, not {self.mix}")
        whole = self.recipe.batch // self.processes
        if self.mix is not None and round(self.mix * whole) in (0, whole):
            raise UsageError(
                f"`mix` {self.mix} of a batch of {whole} is, in whole pictures, all of one kind; change `mix` or `batch`"
            )
        if self.data is None and (self.split, self.dataset, self.image_folder, self.mask_folder) != (None,) * 4:
            raise UsageError("`split`, `dataset` and `image_folder` describe a dataset: they go with `data`")
        if self.val_split is not None and self.val is None:
            raise UsageError("`val_split` names photographs of a dataset to validate on: it goes with `val`")
        if min(self.every, self.validate_every) < 1:
            raise UsageError("`every` and `validate_every` must be at least 1")
        if self.recipe.batch % self.processes:
            raise UsageError(
                f"a batch of {self.recipe.batch} cannot be split evenly among {self.processes} processes; change `batch`"
            )

    @property
    def validates_every(self) -> int:
        return math.ceil(self.validate_every / self.every) * self.every

    def to_dict(self) -> dict[str, Any]:
        """The values as JSON has them."""
        return json.loads(json.dumps(dataclasses.asdict(self), default=str))


@dataclass(frozen=True)
class Hardware:
    """Where a training runs and what it logs. The result does not depend on it."""

    devices: int = 1
    nodes: int = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    logger: Literal["csv", "tensorboard"] = "csv"
    limit: float | None = None
    """Time limit in seconds. The training stops at a checkpoint before it and can be resumed."""


@dataclass(frozen=True)
class Trained:
    """The result of a training."""

    path: Path
    iterations: int
    """Total number of iterations done."""
    finished: bool
    """False if the time limit stopped it; it can be resumed."""
    best: int
    """Iteration of the best weights, which the checkpoint holds."""
    validation: Mapping[str, float]
    """Their scores."""
    rank: int
    """Rank of this process. Only rank 0 reports results."""


def train(
    config: TrainingConfig,
    output: Path,
    hardware: Hardware | None = None,
    *,
    resume: bool = False,
    progress: ProgressCallback = silent,
) -> Trained:
    """Train a network; the checkpoint is `output/PRESET.pth`.

    Args:
        config: what to train, on what and how.
        output: folder of the run.
        hardware: where to run.
        resume: continue the run in `output`, or start it if it has no checkpoint yet. The configuration must be that of the
            run, except that the recipe may have more iterations; its schedule is then stretched.
        progress: called while the training is prepared, with a `Notice` of what the user may not expect, and with a
            `recipe.Iteration` after each iteration and validation.

    Raises:
        UsageError: the configuration contradicts itself or the run in `output`, or there is a run and `resume` is not set.
        InputError: photographs or masks cannot be used, or the run's `training.json` is damaged.
        CheckpointError: the run's `last.ckpt` or the backbone's weights are damaged.
        ArtifactError: the folder cannot be written, or the disk is full.
        RuntimeUnavailable: Lightning is not installed, there is no such device, or weights cannot be downloaded.
        KeyboardInterrupt: Ctrl-C; the run can be resumed from its last checkpoint.
    """
    hardware = hardware or Hardware()
    deadline = None if hardware.limit is None else time.monotonic() + hardware.limit
    _available(hardware)
    from r2mrf_deploy.training.callbacks import BestCheckpoint
    from r2mrf_deploy.training.module import Training

    last = resuming.find(config.to_dict(), output, resume)
    if config.validates_every != config.validate_every:
        every = f"every {config.validates_every} iterations, the next multiple of `every` {config.every}"
        progress(Notice(f"`validate_every` {config.validate_every}: validating {every}"))
    progress(Progress("reading photographs"))
    training_data = read(config)
    if training_data.left_out:
        left_out = count(training_data.left_out, "photograph")
        progress(Notice(f"leaving out {left_out} of the folder, not part of {config.dataset}"))
    progress(Progress("preparing the network"))
    family, network = pretrained.create(
        config.preset, config.settings, training_data.validation, backbone=config.backbone, seed=config.seed
    )
    module = Training(
        network,
        config.recipe,
        partial(training_data.source, config.recipe, config.seed),
        training_data.validation,
        seed=config.seed,
    )
    checkpoints = BestCheckpoint(
        output / LAST,
        output / BEST,
        family,
        _facts(config, training_data),
        network.config.preprocess.model_copy(update={"longest_side": training_data.longest_side}),
        every=config.every,
        validate_every=config.validates_every,
        progress=progress,
        patience=config.patience,
        deadline=deadline,
    )
    with _quiet():
        trainer = _trainer(config, output, hardware, checkpoints)
        if trainer.is_global_zero:
            resuming.begin(config.to_dict(), output)
        if last and last.planned < config.recipe.iterations:
            progress(Notice(resuming.stretched(module, last)))
        progress(Progress("training"))
        _fit(trainer, module, checkpoints, last.path if last else None, output)
    path = output / f"{config.preset}.pth"
    if trainer.is_global_zero:
        write_atomically(path, (output / BEST).read_bytes())
    trainer.strategy.barrier()
    finished = trainer.global_step >= config.recipe.iterations or checkpoints.stopped_early
    metrics = Checkpoint.load(path).metrics
    trained = Trained(
        path, trainer.global_step, finished, metrics["iterations"], metrics["validation"], trainer.global_rank
    )
    del training_data, network, module, checkpoints, trainer
    gc.collect()  # Lightning's objects refer to each other: without this, the photographs stay in memory for long
    return trained


def read(config: TrainingConfig) -> TrainingData:
    """Read the training and validation data of a configuration.

    Raises:
        InputError: a folder contains nothing usable.
        UsageError: a photograph is used for both training and validation.
    """
    size = config.recipe.size
    judged = None if config.val is None else read_dataset(config.val, white=config.val_white, split=config.val_split)
    photographs: list[np.ndarray] = []
    if config.sharp is not None:
        _refuse_overlap(images.find([config.sharp]), judged)
        photographs = reading.read_photographs(config.sharp, size)
    if config.data is None:
        photographs, held = reading.held_out(photographs)
        drawn = reading.read_masks(config.masks, config.masks_white) if config.masks is not None else []
        masks, held_masks = reading.held_out(drawn)
        if judged is None:
            validation = reading.composites_to_validate(held, held_masks, size)
        else:
            validation = reading.dataset_to_validate(judged, reading.longest_side(photographs))
        return TrainingData(validation, photographs=photographs, masks=masks)
    dataset = read_dataset(
        config.data, white=config.white, split=config.split, dataset=config.dataset,
        image_folder=config.image_folder, mask_folder=config.mask_folder,
    )  # fmt: skip
    _refuse_overlap([pair.image for pair in dataset.pairs], judged)
    if judged is None:
        trained, held_pairs = reading.held_out(dataset.pairs)
        dataset, judged = (dataclasses.replace(dataset, pairs=pairs) for pairs in (trained, held_pairs))
    trained_on = reading.in_memory(dataset)
    scale = sum(config.recipe.scales) / 2
    validation = reading.dataset_to_validate(judged, round(scale * reading.longest_side(trained_on.images)))
    shapes = [np.rint(255 * mask).astype(np.uint8) for mask in trained_on.masks] if photographs else []
    mix = 0.5 if config.mix is None else config.mix
    return TrainingData(validation, photographs, shapes, trained_on, scale, mix, dataset.left_out)


def _refuse_overlap(trained: Sequence[Path], judged: Dataset | None) -> None:
    """Refuse photographs that are in both sets, because the validation scores would be too good."""
    known = {path.resolve() for path in trained}
    if both := [pair.name for pair in (judged.pairs if judged else ()) if pair.image.resolve() in known]:
        raise UsageError(
            f"{count(len(both), 'photograph')} would be used for both training and validation, for example {both[0]}; "
            "separate them with `split` and `val_split`"
        )


def _available(hardware: Hardware) -> None:
    for package, needed in (("lightning", True), ("tensorboard", hardware.logger == "tensorboard")):
        if needed and not environment.importable(package):
            cure = environment.installs(package)
            raise RuntimeUnavailable(f"this training needs {package}, which is not installed: {cure}")
    if hardware.accelerator == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise RuntimeUnavailable("`accelerator` gpu: PyTorch finds no GPU here; use `accelerator` cpu")


def _fit(trainer: Any, module: Any, checkpoints: Any, last: Path | None, output: Path) -> None:
    """Train. Lightning turns Ctrl-C into exit code 1 and ignores it from then on; here it stays what it is. Lightning also
    believes what it resumes from, so until the first iteration any exception is the file's."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        trainer.fit(module, ckpt_path=last, weights_only=True)
    except SystemExit as e:
        if isinstance(e.__context__, KeyboardInterrupt):  # and not SIGTERM
            raise KeyboardInterrupt from None
        raise
    except R2mrfError:
        raise
    except OSError as e:
        raise ArtifactError(
            f"the training in {output} stopped: {e.strerror or e}; `resume` it when that is mended"
        ) from e
    except Exception as e:
        if last is None or checkpoints.began:
            raise
        raise CheckpointError(f"{last} cannot be resumed ({first_line(e)}); delete {LAST} to begin again") from e
    finally:
        if main:
            signal.signal(signal.SIGINT, handler)


def _facts(config: TrainingConfig, training_data: TrainingData) -> dict[str, Any]:
    """What the checkpoint records about its training; of a path only the last name."""
    read = {"photographs": training_data.photographs, "masks": training_data.masks, "dataset": training_data.dataset}
    both = training_data.dataset is not None and len(training_data.photographs) > 0
    return {
        "trained": config.preset,
        "recipe": dataclasses.asdict(config.recipe),
        "seed": config.seed,
        "precision": config.precision,
        "processes": config.processes,
        "backbone": Path(config.backbone).name if config.backbone else "",
        "data": {name: len(items) for name, items in read.items() if items},
        **({"mix": training_data.mix} if both else {}),
        "torch": str(torch.__version__),
    }


def _trainer(config: TrainingConfig, output: Path, hardware: Hardware, checkpoints: Any) -> Any:
    from lightning.fabric.utilities.exceptions import MisconfigurationException
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    from r2mrf_deploy.training.callbacks import AtomicCheckpoints

    logger = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}[hardware.logger]
    several = config.processes > 1
    try:
        return Trainer(
            default_root_dir=output,
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            num_nodes=hardware.nodes,
            # An ablation may leave parameters without gradients
            strategy="ddp_find_unused_parameters_true" if several else "auto",
            sync_batchnorm=several and hardware.accelerator != "cpu" and torch.cuda.is_available(),
            precision="32-true" if config.precision == "32" else config.precision,
            max_steps=config.recipe.iterations,
            max_epochs=-1,
            gradient_clip_val=config.recipe.clip,
            callbacks=[checkpoints],
            plugins=[AtomicCheckpoints()],
            logger=logger(output, name="log"),
            log_every_n_steps=min(10, config.every),
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    except MisconfigurationException as e:  # there are fewer devices
        asked = f"`accelerator` {hardware.accelerator} `devices` {hardware.devices}"
        raise RuntimeUnavailable(f"{asked}: {e}; use fewer `devices`, or `accelerator` cpu") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide Lightning's advice about workers and devices, which users of the command cannot follow."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        log.setLevel(level)
