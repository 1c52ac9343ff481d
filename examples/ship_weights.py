"""Puts trained weights into the package: `python examples/ship_weights.py RUN/r2mrf-edge.pth`.

The weights are rounded to FP16 and keep the checkpoint's record of its training. Their SHA-256 is written beside them.
The model card is written by hand.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from r2mrf_deploy import weights
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import R2mrfError
from r2mrf_deploy.files import write_atomically

LIMIT = 12_000_000
"""Largest total size in bytes of the weights in a package."""


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
    """Write the weights and their checksum into `weights`. If they are too large or damaged, nothing is written."""
    path = Path(weights.__file__).with_name(source.name)
    with tempfile.TemporaryDirectory() as folder:
        made = Checkpoint.load(source).save(Path(folder) / source.name, half=True)
        others = sum(p.stat().st_size for p in path.parent.glob("*.pth") if p != path)
        if (total := made.stat().st_size + others) > LIMIT:
            sys.exit(
                f"the package's weights would be {total / 1e6:.1f} MB, over {LIMIT / 1e6:.0f}: nothing was written"
            )
        line = weights.checksum(made)
        write_atomically(path, made.read_bytes())
    write_atomically(path.with_suffix(".sha256"), line.encode())
    return path


if __name__ == "__main__":
    main()
