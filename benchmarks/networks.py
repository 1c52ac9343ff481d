"""Measures networks as traced and as rewritten: parameters, multiply-adds, time on a CPU, roofline on a GTX 1080 Ti.

    python benchmarks/networks.py br2net defusionnet --json benchmarks/results/networks.json
    python benchmarks/networks.py btbnet --count-only --json benchmarks/results/networks.json

Times are medians of FP32 inferences at batch size 1. The two graphs run in turns in one process (see `rewrites.py`),
and PyTorch runs by itself. The weights are PyTorch's initial ones, because time does not depend on them. A run replaces
the rows of its networks in the file and keeps the others, so the table can be measured in parts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from rewrites import FORMS, RUNTIMES, Run, in_turns, open_with, parsed, photograph
from tables import in_code, markdown

from r2mrf_deploy import environment, gpus

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
        "machine": environment.describe() | {"threads": arguments.threads},
        "tools": environment.tool_versions(),
        "size": SIZE,
        "networks": list(rows.values()),
    }
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


def measure(network: str, runs: int, threads: int, count_only: bool) -> dict[str, Any]:
    """The cost of both graphs of a network and, unless `count_only`, their times in each runtime."""
    from r2mrf_deploy.graph.rewrites import optimize
    from r2mrf_deploy.graph.trace import trace

    deployed = _untrained(network)
    model = trace(deployed, (SIZE, SIZE))
    rewritten = optimize(model)
    graphs = dict(zip(FORMS, (model, rewritten.model), strict=True))
    row: dict[str, Any] = {"network": network, "parameters": sum(p.numel() for p in deployed.parameters())}
    row["rewrites"] = {record.name: record.count for record in rewritten.records}
    row |= {form: _cost(form, graph) for form, graph in graphs.items()}
    if not count_only:
        row["pytorch_ms"] = _median(_times({"pytorch": _eager(deployed, threads)}, runs)["pytorch"])
        row["runtimes"] = {runtime: _side_by_side(runtime, graphs, runs, threads) for runtime in RUNTIMES}
    return row


def _cost(name: str, model: Any) -> dict[str, Any]:
    from r2mrf_deploy import budget
    from r2mrf_deploy.graph import cost

    predicted = budget.predict(budget.Graph.of(name, model), budget.Roof.of(gpus.get(GPU)))
    return {"multiply_adds": cost.multiply_adds(model), f"{GPU}_ms": round(predicted.ms, 1)}


def _side_by_side(runtime: str, graphs: dict[str, Any], runs: int, threads: int) -> dict[str, Any]:
    import onnx

    with tempfile.TemporaryDirectory() as folder:
        files = {form: Path(folder) / f"{form}.onnx" for form in graphs}
        for form, graph in graphs.items():
            onnx.save(graph, files[form])
        times = _times({form: open_with(runtime, file, threads) for form, file in files.items()}, runs)
    return {
        "median_ms": {form: _median(ms) for form, ms in times.items()},
        "times_ms": {form: [round(value, 1) for value in ms] for form, ms in times.items()},
    }


def _times(functions: dict[str, Run], runs: int) -> dict[str, list[float]]:
    """Milliseconds of `runs` calls of each in turn, after one to warm up."""
    image = photograph(SIZE)
    for run in functions.values():
        run(image)
    return in_turns(functions, image, runs)


def _median(times: list[float]) -> float:
    return round(statistics.median(times), 1)


def _eager(deployed: Any, threads: int) -> Run:
    import torch

    torch.set_num_threads(threads)

    def run(image: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(deployed(torch.from_numpy(image))[0])

    return run


def _untrained(network: str) -> Any:
    """A network as it is deployed, from uint8 NHWC to map and logits, with PyTorch's initial weights."""
    from r2mrf_deploy import networks
    from r2mrf_deploy.networks.deployed import Deployed

    family, config = networks.preset(*parsed(network))
    return Deployed(networks.create(family, config).eval(), config.preprocess, logits=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+", help="presets; settings follow a colon, as in btbnet:width=0.25")
    parser.add_argument("--runs", type=int, default=7, help="timed inferences of each graph")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--count-only", action="store_true", help="only count, do not measure times")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


PAPERS = {
    "r2mrf": "0.096 s, 0.061 s ¹",
    "defusionnet": "0.103 s, 0.087 s ¹; 0.056 s ²",
    "btbnet": "about 25 s ³",
}
"""What papers report; docs/networks.md names them below the table."""


def table(found: dict[str, Any]) -> str:
    """The cost of each network, traced → rewritten, where the two differ. Presets come before their narrow forms."""
    head = ["preset", "parameters", "multiply-adds", "PyTorch", "ONNX Runtime", "OpenVINO", "1080 Ti", "papers"]
    rows = sorted(
        found["networks"], key=lambda row: (":" in row["network"], _ORDER.index(row["network"].split(":")[0]))
    )
    return markdown(head, map(_cells, rows))


_ORDER = ("r2mrf", "br2net", "br2net-vgg16", "defusionnet", "btbnet-1s", "btbnet", "btbcrl")


def _cells(row: dict[str, Any]) -> list[str]:
    both = [row[form]["multiply_adds"] / 1e9 for form in FORMS]
    ms = [f"{row[form]['gtx1080ti_ms']:,.0f}" for form in FORMS]
    times = [[f"{value:.0f}" for value in found["median_ms"].values()] for found in row.get("runtimes", {}).values()]
    return [
        in_code(row["network"]),
        f"{row['parameters'] / 1e6:.1f} M",
        f"{_change([f'{value:,.1f}' if value < 1000 else f'{value:,.0f}' for value in both])} G",
        f"{row['pytorch_ms']:.0f} ms" if row.get("pytorch_ms") else "",
        *([f"{' → '.join(each)} ms" for each in times] or ["", ""]),
        f"{_change(ms)} ms",
        PAPERS.get(row["network"], ""),
    ]


def _change(both: list[str]) -> str:
    """Before and after, or one figure where they are equal."""
    return " → ".join(dict.fromkeys(both))


if __name__ == "__main__":
    main()
