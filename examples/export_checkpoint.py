"""From a checkpoint of a training script to files that compute the same, in Python.

    python examples/export_checkpoint.py
    python examples/export_checkpoint.py mine.pth --network r2mrf -o out/mine

Without a checkpoint, it takes the weights in the package, and saves them as many training scripts do: under a key, with a
prefix, beside an optimizer's state. The network must be one of this package's, or one that a package adds (examples/plugin).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from r2mrf_deploy import (
    Artifact,
    Checkpoint,
    ExportOptions,
    PrecisionOptions,
    compare_artifacts,
    export_artifacts,
    weights,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", type=Path, help="yours")
    parser.add_argument("--network", default="r2mrf-lite", help="its preset (default: %(default)s)")
    parser.add_argument("-o", "--output", type=Path, default=Path("out/example"))
    given = parser.parse_args()
    given.output.mkdir(parents=True, exist_ok=True)
    checkpoint = given.checkpoint or as_training_scripts_save(given.output / "training.pth")

    graph, model, half = (given.output / name for name in ("net.onnx", "net.xml", "half.onnx"))
    options = ExportOptions(size=(160, 240))
    for made in export_artifacts(checkpoint, [graph, model], options, network=given.network):
        assert made.parity is not None
        print(
            f"{made.path}: {made.parity.verdict}, map within {made.parity.map.largest:.1e} of {made.parity.reference}'s"
        )
    reduced = ExportOptions(size=(160, 240), precision=PrecisionOptions(precision="fp16"))
    export_artifacts(checkpoint, [half], reduced, network=given.network)

    # each against PyTorch, on photographs of your own if you name a folder; the manifests keep the evidence
    for parity in compare_artifacts(checkpoint, [graph, model, half], record=True, network=given.network):
        print(f"{parity.artifact} on {parity.runtime}: {parity.verdict}, mean difference {parity.map.mean:.1e}")
    contract = Artifact.open(graph).contract
    assert contract is not None
    saved = ", ".join(
        f"{r.name} {r.count}x" for r in contract.rewrites if r.multiply_adds_after < r.multiply_adds_before
    )
    print(f"{contract.inputs[0]} -> {contract.outputs[0]}; exact rewrites that saved work: {saved}")


def as_training_scripts_save(path: Path) -> Path:
    """A checkpoint that does not say what network it is of."""
    state = Checkpoint.load(weights.checkpoint("r2mrf-lite")).state_dict
    saved = {
        "epoch": 3,
        "model": {f"module.{name}": tensor for name, tensor in state.items()},
        "optimizer": {"lr": 1e-4},
    }
    torch.save(saved, path)
    return path


if __name__ == "__main__":
    main()
