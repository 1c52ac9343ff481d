"""Put trained weights into the package: `python examples/ship_weights.py RUN/r2mrf-edge.pth`.

The weights are rounded to FP16, and what the checkpoint says of its training goes with them. The line to put into
`r2mrf_deploy/weights/__init__.py` is printed; the model card beside it is written by hand.
"""

from __future__ import annotations

import sys
from pathlib import Path

from r2mrf_deploy import weights
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.manifest import sha256

LIMIT = 12_000_000
"""Bytes, of all weights that a package may hold."""


def main() -> None:
    source = Path(sys.argv[1])
    path = Path(weights.__file__).with_name(source.name)
    Checkpoint.load(source).save(path, half=True)
    total = sum(p.stat().st_size for p in path.parent.glob("*.pth"))
    print(f'    "{path.stem}": "{sha256(path)}",')
    if total > LIMIT:
        sys.exit(f"the package's weights are {total / 1e6:.1f} MB now, over {LIMIT / 1e6:.0f}")


if __name__ == "__main__":
    main()
