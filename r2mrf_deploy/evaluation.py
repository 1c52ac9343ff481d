"""How good maps are on photographs with masks: the papers' figures, curves and ablation tables.

Everything that gives a map is a `Method`: an artifact on any runtime, a checkpoint, each of its recurrent steps, each of its
side outputs, a baseline that needs no training. All see the same photographs, as `r2mrf predict` would show them.
"""

from __future__ import annotations

import csv
import io
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from r2mrf_deploy import images
from r2mrf_deploy.datasets import Dataset
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.manifest import write_atomically
from r2mrf_deploy.metrics import LEVELS, Curves, Judged, Scores, average, judge
from r2mrf_deploy.predict import Predictor
from r2mrf_deploy.runtimes import OpenOptions

Maps = Callable[[np.ndarray], dict[str, np.ndarray]]
Positive = Literal["sharp", "blurred"]

WORST = 6
"""Photographs on a contact sheet."""


@dataclass(frozen=True)
class Method:
    """What gives one or more maps of a photograph.

    `maps` takes uint8 [H, W, 3] and gives, by title, float32 [H, W] in [0, 1], 1 = in focus.
    """

    maps: Maps
    runtime: str


@dataclass(frozen=True)
class Evaluation:
    """One row of the table."""

    name: str
    method: int
    """Which of the methods it is of."""
    runtime: str
    scores: Scores
    curves: Curves
    photographs: dict[str, Judged]
    """By the photograph's name."""

    def worst(self, count: int = WORST) -> list[str]:
        """The photographs of the largest mean absolute error, the worst first."""
        return sorted(self.photographs, key=lambda name: -self.photographs[name].mae)[:count]

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "runtime": self.runtime, **self.scores.to_dict()}


def evaluate(
    methods: Sequence[Method],
    dataset: Dataset,
    *,
    positive: Positive = "sharp",
    progress: Callable[[int, int], None] | None = None,
) -> list[Evaluation]:
    """Score every map of every method.

    Args:
        methods: at least one.
        dataset: photographs and masks.
        positive: the class that precision and recall are of; MAE does not depend on it.
        progress: called with (photographs done, photographs).

    Raises:
        UsageError: there is no method.
        InputError: a photograph or a mask cannot be read, or their sizes differ.
    """
    if not methods:
        raise UsageError("nothing to evaluate: give an artifact, a checkpoint or a --baseline")
    rows: dict[tuple[int, str], dict[str, Judged]] = {}
    for number, pair in enumerate(dataset.pairs):
        image, truth = dataset.image(number), dataset.truth(number)
        for index, method in enumerate(methods):
            for title, found in method.maps(image).items():
                judged = judge(found, truth) if positive == "sharp" else judge(1 - found, ~truth)
                rows.setdefault((index, title), {})[pair.name] = judged
        if progress is not None:
            progress(number + 1, len(dataset))
    return [
        Evaluation(title, index, methods[index].runtime, *average(list(judged.values())), judged)
        for (index, title), judged in rows.items()
    ]


@contextmanager
def opened(
    sources: Sequence[Path],
    *,
    runtime: str | None = None,
    baselines: Sequence[str] = (),
    steps: bool = False,
    branches: bool = False,
    trust: bool = False,
    network: str | None = None,
    settings: Mapping[str, str] | None = None,
) -> Iterator[list[Method]]:
    """Open artifacts, checkpoints and baselines as methods, and close them in the end.

    Args:
        sources: artifacts and checkpoints.
        runtime: for all of them. A checkpoint that PyTorch is not to run is exported to ONNX, at 320×320, for the time
            being.
        baselines: names, see `r2mrf_deploy.baselines`.
        steps: of checkpoints, instead of the map, that after each recurrent step 1 .. T.
        branches: instead of the map, each side output of the last step; from a checkpoint, or an artifact exported with
            `--all-steps`.
        trust: see `runtimes.open`.
        network, settings: of the checkpoints among the sources, as for `Checkpoint.load`.
    """
    chosen = OpenOptions(network=network, settings=tuple((settings or {}).items()))
    if chosen != OpenOptions() and not any(map(_is_checkpoint, sources)):
        raise UsageError("--network and --set are for checkpoints, and there is none: leave them out")
    with ExitStack() as stack:
        methods = []
        for source in sources:
            name = source.name if len({s.name for s in sources}) == len(sources) else str(source)
            if steps or branches:
                methods += _ablations(stack, source, name, runtime, steps, branches, trust, chosen)
            else:
                predictor = stack.enter_context(_predictor(stack, source, runtime, trust, chosen))
                methods.append(Method(_alone(name, predictor), predictor.runner.runtime))
        if baselines:
            from r2mrf_deploy import baselines as registry

            methods += [Method(_alone(name, registry.get(name)), "no training") for name in baselines]
        yield methods


def _alone(title: str, call: Callable[[np.ndarray], np.ndarray]) -> Maps:
    return lambda image: {title: call(image)}


def _is_checkpoint(source: Path) -> bool:
    return source.suffix in (".pth", ".pt")


def _predictor(stack: ExitStack, source: Path, runtime: str | None, trust: bool, chosen: OpenOptions) -> Predictor:
    if not _is_checkpoint(source):
        return Predictor.open(source, runtime, trust=trust)
    if runtime in ("onnxruntime", "openvino"):
        from r2mrf_deploy.export import to_onnx

        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        exported = to_onnx(
            source, folder / f"{source.stem}.onnx", network=chosen.network, settings=dict(chosen.settings)
        )
        return Predictor.open(exported.path, runtime, trust=trust)
    return Predictor.open(source, runtime, trust=trust, options=chosen)


def _ablations(
    stack: ExitStack,
    source: Path,
    name: str,
    runtime: str | None,
    steps: bool,
    branches: bool,
    trust: bool,
    chosen: OpenOptions,
) -> list[Method]:
    if not _is_checkpoint(source):
        if steps:
            raise UsageError(f"{source}: an artifact has its number of steps; --steps needs the checkpoint")
        predictor = stack.enter_context(Predictor.open(source, runtime, trust=trust))
        if not {o.name for o in predictor.runner.outputs} - {"map", "logits"}:
            raise UsageError(f"{source} gives no side outputs: export it with --all-steps, or give the checkpoint")
        return [Method(_sides(name, predictor), predictor.runner.runtime)]
    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.runtimes.pytorch import PyTorchRunner

    if runtime not in (None, "pytorch"):
        raise UsageError(f"--steps and --branches of a checkpoint are run by PyTorch, not by {runtime}")
    checkpoint = Checkpoint.load(source, network=chosen.network, settings=dict(chosen.settings))
    total = getattr(checkpoint.config, "steps", None)
    made = []
    if steps:
        if total is None:
            raise UsageError(f"{source}: {checkpoint.network} has no recurrent steps")
        for t in range(1, total + 1):
            runner = stack.enter_context(PyTorchRunner(checkpoint, steps=t))
            made.append(Method(_alone(f"{name} T = {t}", Predictor(runner, checkpoint.preprocess)), "pytorch"))
    if branches:
        runner = stack.enter_context(PyTorchRunner(checkpoint, all_steps=True))
        made.append(Method(_sides(name, Predictor(runner, checkpoint.preprocess)), "pytorch"))
    return made


def _sides(name: str, predictor: Predictor) -> Maps:
    names = [o.name for o in predictor.runner.outputs]
    last = max((int(m[1]) for n in names if (m := re.match(r"step(\d+)_", n))), default=None)

    def maps(image: np.ndarray) -> dict[str, np.ndarray]:
        found = predictor.sides(image)
        return {f"{name} {side}": m for side, m in found.items() if last is None or side.startswith(f"step{last}_")}

    return maps


def write(
    rows: Sequence[Evaluation], facts: dict[str, Any], methods: Sequence[Method], dataset: Dataset, folder: Path
) -> list[Path]:
    """Write the numbers and the pictures.

    `scores.json` (everything), `scores.csv` (the table), `photographs.csv`, `curves.csv`, `curves.png`, and for each row
    its worst photographs, `worst-NAME.png`.

    Raises:
        RuntimeUnavailable: matplotlib is not installed; the numbers have been written.
    """
    from r2mrf_deploy import plots

    numbers = _write_numbers(rows, facts, folder)
    curves = plots.evaluation(rows, folder / "curves.png")
    sheets = [contact_sheet(row, methods, dataset, folder / f"worst-{_as_file_name(row)}.png") for row in rows]
    return [*numbers, curves, *sheets]


def _as_file_name(row: Evaluation) -> str:
    return re.sub(r"[^\w.]+", "-", f"{row.name} {row.runtime}")


def _write_numbers(rows: Sequence[Evaluation], facts: dict[str, Any], folder: Path) -> list[Path]:
    document = facts | {
        "rows": [
            row.to_dict()
            | {
                "precision": row.curves.precision.tolist(),
                "recall": row.curves.recall.tolist(),
                "false_positive_rate": row.curves.false_positive_rate.tolist(),
            }
            for row in rows
        ]
    }
    figures = ("f_max", "f_adaptive", "f_half", "mae")
    photographs = [
        [row.name, row.runtime, name, *(f"{getattr(judged, figure):.6f}" for figure in figures)]
        for row in rows
        for name, judged in row.photographs.items()
    ]
    curves = [
        [row.name, row.runtime, level, *(f"{v:.6f}" for v in (precision, recall, f, false_positive))]
        for row in rows
        for level, precision, recall, f, false_positive in zip(
            range(LEVELS),
            row.curves.precision,
            row.curves.recall,
            row.curves.f,
            row.curves.false_positive_rate,
            strict=True,
        )
    ]
    scores = [list(row.to_dict().values()) for row in rows]
    return [
        write_atomically(folder / "scores.json", (json.dumps(document, indent=1) + "\n").encode()),
        write_atomically(folder / "scores.csv", _csv(list(rows[0].to_dict()), scores)),
        write_atomically(folder / "photographs.csv", _csv(["name", "runtime", "photograph", *figures], photographs)),
        write_atomically(
            folder / "curves.csv",
            _csv(["name", "runtime", "threshold_255", "precision", "recall", "f", "false_positive_rate"], curves),
        ),
    ]


def contact_sheet(
    row: Evaluation, methods: Sequence[Method], dataset: Dataset, path: Path, *, height: int = 200
) -> Path:
    """The worst photographs of a row, the worst first: photograph, mask, map and how far off it is, side by side.

    Raises:
        InputError: a photograph or a mask cannot be read any more.
    """
    strips = []
    numbers = {pair.name: number for number, pair in enumerate(dataset.pairs)}
    for name in row.worst():
        number = numbers[name]
        image, truth = dataset.image(number), dataset.truth(number).astype(np.float32)
        found = methods[row.method].maps(image)[row.name]
        size = (height, max(1, round(image.shape[1] * height / image.shape[0])))
        greys = [np.repeat(_grey(part, size)[:, :, None], 3, 2) for part in (truth, found, np.abs(found - truth))]
        judged = f"{name}: MAE {row.photographs[name].mae:.3f}, F {row.photographs[name].f_half:.3f}"
        caption = _caption(f"{judged}   (photograph, mask, map, difference)", 4 * size[1] + 3 * _GAP)
        tiles = [images.resize(image, size), *greys]
        strips.append(np.vstack([caption, _join(tiles)]))
    width = max(strip.shape[1] for strip in strips)
    whole = np.vstack([np.pad(s, ((0, _GAP), (0, width - s.shape[1]), (0, 0)), constant_values=255) for s in strips])
    return write_atomically(path, images.png(whole))


_GAP = 6


def _grey(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return np.rint(255 * np.clip(images.resize(values, size), 0, 1)).astype(np.uint8)


def _join(tiles: Sequence[np.ndarray]) -> np.ndarray:
    gap = np.full((tiles[0].shape[0], _GAP, 3), 255, np.uint8)
    return np.hstack([part for tile in tiles for part in (gap, tile)][1:])


def _caption(text: str, width: int) -> np.ndarray:
    from PIL import Image, ImageDraw, ImageFont

    picture = Image.new("RGB", (width, 22), "white")
    ImageDraw.Draw(picture).text((2, 3), text, fill="black", font=ImageFont.load_default(14))
    return np.asarray(picture)


def _csv(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue().encode()
