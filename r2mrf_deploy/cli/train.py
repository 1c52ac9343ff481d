"""The command that trains."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from r2mrf_deploy.cli.common import Json, Set, White, app, err, out, parse_duration, parse_settings, phases, print_json
from r2mrf_deploy.errors import UsageError

if TYPE_CHECKING:
    from r2mrf_deploy.metrics import Scores
    from r2mrf_deploy.training.recipe import Recipe


@app.command()
def train(
    preset: Annotated[str, typer.Argument(help="A preset: r2mrf, r2mrf-r50, r2mrf-edge, ...")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the run.")],
    data: Annotated[Path | None, typer.Option("--data", help="Photographs with their masks.")] = None,
    white: Annotated[White | None, typer.Option("--white", help="What is white in the masks of --data.")] = None,
    split: Annotated[Path | None, typer.Option("--split", help="File with the names to train on.")] = None,
    sharp: Annotated[Path | None, typer.Option("--sharp", help="Sharp photographs, to make composites of.")] = None,
    masks: Annotated[Path | None, typer.Option("--masks", help="Drawn masks for the composites.")] = None,
    masks_white: Annotated[White | None, typer.Option("--masks-white", help="What is white in --masks.")] = None,
    val: Annotated[Path | None, typer.Option("--val", help="Photographs with masks to validate on.")] = None,
    val_white: Annotated[White | None, typer.Option("--val-white", help="What is white in the masks of --val.")] = None,
    recipe: Annotated[
        Literal["paper", "scratch"] | None,
        typer.Option("--recipe", help="By default the paper's where the backbone is trained already."),
    ] = None,
    iterations: Annotated[int | None, typer.Option("--iterations", min=1)] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Pictures at once, over all devices.")] = None,
    size: Annotated[int | None, typer.Option("--size", min=32, help="Side of the pictures, in pixels.")] = None,
    learning_rate: Annotated[float | None, typer.Option("--lr", help="The largest of the schedule.")] = None,
    average: Annotated[
        float | None, typer.Option("--average", help="Decay of the average of the weights; 0 for none.")
    ] = None,
    backbone_weights: Annotated[
        str | None, typer.Option("--backbone-weights", metavar="FILE|imagenet", help="Of a trained backbone.")
    ] = None,
    precision: Annotated[Literal["32", "bf16-mixed", "16-mixed"], typer.Option("--precision")] = "32",
    devices: Annotated[int, typer.Option("--devices", min=1, help="GPUs (or processes) on each machine.")] = 1,
    nodes: Annotated[int, typer.Option("--nodes", min=1, help="Machines.")] = 1,
    accelerator: Annotated[Literal["auto", "cpu", "gpu"], typer.Option("--accelerator")] = "auto",
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    time: Annotated[str | None, typer.Option("--time", metavar="HH:MM:SS", help="Stop then; --resume goes on.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in -o.")] = False,
    early_stop: Annotated[
        int | None, typer.Option("--early-stop", min=1, help="Validations without a better one to stop after.")
    ] = None,
    every: Annotated[int, typer.Option("--every", min=1, help="Iterations that a kill loses at most.")] = 50,
    validate_every: Annotated[int, typer.Option("--validate-every", min=1, help="Iterations.")] = 500,
    logger: Annotated[Literal["csv", "tensorboard"], typer.Option("--logger")] = "csv",
    settings: Set = None,
    as_json: Json = False,
) -> None:
    """Train a network on a dataset or on composites. Composites are made of sharp photographs."""
    # Before PyTorch starts OpenMP. Threads that wait actively for each other cost a multiple of the work on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from r2mrf_deploy.training.run import Machine, Order, train

    changed: dict[str, Any] = {
        "iterations": iterations, "batch": batch, "size": size, "learning_rate": learning_rate, "average": average,
    }  # fmt: skip
    chosen = dataclasses.replace(
        _recipe(recipe, preset, backbone_weights), **{k: v for k, v in changed.items() if v is not None}
    )
    order = Order(
        preset, chosen, parse_settings(settings),
        data, _polarity("--data", data, "--white", white), split,
        sharp, masks, _polarity("--masks", masks, "--masks-white", masks_white),
        val, _polarity("--val", val, "--val-white", val_white),
        backbone_weights, seed, precision, devices * nodes, early_stop, every, validate_every,
    )  # fmt: skip
    machine = Machine(devices, nodes, accelerator, logger, None if time is None else parse_duration("--time", time))
    with phases() as phase, _told(chosen.iterations, phase, as_json) as say:
        done = train(order, output, machine, resume=resume, phase=phase, say=say)
    if done.rank:
        return
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    v = done.validation
    scores = f"f_max {v['f_max']:.3f}, MAE {v['mae']:.3f} on {v['photographs']:.0f} pictures held out"
    out.print(f"{done.path}: weights of iteration {done.best}, {scores}", highlight=False, soft_wrap=True)
    if not done.finished:
        out.print(
            f"stopped at iteration {done.iterations} of {chosen.iterations}; go on with --resume", highlight=False
        )


def _recipe(name: str | None, preset: str, backbone: str | None) -> Recipe:
    from r2mrf_deploy.training.recipe import named

    return named(name or ("paper" if backbone and not preset.endswith("-edge") else "scratch"))


def _polarity(what: str, folder: Path | None, option: str, white: White | None) -> White:
    """What white means, which nobody can guess from a mask."""
    if folder is None:
        if white is not None:
            raise UsageError(f"{option} says what is white in the masks of {what}, which is not given")
        return "sharp"
    if white is None:
        raise UsageError(f"{what} needs {option}: what is white in its masks, sharp or blurred?")
    return white


@contextmanager
def _told(total: int, phase: Callable[[str], None], silent: bool) -> Iterator[Callable[[int, float, Any], None]]:
    """How a training is shown: a line that changes on a terminal, and one line for each validation anywhere."""
    mean = float("nan")

    def say(done: int, loss: float, scores: Scores | None) -> None:
        nonlocal mean
        mean = loss if mean != mean else 0.98 * mean + 0.02 * loss
        phase(f"iteration {done} of {total}, loss {mean:.3f}")
        if scores is not None and not silent:
            said = f"loss {mean:.3f}, f_max {scores.f_max:.3f}, MAE {scores.mae:.3f}, AUC {scores.auc:.3f}"
            err.print(f"{done}/{total}: {said}", highlight=False, soft_wrap=True)

    yield say
