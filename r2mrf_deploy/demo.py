"""`r2mrf demo`: the whole chain on a sample photograph, with a table at the end.

The shipped weights are exported, built, compared, timed and run on a photograph that they were not trained on.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from r2mrf_deploy import environment, images, sample_photographs, weights
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.bench.protocol import Measurement, bench_artifacts
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.chain import export_artifacts
from r2mrf_deploy.export.options import ExportOptions, PrecisionOptions
from r2mrf_deploy.files import scratch, write_atomically
from r2mrf_deploy.parity.artifacts import compare_artifacts
from r2mrf_deploy.parity.compare import Parity
from r2mrf_deploy.predict import Outputs, predict
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.progress import Progress, ProgressCallback, silent

SIZE = (320, 480)
"""Of the artifacts, in pixels: the photograph fits without being reduced."""


@dataclass(frozen=True)
class Demo:
    """What the demo made and measured."""

    folder: Path
    overlay: Path
    in_focus: float
    rows: list[dict[str, Any]]
    """What was found of the checkpoint and of each artifact."""
    machine: dict[str, Any]
    tools: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> list[str]:
        """What the table does not say: where the picture is, and why something was not run."""
        notes = [f"{row['artifact']} was not run: {row['note']}" for row in self.rows if row["parity"] == "not run"]
        return [*notes, f"{self.overlay}: {100 * self.in_focus:.0f} % of the photograph is in focus"]


def run(output: Path, *, progress: ProgressCallback = silent) -> Demo:
    """Run the demo.

    Args:
        output: folder for the artifacts, `overlay.png`, `map.png`, `photograph.png` and `report.json`.
        progress: called with what is being done.
    """
    output.mkdir(parents=True, exist_ok=True)
    shipped = weights.find(weights.DEFAULT)
    assert shipped is not None
    checkpoint = write_atomically(output / shipped.name, shipped.read_bytes())
    onnx, xml = (checkpoint.with_suffix(suffix) for suffix in (".onnx", ".xml"))
    exported = export_artifacts(checkpoint, [onnx, xml], ExportOptions(size=SIZE), progress=progress)
    artifacts = [made.path for made in exported]
    with scratch() as folder:
        for options in _reduced(folder):
            suffix = ".plan" if options.precision == "fp16" else ".xml"
            path = checkpoint.with_name(f"{checkpoint.stem}-{options.precision}{suffix}")
            # the table tells a failure
            made = build_artifact(onnx, path, precision=options, allow_failed_parity=True, progress=progress)
            artifacts.append(made.path)
    results = compare_artifacts(checkpoint, artifacts, record=True, progress=progress)
    compared = {r.artifact: r for r in results}
    timed = bench_artifacts([checkpoint, *artifacts], record=True, progress=progress)
    progress(Progress("looking at a photograph"))
    photograph = output / "photograph.png"
    write_atomically(photograph, images.png(sample_photographs.sample(sample_photographs.DEMO)))
    drawn = Outputs(overlay_format="png")
    for artifact in (xml, onnx):
        with Predictor.open(artifact) as predictor:
            seen = next(iter(predict(predictor, [photograph], output / predictor.runner.runtime, drawn)))
    overlay = write_atomically(output / "overlay.png", (seen.overlay or photograph).read_bytes())
    measured = {m.name: m for m in timed.measurements}
    rows = [_row(path, compared.get(path.name), measured.get(path.name)) for path in (checkpoint, *artifacts)]
    result = Demo(output, overlay, seen.in_focus or 0.0, rows, environment.describe(), timed.tools)
    write_atomically(output / "report.json", (json.dumps(result.to_dict(), indent=2, default=str) + "\n").encode())
    return result


def _reduced(folder: Path) -> list[PrecisionOptions]:
    """The reduced precisions: FP16 for a GPU, BF16 and INT8 for a CPU. INT8 is calibrated on photographs in `folder`."""
    for number, photograph in enumerate(sample_photographs.sharp()):
        write_atomically(folder / f"{number:02}.png", images.png(photograph))
    return [PrecisionOptions("fp16"), PrecisionOptions("bf16"), PrecisionOptions("int8", folder)]


def _row(path: Path, compared: Parity | None, measured: Measurement | None) -> dict[str, Any]:
    manifest = Artifact.open(path).manifest if path.suffix != ".pth" else None
    return {
        "artifact": path.name,
        "bytes": manifest.bytes if manifest else path.stat().st_size,
        "precision": manifest.precision if manifest else "fp32",
        "runtime": measured.runtime if measured else compared.runtime if compared else "",
        "input": "x".join(map(str, SIZE)),
        "parity": compared.verdict if compared else "reference",
        "largest_difference": compared.map.largest if compared and compared.photographs else None,
        "median_ms": measured.latency.median if measured else None,
        "speed_up": measured.speed_up if measured else None,
        "note": compared.reason if compared else "",
    }
