"""Measures what a photograph costs in each step of `r2mrf predict --ray`, and how fast it runs over this machine's cores.

    python benchmarks/cluster.py --json results/cluster.json
    python benchmarks/cluster.py ckpt.onnx --gpu l4 --gpu t4

The steps are those of the workers, on one thread, one after the other, in turns. Their cost is the processor's time of this
process, so that other load on the machine adds little to it; waiting for disks and networks is not in it. Files are in the
system's cache. The photographs are parts of those of scikit-image, enlarged to 2 and 12 megapixels, with noise like a
camera's. The runs over the cores are of few and of more photographs: from the difference of their processor's time follows
what one more takes of all processes together, Ray's too. The times on GPUs are predictions, as of `r2mrf budget`: nothing
here runs on one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pickle
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from predict import made
from tables import markdown

from r2mrf_deploy import budget, environment, weights
from r2mrf_deploy.predict import Outputs, Source, Sources
from r2mrf_deploy.predict.cluster import predict_on_ray
from r2mrf_deploy.predict.parts import SIZE, Parts
from r2mrf_deploy.predict.photographs import Work, infer, read_photograph
from r2mrf_deploy.predict.workers import Job, Opened, row
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.runtimes import OpenOptions

SIZES = {"2 MP": (1200, 1600), "12 MP": (3000, 4000)}
NOISE = 3.0
"""Standard deviation, in levels of 255."""
DISTINCT = 8
"""Photographs of each size; the runs over the cores read links to them."""
MAP_SIDE = 1024
"""A longest side of maps (`--map-side`) that is smaller than these photographs'."""
LISTED = 50_000
REACHED = 0.19
"""The share of its roof that r2mrf reached on an H200 in ONNX Runtime (results/gpu-h200.json); `budget` assumes 0.5."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path, help="an ONNX artifact (default: the shipped r2mrf-lite)")
    parser.add_argument("--gpu", action="append", help="GPU class to predict for (default: l4)")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument(
        "--counts", type=int, nargs=2, default=[SIZE, 3 * SIZE], help="photographs of runs over the cores"
    )
    parser.add_argument("--json", type=Path, help="write the results to this file")
    given = parser.parse_args()
    model = given.model or weights.artifact(weights.DEFAULT)
    tools = environment.tool_versions("onnxruntime", "onnxruntime-gpu", "numpy", "pillow", "pyarrow", "ray")
    found: dict[str, Any] = {"machine": environment.describe(), "tools": tools, "model": model.name, "part": SIZE}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found["listing"] = listing(folder / "listed")
        found["steps"] = {size: steps(model, folder / size, size, given.turns) for size in SIZES}
        found["runs"] = [run(model, folder, size, given.counts) for size in SIZES]
    found["gpus"] = predictions(model, given.gpu or ["l4"])
    show(found)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


def listing(folder: Path) -> dict[str, float]:
    """Microseconds for each file of folders of a thousand that is found and written to the list, and bytes of its line."""
    for number in range(LISTED):
        place = folder / "photographs" / f"{number // 1000:03}" / f"DSC_{number:06}.jpg"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
    parts = Parts(folder / "out")
    sources = Sources([folder / "photographs"], output=parts.folder, recursive=True)
    start = time.process_time()
    parts.write_list(sources, (), lambda _: None)
    seconds = time.process_time() - start
    return {"photographs": LISTED, "us": 1e6 * seconds / LISTED, "bytes": parts.listing.stat().st_size / LISTED}


def steps(model: Path, folder: Path, size: str, turns: int) -> dict[str, Any]:
    """Median milliseconds of the processor that a photograph takes in each step, and bytes that go from one to the next."""
    files = list(made(folder / "photographs", DISTINCT, SIZES[size]))
    sources = [Source(str(file), "") for file in files]
    with Predictor.open(model, options=OpenOptions(threads=1)) as predictor:
        runner = predictor.runner
        opened = Opened(runner.inputs, predictor.preprocess, predictor.profile, False, runner.runtime, runner.on_gpu)
        job = Job(Parts(folder), Outputs(("map",)), (), opened)
        reading = opened.predictor
        times: dict[str, list[float]] = {}
        sizes: dict[str, float] = {"file": statistics.mean(file.stat().st_size for file in files)}

        def timed(step: str, function: Callable[..., Any], *arguments: Any) -> Any:
            start = time.process_time()
            result = function(*arguments)
            times.setdefault(step, []).append(1e3 * (time.process_time() - start) / len(files))
            return result

        for _ in range(turns + 1):  # the first is the warm-up
            timed("read the file", lambda: [file.read_bytes() for file in files])
            works = timed("read, decode, fit", lambda: [read_photograph(reading, source) for source in sources])
            works = [replace(work, image=None) for work in works]
            found = timed("network", lambda given: [each for work in given for each in infer(predictor, [work])], works)
            timed("hand over, twice", hand_over, works, found)
            rows = timed("scores, map as PNG", lambda given: [row(work, job) for work in given], found)
            less = replace(job, outputs=Outputs(("map",), map_side=MAP_SIDE))
            timed(
                f"scores, map of {MAP_SIDE} pixels as PNG",
                lambda given, job: [row(work, job) for work in given],
                found,
                less,
            )
            less = replace(job, outputs=Outputs(("scores",)))
            timed("scores alone", lambda given, job: [row(work, job) for work in given], found, less)
            timed("write Parquet", job.parts.write, 0, iter(rows), ("map",))
        sizes |= {name: len(pickle.dumps(each)) / len(files) for name, each in (("input", works), ("map", found))}
        sizes["row"] = job.parts.file(0).stat().st_size / len(files)
        assert not any(row["error"] for row in rows)
        medians = {step: statistics.median(values[1:]) for step, values in times.items()}
        return {"runtime": runner.runtime, "ms": medians, "turns": times, "bytes": sizes}


def hand_over(*between: Sequence[Work]) -> None:
    """What goes from one step to the next, packed and unpacked."""
    for works in between:
        pickle.loads(pickle.dumps(works, protocol=pickle.HIGHEST_PROTOCOL))


def run(model: Path, folder: Path, size: str, counts: Sequence[int]) -> dict[str, Any]:
    """Runs over this machine's cores, with as many actors as by default: the processor's time of all their processes, and
    what a further photograph adds to it."""
    linked = folder / f"{size} linked"
    linked.mkdir(exist_ok=True)
    files = sorted((folder / size / "photographs").iterdir())
    seconds, processor = [], []
    for count in counts:
        for number in range(count):
            place = linked / f"{number:06}.jpg"
            if not place.exists():
                place.hardlink_to(files[number % len(files)])
        start, watch = time.perf_counter(), Watch()
        with watch:
            done = predict_on_ray(model, [linked], folder / f"out {size} {count}")
        seconds.append(time.perf_counter() - start)
        processor.append(sum(watch.seen.values()))
        assert done.done == count and not done.failed, done
    ms = 1e3 * (processor[-1] - processor[0]) / (counts[-1] - counts[0])
    return {
        "size": size,
        "photographs": counts,
        "seconds": seconds,
        "processor_seconds": processor,
        "ms_of_one_more": ms,
    }


class Watch(threading.Thread):
    """Sees how much of the processor's time this process and those below it take, also those that end."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.seen: dict[tuple[int, int], float] = {}
        self._over, self._tick = threading.Event(), os.sysconf("SC_CLK_TCK")
        self._before = time.process_time()

    def __enter__(self) -> None:
        self.start()

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        self.seen = {process: t for process, t in self.seen.items() if process[0] != os.getpid()}
        self.seen[os.getpid(), 0] = time.process_time() - self._before

    def run(self) -> None:
        while not self._over.wait(0.1):
            found: dict[int, list[str]] = {}
            for folder in Path("/proc").glob("[0-9]*"):
                with contextlib.suppress(OSError):  # it has ended
                    found[int(folder.name)] = (folder / "stat").read_text().rpartition(")")[2].split()
            for number, fields in found.items():
                above = number
                while above in found and above != os.getpid():
                    above = int(found[above][1])
                if above == os.getpid():  # a process is known by its number and when it began
                    self.seen[number, int(fields[19])] = (int(fields[11]) + int(fields[12])) / self._tick


def predictions(model: Path, gpus: list[str]) -> list[dict[str, Any]]:
    """What `r2mrf budget` predicts, at its own efficiency and at what was reached on an H200."""
    found = []
    for efficiency in (budget.EFFICIENCY, REACHED):
        for p in budget.draw_up(str(model), gpus, efficiency=efficiency, check=False).predictions:
            found.append({"gpu": p.device, "title": p.title, "efficiency": efficiency, "ms": p.ms, "predicted": True})
    return found


def show(found: dict[str, Any]) -> None:
    print(f"{found['machine']}\n{found['tools']}\n{found['listing']}\n")
    print(f"{steps_table(found)}\n\n{bytes_table(found)}\n\n{cores_table(found)}")
    for each in (*found["runs"], *found["gpus"]):
        print(each)


STEPS = {
    "read the file": "reading the file (part of the next line)",
    "read, decode, fit": "reading, decoding, fitting it into the input",
    "network": "the network",
    "hand over, twice": "packing and unpacking between the steps",
    "scores, map as PNG": "scores, and the map as PNG",
    "scores, map of 1024 pixels as PNG": "the same with `--map-side 1024`",
    "scores alone": "the same with `--save scores`",
    "write Parquet": "writing Parquet",
}
BYTES = {
    "file": "the JPEG file",
    "input": "the network's input, handed over",
    "map": "the network's map, handed over",
    "row": "the row with its map",
}
WHOLE = ("read, decode, fit", "network", "hand over, twice", "scores, map as PNG", "write Parquet")
"""What is done to a photograph whose map is as large as it is."""
A_SECOND = 10_000_000 / 86_400
LOAD = 0.7


def steps_table(found: dict[str, Any]) -> str:
    """Milliseconds of one core for each step, and for all of them."""
    ms = {size: each["ms"] for size, each in found["steps"].items()}
    rows = [[title, *(f"{ms[size][name]:.2f}" for size in SIZES)] for name, title in STEPS.items()]
    rows.append(["**all, with the map at the photograph's size**", *(f"**{_whole(ms[size]):.1f}**" for size in SIZES)])
    return markdown(["step, milliseconds of one core", *_megapixels()], rows)


def bytes_table(found: dict[str, Any]) -> str:
    rows = [[title, *(f"{found['steps'][s]['bytes'][name]:,.0f}" for s in SIZES)] for name, title in BYTES.items()]
    return markdown(["bytes of", *_megapixels()], rows)


def cores_table(found: dict[str, Any]) -> str:
    """Cores for ten million photographs in a day, from the milliseconds of their steps."""
    every: dict[str, list[float]] = {
        "cores that are busy, on CPUs alone": [],
        f"cores at a load of {LOAD:g}": [],
        "the same, with `--map-side 1024`": [],
        "the same, with `--save scores`": [],
        "the same with maps at the photographs' size, the network on GPUs": [],
    }
    for size in SIZES:
        ms = found["steps"][size]["ms"]
        whole, png = _whole(ms), ms["scores, map as PNG"]
        small = whole - png + ms["scores, map of 1024 pixels as PNG"]
        alone = whole - png + ms["scores alone"]
        needed = (whole * LOAD, whole, small, alone, whole - ms["network"])
        for cells, each in zip(every.values(), needed, strict=True):
            cells.append(A_SECOND * each / 1000 / LOAD)
    rows = [[title, *(f"{cores:.1f}" for cores in cells)] for title, cells in every.items()]
    return markdown([f"{A_SECOND:.1f} photographs in a second", *_megapixels()], rows)


def _whole(ms: dict[str, float]) -> float:
    return sum(ms[name] for name in WHOLE)


def _megapixels() -> list[str]:
    return [size.replace("MP", "megapixels") for size in SIZES]


if __name__ == "__main__":
    main()
