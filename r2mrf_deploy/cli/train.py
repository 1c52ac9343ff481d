"""The command that trains."""

from __future__ import annotations

import dataclasses
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from typer import Argument, Option

from r2mrf_deploy.cli import flags, values
from r2mrf_deploy.cli.common import app, err, line, print_json
from r2mrf_deploy.cli.help import Group, Verb
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.progress import Notice, Progress
from r2mrf_deploy.wording import count

if TYPE_CHECKING:
    from r2mrf_deploy.training.recipe import Recipe


@app.command(cls=Verb)
def train(
    preset: Annotated[
        str, Argument(help="A preset: r2mrf, r2mrf-r50, r2mrf-edge, ...", autocompletion=values.one_of(values.PRESETS))
    ],
    output: Annotated[Path, Option("-o", "--output", help="Folder of the run.")],
    data: Annotated[Path | None, Option(help="Folder of photographs and masks.")] = None,
    white: Annotated[flags.White | None, Option(help="What is white in the masks of --data.")] = None,
    dataset: flags.Dataset = None,
    split: Annotated[
        Path | None,
        Option(
            help=f"Names to train on: {flags.SPLIT}",
            autocompletion=values.splits_or_files,
            rich_help_panel=Group.DATASET,
        ),
    ] = None,
    image_folder: flags.ImageFolder = None,
    sharp: Annotated[
        Path | None,
        Option(help="Folder of sharp photographs to make composites from.", rich_help_panel=Group.COMPOSITES),
    ] = None,
    mix: Annotated[
        float | None,
        Option(
            help="Share of composites where --data and --sharp are given; by default 0.5.",
            rich_help_panel=Group.COMPOSITES,
        ),
    ] = None,
    mask_folder: Annotated[
        Path | None,
        Option(
            "--masks",
            help="Folder of the masks in --data; with --sharp, drawn masks for the composites.",
            rich_help_panel=Group.DATASET,
        ),
    ] = None,
    masks_white: Annotated[
        flags.White | None, Option(help="What is white in drawn masks.", rich_help_panel=Group.COMPOSITES)
    ] = None,
    val: Annotated[
        Path | None, Option(help="Folder of photographs and masks to validate on.", rich_help_panel=Group.VALIDATION)
    ] = None,
    val_white: Annotated[
        flags.White | None, Option(help="What is white in the masks of --val.", rich_help_panel=Group.VALIDATION)
    ] = None,
    val_split: Annotated[
        Path | None,
        Option(
            help=f"Names in --val to use: {flags.SPLIT}",
            autocompletion=values.splits_or_files,
            rich_help_panel=Group.VALIDATION,
        ),
    ] = None,
    recipe: Annotated[
        Literal["paper", "scratch", "finetune"] | None,
        Option(help="By default scratch; with a pretrained backbone the paper's, or finetune for -edge and -lite."),
    ] = None,
    iterations: Annotated[
        int | None, Option(min=1, help="Iterations; by default the recipe's.", rich_help_panel=Group.RECIPE)
    ] = None,
    batch: Annotated[
        int | None, Option(min=1, help="Batch size over all devices.", rich_help_panel=Group.RECIPE)
    ] = None,
    size: Annotated[
        int | None, Option(min=32, help="Side of the training images in pixels.", rich_help_panel=Group.RECIPE)
    ] = None,
    learning_rate: Annotated[
        float | None, Option("--lr", help="The largest learning rate of the schedule.", rich_help_panel=Group.RECIPE)
    ] = None,
    average: Annotated[
        float | None,
        Option(help="Decay of the weights' moving average (EMA); 0 turns it off.", rich_help_panel=Group.RECIPE),
    ] = None,
    backbone: Annotated[
        str | None,
        Option(
            "--backbone-weights",
            metavar="FILE|imagenet",
            help="Weights of a pretrained backbone.",
            rich_help_panel=Group.RECIPE,
        ),
    ] = None,
    precision: Annotated[
        Literal["32", "bf16-mixed", "16-mixed"],
        Option(help="Precision of the training.", rich_help_panel=Group.TRAINING),
    ] = "32",
    devices: Annotated[
        int, Option(min=1, help="GPUs (or processes) on each machine.", rich_help_panel=Group.TRAINING)
    ] = 1,
    nodes: Annotated[int, Option(min=1, help="Number of machines.", rich_help_panel=Group.TRAINING)] = 1,
    accelerator: Annotated[
        Literal["auto", "cpu", "gpu"], Option(help="What to train on.", rich_help_panel=Group.TRAINING)
    ] = "auto",
    seed: Annotated[int, Option(min=0, help="Seed of the random numbers.", rich_help_panel=Group.TRAINING)] = 0,
    limit: Annotated[
        str | None, Option("--time", metavar="HH:MM:SS", help="Stop after this time; --resume continues.")
    ] = None,
    resume: Annotated[bool, Option("--resume", help="Resume the run in -o.")] = False,
    early_stop: Annotated[
        int | None,
        Option(min=1, help="Stop after this many validations without improvement.", rich_help_panel=Group.VALIDATION),
    ] = None,
    every: Annotated[int, Option(min=1, help="Iterations between checkpoints.", rich_help_panel=Group.TRAINING)] = 50,
    validate_every: Annotated[
        int,
        Option(
            min=1,
            help="Iterations between validations, once all recurrent steps are trained: scratch trains one step alone "
            "for the first 70 %, and until then the step that gives the map is untrained.",
            rich_help_panel=Group.VALIDATION,
        ),
    ] = 500,
    logger: Annotated[
        Literal["csv", "tensorboard"], Option(help="Format of the log.", rich_help_panel=Group.TRAINING)
    ] = "csv",
    settings: flags.Set = None,
    as_json: flags.Json = False,
) -> None:
    """Train a network on a dataset or on composites."""
    # This must happen before PyTorch starts OpenMP. On a busy machine, spinning threads cost several times the work itself.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from r2mrf_deploy.datasets import polarity
    from r2mrf_deploy.training.recipe import choose
    from r2mrf_deploy.training.resuming import LAST
    from r2mrf_deploy.training.run import Hardware, TrainingConfig, train

    changed: dict[str, Any] = {
        "iterations": iterations, "batch": batch, "size": size, "learning_rate": learning_rate, "average": average,
    }  # fmt: skip
    usual, why = choose(preset, recipe, backbone=backbone is not None)
    chosen = dataclasses.replace(usual, **{k: v for k, v in changed.items() if v is not None})
    drawn = mask_folder if data is None else None
    if data is not None and masks_white is not None:
        raise UsageError("--masks-white says what is white in drawn masks; of --data, --white says it")
    config = TrainingConfig(
        preset, chosen, flags.parse_settings(settings), data=data, split=split, dataset=dataset, image_folder=image_folder,
        white=_polarity("--data", data, "--white", white) if dataset is None else polarity(dataset, white),
        mask_folder=None if data is None or mask_folder is None else str(mask_folder),
        sharp=sharp, mix=mix, masks=drawn, masks_white=_polarity("--masks", drawn, "--masks-white", masks_white),
        val=val, val_white=_polarity("--val", val, "--val-white", val_white), val_split=val_split,
        backbone=backbone, seed=seed, precision=precision, processes=devices * nodes, patience=early_stop,
        every=every, validate_every=validate_every,
    )  # fmt: skip
    seconds = None if limit is None else flags.parse_duration("--time", limit)
    hardware = Hardware(devices, nodes, accelerator, logger, seconds)
    with _Shown(as_json) as shown:
        shown.line(_described(chosen, why))
        try:
            done = train(config, output, hardware, resume=resume, progress=shown)
        except KeyboardInterrupt:
            if (output / LAST).is_file():
                shown.line("everything up to the last checkpoint is kept: continue with `resume`")
            raise
    if done.rank:
        return
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    v = done.validation
    scores = f"f_max {v['f_max']:.3f}, MAE {v['mae']:.3f} on {count(int(v['photographs']), 'validation picture')}"
    line(f"{done.path}: weights of iteration {done.best}, {scores}")
    if not done.finished:
        line(f"stopped at iteration {done.iterations:,} of {chosen.iterations:,}; continue with `resume`")
    elif done.iterations < chosen.iterations:
        tries = count(early_stop or 0, "validation")
        line(f"stopped early, at iteration {done.iterations:,} of {chosen.iterations:,}: no improvement in {tries}")


def _described(recipe: Recipe, why: str) -> str:
    work = f"{count(recipe.iterations, 'iteration')} of {count(recipe.batch, 'picture')}"
    what = f"{work} of {recipe.size}×{recipe.size}"
    return f"recipe {recipe.name} ({why}): {what}, {recipe.optimizer}, learning rate {recipe.learning_rate:g}"


def _polarity(what: str, folder: Path | None, option: str, white: flags.White | None) -> flags.White:
    """What white means in the masks of `folder`. It cannot be guessed."""
    if folder is None:
        if white is not None:
            raise UsageError(f"{option} says what is white in the masks of {what}, which is not given")
        return "sharp"
    if white is None:
        raise UsageError(f"{what} needs {option}: what is white in its masks, sharp or blurred?")
    return white


LINES = 100
"""Number of progress lines per training without a terminal."""


class _Shown(Bar):
    """The progress of `train`: a bar on a terminal and periodic lines elsewhere, and one line per validation."""

    def __init__(self, silent: bool) -> None:
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}", markup=False), TimeRemainingColumn(),
        )  # fmt: skip
        first = os.environ.get("LOCAL_RANK", "0") == "0"  # only the first process on a machine shows a bar
        shown = first and err.is_terminal
        super().__init__(*columns, console=err, transient=True, redirect_stdout=False, disable=not shown)
        self._silent = silent or not first
        self._task = self.add_task("starting", total=None, rate="")
        self._loss = float("nan")
        self._since: tuple[int, float] | None = None
        """Iteration and time of the last line, or of the first iteration."""

    def line(self, text: str) -> None:
        if not self._silent:
            line(text, to=err)

    def __call__(self, progress: Progress) -> None:
        from r2mrf_deploy.training.recipe import Iteration

        if isinstance(progress, Notice):
            self.line(progress.description)
            return
        if not isinstance(progress, Iteration):
            self.update(self._task, description=progress.description)
            return
        done, total, loss = progress.done, progress.total or 0, progress.loss
        self._loss = loss if self._loss != self._loss else 0.98 * self._loss + 0.02 * loss
        if (scores := progress.scores) is not None:
            judged = f"f_max {scores.f_max:.3f}, MAE {scores.mae:.3f}, AUC {scores.auc:.3f}"
            self.line(f"{done}/{total}: loss {self._loss:.3f}, {judged}")
            return
        now = time.monotonic()
        if self._since is None:  # the time before it includes the preparation
            self._since = done, now
        elif done - self._since[0] >= max(1, total // LINES):
            rate = (done - self._since[0]) / max(now - self._since[1], 1e-9)
            self._since = done, now
            left = timedelta(seconds=round((total - done) / rate))
            if not err.is_terminal:
                self.line(f"{done}/{total}: loss {self._loss:.3f}, {rate:.2f} it/s, {left} left")
            self.update(self._task, rate=f"{rate:.2f} it/s")
        self.update(self._task, description=f"loss {self._loss:.3f}", completed=done, total=total)
