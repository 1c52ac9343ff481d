"""`r2mrf train`: from a preset and a folder of photographs to a checkpoint.

The folder of a run holds `training.json` (what was asked for), `last.ckpt` (to go on from), `best.pth`, the logs, and in the
end the checkpoint under the preset's name.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import logging
import math
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

from r2mrf_deploy import images
from r2mrf_deploy.checkpoint import Checkpoint, read_file
from r2mrf_deploy.datasets import Dataset, White, read_dataset
from r2mrf_deploy.errors import CheckpointError, InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.progress import Progress, ProgressCallback, silent
from r2mrf_deploy.training import data as reading
from r2mrf_deploy.training import pretrained
from r2mrf_deploy.training.data import Pictures, TrainingData
from r2mrf_deploy.training.recipe import Recipe
from r2mrf_deploy.training.synthesis.composites import Synthesis

CURE = 'pip install "r2mrf-deploy[train]"'
SAID = "training.json"
Precision = Literal["32", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class TrainingConfig:
    """What to train, on what, and how: all that the result depends on."""

    preset: str
    recipe: Recipe
    settings: Mapping[str, str] = field(default_factory=dict)
    data: Path | None = None
    """A dataset: photographs with their masks."""
    white: White = "sharp"
    split: Path | None = None
    dataset: str | None = None
    """Name of a published one, see `datasets.KNOWN`."""
    image_folder: str | None = None
    """Of `data`; so is the next."""
    mask_folder: str | None = None
    sharp: Path | None = None
    """Sharp photographs, to make composites of."""
    masks: Path | None = None
    masks_white: White = "blurred"
    val: Path | None = None
    """A dataset to validate on, in place of what is held out."""
    val_white: White = "sharp"
    val_split: Path | None = None
    backbone: str | None = None
    """"imagenet", or a file of weights for the backbone."""
    seed: int = 0
    precision: Precision = "32"
    processes: int = 1
    patience: int | None = None
    """Validations without a better one after which the training ends."""
    every: int = 50
    """Iterations after which everything is kept: so many are lost at most when a training is killed."""
    validate_every: int = 500
    """Iterations between validations, rounded up to a multiple of `every`."""

    def __post_init__(self) -> None:
        if (self.data is None) == (self.sharp is None):
            raise UsageError("give either `data`, photographs with masks, or `sharp`, sharp photographs")
        if self.masks is not None and self.sharp is None:
            raise UsageError("`masks` goes with `sharp`: a dataset has masks of its own")
        if self.data is None and (self.split, self.dataset, self.image_folder, self.mask_folder) != (None,) * 4:
            raise UsageError("`split`, `dataset` and `image_folder` say what is in a dataset: they go with `data`")
        if self.val_split is not None and self.val is None:
            raise UsageError("`val_split` names photographs of a dataset to validate on: it goes with `val`")
        if min(self.every, self.validate_every) < 1:
            raise UsageError("every and validate_every are numbers of iterations: at least 1")
        if self.recipe.batch % self.processes:
            raise UsageError(
                f"a batch of {self.recipe.batch} cannot be shared by {self.processes} processes; give `batch` a multiple"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        values = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


@dataclass(frozen=True)
class Hardware:
    """Where a training runs and what it tells: nothing here changes the result."""

    devices: int = 1
    nodes: int = 1
    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    logger: Literal["csv", "tensorboard"] = "csv"
    limit: float | None = None
    """Seconds after which it stops, at the end of a round; it can be resumed."""


@dataclass(frozen=True)
class Trained:
    """What a training came to."""

    path: Path
    iterations: int
    """Done in all."""
    finished: bool
    """False: it was stopped by its time limit, and can be resumed."""
    best: int
    """The iteration whose weights were kept."""
    validation: Mapping[str, float]
    """Their scores."""
    rank: int
    """Of this process; the first one is 0, and it alone has anything to tell."""


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
        hardware: where.
        resume: go on with the run in `output`; where it has kept nothing yet, begin it.
        progress: called while the training is prepared, and with a `recipe.Iteration` after each iteration and validation.

    Raises:
        UsageError: the config contradicts itself or the run in `output`; there is a run and `resume` is not set.
        InputError: photographs or masks that cannot be used, or a run whose `training.json` is damaged.
        CheckpointError: the run's `last.ckpt` or the backbone's weights are damaged.
        RuntimeUnavailable: Lightning is not installed, there is no such device, or weights cannot be downloaded.
    """
    hardware = hardware or Hardware()
    deadline = None if hardware.limit is None else time.monotonic() + hardware.limit
    _available(hardware)
    from r2mrf_deploy.training.callbacks import BEST, LAST, BestCheckpoint
    from r2mrf_deploy.training.module import Training

    last = _open(config, output, resume, LAST)
    progress(Progress("reading photographs"))
    training_data = read(config)
    if training_data.left_out:
        left_out = f"{training_data.left_out} photographs are left out, which do not belong to {config.dataset}"
        progress(Progress(left_out))
    progress(Progress("preparing the network"))
    family, network = pretrained.create(
        config.preset, config.settings, training_data.validation, backbone=config.backbone, seed=config.seed
    )
    synthesis = Synthesis(size=config.recipe.size)
    module = Training(
        network,
        config.recipe,
        partial(training_data.source, synthesis, config.recipe.rotation, config.seed),
        training_data.validation,
        seed=config.seed,
    )
    checkpoints = BestCheckpoint(
        output,
        family,
        _facts(config, training_data),
        every=config.every,
        validate_every=math.ceil(config.validate_every / config.every) * config.every,
        progress=progress,
        patience=config.patience,
        deadline=deadline,
    )
    trainer = _trainer(config, output, hardware, checkpoints)
    if trainer.is_global_zero:
        _begin(config, output, LAST, BEST)
    progress(Progress("training"))
    with _quiet():
        trainer.fit(module, ckpt_path=last, weights_only=True)
    path = output / f"{config.preset}.pth"
    if trainer.is_global_zero:
        write_atomically(path, (output / BEST).read_bytes())
    trainer.strategy.barrier()
    finished = trainer.global_step >= config.recipe.iterations or checkpoints.stopped_early
    metrics = Checkpoint.load(path).metrics
    return Trained(
        path, trainer.global_step, finished, metrics["iterations"], metrics["validation"], trainer.global_rank
    )


def read(config: TrainingConfig) -> TrainingData:
    """Read what an config trains and validates on.

    Raises:
        InputError: a folder that holds nothing usable.
        UsageError: a photograph is in both.
    """
    size = config.recipe.size
    judged = None if config.val is None else read_dataset(config.val, white=config.val_white, split=config.val_split)
    if config.sharp is not None:
        _refuse_overlap(images.find([config.sharp]), judged)
        photographs, held = reading.held_out(reading.read_photographs(config.sharp, size))
        masks: list[np.ndarray] = []
        held_masks: list[np.ndarray] = []
        if config.masks is not None:
            masks, held_masks = reading.held_out(reading.read_masks(config.masks, config.masks_white))
        validation = _given(judged) or reading.composites_to_validate(held, held_masks, size)
        return TrainingData(validation, photographs=photographs, masks=masks)
    assert config.data is not None
    dataset = read_dataset(
        config.data, white=config.white, split=config.split, dataset=config.dataset,
        image_folder=config.image_folder, mask_folder=config.mask_folder,
    )  # fmt: skip
    _refuse_overlap([pair.image for pair in dataset.pairs], judged)
    pictures = reading.in_memory(dataset)
    if (given := _given(judged)) is not None:
        return TrainingData(given, dataset=pictures, left_out=dataset.left_out)
    pairs, held_pairs = reading.held_out(list(zip(pictures.images, pictures.masks, strict=True)))
    kept, trained = (Pictures(*map(list, zip(*part, strict=True))) for part in (held_pairs, pairs))
    return TrainingData(reading.dataset_to_validate(kept), dataset=trained, left_out=dataset.left_out)


def _given(judged: Dataset | None) -> Pictures | None:
    return None if judged is None else reading.dataset_to_validate(reading.in_memory(judged))


def _refuse_overlap(trained: Sequence[Path], judged: Dataset | None) -> None:
    """Weights that are judged by what they were trained on are judged too well."""
    known = {path.resolve() for path in trained}
    if both := [pair.name for pair in (judged.pairs if judged else ()) if pair.image.resolve() in known]:
        raise UsageError(
            f"{len(both)} photographs would be trained on and validated on, {both[0]} the first of them; "
            "part them with `split` and `val_split`"
        )


def _available(hardware: Hardware) -> None:
    if importlib.util.find_spec("lightning") is None:
        raise RuntimeUnavailable(f"training needs Lightning, which is not installed: {CURE}")
    if hardware.accelerator == "gpu" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise RuntimeUnavailable("`accelerator` gpu: PyTorch finds no GPU here; use `accelerator` cpu")


def _open(config: TrainingConfig, output: Path, resume: bool, last: str) -> Path | None:
    """The checkpoint to go on from, if any. Nothing is written: what comes after may yet be refused."""
    kept = output / last
    if not kept.is_file():
        return None
    if not resume:
        raise UsageError(f"{output} holds a training: `resume` it, or give another folder")
    try:
        read_file(kept)
    except CheckpointError as e:
        raise CheckpointError(f"{e}; delete {kept.name} to begin again") from None
    wanted = json.loads(json.dumps(config.to_dict()))
    before = _asked_for(output / SAID, wanted)
    wanted, before = (values | values["recipe"] for values in (wanted, before))
    for name in sorted(wanted.keys() - {"recipe"}):
        if wanted[name] != before.get(name):
            raise UsageError(
                f"`resume`: {name} was {before.get(name)} and is now {wanted[name]}; "
                "give the same options again, or another folder"
            )
    return kept


def _asked_for(path: Path, otherwise: dict[str, Any]) -> dict[str, Any]:
    """What a run's `training.json` says was asked for, or where there is none, what is asked for now."""
    if not path.is_file():
        return otherwise
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return values | {"recipe": dict(values["recipe"])}
    except (ValueError, KeyError, TypeError):
        raise InputError(f"{path} is damaged; delete it to go on with the options given now") from None


def _begin(config: TrainingConfig, output: Path, last: str, best: str) -> None:
    """Write down what was asked for; where nothing was kept to go on from, no older weights may pass for this training's."""
    for unfinished in output.glob(f".{last}.*"):  # of a process killed while it wrote
        unfinished.unlink(missing_ok=True)
    if not (output / last).is_file():
        (output / best).unlink(missing_ok=True)
    write_atomically(output / SAID, (json.dumps(config.to_dict(), indent=2) + "\n").encode())


def _facts(config: TrainingConfig, training_data: TrainingData) -> dict[str, Any]:
    """What the checkpoint says of its training; folders by their names alone."""
    read = (
        ("photographs", training_data.photographs),
        ("masks", training_data.masks),
        ("dataset", training_data.dataset or ()),
    )
    return {
        "trained": config.preset,
        "recipe": dataclasses.asdict(config.recipe),
        "seed": config.seed,
        "precision": config.precision,
        "processes": config.processes,
        "backbone": Path(config.backbone).name if config.backbone else "",
        "data": {name: len(items) for name, items in read if len(items)},
        "torch": str(torch.__version__),
    }


def _trainer(config: TrainingConfig, output: Path, hardware: Hardware, checkpoints: Any) -> Any:
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    from r2mrf_deploy.training.callbacks import AtomicCheckpoints

    if hardware.logger == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise RuntimeUnavailable(f"`logger` tensorboard: TensorBoard is not installed: {CURE}")
    logger = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}[hardware.logger]
    several = config.processes > 1
    with _quiet(), _refused(hardware):
        return Trainer(
            default_root_dir=output,
            accelerator=hardware.accelerator,
            devices=hardware.devices,
            num_nodes=hardware.nodes,
            # An ablation may leave parameters without a gradient
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


@contextmanager
def _refused(hardware: Hardware) -> Iterator[None]:
    """Lightning's refusal of devices that are not there, as ours."""
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    try:
        yield
    except MisconfigurationException as e:
        asked = f"`accelerator` {hardware.accelerator} `devices` {hardware.devices}"
        raise RuntimeUnavailable(f"{asked}: {e}; give the `devices` that are there, or `accelerator` cpu") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's advice about workers and devices says nothing that a user of the command could act on."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        log.setLevel(level)
