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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.datasets import White
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError
from r2mrf_deploy.manifest import write_atomically
from r2mrf_deploy.training import data as reading
from r2mrf_deploy.training import initial
from r2mrf_deploy.training.data import Material, Pictures
from r2mrf_deploy.training.recipe import Recipe
from r2mrf_deploy.training.synthesis import Synthesis

CURE = 'pip install "r2mrf-deploy[train]"'
Precision = Literal["32", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True)
class Order:
    """What to train, on what, and how: all that the result depends on."""

    preset: str
    recipe: Recipe
    settings: Mapping[str, str] = field(default_factory=dict)
    data: Path | None = None
    """A dataset: photographs with their masks."""
    white: White = "sharp"
    split: Path | None = None
    sharp: Path | None = None
    """Sharp photographs, to make composites of."""
    masks: Path | None = None
    masks_white: White = "blurred"
    val: Path | None = None
    """A dataset to validate on, in place of what is held out."""
    val_white: White = "sharp"
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
            raise UsageError("give either --data DIR (photographs with masks) or --sharp DIR (sharp photographs)")
        if self.masks is not None and self.sharp is None:
            raise UsageError("--masks goes with --sharp: a dataset has masks of its own")
        if self.split is not None and self.data is None:
            raise UsageError("--split names photographs of a dataset: it goes with --data")
        if min(self.every, self.validate_every) < 1:
            raise UsageError("every and validate_every are numbers of iterations: at least 1")
        if self.recipe.batch % self.processes:
            raise UsageError(
                f"a batch of {self.recipe.batch} cannot be shared by {self.processes} processes; give --batch a multiple"
            )

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        values = dataclasses.asdict(self)
        return {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}


@dataclass(frozen=True)
class Machine:
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
    order: Order,
    output: Path,
    machine: Machine | None = None,
    *,
    resume: bool = False,
    phase: Callable[[str], None] = lambda _: None,
    say: Callable[[int, float, Any], None] = lambda *_: None,
) -> Trained:
    """Train a network; the checkpoint is `output/PRESET.pth`.

    Args:
        order: what to train, on what and how.
        output: folder of the run.
        machine: where.
        resume: go on with the run in `output`; where it has kept nothing yet, begin it.
        phase: told what is being prepared.
        say: told (iterations done, cross-entropy of the fused map, scores or None) as the training goes.

    Raises:
        UsageError: the order contradicts itself or the run in `output`; there is a run and `resume` is not set.
        InputError: photographs or masks that cannot be used.
        RuntimeUnavailable: Lightning is not installed, or weights cannot be downloaded.
    """
    machine = machine or Machine()
    deadline = None if machine.limit is None else time.monotonic() + machine.limit
    _lightning()
    from r2mrf_deploy.training.keeping import BEST, LAST, Keeper
    from r2mrf_deploy.training.module import Training

    last = _open(order, output, resume, LAST)
    phase("reading photographs")
    material = read(order)
    phase("preparing the network")
    family, network = initial.create(
        order.preset, order.settings, material.validation, backbone=order.backbone, seed=order.seed
    )
    synthesis = Synthesis(size=order.recipe.size)
    module = Training(
        network,
        order.recipe,
        partial(material.source, synthesis, order.recipe.rotation, order.seed),
        material.validation,
        seed=order.seed,
    )
    keeper = Keeper(
        output,
        family,
        _facts(order, material),
        every=order.every,
        validate_every=math.ceil(order.validate_every / order.every) * order.every,
        say=say,
        patience=order.patience,
        deadline=deadline,
    )
    trainer = _trainer(order, output, machine, keeper)
    phase("training")
    with _quiet():
        trainer.fit(module, ckpt_path=last, weights_only=True)
    path = output / f"{order.preset}.pth"
    if trainer.is_global_zero:
        write_atomically(path, (output / BEST).read_bytes())
    trainer.strategy.barrier()
    finished = trainer.global_step >= order.recipe.iterations or keeper.stopped_early
    metrics = Checkpoint.load(path).metrics
    return Trained(
        path, trainer.global_step, finished, metrics["iterations"], metrics["validation"], trainer.global_rank
    )


def read(order: Order) -> Material:
    """Read what an order trains and validates on.

    Raises:
        InputError: a folder that holds nothing usable.
    """
    size = order.recipe.size
    if order.sharp is not None:
        photographs, held = reading.held_out(reading.read_photographs(order.sharp, size))
        masks: list[np.ndarray] = []
        held_masks: list[np.ndarray] = []
        if order.masks is not None:
            masks, held_masks = reading.held_out(reading.read_masks(order.masks, order.masks_white))
        validation = _given(order) or reading.composites_to_validate(held, held_masks, size)
        return Material(validation, photographs=photographs, masks=masks)
    assert order.data is not None
    pictures = reading.read_pictures(order.data, order.white, order.split)
    if (given := _given(order)) is not None:
        return Material(given, dataset=pictures)
    pairs, held_pairs = reading.held_out(list(zip(pictures.images, pictures.masks, strict=True)))
    kept, trained = (Pictures(*map(list, zip(*part, strict=True))) for part in (held_pairs, pairs))
    return Material(reading.dataset_to_validate(kept), dataset=trained)


def _given(order: Order) -> Pictures | None:
    if order.val is None:
        return None
    return reading.dataset_to_validate(reading.read_pictures(order.val, order.val_white, None))


def _lightning() -> None:
    if importlib.util.find_spec("lightning") is None:
        raise RuntimeUnavailable(f"training needs Lightning, which is not installed: {CURE}")


def _open(order: Order, output: Path, resume: bool, last: str) -> Path | None:
    """The checkpoint to go on from, if any; writes down what was asked for."""
    wanted = json.loads(json.dumps(order.to_dict()))
    said, kept = output / "training.json", output / last
    for unfinished in output.glob(f".{last}.*"):  # of a process killed while it wrote
        unfinished.unlink(missing_ok=True)
    if not kept.is_file():
        write_atomically(said, (json.dumps(wanted, indent=2) + "\n").encode())
        return None
    if not resume:
        raise UsageError(f"{output} holds a training: go on with it by --resume, or give another folder")
    before = json.loads(said.read_text(encoding="utf-8")) if said.is_file() else wanted
    wanted, before = (values | values["recipe"] for values in (wanted, before))
    for name in sorted(wanted.keys() - {"recipe"}):
        if wanted[name] != before.get(name):
            raise UsageError(
                f"--resume: {name} was {before.get(name)} and is now {wanted[name]}; "
                "give the same options again, or another folder"
            )
    return kept


def _facts(order: Order, material: Material) -> dict[str, Any]:
    """What the checkpoint says of its training; folders by their names alone."""
    read = (("photographs", material.photographs), ("masks", material.masks), ("dataset", material.dataset or ()))
    return {
        "trained": order.preset,
        "recipe": dataclasses.asdict(order.recipe),
        "seed": order.seed,
        "precision": order.precision,
        "processes": order.processes,
        "backbone": Path(order.backbone).name if order.backbone else "",
        "data": {name: len(items) for name, items in read if len(items)},
        "torch": str(torch.__version__),
    }


def _trainer(order: Order, output: Path, machine: Machine, keeper: Any) -> Any:
    from lightning.pytorch import Trainer
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    from r2mrf_deploy.training.keeping import AtomicCheckpoints

    if machine.logger == "tensorboard" and importlib.util.find_spec("tensorboard") is None:
        raise RuntimeUnavailable(f"--logger tensorboard: TensorBoard is not installed: {CURE}")
    logger = {"csv": CSVLogger, "tensorboard": TensorBoardLogger}[machine.logger]
    several = order.processes > 1
    with _quiet():
        return Trainer(
            default_root_dir=output,
            accelerator=machine.accelerator,
            devices=machine.devices,
            num_nodes=machine.nodes,
            # An ablation may leave parameters without a gradient
            strategy="ddp_find_unused_parameters_true" if several else "auto",
            sync_batchnorm=several and machine.accelerator != "cpu" and torch.cuda.is_available(),
            precision="32-true" if order.precision == "32" else order.precision,
            max_steps=order.recipe.iterations,
            max_epochs=-1,
            gradient_clip_val=order.recipe.clip,
            callbacks=[keeper],
            plugins=[AtomicCheckpoints()],
            logger=logger(output, name="log"),
            log_every_n_steps=min(10, order.every),
            use_distributed_sampler=False,
            num_sanity_val_steps=0,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


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
