"""Measures the time from a cold process to the first map of `r2mrf predict photo.jpg`, beside a bare program's.

    python benchmarks/first_result.py --json results/first-result.json
    python benchmarks/first_result.py r2mrf.onnx --runtime onnxruntime --turns 7

Each row is a model on a runtime. Its ways are whole processes that take turns, so that other load affects all of them alike:

- bare: imports the runtime, NumPy and Pillow, opens the model, decodes the photograph, computes one map, and ends;
- `predict --no-cache`: it verifies the model, opens it, and writes the map and the overlay;
- `predict` with what an earlier run kept. The first run, which keeps it, is given too.

By default the models are the shipped `r2mrf-lite` and an untrained `r2mrf` of 320x320 (192 MB), which is made at the start.
Where the time of `predict` goes is measured within further processes: imports, verifying, opening, the map, and the rest.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tables import RUNTIMES, in_code, markdown

from r2mrf_deploy import environment, images, sample_photographs, weights
from r2mrf_deploy.artifact import publish
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.manifest import DEFAULT_SIZE

SIZE = (427, 640)
BARE = {
    "onnxruntime": """
import sys, numpy, onnxruntime
from PIL import Image
session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
(spec,) = session.get_inputs()
height, width = (d if isinstance(d, int) else 320 for d in spec.shape[1:3])
image = numpy.asarray(Image.open(sys.argv[2]).convert("RGB").resize((width, height)))[None]
print(session.run(["map"], {spec.name: image})[0].mean())
""",
    "openvino": """
import sys, numpy, openvino
from PIL import Image
settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
model = openvino.Core().compile_model(sys.argv[1], "CPU", settings)
shape = model.inputs[0].get_partial_shape()
height, width = (d.get_length() if d.is_static else 320 for d in list(shape)[1:3])
image = numpy.asarray(Image.open(sys.argv[2]).convert("RGB").resize((width, height)))[None]
print(model([image])["map"].mean())
""",
}
"""What a person would write who knows the model's input."""
PARTS = """
import sys, time
start = time.perf_counter()
from r2mrf_deploy.cli import main
imported = time.perf_counter()
spent = {}
def timed(owner, name, key):
    function = getattr(owner, name)
    def wrapper(*a, **k):
        before = time.perf_counter()
        try:
            return function(*a, **k)
        finally:
            spent[key] = spent.get(key, 0) + time.perf_counter() - before
    setattr(owner, name, wrapper)
from r2mrf_deploy import artifact, predictor
from r2mrf_deploy.runtimes import base
further = time.perf_counter()
timed(artifact, "_manifest_of", "verify the file")
timed(base.Runtime, "open", "open the model")
timed(predictor.Predictor, "infer", "the map")
begun = time.perf_counter()
assert main(sys.argv[1:]) == 0
whole = time.perf_counter() - begun
import json
spent = {"import the package": further - start} | spent | {"all else": whole - sum(spent.values())}
print(json.dumps(spent), file=sys.stderr)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path, help="ONNX artifacts (default: r2mrf-lite and an r2mrf)")
    parser.add_argument("--runtime", action="append", choices=tuple(BARE), help="default: both")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results to this file, after every row")
    given = parser.parse_args()
    found: dict[str, Any] = {
        "machine": environment.describe(),
        "versions": environment.tool_versions("onnxruntime", "onnxruntime-gpu", "openvino", "numpy", "pillow"),
        "turns": given.turns,
        "rows": [],
    }
    print(markdown(HEAD, []))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        photograph = images.resize(sample_photographs.sample("coffee"), SIZE)
        photo = write_atomically(folder / "photo.jpg", images.jpeg(photograph))
        for model in given.models or [weights.artifact(weights.DEFAULT), large(folder)]:
            for runtime in given.runtime or [r for r in BARE if environment.importable(r)]:
                row = measured(model, runtime, photo, folder, given.turns)
                found["rows"].append(row)
                print(line(row), flush=True)
                if given.json:
                    given.json.write_text(json.dumps(found, indent=2) + "\n")
    for row in found["rows"]:
        parts = ", ".join(f"{part} {seconds:.2f} s" for part, seconds in row["parts"].items())
        print(f"{row['model']} on {row['runtime']}, cached: {parts}")


def large(folder: Path) -> Path:
    """An untrained `r2mrf`, rewritten, but not compared with PyTorch, which would take longer than all else here."""
    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.export import onnx
    from r2mrf_deploy.graph.rewrites import optimize
    from r2mrf_deploy.graph.trace import trace
    from r2mrf_deploy.networks.deployed import Deployed

    checkpoint = Checkpoint.init("r2mrf")
    graph = optimize(trace(Deployed(checkpoint.module(), checkpoint.preprocess), DEFAULT_SIZE)).model
    contract = onnx.describe(graph)
    inputs = [spec.model_copy(update={"layout": "NHWC"}) for spec in contract.inputs]
    contract = contract.model_copy(update={"inputs": inputs, "preprocess": checkpoint.preprocess})
    return publish(folder / "r2mrf.onnx", lambda file: onnx.write(graph, contract, file), lambda _: []).path


def measured(model: Path, runtime: str, photo: Path, folder: Path, turns: int) -> dict[str, Any]:
    """The seconds of each way, wall and processor time, and where those of `predict` go."""
    cache = folder / f"cache-{runtime}-{model.stem}"
    predict = ["predict", str(model), str(photo), "-o", str(folder / "out"), "--runtime", runtime]
    command = [sys.executable, "-m", "r2mrf_deploy", *predict]
    variables = os.environ | {"R2MRF_CACHE": str(cache)}
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        "bare": lambda: timed([sys.executable, "-c", BARE[runtime], str(model), str(photo)], variables),
        "no cache": lambda: timed([*command, "--no-cache"], variables),
        "cached": lambda: timed(command, variables),
    }
    ways["bare"]()  # the files are read from the disk once before anything is timed
    first = timed(command, variables)
    seconds: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    for _ in range(turns):
        for way, run in ways.items():
            seconds[way].append(run())
    wall = {way: [w for w, _ in each] for way, each in seconds.items()}
    more = {
        way: statistics.median(a - b for a, b in zip(wall[way], wall["bare"], strict=True))
        for way in ("no cache", "cached")
    }
    return {
        "model": model.name, "runtime": runtime, "megabytes": model.stat().st_size / 1e6,
        "cache_megabytes": sum(f.stat().st_size for f in (cache / "r2mrf-deploy").iterdir()) / 1e6,
        "seconds": {way: statistics.median(each) for way, each in wall.items()} | {"first run": first[0]},
        "cpu_seconds": {way: statistics.median(c for _, c in each) for way, each in seconds.items()},
        "over_bare": more, "parts": parts(predict, variables, turns), "all": seconds,
    }  # fmt: skip


def timed(command: Sequence[str], variables: dict[str, str]) -> tuple[float, float]:
    """The seconds of a whole process on the wall, and of the processors."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, env=variables, check=True, capture_output=True)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def parts(predict: Sequence[str], variables: dict[str, str], turns: int) -> dict[str, float]:
    """Where the seconds of `predict` go, within the process: medians."""
    found = []
    for _ in range(turns):
        done = subprocess.run(
            [sys.executable, "-c", PARTS, *predict], env=variables, check=True, capture_output=True, text=True
        )
        found.append(json.loads(done.stderr.splitlines()[-1]))
    return {part: statistics.median(each[part] for each in found) for part in found[0]}


def line(row: dict[str, Any]) -> str:
    return f"| {' | '.join(_cells(row))} |"


HEAD = ["seconds", "bare", "`--no-cache`", "first run", "later runs", "later runs over bare"]


def table(found: dict[str, Any]) -> str:
    """The seconds of a whole process, for each model and runtime."""
    return markdown(HEAD, map(_cells, found["rows"]))


def _cells(row: dict[str, Any]) -> list[str]:
    seconds = [f"{row['seconds'][way]:.2f}" for way in ("bare", "no cache", "first run", "cached")]
    more = f"{row['over_bare']['cached']:+.2f}".replace("-", "−")
    return [f"{in_code(row['model'])} ({row['megabytes']:.0f} MB), {RUNTIMES[row['runtime']]}", *seconds, more]


if __name__ == "__main__":
    main()
