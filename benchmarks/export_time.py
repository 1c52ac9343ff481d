"""Measures where the time of `r2mrf export` goes, and how it grows with the number of recurrent steps.

    python benchmarks/export_time.py --json results/export_time.json
    git archive COMMIT | tar -x -C before; python benchmarks/export_time.py --before before

An untrained network is exported to ONNX, FP32, at 320x320, in a new process for each export, as the command does it:
imports, the trace, the rewrites, the comparison with PyTorch. With `--before`, another version of the package does the same
in turn, and the table says whether the graphs are equal. Times are in seconds by the wall clock, and in brackets those of
the processor, all threads; each is the median of the runs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tables import markdown

ROOT = Path(__file__).parents[1]
STAGES = {
    "import": "imports of the package and of PyTorch",
    "load": "reading and checking the checkpoint",
    "torch.onnx": "torch.onnx.export",
    "trace": "tidying, simplifying and checking its graph",
    "rewrite": "the exact rewrites",
    "check": "inference and check of the result",
    "write": "serialising, writing and hashing the file",
    "compare": "comparison with PyTorch",
    "process": "the whole process",
}

Times = dict[str, list[float]]


def main() -> None:
    arguments = _arguments()
    if arguments.child:
        print(json.dumps(_measure(*arguments.child)))
        return
    from r2mrf_deploy import environment

    sides = {"now": ROOT} | ({"before": arguments.before.resolve()} if arguments.before else {})
    results: dict[str, Any] = {
        "machine": environment.describe(),
        "tools": environment.tool_versions(),
        "network": arguments.network,
        "exports": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "network.pth"
        _initialise(arguments.network, checkpoint)
        for steps in arguments.steps:
            found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
            for _ in range(arguments.runs):
                for side, package in sides.items():
                    found[side].append(_in_new_process(package, checkpoint, steps))
            rows = {side: _median(runs) for side, runs in found.items()}
            results["exports"].append({"steps": steps} | rows)
            _print(steps, rows)
            if arguments.json:
                arguments.json.parent.mkdir(parents=True, exist_ok=True)
                arguments.json.write_text(json.dumps(results, indent=2) + "\n")
    _print_growth(results["exports"])


def _measure(checkpoint: str, output: str, steps: str) -> dict[str, Any]:
    """Export in this process; the wall and processor time of each stage, in seconds."""
    started = time.perf_counter(), time.process_time()
    times: Times = {name: [0.0, 0.0] for name in STAGES}
    import torch.onnx

    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.export import chain, check
    from r2mrf_deploy.export.options import ExportOptions

    times["import"] = _since(started)
    for owner, name, stage in (
        (Checkpoint, "load", "load"),
        (torch.onnx, "export", "torch.onnx"),
        (chain, "trace", "trace"),
        (chain, "optimize", "rewrite"),
        (chain, "checked", "check"),
        (check, "publish", "write"),
        (check.Check, "compare", "compare"),
    ):
        setattr(owner, name, _timed(getattr(owner, name), times[stage]))
    chain.export_artifacts(checkpoint, [output], ExportOptions(steps=int(steps)))
    for outer, inner in (("trace", "torch.onnx"), ("write", "compare")):
        times[outer] = [a - b for a, b in zip(times[outer], times[inner], strict=True)]
    times["process"] = _since(started)
    return {
        "times": times,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "graph_sha256": _graph(Path(output)),
    }


def _timed(function: Callable[..., Any], total: list[float]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter(), time.process_time()
        try:
            return function(*arguments, **options)
        finally:
            total[:] = [a + b for a, b in zip(total, _since(started), strict=True)]

    return run


def _since(started: tuple[float, float]) -> list[float]:
    return [time.perf_counter() - started[0], time.process_time() - started[1]]


def _graph(file: Path) -> str:
    """The hash of a graph without what the file says of versions."""
    import onnx

    model = onnx.load(file)
    del model.metadata_props[:]
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _initialise(network: str, checkpoint: Path) -> None:
    from r2mrf_deploy.checkpoint import Checkpoint

    Checkpoint.init(network).save(checkpoint)


def _in_new_process(package: Path, checkpoint: Path, steps: int) -> dict[str, Any]:
    output = checkpoint.with_name("network.onnx")
    command = [sys.executable, str(Path(__file__).resolve()), "--child", str(checkpoint), str(output), str(steps)]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(package)}, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


def _median(runs: list[dict[str, Any]]) -> dict[str, Any]:
    times = {s: [statistics.median(run["times"][s][i] for run in runs) for i in range(2)] for s in STAGES}
    (graph,) = {run["graph_sha256"] for run in runs}
    return {"times": times, "peak_bytes": max(run["peak_bytes"] for run in runs), "graph_sha256": graph}


def _print(steps: int, rows: dict[str, dict[str, Any]]) -> None:
    print(f"\n{steps} steps{'':42}" + "".join(f"{side:>20}" for side in rows))
    for stage, words in STAGES.items():
        cells = (f"{row['times'][stage][0]:9.2f} s ({row['times'][stage][1]:5.2f})" for row in rows.values())
        print(f"{words:50}" + "".join(f"{cell:>20}" for cell in cells))
    print(f"{'peak memory':50}" + "".join(f"{row['peak_bytes'] / 1e9:17.2f} GB" for row in rows.values()))
    if len(rows) == 2:
        now, before = rows["now"], rows["before"]
        ratios = [a / b for a, b in zip(now["times"]["process"], before["times"]["process"], strict=True)]
        same = "the same graph" if now["graph_sha256"] == before["graph_sha256"] else "ANOTHER GRAPH"
        print(
            f"now / before: {ratios[0]:.2f} by the clock, {ratios[1]:.2f} of the processor's time; {same}", flush=True
        )


def _print_growth(exports: list[dict[str, Any]]) -> None:
    first = exports[0]
    for side in [name for name in first if name != "steps"]:
        for stage in ("rewrite", "process"):
            base = first[side]["times"][stage][1]
            growth = (f"{row['steps']}: {row[side]['times'][stage][1] / base:.2f}" for row in exports)
            print(f"{side}, processor time of {STAGES[stage]} by steps, relative to the first: {', '.join(growth)}")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="r2mrf", help="a preset of `r2mrf init`")
    parser.add_argument("--steps", type=int, nargs="+", default=[6, 12, 24], help="numbers of recurrent steps")
    parser.add_argument("--runs", type=int, default=1, help="exports of each kind")
    parser.add_argument("--before", type=Path, metavar="FOLDER", help="a checkout of another version, to compare with")
    parser.add_argument("--json", type=Path, help="write the results to this file after each number of steps")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    return parser.parse_args()


def table(found: dict[str, Any]) -> str:
    """Seconds of each part of an export, before and now, for each number of steps."""
    titles = {
        "torch.onnx": "`torch.onnx.export`",
        "trace": "tidying, simplifying, checking",
        "rewrite": "the rewrites",
        "check": "inference and check of the result",
        "compare": "comparison with PyTorch",
        "process": "the whole process",
    }
    exports = found["exports"]
    head = [f"{export['steps']} steps, {side}" for export in exports for side in ("before", "now")]
    rows = []
    for stage, title in titles.items():
        seconds = (export[side]["times"][stage][0] for export in exports for side in ("before", "now"))
        rows.append([title, *(f"{each:.2f}" for each in seconds)])
    return markdown(["seconds", *head], rows)


if __name__ == "__main__":
    main()
