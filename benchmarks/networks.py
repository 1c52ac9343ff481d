"""Every network as traced and as rewritten: parameters, multiply-adds, time on a CPU, roofline on a GTX 1080 Ti.

    python benchmarks/networks.py br2net defusionnet --json benchmarks/results/networks.json
    python benchmarks/networks.py btbnet --count-only --json benchmarks/results/networks.json

Times are medians of inferences that alternate between the two graphs in one process (see `rewrites.py`). A run replaces the
rows of its networks in the file and keeps the others, so that the table can be measured in parts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rewrites import FORMS, RUNTIMES, open_with, photograph, traced

from r2mrf_deploy import gpus, machine

SIZE = 320
GPU = "gtx1080ti"


def main() -> None:
    arguments = _arguments()
    known = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {"networks": []}
    rows = {row["network"]: row for row in known["networks"]}
    for network in arguments.networks:
        rows[network] = measure(network, arguments.runs, arguments.threads, arguments.count_only)
        print(json.dumps(rows[network]))
    results = {
        "machine": machine.describe() | {"threads": arguments.threads},
        "tools": machine.tool_versions(),
        "size": SIZE,
        "networks": list(rows.values()),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def measure(network: str, runs: int, threads: int, count_only: bool) -> dict[str, Any]:
    """One network: what both of its graphs cost, and unless `count_only`, how long they take in each runtime."""
    from r2mrf_deploy.graph.rewrites import optimize

    model = _untrained(network) if count_only else traced(network, SIZE)
    rewritten = optimize(model)
    graphs = dict(zip(FORMS, (model, rewritten.model), strict=True))
    row: dict[str, Any] = {"network": network, "parameters": _parameters(network)}
    row["rewrites"] = {record.name: record.count for record in rewritten.records}
    row |= {form: _cost(form, graph) for form, graph in graphs.items()}
    if not count_only:
        row["runtimes"] = _times(graphs, runs, threads)
    return row


def _cost(name: str, model: Any) -> dict[str, Any]:
    from r2mrf_deploy import budget
    from r2mrf_deploy.graph import cost

    predicted = budget.predict(budget.Graph.of(name, model), budget.Roof.of(gpus.get(GPU)))
    return {"multiply_adds": cost.multiply_adds(model), f"{GPU}_ms": round(predicted.ms, 1)}


def _times(graphs: dict[str, Any], runs: int, threads: int) -> dict[str, Any]:
    import onnx

    image, times = photograph(SIZE), {}
    with tempfile.TemporaryDirectory() as folder:
        for form, graph in graphs.items():
            onnx.save(graph, Path(folder) / f"{form}.onnx")
        for runtime in RUNTIMES:
            sessions = {form: open_with(runtime, Path(folder) / f"{form}.onnx", threads) for form in graphs}
            found: dict[str, list[float]] = {form: [] for form in graphs}
            for turn in range(runs + 1):
                for form, run in sessions.items():
                    start = time.perf_counter()
                    run(image)
                    if turn:  # the first warms up
                        found[form].append((time.perf_counter() - start) * 1e3)
            times[runtime] = {
                "median_ms": {form: round(statistics.median(ms), 1) for form, ms in found.items()},
                "times_ms": {form: [round(value, 1) for value in ms] for form, ms in found.items()},
            }
    return times


def _split(network: str) -> tuple[str, dict[str, str]]:
    preset, _, settings = network.partition(":")
    return preset, dict(setting.split("=") for setting in settings.split(",") if setting)


def _parameters(network: str) -> int:
    import torch

    from r2mrf_deploy import networks

    with torch.device("meta"):
        return sum(p.numel() for p in networks.create(*networks.preset(*_split(network))).parameters())


def _untrained(network: str) -> Any:
    """The graph with PyTorch's initial weights: to count by, for networks too large to run here."""
    from r2mrf_deploy import networks
    from r2mrf_deploy.checkpoint import IMAGENET
    from r2mrf_deploy.graph.trace import trace
    from r2mrf_deploy.networks.deployed import Deployed

    module = networks.create(*networks.preset(*_split(network))).eval()
    return trace(Deployed(module, IMAGENET, logits=True), (SIZE, SIZE))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="presets, with settings after a colon: btbnet:width=0.25")
    parser.add_argument("--runs", type=int, default=7, help="timed inferences of each graph")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count-only", action="store_true", help="count, and measure no time")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
