"""Every preset builds: static and dynamic, image and tensor, for every compute capability of TensorRT-RTX at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import onnx
import pytest

from r2mrf_deploy import gpus
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.formats import plan as plan_header
from r2mrf_deploy.graph.rewrites import optimize
from r2mrf_deploy.runtimes.tensorrt import api
from r2mrf_deploy.runtimes.tensorrt.options import BuildOptions

pytest.importorskip("torch", reason="needs torch")
from r2mrf_deploy import networks

pytestmark = [
    pytest.mark.artifact,
    pytest.mark.skipif("tensorrt_rtx" not in api.installed(), reason="needs tensorrt-rtx"),
]
QUICK = "r2mrf-edge"
CASES = [
    pytest.param(
        preset, io, dynamic, id=f"{preset}-{io}-{'dynamic' if dynamic else 'static'}",
        # either input and either kind of size, if not every combination, is quick
        marks=[] if preset == QUICK and (io == "tensor") == dynamic else pytest.mark.slow,
    )
    for preset in networks.presets()
    for io in ("image", "tensor")
    for dynamic in (False, True)
]  # fmt: skip
RESAMPLING = ("btbnet", "btbcrl")
"""Of free sizes, they multiply by matrices made on the way, and Turing has no such product in FP32: a clear refusal."""
ONE_FOR_EACH = {g.compute_capability: g.name for g in gpus.GPUS.values()}


@pytest.mark.parametrize(("preset", "io", "dynamic"), CASES)
def test_a_preset_builds(
    preset: str, io: Literal["image", "tensor"], dynamic: bool, tmp_path: Path, traced: Callable[..., Path]
) -> None:
    # BTBNet at full width would take an hour, and a quarter of the channels has the same nodes
    settings = {"width": "0.25"} if preset.startswith("btb") else {}
    model = tmp_path / "m.onnx"
    graph = onnx.load(traced(preset, io=io, dynamic=dynamic, **settings))
    model.write_bytes(optimize(graph).model.SerializeToString())  # as is shipped
    shapes = {
        size: {io: (n, side, side, 3) if io == "image" else (n, 3, side, side)}
        for size, n, side in (("min", 1, 64), ("opt", 1, 320), ("max", 2, 640))
    }
    options = BuildOptions(min_shapes=shapes["min"], opt_shapes=shapes["opt"], max_shapes=shapes["max"])
    refused = ("7.5",) if dynamic and preset in RESAMPLING else ()
    capabilities = tuple(c for c in gpus.RTX_COMPUTE_CAPABILITIES if c not in refused)
    names = [ONE_FOR_EACH[c] for c in capabilities]
    built = build_artifact(model, gpus=names, options=options if dynamic else None)

    assert plan_header.read(built.path).header.compute_capabilities == capabilities
    (found,), (map_,) = built.manifest.inputs, built.manifest.outputs
    batch, *sides = ("batch", "height", "width") if dynamic else (1, 320, 320)
    image = ("image", "uint8", [batch, *sides, 3])
    assert (found.name, found.dtype, found.shape) == (
        image if io == "image" else ("tensor", "float32", [batch, 3, *sides])
    )
    assert (map_.name, map_.dtype, len(map_.shape)) == ("map", "float32", 4)
    assert built.path.stat().st_size > 0.9 * model.stat().st_size  # the weights are in it
