"""What a training continues from: the run in its folder, which must be the same training, perhaps a longer one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from r2mrf_deploy.errors import CheckpointError, InputError, UsageError, reading
from r2mrf_deploy.files import document, write_atomically
from r2mrf_deploy.torch_file import read_file
from r2mrf_deploy.training.recipe import Recipe

_LATER = {f.name: json.loads(json.dumps(f.default)) for f in dataclasses.fields(Recipe) if f.default is not MISSING}
"""Fields of a recipe that older trainings do not have, with the values that they were trained with."""
CONFIG, LAST, BEST = "training.json", "last.ckpt", "best.pth"


@dataclass(frozen=True)
class Resumed:
    """A checkpoint to resume from."""

    path: Path
    done: int
    """Iterations done."""
    planned: int
    """Iterations of the recipe so far."""


def find(wanted: Mapping[str, Any], output: Path, resume: bool) -> Resumed | None:
    """The checkpoint to resume from, if any. Nothing is written yet, because later checks may fail."""
    last, saved = output / LAST, output / CONFIG
    if not last.is_file():
        return None
    if not resume:
        raise UsageError(f"{output} contains a training: `resume` it, or give another folder")
    try:
        done = read_file(last).get("global_step")
        if not isinstance(done, int):
            raise CheckpointError(f"{last} cannot be resumed (it does not say how many iterations it has)")
    except CheckpointError as e:
        raise CheckpointError(f"{e}; delete {LAST} to begin again") from None
    with reading(saved, InputError, "is damaged", "delete it to go on with the options given now"):
        before = json.loads(document(saved)) if saved.is_file() else wanted
        wanted, before = ({**_LATER, **values, **values["recipe"]} for values in (wanted, before))
        planned = int(before["iterations"])
    for name in sorted(wanted.keys() - {"recipe"}):
        longer = name == "iterations" and wanted[name] > planned
        if wanted[name] != before.get(name) and not longer:
            raise UsageError(
                f"`resume`: {name} was {before.get(name)} and is now {wanted[name]}; "
                "give the same options again, or another folder"
            )
    return Resumed(last, done, planned)


def stretched(module: Any, last: Resumed) -> str:
    """What changes in a resumed training that has more iterations than before."""
    recipe = module.recipe
    before = dataclasses.replace(recipe, iterations=last.planned)
    old, new = (r.rate(min(1.0, (last.done + 1) / r.iterations)) for r in (before, recipe))
    again = ""
    if module.runs_one_step(last.done) and not before.runs_one_step(last.done):
        again = f", and one recurrent step alone is trained again until iteration {recipe.one_step * recipe.iterations:,.0f}"
    return (
        f"going on from iteration {last.done:,} to {recipe.iterations:,}, not {last.planned:,}: the schedule is stretched, "
        f"so the learning rate goes on at {new:.2g} instead of {old:.2g}{again}"
    )


def begin(wanted: Mapping[str, Any], output: Path) -> None:
    """Save the configuration. Without a checkpoint to resume from, delete the best weights of an older training."""
    for unfinished in output.glob(f".{LAST}.*"):  # left by a process that was killed while writing
        unfinished.unlink(missing_ok=True)
    if not (output / LAST).is_file():
        (output / BEST).unlink(missing_ok=True)
    write_atomically(output / CONFIG, (json.dumps(wanted, indent=2) + "\n").encode())
