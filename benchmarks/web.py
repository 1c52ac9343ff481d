"""Measures a web page in Chromium: how soon it shows the first map, and how fast it is then, beside Python's ONNX Runtime.

    make web
    python benchmarks/web.py --json benchmarks/results/web.json

First, the cold start: a browser with an empty profile opens the page, which loads ONNX Runtime Web and the model, compiles,
decodes a photograph of 320x320 and computes its map. The clock is the browser's, from the start of the navigation; the page
comes from this machine, so that no network is in it. Then, in turns, so that other load on the machine affects all alike:

- the page with one and with two threads (WebAssembly), and with WebGPU if the browser has a GPU for it;
- Python's ONNX Runtime with the same model and one and two threads.

Ratios are taken within a turn. The models are the shipped weights, and the same as INT8.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tables import markdown

from r2mrf_deploy import environment, images, runtimes, sample_photographs, weights
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.convert import convert_artifact
from r2mrf_deploy.export.options import ExportOptions, PrecisionOptions
from r2mrf_deploy.fitting import as_input
from r2mrf_deploy.runtimes import OpenOptions, Runner
from r2mrf_deploy.runtimes.web.browser import Browser
from r2mrf_deploy.runtimes.web.site import Server

SIZE = (320, 320)
BASE = "onnxruntime, 1 thread"
WAYS: dict[str, tuple[str, int | None]] = {
    BASE: ("onnxruntime", 1),
    "onnxruntime, 2 threads": ("onnxruntime", 2),
    "web, 1 thread": ("web", 1),
    "web, 2 threads": ("web", 2),
    "web-webgpu": ("web-webgpu", None),
}
"""What is measured -> its runtime and number of threads."""
FIRST_MAP = """async (address) => {
  const facts = await window.r2mrf.ready;
  const ready = performance.now();
  const blob = await (await fetch(address)).blob();
  await window.r2mrf.map(blob);
  const first = performance.now();
  await window.r2mrf.map(blob);
  return { ready, first, second: performance.now() - first, threads: facts.threads, create: facts.createMs };
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cold", type=int, default=7, help="how often the page is opened")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument(
        "--runs", type=int, default=5, help="inferences of each way in a turn, after one that is not counted"
    )
    parser.add_argument("--json", type=Path, help="write the results to this file")
    given = parser.parse_args()
    photograph = images.resize(sample_photographs.sample(sample_photographs.DEMO), SIZE)
    rows = []
    with tempfile.TemporaryDirectory() as name:
        for model in models(Path(name)):
            made = build_artifact(model, Path(name) / f"site-{model.stem}")
            row = {"model": model.name, "bytes": made.manifest.bytes, "input": "x".join(map(str, SIZE))}
            row |= cold_starts(made.artifact, images.png(photograph), given.cold)
            row |= repeats(made.artifact, photograph, given.turns, given.runs)
            rows.append(row)
            print(json.dumps({k: v for k, v in row.items() if k not in ("turns", "cold")}, indent=2), flush=True)
    found = {
        "machine": environment.describe(),
        "tools": environment.tool_versions("onnxruntime-gpu", "onnxruntime", "playwright")
        | {"browser": runtimes.get("web").availability().version, "page": made.artifact.header.runtime},
        "webgpu": runtimes.get("web-webgpu").availability().details.get("adapter"),
        "rows": rows,
    }
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


def models(folder: Path) -> list[Path]:
    """The shipped weights at this size, and the same as INT8, with ranges from the sample photographs."""
    exported = folder / f"{weights.DEFAULT}.onnx"
    export_artifact(weights.checkpoint(weights.DEFAULT), exported, ExportOptions(size=SIZE))
    album = folder / "album"
    album.mkdir()
    for number, photograph in enumerate(sample_photographs.sharp()):
        (album / f"{number}.png").write_bytes(images.png(photograph))
    output = folder / f"{exported.stem}-int8.onnx"
    convert_artifact(exported, output, PrecisionOptions("int8", calibration=album), allow_failed_parity=True)
    return [exported, output]


def cold_starts(page: Artifact, photograph: bytes, times: int) -> dict[str, Any]:
    """Milliseconds from the start of the navigation to the first map, each time with a new browser."""
    found = []
    for _ in range(times):
        with Server(page) as server, Browser() as browser:
            address = server.exchange(photograph)
            browser.goto(f"{server.address}?ui=0", 120)
            found.append(browser.call(FIRST_MAP, address, seconds=120))
    median = {name: statistics.median(each[name] for each in found) for name in ("ready", "first", "second")}
    return {"cold": found, "cold_ms": median | {"threads": found[0]["threads"]}}


def repeats(page: Artifact, photograph: np.ndarray, turns: int, runs: int) -> dict[str, Any]:
    """Milliseconds of an inference, for each way that there is here, and its ratio to `BASE`."""
    assert page.contract is not None and page.contract.preprocess is not None
    (spec,) = page.contract.inputs
    array = as_input(photograph, spec, page.contract.preprocess, page.contract.profile(spec.name))
    with ExitStack() as stack:
        ways: dict[str, Callable[[], float]] = {}
        for name, (runtime, threads) in WAYS.items():
            state = runtimes.get(runtime).availability()
            if state.ok and "in software" not in state.details.get("adapter", ""):
                model = page.path.with_name(page.header.files.model.name) if runtime == "onnxruntime" else page
                runner = stack.enter_context(runtimes.open(model, runtime, options=OpenOptions(threads=threads)))
                ways[name] = partial(timed, runner, {spec.name: array}, runs)
        for way in ways.values():  # browsers compile what is used often a second time
            way()
        found = [{name: way() for name, way in ways.items()} for _ in range(turns)]
    return {
        "ms": over(found),
        "ratios": over([{n: t / turn[BASE] for n, t in turn.items()} for turn in found]),
        "turns": found,
    }


def timed(runner: Runner, arrays: dict[str, np.ndarray], runs: int) -> float:
    """The median of some inferences, in milliseconds."""
    runner.run(arrays)
    return statistics.median(runner.run_timed(arrays)[1].compute for _ in range(runs))


def over(turns: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}


def table(found: dict[str, Any]) -> str:
    """Milliseconds, and their ratios to one thread of ONNX Runtime in Python: a column for each model."""
    titles = {
        "onnxruntime, 1 thread": "ONNX Runtime in Python, one thread",
        "onnxruntime, 2 threads": "ONNX Runtime in Python, two threads",
        "web, 1 thread": "the page, one thread",
        "web, 2 threads": "the page, two threads",
        "web-webgpu": "the page, WebGPU",
    }
    models = found["rows"]
    first = [f"{model['cold_ms']['first'] / 1000:.1f} s" for model in models]
    rows = [["from an empty browser's navigation to the first map", *first]]
    for name, title in titles.items():
        if name in models[0]["ms"]:
            rows.append([title, *(f"{m['ms'][name]:.1f} ms, {m['ratios'][name]:.2f}" for m in models)])
    return markdown(["", *("INT8" if "int8" in model["model"] else "FP32" for model in models)], rows)


if __name__ == "__main__":
    main()
