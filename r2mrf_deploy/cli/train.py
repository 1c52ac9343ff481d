"""The command that trains."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from r2mrf_deploy.cli.common import Json, Set, White, app, err, line, out, parse_duration, parse_settings, print_json
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.progress import Progress

if TYPE_CHECKING:
    from r2mrf_deploy.training.recipe import Recipe


@app.command()
def train(
    preset: Annotated[str, typer.Argument(help="A preset: r2mrf, r2mrf-r50, r2mrf-edge, ...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")],
    data: Annotated[Path | None, typer.Option("--data", help="Folder of photographs and masks.")] = None,
    white: Annotated[White | None, typer.Option("--white", help="What is white in the masks of --data.")] = None,
    dataset: Annotated[
        str | None, typer.Option("--dataset", help="The data set it is: cuhk, cuhk-320, dut, ctcug.")
    ] = None,
    split: Annotated[
        Path | None, typer.Option("--split", help="File with the names to train on, one per line.")
    ] = None,
    image_folder: Annotated[str | None, typer.Option("--images", help="Folder of the photographs in --data.")] = None,
    sharp: Annotated[
        Path | None, typer.Option("--sharp", help="Folder of sharp photographs to make composites from.")
    ] = None,
    mask_folder: Annotated[
        Path | None,
        typer.Option("--masks", help="Folder of the masks in --data; with --sharp, drawn masks for the composites."),
    ] = None,
    masks_white: Annotated[White | None, typer.Option("--masks-white", help="What is white in drawn masks.")] = None,
    val: Annotated[Path | None, typer.Option("--val", help="Folder of photographs and masks to validate on.")] = None,
    val_white: Annotated[White | None, typer.Option("--val-white", help="What is white in the masks of --val.")] = None,
    val_split: Annotated[
        Path | None, typer.Option("--val-split", help="File with the names to use of --val, one per line.")
    ] = None,
    recipe: Annotated[
        Literal["paper", "scratch"] | None,
        typer.Option("--recipe", help="The recipe; by default the paper's where the backbone is pretrained."),
    ] = None,
    iterations: Annotated[int | None, typer.Option("--iterations", min=1)] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Batch size over all devices.")] = None,
    size: Annotated[int | None, typer.Option("--size", min=32, help="Side of the training images in pixels.")] = None,
    learning_rate: Annotated[
        float | None, typer.Option("--lr", help="The largest learning rate of the schedule.")
    ] = None,
    average: Annotated[
        float | None, typer.Option("--average", help="Decay of the weights' moving average (EMA); 0 turns it off.")
    ] = None,
    backbone: Annotated[
        str | None,
        typer.Option("--backbone-weights", metavar="FILE|imagenet", help="Weights of a pretrained backbone."),
    ] = None,
    precision: Annotated[Literal["32", "bf16-mixed", "16-mixed"], typer.Option("--precision")] = "32",
    devices: Annotated[int, typer.Option("--devices", min=1, help="GPUs (or processes) on each machine.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Number of machines.")] = 1,
    accelerator: Annotated[Literal["auto", "cpu", "gpu"], typer.Option("--accelerator")] = "auto",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    limit: Annotated[
        str | None, typer.Option("--time", metavar="HH:MM:SS", help="Stop after this time; --resume continues.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Resume the run in -o.")] = False,
    early_stop: Annotated[
        int | None, typer.Option("--early-stop", min=1, help="Stop after so many validations without improvement.")
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Iterations between checkpoints.")] = 50,
    validate_every: Annotated[
        int,
        typer.Option(
            "--validate-every",
            min=1,
            help="Iterations, from when all recurrent steps are trained: scratch runs one step alone for the first 70 %, "
            "and until then nothing has trained the step that gives the map.",
        ),
    ] = 500,
    logger: Annotated[Literal["csv", "tensorboard"], typer.Option("--logger")] = "csv",
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Train a network on a dataset or on composites."""
    # This must happen before PyTorch starts OpenMP. On a busy machine, spinning threads cost several times the work itself.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from r2mrf_deploy.datasets import polarity
    from r2mrf_deploy.training.recipe import choose
    from r2mrf_deploy.training.run import Hardware, TrainingConfig, train

    changed: dict[str, Any] = {
        "iterations": iterations, "batch": batch, "size": size, "learning_rate": learning_rate, "average": average,
    }  # fmt: skip
    of_paper, why = choose(preset, recipe, backbone=backbone is not None)
    chosen = dataclasses.replace(of_paper, **{k: v for k, v in changed.items() if v is not None})
    drawn = mask_folder if data is None else None
    config = TrainingConfig(
        preset, chosen, parse_settings(settings), data=data, split=split, dataset=dataset, image_folder=image_folder,
        white=_polarity("--data", data, "--white", white) if dataset is None else polarity(dataset, white),
        mask_folder=None if data is None or mask_folder is None else str(mask_folder),
        sharp=sharp, masks=drawn, masks_white=_polarity("--masks", drawn, "--masks-white", masks_white),
        val=val, val_white=_polarity("--val", val, "--val-white", val_white), val_split=val_split,
        backbone=backbone, seed=seed, precision=precision, processes=devices * nodes, patience=early_stop,
        every=every, validate_every=validate_every,
    )  # fmt: skip
    hardware = Hardware(devices, nodes, accelerator, logger, None if limit is None else parse_duration("--time", limit))
    with _shown(as_json) as shown:
        shown.line(_described(chosen, why))
        done = train(config, output, hardware, resume=resume, progress=shown)
    if done.rank:
        return
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    v = done.validation
    scores = f"f_max {v['f_max']:.3f}, MAE {v['mae']:.3f} on {v['photographs']:.0f} validation pictures"
    line(f"{done.path}: weights of iteration {done.best}, {scores}")
    if not done.finished:
        out.print(
            f"stopped at iteration {done.iterations} of {chosen.iterations}; continue with --resume", highlight=False
        )


def _described(recipe: Recipe, why: str) -> str:
    what = f"{recipe.iterations:,} iterations of {recipe.batch} pictures of {recipe.size}×{recipe.size}"
    return f"recipe {recipe.name} ({why}): {what}, {recipe.optimizer}, learning rate {recipe.learning_rate:g}"


def _polarity(what: str, folder: Path | None, option: str, white: White | None) -> White:
    """What white means in masks; it cannot be guessed."""
    if folder is None:
        if white is not None:
            raise UsageError(f"{option} says what is white in the masks of {what}, which is not given")
        return "sharp"
    if white is None:
        raise UsageError(f"{what} needs {option}: what is white in its masks, sharp or blurred?")
    return white


LINES = 100
"""Number of progress lines per training without a terminal."""


@contextmanager
def _shown(silent: bool) -> Iterator[_Shown]:
    """Show a bar on a terminal and periodic lines elsewhere, and one line per validation."""
    columns = (
        TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
    )  # fmt: skip
    first = os.environ.get("LOCAL_RANK", "0") == "0"  # only the first process on a machine shows a bar
    with Bar(*columns, console=err, transient=True, disable=not (first and err.is_terminal)) as bar:
        yield _Shown(silent, bar)


class _Shown:
    """The progress of `train` as lines and as a bar."""

    def __init__(self, silent: bool, bar: Bar) -> None:
        self._silent, self._bar = silent, bar
        self._task = bar.add_task("starting", total=None, rate="")
        self._loss = float("nan")
        self._since: tuple[int, float] | None = None
        """Iteration and time of the last line, or of the first iteration."""

    def line(self, text: str) -> None:
        if not self._silent:
            line(text, err)

    def __call__(self, progress: Progress) -> None:
        from r2mrf_deploy.training.recipe import Iteration

        if not isinstance(progress, Iteration):
            self._bar.update(self._task, description=progress.description)
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
            self._bar.update(self._task, rate=f"{rate:.2f} it/s")
        self._bar.update(self._task, description=f"loss {self._loss:.3f}", completed=done, total=total)
