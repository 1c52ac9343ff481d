"""Puts trained weights into the package: `python examples/ship_weights.py RUN/r2mrf-lite.pth`.

The weights are rounded to FP16 and keep the checkpoint's record of its training. For `weights.ARTIFACTS`, an ONNX artifact
for photographs of any size is made from them, whose weights are stored as FP16 too. The SHA-256 of every file is written
beside them. The model card is written by hand.
"""

from __future__ import annotations

import shutil
import sys
from functools import partial
from pathlib import Path

from r2mrf_deploy import weights
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import R2mrfError
from r2mrf_deploy.export import onnx
from r2mrf_deploy.export.base import derived
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.check import Check
from r2mrf_deploy.export.options import ExportOptions
from r2mrf_deploy.files import scratch, staging
from r2mrf_deploy.graph import files
from r2mrf_deploy.graph.half_storage import store_half
from r2mrf_deploy.manifest import Manifest
from r2mrf_deploy.progress import silent
from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner

LIMIT = 20_000_000
"""Largest total size in bytes of the weights in a package, checkpoints and artifacts together."""
OPTIMUM = (288, 416)
"""Height and width that the artifact's profile is best at: about 3:2 at the scale of the training, in whole 32s."""


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit("usage: python examples/ship_weights.py RUN/NAME.pth")
    source = Path(sys.argv[1])
    if source.stem not in weights.SHIPPED:
        sys.exit(
            f"{source.name}: the package has {', '.join(weights.SHIPPED)}; add a new name to weights.SHIPPED first"
        )
    try:
        path = ship(source)
    except R2mrfError as e:
        sys.exit(f"error: {e}")
    print(f"{path}: now update {path.with_suffix('.md').name}, whose figures are those of the previous weights")


def ship(source: Path) -> Path:
    """Write the checkpoint, the artifact and their checksums into `weights`. If they are too large or damaged, nothing is
    written."""
    path = weights.folder() / source.name
    with scratch() as folder, staging(path) as place:
        checkpoint = Checkpoint.load(source).save(folder / source.name, half=True)
        others = [p for p in path.parent.glob("*.*") if p.suffix in (".pth", ".onnx") and p.stem != path.stem]
        _refuse_large([checkpoint, *others])  # before the minutes that the artifact takes
        made = [checkpoint, *(_artifact(checkpoint) if path.stem in weights.ARTIFACTS else ())]
        _refuse_large([*made, *others])
        sums = checkpoint.with_suffix(".sha256")
        sums.write_bytes("".join(map(weights.checksum, made)).encode())
        whole = [Path(shutil.copy(file, place)) for file in (*made, sums)]
        for file in whole:
            file.replace(path.with_name(file.name))
    if path.stem not in weights.ARTIFACTS:
        for file in (artifact := path.with_suffix(".onnx")), Manifest.path_for(artifact):
            file.unlink(missing_ok=True)
    return path


def _refuse_large(files: list[Path]) -> None:
    if (total := sum(p.stat().st_size for p in files)) > LIMIT:
        sys.exit(f"the package's weights would be {total / 1e6:.1f} MB, over {LIMIT / 1e6:.0f}: nothing was written")


def _artifact(checkpoint: Path) -> tuple[Path, Path]:
    """Make an ONNX artifact beside a checkpoint, for photographs of any size and with its weights stored as FP16: the graph
    and its manifest."""
    path = checkpoint.with_suffix(".onnx")
    with scratch() as folder:
        full = export_artifact(checkpoint, folder / path.name, ExportOptions(OPTIMUM, dynamic=True))
        model = store_half(files.read(full.path))
        contract = derived(full.artifact, full.manifest, {}, export=full.manifest.export | {"weights": "fp16"})
    check = Check(partial(PyTorchRunner, Checkpoint.load(checkpoint)), "PyTorch", silent, photographs=3)
    check.publish(path, lambda file: onnx.write(model, contract, file))
    return path, Manifest.path_for(path)


if __name__ == "__main__":
    main()
