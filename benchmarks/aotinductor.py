"""Times AOTInductor packages of traced and rewritten networks side by side: what the exact rewrites gain there.

    python benchmarks/aotinductor.py --json results/aotinductor.json

Each network is exported for the CPU in FP32, with and without the rewrites. The export compares both packages with
PyTorch on a photograph. They are then timed in turns by the protocol of `r2mrf bench`, so that other load on the
machine affects both.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tables import in_code, markdown

from r2mrf_deploy import environment, images, runtimes, sample_photographs
from r2mrf_deploy.bench.protocol import Candidate, Protocol, measure
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.options import ExportOptions, FormatOptions
from r2mrf_deploy.runtimes import OpenOptions

FORMS = {"traced": False, "rewritten": True}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=["r2mrf-edge", "r2mrf"], help="presets")
    parser.add_argument("--size", type=int, default=320, help="height and width in pixels")
    parser.add_argument("--seconds", type=float, default=20.0, help="seconds for each package")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    given = parser.parse_args()
    results: dict[str, Any] = {
        "machine": environment.describe() | {"threads": given.threads},
        "tools": environment.tool_versions(),
        "networks": [],
    }
    for network in given.networks:
        row = side_by_side(network, given.size, given.seconds, given.threads)
        results["networks"].append(row)
        traced, rewritten = (row[form] for form in FORMS)
        print(
            f"{network} at {given.size}×{given.size}: {traced['latency']['median']:.1f} -> "
            f"{rewritten['latency']['median']:.1f} ms ({rewritten['speed_up']:.2f}×); from PyTorch "
            f"{traced['parity']['map']['largest']:.1e} and {rewritten['parity']['map']['largest']:.1e} at most",
            flush=True,
        )
        if given.json:  # after each network, because each takes minutes
            given.json.parent.mkdir(parents=True, exist_ok=True)
            given.json.write_text(json.dumps(results, indent=2, default=str) + "\n")


def side_by_side(network: str, size: int, seconds: float, threads: int) -> dict[str, Any]:
    """Export a network in both forms, and time the packages."""
    image = np.ascontiguousarray(images.resize(sample_photographs.sample("astronaut"), (size, size))[None])
    row: dict[str, Any] = {"network": network, "size": size}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Checkpoint.init(network).save(Path(folder) / "checkpoint.pth")
        candidates = []
        for form, optimize in FORMS.items():
            options = ExportOptions((size, size), optimize=optimize, format=FormatOptions(device="cpu"))
            made = export_artifact(checkpoint, Path(folder) / f"{form}.pt2", options)
            assert made.parity is not None
            row[form] = {"multiply_adds": made.manifest.multiply_adds, "parity": made.parity.to_dict()}
            runner = runtimes.open(made.path, options=OpenOptions(threads=threads))
            candidates.append(Candidate(form, runner, {"image": image}))
        for measured in measure(candidates, Protocol(duration=seconds)):
            row[measured.name] |= measured.to_dict()
        for candidate in candidates:
            candidate.runner.close()
    return row


def table(found: dict[str, Any]) -> str:
    """Milliseconds of both packages, and how far their maps are from PyTorch's."""
    rows = []
    for row in found["networks"]:
        both = [row[form] for form in FORMS]
        off = ", ".join(f"{each['parity']['map']['largest']:.1e}".replace("e-0", "e-") for each in both)
        ms = [f"{each['latency']['median']:.1f} ms" for each in both]
        rows.append([in_code(row["network"]), *ms, f"{row['rewritten']['speed_up']:.2f}×", off])
    size = found["networks"][0]["size"]
    off = "largest difference from PyTorch, traced and rewritten"
    return markdown([f"network at {size}×{size}, FP32", "as traced", "rewritten", "ratio", off], rows)


if __name__ == "__main__":
    main()
