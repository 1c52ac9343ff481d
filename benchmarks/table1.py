"""Measures Table 1 of the R²MRF paper on photographs other than the paper's test set, and times its baselines.

    python benchmarks/table1.py --data CUHK --json results/table1.json
    python benchmarks/table1.py --data CUHK r2mrf-lite x.pth

By default the photographs are those of CUHK's split `cuhk-validation`, on which nothing of the baselines was chosen. FILES
are checkpoints and artifacts for the rows of the networks. Each row has what `r2mrf eval --table1` prints (F is f_adaptive,
and what is in focus is positive), the other figures, and F with what is blurred as the positive class, since the paper does
not say which it took. `seconds` are those of a CPU core for a baseline, and of the clock for a network.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from r2mrf_deploy import environment, evaluation, protocols
from r2mrf_deploy.baselines import BASELINES
from r2mrf_deploy.checkpoint_files import is_checkpoint
from r2mrf_deploy.datasets import KNOWN, Dataset, read_dataset
from r2mrf_deploy.metrics import average, judge

WITHIN = 0.05
"""A difference in F below which the table counts as reproduced."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="checkpoints and artifacts")
    parser.add_argument("--data", type=Path, required=True, help="folder with image/ and gt/")
    parser.add_argument("--dataset", default="cuhk", choices=KNOWN)
    parser.add_argument("--split", default="cuhk-validation")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    data = read_dataset(given.data, white=KNOWN[given.dataset].white, split=given.split, dataset=given.dataset)
    results = measured(data, given.files) | {
        "dataset": given.dataset,
        "split": given.split,
        "photographs": len(data),
        "command": " ".join(["python benchmarks/table1.py", *_shown(sys.argv[1:])]),
        "machine": environment.describe(),
        "tools": environment.tool_versions("numpy", "scipy", "scikit-image"),
    }
    print(json.dumps(results, indent=2, ensure_ascii=False))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def measured(data: Dataset, files: Sequence[Path]) -> dict[str, Any]:
    """A row for each method of the table that can be computed, beside what the paper prints."""
    own = [name for name in protocols.TABLE1.values() if name in BASELINES]
    names = [*evaluation.families(files), *own]
    judged: dict[str, list[list[Any]]] = {name: [[], []] for name in names}
    seconds = dict.fromkeys(names, 0.0)
    with evaluation.opened(files, baselines=own) as methods:
        for number in range(len(data)):
            image, truth = data.image(number), data.truth(number)
            for name, method in zip(names, methods, strict=True):
                started = time.process_time() if name in own else time.perf_counter()
                (found,) = method.maps(image).values()
                seconds[name] += (time.process_time() if name in own else time.perf_counter()) - started
                judged[name][0].append(judge(found, truth, "sharp"))
                judged[name][1].append(judge(found, truth, "blurred"))
            print(f"{number + 1} of {len(data)}", file=sys.stderr)
    rows = []
    for printed in protocols.table1(data.published):
        name = protocols.TABLE1[printed.method]
        row: dict[str, Any] = {"method": printed.method, "computed_by": name}
        row["printed"] = {"f": printed.f, "mae": printed.mae}
        if name in judged:
            (sharp, _), (blurred, _) = (average(some) for some in judged[name])
            figures = {k: round(float(v), 4) for k, v in sharp.to_dict().items() if k != "photographs"}
            row |= {"f": figures["f_adaptive"], **figures}
            row["within"] = bool(abs(sharp.f_adaptive - printed.f) <= WITHIN)
            row["blurred_positive"] = {k: round(getattr(blurred, k), 4) for k in ("f_max", "f_adaptive", "f_half")}
            row["seconds"] = round(seconds[name] / len(data), 3)
        rows.append(row)
    return {"rows": rows, "all_in_focus": _constant(data, 1.0), "all_blurred": _constant(data, 0.0)}


def _constant(data: Dataset, value: float) -> dict[str, float]:
    """F of the class that a map without any content calls everything, and its MAE: what a figure means nothing below."""
    positive = "sharp" if value else "blurred"
    truths = (data.truth(number) for number in range(len(data)))
    scores, _ = average([judge(np.full(t.shape, value), t, positive) for t in truths])
    return {"f": round(scores.f_half, 4), "mae": round(scores.mae, 4)}


def _shown(arguments: Sequence[str]) -> list[str]:
    """The command line without this machine's folders."""
    shown = list(arguments)
    for index, argument in enumerate(shown):
        if index and shown[index - 1] == "--data":
            shown[index] = "CUHK"
        elif index and shown[index - 1] == "--json":
            shown[index] = f"results/{Path(argument).name}"
        elif is_checkpoint(Path(argument)):
            shown[index] = Path(argument).name
    return shown


if __name__ == "__main__":
    main()
