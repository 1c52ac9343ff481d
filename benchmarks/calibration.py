"""Times INT8 calibration and the search for nodes to keep, against what they are made from, over the same photographs.

    python benchmarks/calibration.py --json results/calibration.json
    python benchmarks/calibration.py --network r2mrf r2mrf-lite --images DIR --photographs 40

Calibration, for each method: the bare inference in ONNX Runtime with its optimisations, ONNX Runtime's own calibrator, and
ours, with the time to open the graph in all of them. `equal` counts the ranges that are those of ONNX Runtime to the bit.
The search (of the last network, `r2mrf convert --max-drop`): trials that share activations, and trials that do not, on
some sets of kept nodes as a search tries them. A network with weights in the package has these.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import onnx
from tables import markdown

from r2mrf_deploy import environment, images, sample_photographs, weights
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.export import onnx as exported_onnx
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.options import ExportOptions
from r2mrf_deploy.graph import quantize
from r2mrf_deploy.graph.prepare import prepared
from r2mrf_deploy.parity import node_search, pieces
from r2mrf_deploy.progress import no_stdout

Feeds = list[dict[str, np.ndarray]]
SEARCHED = 16
"""The photographs of a search, as `r2mrf convert` takes them."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", nargs="+", default=["r2mrf", "r2mrf-lite"], metavar="PRESET")
    parser.add_argument("--size", type=int, default=320, help="height and width in pixels")
    parser.add_argument("--images", type=Path, help="folder of photographs (default: those of scikit-image)")
    parser.add_argument("--photographs", type=int, default=8, help="how many are used, at most")
    parser.add_argument("--method", nargs="+", default=list(quantize.METHODS), choices=quantize.METHODS)
    parser.add_argument("--no-peer", action="store_true", help="leave out ONNX Runtime's calibrator, which is slow")
    parser.add_argument("--trials", type=int, default=8, help="timed trials of the search; 0: none")
    parser.add_argument("--json", type=Path, help="where to write the results, after each")
    given = parser.parse_args()
    results: dict[str, Any] = {
        "machine": environment.describe(),
        "tools": environment.tool_versions(),
        "size": given.size,
        "calibration": [],
    }
    for network in given.network:
        model = graph_of(network, given.size)
        feeds = photographs(model, given.size, given.images)
        for method in given.method:
            row = {"network": network} | calibration(model, feeds[: given.photographs], method, not given.no_peer)
            results["calibration"].append(row)
            store(row, results, given.json)
    if given.trials:
        row = {"network": network} | search(model, feeds[:SEARCHED], given.trials)
        results["search"] = row
        store(row, results, given.json)


def graph_of(network: str, size: int) -> onnx.ModelProto:
    """A preset's rewritten graph."""
    with tempfile.TemporaryDirectory() as folder:
        file = weights.find(network) or Checkpoint.init(network).save(Path(folder) / f"{network}.pth")
        done = export_artifact(file, Path(folder) / "x.onnx", ExportOptions((size, size)))
        return prepared(onnx.load(done.path))


def photographs(model: onnx.ModelProto, size: int, folder: Path | None) -> Feeds:
    found = [images.read(file) for file in images.find([folder])] if folder else sample_photographs.sharp()
    (name,) = (v.name for v in model.graph.input)
    return [{name: images.resize(photograph, (size, size))[None].copy()} for photograph in found]


def calibration(model: onnx.ModelProto, feeds: Feeds, method: quantize.Method, peer: bool) -> dict[str, Any]:
    """Seconds; the bare inference before and after, since other load on the machine comes and goes."""
    before, _ = timed(lambda: inference(model, feeds))
    ours, found = timed(lambda: quantize.calibrate(model, feeds, method))
    after, _ = timed(lambda: inference(model, feeds))
    again, _ = timed(lambda: quantize.calibrate(model, feeds, method))
    bare, own = median([before, after]), median([ours, again])
    row: dict[str, Any] = {"method": method, "photographs": len(feeds), "tensors": len(list(found))}
    row |= {"bare_s": round(bare, 2), "ours_s": round(own, 2), "ours_over_bare": round(own / bare, 2)}
    if peer:
        theirs, wanted = timed(lambda: by_the_peer(model, feeds, method))
        same = sum(np.array_equal(edges(found[name]), edges(wanted[name])) for name in found)
        row |= {"peer_s": round(theirs, 2), "peer_over_bare": round(theirs / bare, 2), "equal": same}
    return row


def inference(model: onnx.ModelProto, feeds: Feeds) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    for feed in feeds:
        session.run(None, feed)


def by_the_peer(model: onnx.ModelProto, feeds: Feeds, method: quantize.Method) -> Any:
    """What the toolkit did before: ONNX Runtime's calibrator, a photograph at a time."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    kinds = {"minmax": "MinMax", "entropy": "Entropy", "percentile": "Percentile"}
    with tempfile.TemporaryDirectory() as folder, no_stdout():
        file = Path(folder) / "model.onnx"
        onnx.save(model, file)
        calibrator = create_calibrator(
            file,
            list(quantize.QUANTISED),
            augmented_model_path=str(Path(folder) / "augmented.onnx"),
            calibrate_method=CalibrationMethod[kinds[method]],
            extra_options={"symmetric": True},
        )
        for feed in feeds:
            calibrator.collect_data(_Reader(feed))
        return calibrator.compute_data()


class _Reader:
    """One photograph, as ONNX Runtime's calibrators read it."""

    def __init__(self, feed: dict[str, np.ndarray]) -> None:
        self._feeds = iter([feed])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def edges(data: Any) -> list[float]:
    return [float(np.ravel(value)[0]) for value in data.range_value]


def search(model: onnx.ModelProto, feeds: Feeds, count: int) -> dict[str, Any]:
    """Trials that give up one node after the other of those kept, as the last pass of a search does, in turns."""
    ends = quantize.ends(model)
    nodes = [name for name in quantize.quantizable(model) if name not in ends]
    whole = quantize.quantize(model, quantize.calibrate(model, feeds))
    contract = exported_onnx.describe(model).model_copy(update={"precision": "int8"})
    kept = frozenset(nodes[::3])
    evaluate = [
        node_search.trials(model, contract, feeds, lambda some: quantize.restore(whole, model, [*ends, *some]), bound)
        for bound in (pieces.BOUND, 0)
    ]
    for each in evaluate:
        each(kept)
    left_out = sorted(kept, key=nodes.index, reverse=True)[:: max(len(kept) // count, 1)][:count]
    times: list[list[float]] = [[], []]
    apart = 0.0
    for node in left_out:
        (shared, ours), (alone, theirs) = (timed(partial(each, kept - {node})) for each in evaluate)
        times[0].append(shared)
        times[1].append(alone)
        apart = max(apart, abs(ours.mae - theirs.mae))
    sums = [sum(each) for each in times]
    return {
        "photographs": len(feeds),
        "trials": len(left_out),
        "shared_s": round(sums[0], 2),
        "alone_s": round(sums[1], 2),
        "gain": round(sums[1] / sums[0], 2),
        "largest_difference_of_mae": apart,
    }


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    done = work()
    return time.perf_counter() - start, done


def store(row: dict[str, Any], results: dict[str, Any], file: Path | None) -> None:
    print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(results, indent=2) + "\n")


def table(found: dict[str, Any]) -> str:
    """The time of a calibration over that of the bare inference, by method."""
    rows = {row["method"]: row for row in found["calibration"]}
    ratios = ([f"`{m}`", *(f"{rows[m][f'{who}_over_bare']:.1f}" for who in ("ours", "peer"))] for m in _SIMPLEST_FIRST)
    return markdown(["", "ours", "ONNX Runtime's calibrator"], ratios)


_SIMPLEST_FIRST = ("minmax", "percentile", "entropy")


if __name__ == "__main__":
    main()
