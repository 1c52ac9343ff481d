"""Measures what the shipped networks cost on one thread of a CPU: latency and peak memory, for every runtime that is here.

    nice python benchmarks/small_devices.py --json benchmarks/results/small-devices.json
    python benchmarks/small_devices.py --table benchmarks/results/small-devices.json

Each network is exported at each size in FP32 and in INT8, in the format that each runtime opens first. All runtimes and both
precisions of a size take turns by the protocol of `r2mrf bench`, with batch 1 and one thread. Then each opens its file in a
fresh process, runs a few inferences and says its peak resident memory, in which the modules that it imported count too; what
these take alone is measured once for each runtime. INT8 is calibrated on sample photographs unless `--calibration` names
better ones. All maps are compared with those of the first runtime in FP32, which is PyTorch where it is installed, on sample
photographs that INT8 is not calibrated on.

What cannot be made, opened or run is listed with the reason, and the rest goes on. The roofline's predictions for the small
devices of `r2mrf budget` are of the same files. `--folder` keeps the files, and a later run reuses them: also on a small
device without PyTorch, to which the folder was copied.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tables import markdown

from r2mrf_deploy import environment, gpus, images, runtimes, sample_photographs, weights
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.bench import feeds
from r2mrf_deploy.bench.protocol import Candidate, Protocol, measure
from r2mrf_deploy.bench.summary import Summary
from r2mrf_deploy.errors import R2mrfError, first_line
from r2mrf_deploy.runtimes import OpenOptions, Runner, Runtime

SIZES = (192, 256, 320)
PRECISIONS = ("fp32", "int8")
HELD_OUT = ("chelsea", "astronaut", "coffee", "rocket")
"""Photographs that maps are compared on; INT8 is not calibrated on them."""
INFERENCES = 5
"""Of each case in its fresh process: enough for a runtime to have allocated all that it needs."""
MIB = 1 << 20


def main() -> None:
    given = _arguments()
    if given.case:
        print(json.dumps(case(given.case, given.runtime[0], given.size[0])))
    elif given.imported:
        print(json.dumps({"peak": imported(json.load(sys.stdin))}))
    elif given.table:
        found = json.loads(given.table.read_text())
        print(f"{measured_table(found)}\n\n{predicted_table(found)}")
    else:
        run(given)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Measure everything. The file is written after each size, because each takes minutes."""
    protocol = Protocol(duration=given.duration)
    found: dict[str, Any] = {
        "machine": environment.describe() | {"threads": 1},
        "tools": environment.tool_versions(),
        "duration_s": given.duration,
        "calibration": given.calibration.name if given.calibration else "sample photographs",
    }
    found |= {"rows": [], "predictions": [], "imported_mib": {}, "skipped": []}
    with ExitStack() as stack:
        folder = given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        files = Files(folder, given.calibration)
        chosen = usable(given.runtime, found["skipped"])
        for network, size in itertools.product(given.network, given.size):
            for row, file in measured(files, network, size, chosen, protocol, found["skipped"]):
                found["rows"].append(row | memory(row, file, found))
            found["predictions"] += predictions(files, network, size)
            if given.json:
                given.json.parent.mkdir(parents=True, exist_ok=True)
                given.json.write_text(json.dumps(found, indent=2) + "\n")
    return found


def usable(names: Sequence[str], skipped: list[dict[str, str]]) -> list[Runtime]:
    """The runtimes that are available here; by default none that are variants of others, such as WebGPU in software."""
    found = []
    for runtime in map(runtimes.get, names or runtimes.names()):
        if runtime.variant_of and not names:
            continue
        state = runtime.availability()
        if state.ok:
            found.append(runtime)
        else:
            skip(skipped, runtime.title, state.reason)
    return found


def skip(skipped: list[dict[str, str]], what: str, why: object) -> None:
    """Keep why something was not measured, and say it."""
    reason = why if isinstance(why, str) else first_line(why) if isinstance(why, R2mrfError) else repr(why)
    skipped.append({"what": what, "why": reason})
    print(f"{what} was not measured: {reason}", flush=True)


# ---- files


@dataclass
class Files:
    """The files of each network at each size, made when they are first asked for."""

    folder: Path
    calibration: Path | None
    """A folder of photographs; by default sample photographs."""
    made: dict[Path, Path | Exception] = field(default_factory=dict)
    """What was made of each, or why it cannot be made."""

    def get(self, network: str, size: int, precision: str, suffix: str) -> Path:
        """A file, or the checkpoint, which is of every size. Raises what making it raised."""
        if suffix == ".pth":
            return weights.checkpoint(network)
        name = "index" if suffix == ".html" else network  # a page is a folder of files
        path = self.folder / f"{network}-{size}-{precision}-{suffix[1:]}" / f"{name}{suffix}"
        if path not in self.made:
            try:
                self.made[path] = path if path.exists() else self._make(path, network, size, precision)
            except Exception as e:  # whatever it is, the other files are made
                self.made[path] = e
        made = self.made[path]
        if isinstance(made, Exception):
            raise made
        return made

    def _make(self, path: Path, network: str, size: int, precision: str) -> Path:
        from r2mrf_deploy.export.build import build_artifact
        from r2mrf_deploy.export.chain import export_artifact
        from r2mrf_deploy.export.convert import convert_artifact
        from r2mrf_deploy.export.options import ExportOptions, PrecisionOptions

        print(f"making {path.parent.name}", flush=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix != ".onnx":
            graph = self.get(network, size, precision, ".onnx")
            return build_artifact(graph, path, allow_failed_parity=True).path
        if precision == "fp32":
            return export_artifact(weights.checkpoint(network), path, ExportOptions((size, size))).path
        graph = self.get(network, size, "fp32", ".onnx")
        calibration = (self.calibration or album(self.folder / "calibration")) if precision == "int8" else None
        options = PrecisionOptions(precision, calibration)  # type: ignore[arg-type]
        return convert_artifact(graph, path, options, allow_failed_parity=True).path


def album(folder: Path) -> Path:
    """A folder of sample photographs to calibrate on, at the scale that the networks see."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in sample_photographs.names():
        if name not in HELD_OUT:
            photograph = sample_photographs.sample(name)
            height, width = photograph.shape[:2]
            scale = 400 / max(height, width)
            small = images.resize(photograph, (round(height * scale), round(width * scale)))
            (folder / f"{name}.png").write_bytes(images.png(small))
    return folder


# ---- latency and accuracy


Row = dict[str, Any]


def measured(
    files: Files, network: str, size: int, chosen: Sequence[Runtime], protocol: Protocol, skipped: list[dict[str, str]]
) -> list[tuple[Row, Path]]:
    """A row for each runtime and precision, and its file."""
    cases: list[tuple[Candidate, Path, float]] = []
    reference: list[np.ndarray] = []
    with ExitStack() as stack:
        for runtime, precision in itertools.product(chosen, PRECISIONS):
            suffix = runtime.suffixes[0]
            if suffix == ".pth" and precision != "fp32":
                continue  # a checkpoint has no other precision
            try:
                file = files.get(network, size, precision, suffix)
                runner = stack.enter_context(opened_with(runtime.name, file))
                if runner.on_gpu:
                    continue  # this is about CPUs
                found = maps(runner, size)
            except Exception as e:  # whatever it is, the other cases are measured
                skip(skipped, f"{network} at {size}, {precision.upper()}, on {runtime.name}", e)
                continue
            reference = reference or found
            difference = float(np.mean([np.abs(a - b).mean() for a, b in zip(found, reference, strict=True)]))
            candidate = Candidate(precision, runner, feeds.random(runner.inputs, (1, size, size)))
            cases.append((candidate, file, difference))
        with suppress(Exception):  # of the first, if all of them fail
            measure([candidate for candidate, *_ in cases], protocol)
    return [(row(network, size, *each), each[1]) for each in cases if sound(network, size, each[0], skipped)]


def sound(network: str, size: int, candidate: Candidate, skipped: list[dict[str, str]]) -> bool:
    """Whether a candidate was measured; if not, keep why."""
    if candidate.failure is not None:
        what = f"{network} at {size}, {candidate.name.upper()}, on {candidate.runner.runtime}"
        skip(skipped, what, candidate.failure)
    return candidate.failure is None


def row(network: str, size: int, candidate: Candidate, file: Path, difference: float) -> Row:
    """What was measured of a case: its latency, and how far its maps are from those of the first runtime in FP32."""
    runner, summary = candidate.runner, Summary.of(candidate.turns, (90.0, 99.0))
    print(f"{network} at {size}, {candidate.title}: {summary.latency.median:.1f} ms, Δmap {difference:.4f}", flush=True)
    return {
        "network": network, "size": size, "precision": candidate.name, "runtime": runner.runtime, "device": runner.device,
        "emulates": runner.emulates, "format": file.suffix, "file_bytes": file_bytes(file),
        "latency_ms": asdict(summary.latency), "inferences": summary.inferences, "map_difference": difference,
    }  # fmt: skip


def opened_with(runtime: str, file: Path) -> Runner:
    """A file opened with one thread, if the runtime lets us choose."""
    one = OpenOptions(threads=1) if "threads" in runtimes.get(runtime).supported_options else OpenOptions()
    return runtimes.open(Artifact.open(file), runtime, options=one)


def maps(runner: Runner, size: int) -> list[np.ndarray]:
    """The maps of the photographs that are held out, stretched to a square."""
    name = runner.inputs[0].name
    squares = (images.resize(sample_photographs.sample(photograph), (size, size)) for photograph in HELD_OUT)
    return [np.asarray(runner.run({name: np.ascontiguousarray(s[None])})["map"], np.float32) for s in squares]


def file_bytes(file: Path) -> int:
    """The size of a model, with the further files that belong to it."""
    manifest = Artifact.open(file).manifest
    beside = [file.with_name(name) for name in manifest.companions] if manifest else []
    return sum(f.stat().st_size for f in (file, *beside))


# ---- memory


def memory(row: Row, file: Path, found: dict[str, Any]) -> Row:
    """The peak memory of a row's case in a process of its own, in MiB."""
    runtime = row["runtime"]
    command = ["--case", str(file), "--runtime", runtime, "--size", str(row["size"])]
    try:
        said = in_a_process(command)
        if runtime not in found["imported_mib"]:
            modules = json.dumps(said["modules"])
            found["imported_mib"][runtime] = round(in_a_process(["--imported"], modules)["peak"] / MIB, 1)
    except (subprocess.SubprocessError, json.JSONDecodeError) as e:
        what = f"the memory of {row['network']} at {row['size']}, {row['precision'].upper()}, on {runtime}"
        skip(found["skipped"], what, e)
        return {"peak_mib": None}
    peak = {"peak_mib": round(said["peak"] / MIB, 1)}
    return peak | ({"children_mib": round(said["children"] / MIB, 1)} if said["children"] else {})


def in_a_process(arguments: Sequence[str], told: str = "") -> dict[str, Any]:
    """What this script says when it is run with these arguments."""
    command = [sys.executable, __file__, *arguments]
    done = subprocess.run(command, input=told, capture_output=True, text=True, check=True, timeout=600)
    return json.loads(done.stdout.splitlines()[-1])


def case(file: Path, runtime: str, size: int) -> dict[str, Any]:
    """Open a file and run it. Returns this process's peak, what those that it started have at the end, and its modules."""
    with opened_with(runtime, file) as runner:
        feed = feeds.random(runner.inputs, (1, size, size))
        for _ in range(INFERENCES):
            runner.run(feed)
        return {"peak": peak(), "children": sum(map(share, descendants("self"))), "modules": sorted(sys.modules)}


def imported(modules: Sequence[str]) -> int:
    """The peak memory of a process that has only imported these modules."""
    for module in modules:
        with suppress(Exception):  # some can be imported only by another
            importlib.import_module(module)
    return peak()


def peak() -> int:
    """The most bytes that were ever resident of this process."""
    return _kilobytes("VmHWM", "self", "status") * 1024


def share(process: str) -> int:
    """The bytes that are resident of a process, with a part of those that others share; 0 if it has ended."""
    return _kilobytes("Pss", process, "smaps_rollup") * 1024


def _kilobytes(name: str, process: str, file: str) -> int:
    with suppress(OSError):
        if found := re.search(rf"^{name}:\s+(\d+) kB", Path(f"/proc/{process}/{file}").read_text(), re.MULTILINE):
            return int(found[1])
    return 0


def descendants(process: str) -> Iterator[str]:
    """The processes that a process has started, and those that they have started."""
    for listed in Path(f"/proc/{process}/task").glob("*/children"):
        for child in listed.read_text().split():
            yield child
            yield from descendants(child)


# ---- predictions


def predictions(files: Files, network: str, size: int) -> list[dict[str, Any]]:
    """What the roofline predicts for the small devices in each precision that they compute in."""
    from r2mrf_deploy import budget

    rows = []
    for precision in ("fp32", "fp16", "int8"):
        try:
            graph = files.get(network, size, precision, ".onnx")
        except Exception as e:
            print(f"{network} at {size}, {precision.upper()}, was not predicted: {e!r}", flush=True)
            continue
        small = [d for d in (*gpus.GPUS.values(), *gpus.CPUS.values()) if d.is_small]
        for device in (d for d in small if gpus.precision_refusal(d, precision) is None):
            for threads in (None, 1) if isinstance(device, gpus.CPU) else (None,):
                [p] = budget.draw_up(str(graph), [device.name], threads=threads, check=False).predictions
                rows.append(
                    {"network": network, "size": size, "precision": precision, "device": device.name, "title": p.title,
                     "roof_ms": round(p.roof, 3), "predicted_ms": round(p.ms, 2)}
                )  # fmt: skip
    return rows


# ---- tables


def measured_table(found: Mapping[str, Any]) -> str:
    """Each network and size in each runtime, in FP32 and INT8."""
    rows, imported_mib = found["rows"], found["imported_mib"]
    head = ["network, input", "runtime", "FP32", "INT8", "ratio", "memory FP32", "memory INT8", "imports", "Δmap INT8"]
    lines = []
    for key in dict.fromkeys((r["network"], r["size"], r["runtime"]) for r in rows):
        by = {r["precision"]: r for r in rows if (r["network"], r["size"], r["runtime"]) == key}
        ms = {p: r["latency_ms"]["median"] for p, r in by.items()}
        ratio = f"{ms['fp32'] / ms['int8']:.2f}" if len(ms) == 2 else "-"
        latency = [f"{ms[p]:.1f} ms" if p in ms else "-" for p in PRECISIONS]
        peaks = [_mib(by.get(p)) for p in PRECISIONS]
        difference = f"{by['int8']['map_difference']:.4f}" if "int8" in by else "-"
        imports = f"{imported_mib[key[2]]:.0f} MiB" if key[2] in imported_mib else "-"
        lines.append([f"`{key[0]}`, {key[1]}", key[2], *latency, ratio, *peaks, imports, difference])
    return markdown(head, lines, names=2)


def _mib(row: Row | None) -> str:
    if row is None or row["peak_mib"] is None:
        return "-"
    children = f" + {row['children_mib']:.0f}" if row.get("children_mib") else ""
    return f"{row['peak_mib']:.0f}{children} MiB"


def predicted_table(found: Mapping[str, Any]) -> str:
    """For each device FP32, and the precision of which least is predicted."""
    rows = found["predictions"]
    columns = list(dict.fromkeys((r["network"], r["size"]) for r in rows))
    lines = []
    for title in dict.fromkeys(r["title"] for r in rows):
        ms: dict[str, dict[tuple[str, int], float]] = {}
        for r in rows:
            if r["title"] == title:
                ms.setdefault(r["precision"], {})[r["network"], r["size"]] = r["predicted_ms"]
        for precision in dict.fromkeys(("fp32", min(ms, key=lambda p: sum(ms[p].values())))):
            cells = [f"{ms[precision][c]:.1f}" if c in ms[precision] else "-" for c in columns]
            lines.append([title, precision.upper(), *cells])
    return markdown(["predicted ms", "", *(f"`{network}`, {size}" for network, size in columns)], lines, names=2)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", action="append", choices=weights.SHIPPED, help="by default both that are shipped")
    parser.add_argument("--size", action="append", type=int, help=f"side of the input; by default {SIZES}")
    parser.add_argument("--runtime", action="append", help="by default every one that is available")
    parser.add_argument("--duration", type=float, default=3, help="seconds for each runtime and precision")
    parser.add_argument("--calibration", type=Path, help="folder of photographs for INT8 (default: sample photographs)")
    parser.add_argument("--folder", type=Path, help="keep the files here, and use those that are here already")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--table", type=Path, metavar="JSON", help="only print the tables of such a file")
    parser.add_argument("--case", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--imported", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.network, given.size = given.network or list(weights.SHIPPED), given.size or list(SIZES)
    return given


if __name__ == "__main__":
    main()
