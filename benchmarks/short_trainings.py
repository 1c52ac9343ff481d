"""Compares short trainings of `r2mrf-lite`: what its refinement gives, and what each part of the recipe gives.

    python benchmarks/short_trainings.py refinement --data CUHK --json benchmarks/results/refinement.json
    python benchmarks/short_trainings.py recipe --data CUHK --sharp PHOTOGRAPHS --json benchmarks/results/recipe.json

All are trained on `cuhk-fit` with the recipe `finetune` and what `SHORT` changes in it: batches are smaller, and crops are
larger and of more reduced photographs, so that they show nearly the whole of one. All are judged on `cuhk-validation` by the
common protocol. For `refinement`, a network starts with the backbone of the shipped weights, at a tenth of the rate, and new
weights in all other layers, and runs all steps from the beginning. That backbone was trained under the shipped refinement,
which may favour it. At the end, all are timed at 320×320 side by side, with initial weights, because time does not depend
on them. For `recipe`, a network starts with ImageNet's backbone.

Rows that are in the file already are not trained again. `--only` names rows by what they change: settings of the network or
of the recipe, `mix`, `seed` or `photographs`, how many are trained on, such as steps=3,width=8 or overlap=0; "" changes
nothing. A row with another seed shows what chance does.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from tables import markdown

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait actively hinder each other; read with torch

import torch

from r2mrf_deploy import datasets, environment, protocols, weights
from r2mrf_deploy.bench.protocol import Protocol, bench_artifacts
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.evaluation import evaluate, opened
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.options import ExportOptions
from r2mrf_deploy.files import sha256
from r2mrf_deploy.graph import cost, files
from r2mrf_deploy.runtimes import OpenOptions
from r2mrf_deploy.training.recipe import FINETUNE, Recipe
from r2mrf_deploy.training.run import Hardware, TrainingConfig, train

PRESET = "r2mrf-lite"
FIT, VALIDATION = Path("cuhk-fit"), Path("cuhk-validation")
SHORT: dict[str, Any] = {"batch": 4, "size": 224, "scales": (0.3, 0.6), "average": 0.98}
OF_TRAINING = ("mix", "seed", "photographs")
ROWS = {
    "refinement": (
        "steps=1,width=4,amdf_channels=16,initial_channels=8",
        "steps=1,width=8,amdf_channels=32,initial_channels=16",
        "steps=1,width=8,amdf_channels=32,initial_channels=16,seed=1",
        "steps=1,width=8,amdf_channels=64,initial_channels=16",
        "steps=1,width=16,amdf_channels=32,initial_channels=16",
        "steps=1,width=16,amdf_channels=64,initial_channels=32",
        "steps=1,width=32,amdf_channels=128,initial_channels=64",
        "steps=2,width=8,amdf_channels=32,initial_channels=16",
        "steps=3,width=8,amdf_channels=32,initial_channels=16",
    ),
    "recipe": (
        "",
        "seed=1",
        "mix=0.25",
        "size=160,batch=8,scales=0.35:0.9",
        "augmented=false",
        "rotation=0,aspect=1:1",
        "overlap=0",
        "average=0",
        "backbone_rate=0.1",
        "overlap=4,augmented=false",
        "overlap=4,augmented=false,seed=1",
        "overlap=4,augmented=false,iterations=800",
        "photographs=136",
        "photographs=272",
        "backbone=efficientnet_lite2",
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=list(ROWS))
    parser.add_argument("--data", type=Path, required=True, help="CUHK: image/ and gt/")
    parser.add_argument("--sharp", type=Path, help="sharp photographs for the composites of rows with `mix`")
    parser.add_argument("--only", nargs="+", metavar="K=V,K=V", help="rows, by what they change")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--threads", type=int, default=2, help="of the timing")
    parser.add_argument("--runs", type=Path, default=Path("out/short-trainings"), help="folder of the trainings")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.what == "recipe" and not given.sharp:
        parser.error("recipe needs --sharp")
    facts: dict[str, Any] = {"iterations": given.iterations}
    if given.what == "refinement":
        facts["weights_sha256"] = sha256(weights.checkpoint(PRESET))
    known = json.loads(given.json.read_text()) if given.json and given.json.exists() else facts | {"rows": []}
    if differing := [name for name, value in facts.items() if known[name] != value]:
        parser.error(f"{given.json} holds rows of other {' and '.join(differing)}: give another file")
    rows = {row["changes"]: row for row in known["rows"]}
    for changes in given.only or ROWS[given.what]:
        if changes not in rows:
            rows[changes] = {"changes": changes} | _trained(changes, given)
            print(json.dumps(rows[changes]), flush=True)
            _write(given.json, facts, rows)
    if given.what == "refinement":
        facts |= _time(rows, given.threads)
        _write(given.json, facts, rows)


def _trained(changes: str, given: argparse.Namespace) -> dict[str, Any]:
    """Train one network, and score it by the common protocol."""
    training, of_recipe, settings = _parted(changes)
    mix, seed = float(training.get("mix", 0)), int(training.get("seed", 0))
    split = _some(int(training["photographs"]), given.runs) if "photographs" in training else FIT
    short = SHORT | {"iterations": given.iterations}
    if given.what == "refinement":
        short |= {"backbone_rate": 0.1, "one_step": 0.0}
    recipe = replace(FINETUNE, **short | {name: _value(text) for name, text in of_recipe.items()})
    config = TrainingConfig(
        PRESET, recipe, settings=settings, seed=seed,
        data=given.data, white="blurred", dataset="cuhk", split=split, sharp=given.sharp if mix else None, mix=mix or None,
        val=given.data, val_white="blurred", val_split=VALIDATION, validate_every=recipe.iterations,
        backbone="imagenet" if given.what == "recipe" else str(_backbone(given.runs)),
    )  # fmt: skip
    path = train(config, _folder(given, changes), Hardware(accelerator="cpu"), resume=True).path
    common = protocols.get("common")
    with opened([path], size=common.size) as methods:
        photographs = datasets.read_dataset(given.data, white="blurred", split=VALIDATION)
        (row,) = evaluate(methods, photographs, positive=common.positive)
    return {"f": common.f_of(row.scores), "mae": row.scores.mae, "auc": row.scores.auc}


def _parted(changes: str) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """What is changed of the training, of the recipe and of the network."""
    given = dict(pair.split("=") for pair in changes.split(",") if pair)
    training = {name: given.pop(name) for name in OF_TRAINING if name in given}
    recipe = {field.name: given.pop(field.name) for field in fields(Recipe) if field.name in given}
    return training, recipe, given


def _some(count: int, folder: Path) -> Path:
    """A split of this many of the photographs, evenly spread over their names."""
    names = datasets.read_split(FIT)
    path = folder / f"{FIT}-{count}.txt"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{names[n * len(names) // count]}\n" for n in range(count)))
    return path


def _value(text: str) -> Any:
    """A value of a recipe: a number, true or false, or a pair of numbers, as in 0.35:0.9."""
    parts = [json.loads(part) for part in text.split(":")]
    return tuple(parts) if len(parts) > 1 else parts[0]


def _folder(given: argparse.Namespace, changes: str) -> Path:
    return given.runs / f"{given.what}-{given.iterations}" / (changes.replace(":", "-") or "unchanged")


def _backbone(folder: Path) -> Path:
    """The shipped backbone, as `--backbone-weights` reads it."""
    shipped = weights.checkpoint(PRESET)
    path = folder / f"backbone-{sha256(shipped)[:8]}.pth"
    if not path.exists():
        state = Checkpoint.load(shipped).state_dict
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({k.removeprefix("backbone.body."): v for k, v in state.items() if k.startswith("backbone.")}, path)
    return path


def _time(rows: dict[str, dict[str, Any]], threads: int) -> dict[str, Any]:
    """Add multiply-adds and the median latency to every row, all timed side by side. Returns how they were timed."""
    with tempfile.TemporaryDirectory() as name:
        graphs = {}
        for number, changes in enumerate(rows):
            graphs[changes] = Path(name) / f"{number}.onnx"
            initial = Checkpoint.init(PRESET, _parted(changes)[2]).save(graphs[changes].with_suffix(".pth"))
            export_artifact(initial, graphs[changes], ExportOptions((320, 320)))
        runtimes, options = ("onnxruntime", "openvino"), OpenOptions(threads)
        found = bench_artifacts(list(graphs.values()), runtimes, Protocol(duration=10), options=options)
        for changes, graph in graphs.items():
            own = [m for m in found.measurements if m.name == graph.name]
            rows[changes] |= {
                "multiply_adds": cost.multiply_adds(files.read(graph)),
                "ms": {m.runtime: round(m.latency.median, 1) for m in own},
            }
        machine = environment.describe() | {"threads": threads}
        return {"machine": machine, "tools": environment.tool_versions(), "not_timed": found.skipped}


def _write(path: Path | None, facts: dict[str, Any], rows: dict[str, dict[str, Any]]) -> None:
    if path:
        path.write_text(json.dumps(facts | {"rows": list(rows.values())}, indent=2) + "\n")


CHANGED = {
    "": "nothing",
    "seed=1": "another seed",
    "size=160,batch=8,scales=0.35:0.9": "crops of 160 of less reduced photographs, batch 8",
    "mix=0.25": "a quarter of the batch are composites",
    "augmented=false": "photographs as they are",
    "rotation=0,aspect=1:1": "photographs neither turned nor squeezed",
    "overlap=0": "no overlap in the loss",
    "average=0": "the last weights instead of their average",
    "backbone_rate=0.1": "the backbone at a tenth of the rate",
    "overlap=4,augmented=false": "four times the overlap, photographs as they are",
    "overlap=4,augmented=false,seed=1": "the same, another seed",
    "overlap=4,augmented=false,iterations=800": "the first seed, and twice the iterations",
    "photographs=136": "a quarter of the photographs",
    "photographs=272": "half of them",
    "backbone=efficientnet_lite2": "a larger backbone",
}
"""The rows of `recipe`, in words and in the order of the table."""


def recipe_table(found: dict[str, Any]) -> str:
    rows = {row["changes"]: row for row in found["rows"]}
    titles = {changes: f"{words} (`{changes}`)" if changes else words for changes, words in CHANGED.items()}
    return markdown(["changed", "F", "MAE", "AUC"], ([titles[c], *_scores(rows[c])] for c in CHANGED if c in rows))


def refinement_table(found: dict[str, Any]) -> str:
    rows = []
    for row in found["rows"]:
        changes = dict(each.split("=") for each in row["changes"].split(","))
        steps = changes["steps"] + (", another seed" if "seed" in changes else "")
        widths = [changes[name] for name in ("width", "amdf_channels", "initial_channels")]
        ms = [f"{row['ms'][runtime]:.0f} ms" for runtime in ("onnxruntime", "openvino")]
        rows.append([steps, *widths, f"{row['multiply_adds'] / 1e9:.1f} G", *ms, *_scores(row)])
    head = ["T", "width", "AMDF", "initial", "multiply-adds", "ONNX Runtime", "OpenVINO", "F", "MAE", "AUC"]
    return markdown(head, rows)


def _scores(row: dict[str, Any]) -> list[str]:
    return [f"{row[name]:.3f}" for name in ("f", "mae", "auc")]


if __name__ == "__main__":
    main()
