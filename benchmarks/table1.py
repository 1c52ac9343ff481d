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
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, nullcontext
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import tables

from r2mrf_deploy import environment, evaluation, protocols
from r2mrf_deploy.baselines import BASELINES
from r2mrf_deploy.checkpoint_files import is_checkpoint
from r2mrf_deploy.datasets import KNOWN, Dataset, read_dataset
from r2mrf_deploy.metrics import average, judge
from r2mrf_deploy.report import table1

WITHIN = 0.05
"""A difference in F below which the table counts as reproduced."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="checkpoints and artifacts")
    parser.add_argument("--data", type=Path, required=True, help="folder with image/ and gt/")
    parser.add_argument("--dataset", default="cuhk", choices=KNOWN)
    parser.add_argument("--split", default="cuhk-validation")
    parser.add_argument("--workers", type=int, default=1, help="processes; the seconds of a baseline are of the CPU")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    data = read_dataset(given.data, white=KNOWN[given.dataset].white, split=given.split, dataset=given.dataset)
    results = measured(data, given.files, given.workers) | {
        "dataset": given.dataset,
        "split": given.split,
        "command": " ".join(["python benchmarks/table1.py", *_shown(sys.argv[1:])]),
        "machine": environment.describe(),
        "tools": environment.tool_versions("numpy", "scipy", "scikit-image"),
    }
    print(json.dumps(results, indent=2, ensure_ascii=False))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")


def measured(data: Dataset, files: Sequence[Path], workers: int = 1) -> dict[str, Any]:
    """A row for each method of the table, beside what the paper prints; of the photographs done so far if it is
    interrupted."""
    done: list[Judged] = []
    numbers = range(len(data))
    with (
        ProcessPoolExecutor(workers, get_context("spawn"), _begin, (data, files))
        if workers > 1
        else nullcontext() as pool
    ):
        if pool is None:
            _begin(data, files)
        try:
            for one in (map if pool is None else pool.map)(_judged, numbers):
                done.append(one)
                print(f"{len(done)} of {len(data)}", file=sys.stderr)
        except KeyboardInterrupt:
            if pool is not None:
                pool.shutdown(wait=False, cancel_futures=True)
    rows = [_row(printed, done) for printed in protocols.table1(data.published)]
    constants = {"all_in_focus": _constant(data, 1.0), "all_blurred": _constant(data, 0.0)}
    return {"rows": rows, "photographs": len(done)} | constants


Judged = dict[str, tuple[Any, Any, float]]
"""By the name of a baseline or a network: its scores with what is in focus positive, and with what is blurred; seconds."""
_OPEN: dict[str, Any] = {}
"""What a worker needs for each photograph."""


def _begin(data: Dataset, files: Sequence[Path]) -> None:
    stack = ExitStack()
    methods = stack.enter_context(evaluation.opened(files, baselines=table1.BASELINES_OF_IT))
    _OPEN.update(data=data, methods={method.computed_by: method for method in methods}, stack=stack)


def _judged(number: int) -> Judged:
    image, truth = _OPEN["data"].image(number), _OPEN["data"].truth(number)
    found = {}
    for name, method in _OPEN["methods"].items():
        clock = time.process_time if name in BASELINES else time.perf_counter
        started = clock()
        (values,) = method.maps(image).values()
        seconds = clock() - started
        found[name] = judge(values, truth, "sharp"), judge(values, truth, "blurred"), seconds
    return found


def _row(printed: protocols.Published, done: Sequence[Judged]) -> dict[str, Any]:
    name = protocols.TABLE1[printed.method]
    row: dict[str, Any] = {"method": printed.method, "computed_by": name}
    row["printed"] = {"f": printed.f, "mae": printed.mae}
    if not done or name not in done[0]:
        return row
    (sharp, _), (blurred, _) = (average([one[name][which] for one in done]) for which in (0, 1))
    figures = {k: round(float(v), 4) for k, v in sharp.to_dict().items() if k != "photographs"}
    row |= {"f": figures["f_adaptive"], **figures}
    row["within"] = bool(abs(sharp.f_adaptive - printed.f) <= WITHIN)
    row["blurred_positive"] = {k: round(getattr(blurred, k), 4) for k in ("f_max", "f_adaptive", "f_half")}
    row["seconds"] = round(float(np.mean([one[name][2] for one in done])), 3)
    return row


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


HEAD = (
    *("", "F printed", "F", "difference", "f_max", "MAE printed", "MAE", "AUC"),
    *("blurred positive: f_max", "f_adaptive", "seconds"),
)


def table(found: Mapping[str, Any]) -> str:
    """The rows that were computed, for `benchmarks/tables.py`."""
    rows = []
    for row in (r for r in found["rows"] if "f" in r):
        printed, blurred = row["printed"], row["blurred_positive"]
        figures = (printed["f"], row["f"], row["f_max"], printed["mae"], row["mae"], row["auc"])
        f, own, best, mae, own_mae, auc = (f"{value:.3f}" for value in figures)
        difference = f"{row['f'] - printed['f']:+.3f}".replace("-", "−")
        other = (f"{blurred[name]:.3f}" for name in ("f_max", "f_adaptive"))
        rows.append([row["method"], f, own, difference, best, mae, own_mae, auc, *other, f"{row['seconds']:.2f}"])
    return tables.markdown(HEAD, rows)


if __name__ == "__main__":
    main()
