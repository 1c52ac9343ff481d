"""How good maps of photographs are, from the file to the map at its size: the checkpoint, its artifacts, the C++ program.

    make cpp
    python benchmarks/whole_path.py r2mrf-lite --data CUHK --white blurred --split cuhk-validation --count 60

All get the same photographs, every so-many-th of the dataset. The artifacts differ in what becomes of the photograph: the
default export (a square of the checkpoint's scale, the aspect kept), other sizes, and stretched to 320x320 as the papers do.
The program's maps are its 8-bit PNG files.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tables import markdown

from r2mrf_deploy import environment, weights
from r2mrf_deploy.datasets import Dataset, read_dataset
from r2mrf_deploy.evaluation import Method, evaluate
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.options import ExportOptions
from r2mrf_deploy.predictor import Predictor

PROGRAM = Path(__file__).parents[1] / "build" / "cpp" / "app" / "r2mrf-infer"
ARTIFACTS = {
    "the default export": ExportOptions(),
    "--size 448x640": ExportOptions(size=(448, 640)),
    "--size 320x320": ExportOptions(size=(320, 320)),
    "--size 320x320 --fit stretch": ExportOptions(size=(320, 320), fit="stretch"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a checkpoint, or the name of shipped weights")
    parser.add_argument("--data", type=Path, required=True, help="folder of photographs and masks")
    parser.add_argument("--white", choices=["sharp", "blurred"], required=True, help="what is white in the masks")
    parser.add_argument("--split", help="a file of names, or a shipped split such as cuhk-validation")
    parser.add_argument("--count", type=int, default=10, help="photographs (default: 10)")
    parser.add_argument("--program", type=Path, default=PROGRAM, help="r2mrf-infer (default: as make cpp builds it)")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    given = parser.parse_args()
    checkpoint = weights.find(given.checkpoint) or Path(given.checkpoint)
    dataset = read_dataset(given.data, white=given.white, split=given.split)
    step = max(1, len(dataset) // given.count)
    dataset = replace(dataset, pairs=list(dataset.pairs)[::step][: given.count])
    rows = measured(checkpoint, dataset, given.program)
    names = [pair.name for pair in dataset.pairs]
    found = {"machine": environment.describe(), "photographs": names, "rows": rows}
    print(table(found))
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")


def measured(checkpoint: Path, dataset: Dataset, program: Path) -> list[dict[str, object]]:
    """The scores of the checkpoint, of each artifact, and of the program with the default artifact."""
    with tempfile.TemporaryDirectory() as folder, Predictor.open(checkpoint) as reference:
        rows = [scored("the checkpoint", reference, dataset)]
        for number, (name, options) in enumerate(ARTIFACTS.items()):
            path = export_artifact(checkpoint, Path(folder) / f"{number}.onnx", options).path
            with Predictor.open(path) as artifact:
                rows.append(scored(name, artifact, dataset))
            path.unlink()
        if program.is_file():
            path = export_artifact(checkpoint, Path(folder) / "default.xml").path
            rows.insert(2, scored("the default export in r2mrf-infer", of_program(program, path, dataset), dataset))
    return rows


def of_program(program: Path, artifact: Path, dataset: Dataset) -> Callable[[np.ndarray], np.ndarray]:
    """The maps that the program wrote, by photograph."""
    output = artifact.with_name("maps")
    files = [str(pair.image) for pair in dataset.pairs]
    subprocess.run([program, artifact, *files, "-o", output, "--no-overlays"], check=True, stdout=subprocess.DEVNULL)
    maps = {
        dataset.image(number).tobytes(): np.asarray(Image.open(output / f"{pair.image.stem}_map.png"), np.float32) / 255
        for number, pair in enumerate(dataset.pairs)
    }
    return lambda image: maps[image.tobytes()]


def scored(name: str, call: Callable[[np.ndarray], np.ndarray], dataset: Dataset) -> dict[str, object]:
    (row,) = evaluate([Method(lambda image: {name: call(image)}, name)], dataset)
    return {"name": name, **row.scores.to_dict()}


def table(found: Mapping[str, Any]) -> str:
    head = ["", "f_max", "MAE", "AUC"]
    rows = ([row["name"], *(f"{row[name]:.3f}" for name in ("f_max", "mae", "auc"))] for row in found["rows"])
    return markdown(head, ([f"`{name}`" if name.startswith("--") else name, *rest] for name, *rest in rows))


if __name__ == "__main__":
    main()
