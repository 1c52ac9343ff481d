"""Measures what `r2mrf compress` gives: the points of its curve in a runtime, timed beside the full network.

    python benchmarks/compression.py r2mrf-lite --images PHOTOS --folder models --json results/compression.json
    python benchmarks/compression.py r2mrf-lite --images PHOTOS --data CUHK --dataset cuhk --split NAMES --json ...
    python benchmarks/compression.py --json results/compression.json --plot ../docs/compression.png

The search is the command's, for the runtime that is timed. Then the points that no other one beats are written, and timed
in turns with the full network's exact graph, by the protocol of `r2mrf bench`; OpenVINO gets both in its own format.
With `--data` the bound is on masks. `--folder` keeps the search and the models, and a run that was killed goes on there.
Other results in the file stay.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import markdown

from r2mrf_deploy import environment, weights
from r2mrf_deploy.bench.protocol import Protocol, bench_artifacts
from r2mrf_deploy.compression import CompressionOptions, compress_artifact
from r2mrf_deploy.compression.artifacts import curve_file
from r2mrf_deploy.compression.curve import Curve
from r2mrf_deploy.compression.judging import size
from r2mrf_deploy.datasets import KNOWN, Dataset, polarity, read_dataset
from r2mrf_deploy.errors import CheckFailed
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.options import ExportOptions
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.progress import Progress
from r2mrf_deploy.report.tables import where
from r2mrf_deploy.runtimes import OpenOptions
from r2mrf_deploy.wording import count

APART = 0.02
"""The share of the full network's cost by which the points that are timed differ."""


def main() -> None:
    given = _arguments()
    results = json.loads(given.json.read_text()) if given.json.exists() else {}
    if given.checkpoint:
        results[_name(given)] = run(given)
        write_atomically(given.json, (json.dumps(results, indent=2) + "\n").encode())
    for found in results.values():
        print(f"\n{title(found)}\n\n{table(found)}")
    if given.plot:
        plot(list(results.values()), given.plot)


def run(given: argparse.Namespace) -> dict[str, Any]:
    """Search, write the points, and time them with the full network."""
    source, dataset, folder = _source(given), _masks(given), given.folder / _name(given)
    folder.mkdir(parents=True, exist_ok=True)
    options = CompressionOptions(
        given.max_drop, given.runtime, size=given.size, resume=folder / "search.json", allow_failed_parity=True
    )
    try:
        compress_artifact(source, folder / "compressed.onnx", given.images, options, dataset=dataset, progress=_say)
    except CheckFailed as e:  # its curve is written, and shows how near it comes
        print(e)
    curve = Curve.read(curve_file(folder / "compressed.onnx"))
    rows = [{"point": None} | _figures(curve.full, curve)]
    files = [_own_format(_full(source, folder / "full.onnx", given.size), given.runtime)]
    for index in apart(curve):
        file = folder / f"point-{index + 1}.onnx"
        shutil.copy(curve_file(folder / "compressed.onnx"), curve_file(file))
        compress_artifact(source, file, given.images, options, dataset=dataset, point=index + 1)
        rows.append({"point": index + 1} | _figures(curve.points[index], curve))
        files.append(_own_format(file, given.runtime))
    protocol = Protocol(duration=given.seconds)
    done = bench_artifacts(files, [given.runtime], protocol, options=OpenOptions(threads=given.threads))
    for row, file, measured in zip(rows, files, done.measurements, strict=True):
        row |= {
            "bytes": sum(f.stat().st_size for f in {file, file.with_suffix(".bin")} if f.exists()),
            "median_ms": measured.latency.median,
            "times_as_fast": measured.speed_up,
            "middle_half": measured.speed_up_range,
        }
    return {
        "network": source.stem,
        "machine": done.machine | {"threads": given.threads},
        "tools": done.tools,
        "size": given.size,
        "runtime": given.runtime,
        "judged": curve.judged,
        "max_drop": curve.max_drop,
        "chosen": None if curve.chosen is None else curve.chosen + 1,
        "rows": rows,
    }


def apart(curve: Curve) -> list[int]:
    """The points that no other one beats, without those that cost nearly the same as the one before; with the chosen one."""
    found: list[int] = []
    for index in curve.front():
        last = curve.points[found[-1]].cost if found else 0.0
        if index == curve.chosen or curve.points[index].cost - last >= APART * curve.full.cost:
            found.append(index)
    return found


def _source(given: argparse.Namespace) -> Path:
    return weights.checkpoint(given.checkpoint) if given.checkpoint in weights.SHIPPED else Path(given.checkpoint)


def _name(given: argparse.Namespace) -> str:
    """What the results and the folder are called."""
    return f"{_source(given).stem}-on-masks" if given.data else _source(given).stem


def _masks(given: argparse.Namespace) -> Dataset | None:
    if given.data is None:
        return None
    white = polarity(given.dataset, given.white)
    return read_dataset(given.data, white=white, split=given.split, dataset=given.dataset)


def _full(source: Path, file: Path, size: tuple[int, int] | None) -> Path:
    return export_artifact(source, file, ExportOptions(size)).path


def _own_format(file: Path, runtime: str) -> Path:
    """The file as the runtime likes it best."""
    return build_artifact(file, file.with_suffix(".xml")).path if runtime == "openvino" else file


def _figures(point: Any, curve: Curve) -> dict[str, Any]:
    kept = point.model_dump(include={"steps", "precision", "multiply_adds", "parameters", "mae", "f", "within"})
    changed = {"widths": len(point.channels), "ranks": len(point.ranks), "int8_parts": len(point.int8)}
    return kept | changed | {"cost": point.cost / curve.full.cost, "loss": size(point.drop)}


def _say(progress: Progress) -> None:
    if "of the cost" in progress.description:  # a point of the curve
        print(progress, flush=True)


def title(found: Mapping[str, Any]) -> str:
    """What was measured, and where."""
    machine, tools = found["machine"], found["tools"]
    size = "x".join(map(str, found["size"])) if found["size"] else "its own size"
    return (
        f"{found['network']} at {size}, loss against {found['judged']}; {count(machine['threads'], 'thread')}, "
        f"{where(machine, {found['runtime']: tools[found['runtime']]})}"
    )


def table(found: Mapping[str, Any]) -> str:
    """The points in Markdown."""
    head = ["point", "changed", "predicted", "median", "times as fast", "MB", "MAE lost", "F lost", "within"]
    return markdown(head, map(_cells, found["rows"]), names=2)


def _cells(row: Mapping[str, Any]) -> list[str]:
    low, high = row["middle_half"]
    steps = [] if row["steps"] is None else [count(row["steps"], "step")]
    changed = [f"{row[name]} {word}" for name, word in _CHANGES.items() if row[name]]
    changed += [f"{count(row['int8_parts'], 'part')} in INT8"] if row["int8_parts"] else []
    return [
        "full" if row["point"] is None else str(row["point"]),
        ", ".join(steps + changed),
        f"{row['cost']:.0%}",
        f"{row['median_ms']:.1f} ms",
        f"{row['times_as_fast']:.2f} ({low:.2f}-{high:.2f})",
        f"{row['bytes'] / 1e6:.1f}",
        f"{row['mae']:.4f}",
        f"{row['f']:.4f}",
        "yes" if row["within"] else "no",
    ]


_CHANGES = {"widths": "narrower", "ranks": "factored"}


def plot(networks: Sequence[Mapping[str, Any]], file: Path) -> None:
    """What is lost over the time that is left, measured and as the search predicted it: a panel for each result."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wide, high = min(2, len(networks)), math.ceil(len(networks) / 2)
    figure, axes = plt.subplots(high, wide, figsize=(5.5 * wide, 4.4 * high), squeeze=False)
    for axis in axes.flat[len(networks) :]:
        axis.remove()
    for axis, found in zip(axes.flat, networks, strict=False):
        full = found["rows"][0]
        rows = sorted(found["rows"], key=lambda row: row["loss"])
        axis.plot([100 / r["times_as_fast"] for r in rows], [r["loss"] for r in rows], "o-", label="measured time")
        axis.plot([100 * r["cost"] for r in rows], [r["loss"] for r in rows], "o", mfc="none", label="predicted cost")
        axis.axhline(found["max_drop"], ls="--", color="gray", label=f"bound, {found['max_drop']:g}")
        for row in rows:
            name = "full" if row["point"] is None else f"{row['point']}"
            axis.annotate(name, (100 / row["times_as_fast"], row["loss"]), (4, 4), textcoords="offset points", size=8)
        axis.set(xlabel=f"percent of the full network's time, {full['median_ms']:.0f} ms", xlim=(0, 110))
        axis.set(ylabel="larger loss of MAE and F")
        axis.set_title(f"{found['network']} in {found['runtime']}, against {found['judged']}", size=8)
        axis.set_yscale("symlog", linthresh=found["max_drop"])
        axis.set_ylim(min(-found["max_drop"] / 10, 1.4 * rows[0]["loss"]), 1.4 * rows[-1]["loss"])
        axis.legend(fontsize=8)
        axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="a checkpoint, or the name of shipped weights")
    parser.add_argument("--images", type=Path, help="folder of photographs")
    parser.add_argument("--data", type=Path, help="folder of photographs and masks: the bound is on these then")
    parser.add_argument("--dataset", choices=KNOWN, help="the published dataset that it is")
    parser.add_argument("--white", choices=["sharp", "blurred"], help="what is white in the masks of another one")
    parser.add_argument("--split", help="a file of names, or a shipped split such as cuhk-fit")
    parser.add_argument("--size", type=_size, metavar="HxW", help="the input (default: the checkpoint's own)")
    parser.add_argument("--max-drop", type=float, default=0.005)
    parser.add_argument("--runtime", choices=["onnxruntime", "openvino"], default="openvino")
    parser.add_argument("--threads", type=int, default=environment.describe()["cores"])
    parser.add_argument("--seconds", type=float, default=10, help="of timing for each point")
    parser.add_argument("--folder", type=Path, default=Path("compression"), help="for the search and the models")
    parser.add_argument("--json", type=Path, required=True, help="the file of results")
    parser.add_argument("--plot", type=Path, help="plot what is in the file")
    given = parser.parse_args()
    if given.checkpoint and not given.images:
        parser.error("give --images to compress a checkpoint")
    return given


def _size(text: str) -> tuple[int, int]:
    height, width = map(int, text.lower().split("x"))
    return height, width


if __name__ == "__main__":
    main()
