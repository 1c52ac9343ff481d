"""Measures what a server costs beside the network in process, and whether it holds out.

    make serve-env
    python benchmarks/serving.py --json benchmarks/results/serving.json

Triton is started by `r2mrf serve` of another environment, since its python backend needs numpy below 2. In turns, so that
other load on the machine affects all alike, and with the server idle while others run:

- the network in process, as `r2mrf bench` runs it: one inference after the other, on all cores;
- the network in process with a stream for each core;
- the network behind the server, 8 tensors in flight, over gRPC and over HTTP;
- files of photographs through `r2mrf predict` in process, which writes only maps;
- files through the server's ensemble, 8 in flight, which answers with the picture of the map.

Then, once: 64 clients for a minute with files of mixed sizes, and 20,000 files with the server's memory before and after.
The client and its 8 threads take their time from the same cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from predict import TURN, alone, made
from tables import markdown

from r2mrf_deploy import environment, images, weights
from r2mrf_deploy.bench.load import Load, LoadResult, bench_servers
from r2mrf_deploy.predict import Outputs, Sources, predict
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.runtimes.served import Connection

ROOT = Path(__file__).parents[1]
SIZES = ((427, 640), (640, 427), (480, 640), (360, 640), (200, 150), (1080, 1920))
SMALL = ((97, 131), (64, 160), (120, 90), (150, 150))
IN_FLIGHT = 8
PORTS = {"http": 8310, "grpc": 8311, "metrics": 8312}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("artifact", nargs="?", type=Path, default=weights.artifact(weights.DEFAULT))
    parser.add_argument("--runtime", default="onnxruntime")
    parser.add_argument("--program", type=Path, default=ROOT / "build/serve-env/bin/r2mrf", help="r2mrf beside Triton")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--minute", type=float, default=60, help="seconds of 64 clients")
    parser.add_argument("--requests", type=int, default=20_000, help="files of the test of memory")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, model = Path(name), given.artifact.stem
        one, mixed, small = (
            album(folder / part, sizes, each)
            for part, sizes, each in (("one", SIZES[:1], 60), ("mixed", SIZES, 5), ("small", SMALL, 5))
        )
        with served(given.program, given.artifact, given.runtime) as server:
            found = throughput(given.artifact, given.runtime, one, folder / "out", given.turns)
            found["64 clients"] = shown(files(model, mixed, Load(concurrency=64, duration=given.minute)))
            found["memory"] = memory(server, model, small, given.requests)
    found = {
        "machine": environment.describe(),
        "tools": environment.tool_versions("onnxruntime-gpu", "openvino"),
    } | found
    print(json.dumps({name: value for name, value in found.items() if name != "turns"}, indent=2))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


def album(folder: Path, sizes: Sequence[tuple[int, int]], each: int) -> Path:
    """A folder of photographs of some sizes."""
    folder.mkdir()
    for size in sizes:
        for file in made(folder.with_name("made"), each, size):
            file.rename(folder / f"{size[0]}x{size[1]}-{file.name}")
    return folder


@contextmanager
def served(program: Path, artifact: Path, runtime: str) -> Iterator[subprocess.Popen[str]]:
    """`r2mrf serve` as a process, which is ready."""
    ports = [f"--{name}-port={port}" for name, port in PORTS.items()]
    command = [program, "serve", artifact, "--backend", "python", "--runtime", runtime, *ports]
    with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if not any("Ctrl-C" in line for line in process.stdout):
            raise SystemExit("the server did not start")
        try:
            yield process
        finally:
            process.terminate()


def throughput(artifact: Path, runtime: str, folder: Path, output: Path, turns: int) -> dict[str, Any]:
    """Images per second of each way, and their ratios within a turn."""
    photographs = images.find([folder])
    image = images.read(photographs[0])
    with Predictor.open(artifact, runtime) as single, Predictor.open(artifact, runtime, many=True) as many:
        height, width = many.fit(image).views[0].shape[1:3]

        def pipeline() -> float:
            start = time.perf_counter()
            done = list(predict(many, Sources([folder], output=output), output, Outputs(("map",))))
            assert not any(p.error for p in done)
            return len(done) / (time.perf_counter() - start)

        def tensors(address: str) -> float:
            [result] = bench_servers(
                [Connection(f"{address}/{artifact.stem}")], [Load(IN_FLIGHT, duration=TURN)], size=(height, width)
            )
            return whole(result).throughput

        ways: dict[str, Callable[[], float]] = {
            "in process": lambda: alone(single, image, 1),
            "in process, streams": lambda: alone(many, image, many.streams),
            "served, gRPC": lambda: tensors(f"grpc://127.0.0.1:{PORTS['grpc']}"),
            "served, HTTP": lambda: tensors(f"http://127.0.0.1:{PORTS['http']}"),
            "predict": pipeline,
            "served, files": lambda: whole(files(artifact.stem, folder, Load(IN_FLIGHT, duration=TURN))).throughput,
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(turns + 1):
            for name, way in ways.items():
                rate = way()
                if turn:  # the first is the warm-up
                    rates[name].append(rate)
        device = many.runner.device
    pairs = [("served, gRPC", "in process"), ("served, HTTP", "in process"), ("served, gRPC", "in process, streams"),
             ("served, HTTP", "in process, streams"), ("served, files", "predict")]  # fmt: skip
    ratios = {f"{a} / {b}": statistics.median(x / y for x, y in zip(rates[a], rates[b], strict=True)) for a, b in pairs}
    return {"model": artifact.name, "runtime": runtime, "device": device, "input": [height, width],
            "images_per_second": {n: statistics.median(r) for n, r in rates.items()}, "ratios": ratios,
            "turns": rates}  # fmt: skip


def files(model: str, folder: Path, load: Load) -> LoadResult:
    """A load of files on a model's ensemble, over gRPC."""
    address = f"grpc://127.0.0.1:{PORTS['grpc']}/{model}_jpeg"
    [result] = bench_servers([Connection(address)], [load], folder=folder)
    return result


def whole(result: LoadResult) -> LoadResult:
    """A result without errors."""
    if result.errors:
        raise SystemExit(result.first_error)
    return result


def shown(result: LoadResult) -> dict[str, Any]:
    """What is kept of a load."""
    assert result.latency is not None
    network = next(s for s in result.server if f"{s.model}_jpeg" == result.model)
    return {"clients": result.load.concurrency, "seconds": result.seconds, "requests": result.requests,
            "errors": result.errors, "images_per_second": result.throughput, "latency_ms": result.latency.percentiles,
            "network": network.to_dict()}  # fmt: skip


def memory(server: subprocess.Popen[str], model: str, folder: Path, requests: int) -> dict[str, Any]:
    """Resident memory of the server and its models, in MiB, after a tenth of the requests and after all of them."""
    sizes, done, errors = [], 0, 0
    while done < requests:
        result = files(model, folder, Load(concurrency=16, duration=10))
        done, errors = done + result.requests, errors + result.errors
        sizes.append((done, resident(server.pid)))
    early = next(size for count, size in sizes if count >= requests / 10)
    return {"requests": done, "errors": errors, "MiB at a tenth": early, "MiB at the end": sizes[-1][1], "MiB": sizes}


def resident(parent: int) -> float:
    """Of a process and its descendants, in MiB."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,rss="], capture_output=True, text=True, check=True).stdout
    rows = [tuple(map(int, row.split())) for row in listed.splitlines()]
    known: set[int] = {parent}
    for _ in range(4):
        known |= {pid for pid, of, _ in rows if of in known}
    return sum(size for pid, _, size in rows if pid in known) / 1024


def network_table(found: dict[str, Any]) -> str:
    """The network in process and behind the server."""
    rate, ratios = found["images_per_second"], found["ratios"]
    rows = [
        ["the network in process, one after the other on all cores, as `r2mrf bench` runs it", rate["in process"], ""],
        ["the network in process, a stream for each core", rate["in process, streams"], ""],
    ]
    for way in ("gRPC", "HTTP"):
        alone, streams = (ratios[f"served, {way} / {base}"] for base in ("in process", "in process, streams"))
        shares = f"{100 * alone:.0f} %; {100 * streams:.0f} % of streams"
        rows.append([f"the network behind the server, {IN_FLIGHT} in flight, {way}", rate[f"served, {way}"], shares])
    return markdown(["", "images per second", "of the network in process"], ([a, f"{b:.1f}", c] for a, b, c in rows))


def files_table(found: dict[str, Any]) -> str:
    """Files through `predict` and through the server."""
    rate, share = found["images_per_second"], found["ratios"]["served, files / predict"]
    rows = [
        ["files through `r2mrf predict` in process, maps only", f"{rate['predict']:.1f}", ""],
        [
            f"files through `NAME_jpeg`, {IN_FLIGHT} in flight, gRPC, the answer a PNG",
            f"{rate['served, files']:.1f}",
            f"{100 * share:.0f} %",
        ],
    ]
    return markdown(["", "images per second", "of `predict`"], rows)


if __name__ == "__main__":
    main()
