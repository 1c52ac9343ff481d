"""Times what else would run the same network, beside what this package makes of it: one script, one table.

    nice python benchmarks/peers.py --json peers.json
    python benchmarks/peers.py r2mrf-lite --data CUHK --dataset cuhk --split cuhk-validation --calibration FOLDER --compress
    python benchmarks/peers.py --seconds 10 --control-seconds 1200 --folder models --json peers.json
    python benchmarks/peers.py --table benchmarks/results/peers-r2mrf-lite.json

The peers get the network in PyTorch, as a user would hand it to them: PyTorch itself, eager and compiled; ONNX Runtime, on
the graph that torch.onnx.export makes; OpenVINO, on what its own converter makes; and NNCF, which quantises that. Ours are
the exact graph, the INT8 graph and compressed graphs. Both sides quantise on the same photographs. All have batch 1, the
same static size, the same threads and the same photograph, and take turns by the protocol of `r2mrf bench`.

Accuracy is measured apart from the timing: how far the maps of sample photographs are from those of PyTorch eager, and with
`--data` how good maps are against masks. What cannot be made or run is listed with the reason, and the rest goes on.
NNCF is no dependency of this package: `pip install nncf` lets its rows be measured too. Its accuracy control tries each
layer by itself, which takes many minutes, so it takes part only if `--control-seconds` gives it time. `--folder` keeps the
models, and a later run reuses those of the same network, size and photographs.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from peer_models import BOUND, HELD_OUT, Row, Work, album, size_on_disk
from tables import markdown

from r2mrf_deploy import environment, weights
from r2mrf_deploy.bench.protocol import Candidate, Protocol, measure
from r2mrf_deploy.bench.summary import Summary
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.datasets import KNOWN, Dataset, polarity, read_dataset
from r2mrf_deploy.errors import R2mrfError, first_line
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.progress import Interrupted
from r2mrf_deploy.report.tables import where
from r2mrf_deploy.runtimes import Runner
from r2mrf_deploy.runtimes.base import Timing
from r2mrf_deploy.wording import count

EAGER = "PyTorch eager"
RUN_BY = ("torch", "onnxruntime", "onnxruntime-gpu", "openvino", "nncf")
"""The tools whose versions the table gives."""
SHORT = ("PyTorch eager", "torch.compile", "ONNX Runtime", "OpenVINO", "NNCF INT8", "ours, exact", "ours, INT8")
"""The rows of the short table."""
EXACT, INT8, BEST = 1.6, 1.5, 12.0
"""The goals: how many times as fast as the best FP32 peer; as NNCF's INT8, at no less accuracy; as PyTorch eager."""


def main() -> None:
    given = _arguments()
    found = json.loads(given.table.read_text()) if given.table else run(given)
    size, threads = "x".join(map(str, found["size"])), count(found["machine"]["threads"], "thread")
    tools = {name: version for name, version in found["tools"].items() if name in RUN_BY}
    title = f"{found['network']} at {size}, {threads}; {where(found['machine'], tools)}"
    print("\n".join([title, "", table(found), "", *goals(found)]))


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Make and judge every candidate, then time them all. The file is written after each result."""
    with ExitStack() as stack:
        work = begun(given, given.folder or Path(stack.enter_context(tempfile.TemporaryDirectory())))
        found = described(work, given)
        opened: list[tuple[Row, Candidate]] = []
        for entry in entries(work, given):
            row: Row = {"title": entry.title, "side": entry.side, "kind": entry.kind}
            found["rows"].append(row)
            start = time.perf_counter()
            try:
                runner, file = entry.open()
                stack.enter_context(runner)
                row |= {"device": f"{runner.runtime}, {runner.device}", "bytes": size_on_disk(file)} | work.judged(
                    runner
                )
                opened.append((row, Candidate(entry.title, runner, work.feed)))
            except Exception as e:  # whatever it is, the others are measured
                if not work.eager:
                    raise  # all are compared with it
                row["failure"] = first_line(e) if isinstance(e, R2mrfError) else f"{type(e).__name__}: {first_line(e)}"
            row["seconds"] = round(time.perf_counter() - start, 1)
            print(f"{entry.title}: {row.get('failure', 'made and judged')} ({row['seconds']:.0f} s)", flush=True)
            write(found, given.json)
        time_all(opened, Protocol(duration=given.seconds))
        found["layouts_ms"] = work.layouts
        write(found, given.json)
    return found


def begun(given: argparse.Namespace, folder: Path) -> Work:
    """The network at its size, and the photographs."""
    folder.mkdir(parents=True, exist_ok=True)
    source = weights.checkpoint(given.checkpoint) if given.checkpoint in weights.SHIPPED else Path(given.checkpoint)
    checkpoint = Checkpoint.load(source)
    return Work(
        source, checkpoint, given.size or (checkpoint.preprocess.longest_side,) * 2, folder, given.threads,
        given.calibration or album(folder / "calibration"), masks(given), given.control_seconds,
    )  # fmt: skip


def masks(given: argparse.Namespace) -> Dataset | None:
    """The photographs with masks, every so-many-th of the dataset."""
    if given.data is None:
        return None
    white = polarity(given.dataset, given.white)
    dataset = read_dataset(given.data, white=white, split=given.split, dataset=given.dataset)
    step = max(1, len(dataset) // given.count)
    return replace(dataset, pairs=list(dataset.pairs)[::step][: given.count])


def described(work: Work, given: argparse.Namespace) -> dict[str, Any]:
    """What is measured, with what, and where."""
    data = work.dataset
    nncf = environment.version("nncf")
    return {
        "machine": environment.describe() | {"threads": work.threads},
        "tools": environment.tool_versions() | ({"nncf": nncf} if nncf else {}),
        "network": work.source.stem,
        "size": work.size,
        "seconds": given.seconds,
        "bound": BOUND,
        "calibration": given.calibration.name if given.calibration else "sample photographs",
        "calibrated_on": len(work.calibration_feeds),
        "compared_on": HELD_OUT,
        "masks": data and {"folder": data.folder.name, "split": given.split, "photographs": len(data)},
        "rows": [],
    }


def write(found: Mapping[str, Any], file: Path | None) -> None:
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, (json.dumps(found, indent=2) + "\n").encode())


# ---- what takes part


@dataclass(frozen=True)
class Entry:
    """A row of the table that is to be measured."""

    title: str
    side: str
    """peer or ours."""
    kind: str
    """fp32, bf16, int8, controlled (NNCF's accuracy control) or compressed."""
    open: Callable[[], tuple[Runner, Path]]
    """What runs it, and its file."""


def entries(work: Work, given: argparse.Namespace) -> Iterator[Entry]:
    """Every row, PyTorch eager first."""
    yield Entry(EAGER, "peer", "fp32", work.run_eager)
    yield Entry("torch.compile", "peer", "fp32", work.run_compiled)
    yield Entry("torch.compile, freezing", "peer", "fp32", partial(work.run_compiled, options={"freezing": True}))
    if given.max_autotune:
        yield Entry("torch.compile, max-autotune", "peer", "fp32", partial(work.run_compiled, mode="max-autotune"))
    yield Entry("ONNX Runtime", "peer", "fp32", partial(work.run_file, work.exported, "onnxruntime"))
    yield from in_openvino(work, "OpenVINO", "peer", "fp32", work.converted)
    yield from in_openvino(work, "NNCF INT8", "peer", "int8", work.quantised)
    yield from in_openvino(work, "NNCF INT8, accuracy control", "peer", "controlled", work.controlled)
    yield from ours(work, "ours, exact", "fp32", work.exact)
    yield from ours(work, "ours, INT8", "int8", work.int8)
    if given.compress:
        yield from ours(work, "ours, compressed", "compressed", work.compressed)
    for file in given.compressed:
        yield from ours(work, f"ours, {file.stem}", "compressed", partial(Path, file))


def in_openvino(work: Work, title: str, side: str, kind: str, make: Callable[[], Path]) -> Iterator[Entry]:
    """A file in OpenVINO, and the same computing in BF16 what is FP32 in it, as OpenVINO does by default where it can."""
    yield Entry(title, side, kind, partial(work.run_file, make, "openvino"))
    half = partial(work.run_file, make, "openvino", bf16=True)
    yield Entry(f"{title}, BF16", side, "bf16" if kind == "fp32" else kind, half)


def ours(work: Work, title: str, kind: str, make: Callable[[], Path]) -> Iterator[Entry]:
    """A file of this package, in OpenVINO and in ONNX Runtime."""
    yield from in_openvino(work, title, "ours", kind, partial(work.own_format, make))
    yield Entry(f"{title}, ONNX Runtime", "ours", kind, partial(work.run_file, make, "onnxruntime"))


# ---- time


def time_all(opened: Sequence[tuple[Row, Candidate]], protocol: Protocol) -> None:
    """Time candidates in turns, and put the figures into their rows; after Ctrl-C, those of the turns that all have had."""
    try:
        measure([candidate for _, candidate in opened], protocol)
    except Interrupted:
        print("interrupted: these are the figures so far", flush=True)
    except Exception:
        if any(candidate.failure is None for _, candidate in opened):
            raise  # otherwise it is the first one's, and in its row
    for row, candidate in opened:
        if candidate.failure is not None:
            row["failure"] = candidate.reason
    timed = [(row, candidate) for row, candidate in opened if candidate.failure is None and candidate.turns]
    for row, candidate in timed:
        summary = Summary.of(candidate.turns, (90.0, 99.0))
        row |= {"latency_ms": asdict(summary.latency), "inferences": summary.inferences}
    turns = {row["title"]: candidate.turns for row, candidate in timed}
    against = references([row for row, _ in timed])
    for row, candidate in timed:
        row["times_as_fast_as"] = {name: ratio(turns[title], candidate.turns) for name, title in against.items()}


def references(rows: Sequence[Row]) -> dict[str, str]:
    """What rows are compared with, and its title: PyTorch eager, the fastest FP32 peer, and NNCF's faster INT8."""
    found = {"eager": EAGER} if any(row["title"] == EAGER for row in rows) else {}
    for kind in ("fp32", "int8"):
        if best := fastest([row for row in rows if row["side"] == "peer" and row["kind"] == kind]):
            found[kind] = best["title"]
    return found


def fastest(rows: Sequence[Row]) -> Row | None:
    return min(rows, key=lambda row: row["latency_ms"]["median"], default=None)


def ratio(reference: Sequence[Sequence[Timing]], turns: Sequence[Sequence[Timing]]) -> float:
    """How many times as fast the second is: the median over the turns of the ratio of a turn's median latencies."""
    return statistics.median(_median(a) / _median(b) for a, b in zip(reference, turns, strict=True))


def _median(turn: Sequence[Timing]) -> float:
    return statistics.median(timing.latency for timing in turn)


# ---- what is printed


def table(found: Mapping[str, Any]) -> str:
    """The rows in Markdown, in the order in which they were measured."""
    head = ["", "runs on", "median", "× eager", "× FP32 peer", "MB", "F max", "F at 0.5", "MAE", "Δmap"]
    return markdown(head, map(_cells, found["rows"]), names=2)


def short_table(found: Mapping[str, Any]) -> str:
    """The rows of which every column is a figure of the same network, computed in FP32 or INT8, without BF16."""
    head = ["", "median", "times as fast", "MB", "F", "MAE"]
    rows = [row for row in found["rows"] if row["title"] in SHORT]
    return markdown(
        [f"`{found['network']}`", *head[1:]], ([c[0], c[2], c[3], c[5], c[6], c[8]] for c in map(_cells, rows))
    )


def _cells(row: Row) -> list[str]:
    if "failure" in row:
        return [row["title"], row["failure"].replace("|", "/"), *["-"] * 8]
    times, scores, latency = row.get("times_as_fast_as", {}), row["scores"], row.get("latency_ms")
    return [
        row["title"],
        re.sub(r", CPU, \d+ threads?", "", row["device"]),  # the same in all
        f"{latency['median']:.1f} ms" if latency else "-",
        *(f"{times[name]:.2f}" if name in times else "-" for name in ("eager", "fp32")),
        f"{row['bytes'] / 1e6:.1f}",
        *(f"{scores[name]:.4f}" if scores else "-" for name in ("f_max", "f_half", "mae")),
        f"{row['map_difference']:.4f}",
    ]


def goals(found: Mapping[str, Any]) -> list[str]:
    """Whether each goal is reached, a line each."""
    rows = [row for row in found["rows"] if "latency_ms" in row]
    own, titles = [row for row in rows if row["side"] == "ours"], references(rows)
    exact = [row for row in own if row["kind"] == "fp32"]
    near = [row for row in own if max(row["loss"].values()) <= found["bound"]]
    nncf = next((row for row in rows if row["title"] == titles.get("int8")), None)
    as_good = [row for row in near if nncf and max(row["loss"].values()) <= max(nncf["loss"].values())]
    within = f"within {found['bound']:g}"
    return [
        _goal("exact", EXACT, "the best FP32 peer", fastest(exact), "fp32", titles),
        _goal(f"{within}", INT8, "NNCF's INT8, no less accurate", fastest(as_good), "int8", titles),
        _goal(f"{within}", BEST, "PyTorch eager", fastest(near), "eager", titles),
    ]


def _goal(which: str, least: float, what: str, best: Row | None, reference: str, titles: Mapping[str, str]) -> str:
    said = f"goal: ours, {which}, is at least {least:g} times as fast as {what}:"
    if reference not in titles:
        return f"{said} not judged, since that was not measured"
    if best is None:
        return f"{said} missed, since none of ours is that accurate"
    found = best["times_as_fast_as"][reference]
    verdict = "reached" if found >= least else "missed"
    return f"{said} {verdict}, {found:.2f} times ({best['title']}; {titles[reference]})"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shipped = f"a checkpoint, or the name of shipped weights (default: {weights.DEFAULT})"
    parser.add_argument("checkpoint", nargs="?", default=weights.DEFAULT, help=shipped)
    parser.add_argument(
        "--size", type=_size, metavar="HxW", help="the input (default: the checkpoint's own longest side)"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=5, help="of timing for each candidate")
    parser.add_argument("--data", type=Path, help="folder of photographs and masks")
    parser.add_argument("--dataset", choices=KNOWN, help="the published dataset that it is")
    parser.add_argument("--white", choices=["sharp", "blurred"], help="what is white in the masks of another one")
    parser.add_argument("--split", help="a file of names, or a shipped split such as cuhk-validation")
    parser.add_argument("--count", type=int, default=60, help="photographs with masks (default: 60)")
    parser.add_argument("--calibration", type=Path, help="folder of photographs for INT8 (default: sample photographs)")
    parser.add_argument(
        "--control-seconds", type=float, default=0, help="that NNCF's accuracy control may take (0: left out)"
    )
    parser.add_argument(
        "--max-autotune", action="store_true", help="torch.compile in that mode too, which takes minutes"
    )
    parser.add_argument(
        "--compressed", type=Path, nargs="+", default=[], metavar="FILE", help="files of r2mrf compress"
    )
    parser.add_argument("--compress", action="store_true", help="make a compressed file, as r2mrf compress does")
    parser.add_argument("--folder", type=Path, help="keep the models here, and reuse those that are here already")
    parser.add_argument("--json", type=Path, help="write the results to this file, after each one")
    parser.add_argument("--table", type=Path, metavar="JSON", help="only print the table and the goals of such a file")
    return parser.parse_args()


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.lower().split("x"))
    return height, width


if __name__ == "__main__":
    main()
