"""Every network and every ablation goes the whole way: init, export with all side outputs, rewrites, runtimes, parity."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from r2mrf_deploy.build import build_engine
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.export import ExportOptions, to_onnx
from r2mrf_deploy.graph import naming
from r2mrf_deploy.parity import compare_artifacts
from r2mrf_deploy.report import steps_table

pytestmark = pytest.mark.slow
TOLERANCE = 1e-4
"""Of the logits' spread, for the map and every side output."""
NARROWED = 5e-4
"""The same with a quarter of the channels: rounding in 13 unnormalised convolutions averages out less over fewer sums."""

BR2NET = {"width": "16"}
DEFUSIONNET = {"width": "8"}
NARROW = {"width": "0.25"}
NETWORKS: list[tuple[str, dict[str, str], set[str]]] = [
    ("br2net-vgg16", BR2NET, {"low_to_high", "high_to_low", "attention"}),
    ("defusionnet", DEFUSIONNET, {"layer1", "layer6", "step1", "step3", "score"}),
    ("btbnet", NARROW, {"stream100", "stream80", "stream60", "frr"}),
    ("btbnet-1s", NARROW, {"stream100"}),
    ("btbcrl", NARROW, {"stream100", "stream80", "stream60", "crl"}),
]
ABLATIONS: list[tuple[str, dict[str, str]]] = [
    *(("br2net-vgg16", BR2NET | {k: v}) for k, v in (("attention", "false"), ("refine", "direct"), ("fusion", "conv"))),
    *(("br2net-vgg16", BR2NET | {"output": v}) for v in ("l2h", "h2l")),
    *(("defusionnet", DEFUSIONNET | {k: v}) for k, v in (("refine", "none"), ("share", "true"), ("output", "layer4"))),
    *(("defusionnet", DEFUSIONNET | {"steps": v}) for v in ("1", "2", "4")),
    *(("btbnet", NARROW | {k: v}) for k, v in (("refine", "none"), ("streams", "2"), ("steps", "1"))),
    *(("btbcrl", NARROW | {k: "false"}) for k in ("share", "image", "cascade")),
    *(("btbcrl", NARROW | {k: v}) for k, v in (("scales", "single"), ("steps", "1"), ("steps", "2"))),
]
SIZES = {"square": (96, 96), "landscape": (96, 160), "odd": (101, 143)}


def named(case: tuple[str, dict[str, str]]) -> str:
    return "-".join((case[0], *(f"{k}={v}" for k, v in list(case[1].items())[-1:])))


def check(preset: str, settings: dict[str, str], options: ExportOptions, folder: Path) -> Path:
    """Export, and compare in both CPU runtimes."""
    checkpoint = Checkpoint.init(preset, settings).save(folder / "c.pth")
    artifact = to_onnx(checkpoint, options=options).path
    xml = build_engine(artifact, folder / "c.xml").path
    results = compare_artifacts(checkpoint, [artifact, xml], per_step=True)
    names = Checkpoint.load(checkpoint).module()
    for result in results:
        assert result.verdict == "pass", result.reason
        assert list(result.steps) == names.side_names(names.check_steps(None))
        limit = NARROWED if settings.get("width") == NARROW["width"] else TOLERANCE
        assert result.map.relative < limit
        assert max(d.relative for d in result.steps.values()) < limit
        table = steps_table(result)
        cells = [cell for column in table.columns[1:] for cell in column.cells]
        assert sum(map(bool, cells)) == len(result.steps)
    return artifact


@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("preset", "settings", "words"), NETWORKS, ids=[n[0] for n in NETWORKS])
def test_a_network(
    preset: str, settings: dict[str, str], words: set[str], size: tuple[int, int], tmp_path: Path
) -> None:
    artifact = check(preset, settings, ExportOptions(size=size, all_steps=True), tmp_path)
    found = {naming.word(node.name).split(".")[0] for node in onnx.load(artifact).graph.node}
    assert words <= found and "other" not in found


@pytest.mark.parametrize(("preset", "settings", "words"), NETWORKS, ids=[n[0] for n in NETWORKS])
def test_it_with_free_sizes(preset: str, settings: dict[str, str], words: set[str], tmp_path: Path) -> None:
    check(preset, settings, ExportOptions(size=(96, 96), dynamic=True, all_steps=True), tmp_path)


@pytest.mark.parametrize(("preset", "settings"), ABLATIONS, ids=map(named, ABLATIONS))
def test_an_ablation(preset: str, settings: dict[str, str], tmp_path: Path) -> None:
    check(preset, settings, ExportOptions(size=SIZES["odd"], all_steps=True), tmp_path)
