"""Every network and every ablation goes the whole way: init, export with all side outputs, rewrites, runtimes, parity,
plans, reduced precision, benchmark, budget."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from r2mrf_deploy import budget, images, sample_photographs
from r2mrf_deploy.bench.protocol import Protocol, bench_artifacts
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.convert import convert_artifact
from r2mrf_deploy.export.options import ExportOptions, PrecisionOptions
from r2mrf_deploy.graph import naming
from r2mrf_deploy.parity.artifacts import compare_artifacts
from r2mrf_deploy.report.tables import steps_table
from r2mrf_deploy.runtimes.tensorrt import api

pytestmark = pytest.mark.artifact

TOLERANCE = 1e-4
"""Of the logits' spread, for the map and every side output."""

QUICK = "btbnet-1s"
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
ALL = [*((preset, settings) for preset, settings, _ in NETWORKS), *ABLATIONS]
SMALLEST = (64, 96)
SIZES = {"square": (96, 96), "landscape": (96, 160), "odd": (317, 451)}
ODD = (101, 143)
"""For the ablations, which are many."""


def named(case: tuple[str, dict[str, str]]) -> str:
    return "-".join((case[0], *(f"{k}={v}" for k, v in list(case[1].items())[-1:])))


def check(preset: str, settings: dict[str, str], options: ExportOptions, folder: Path) -> Path:
    """Export, and compare in both CPU runtimes."""
    checkpoint = Checkpoint.init(preset, settings).save(folder / "c.pth")
    artifact = export_artifact(checkpoint, options=options).path
    xml = build_artifact(artifact, folder / "c.xml").path
    results = compare_artifacts(checkpoint, [artifact, xml], per_step=True)
    names = Checkpoint.load(checkpoint).module()
    for result in results:
        assert result.verdict == "pass", result.reason
        assert list(result.steps) == names.side_names(names.check_steps(None))
        assert result.map.relative < TOLERANCE
        assert max(d.relative for d in result.steps.values()) < TOLERANCE
        table = steps_table(result)
        assert sum(bool(cell.plain) for row in table.rows for cell in row[1:]) == len(result.steps)
    return artifact


@pytest.fixture(scope="module")
def album(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs to calibrate on."""
    folder = tmp_path_factory.mktemp("album")
    for number, photograph in enumerate(sample_photographs.sharp()[:2]):
        (folder / f"{number}.png").write_bytes(images.png(images.resize(photograph, SMALLEST)))
    return folder


def use(artifact: Path, album: Path, folder: Path) -> None:
    """Plans, precisions, benchmark and budget of an artifact."""
    files = [artifact]
    for precision in ("fp16", "bf16", "int8"):
        options = PrecisionOptions(precision, calibration=album)
        files.append(convert_artifact(artifact, folder / f"{precision}.onnx", options).path)
    if "tensorrt_rtx" in api.installed():
        plans = [build_artifact(file, folder / f"{file.stem}.plan", gpus=["rtx3090"]) for file in files]
        assert all(plan.manifest.outputs == plans[0].manifest.outputs for plan in plans)
    bench = bench_artifacts([artifact, folder / "c.pth"], protocol=Protocol(0, 0, 1))
    assert all(m.summary.inferences >= 1 for m in bench.measurements) and len(bench.measurements) == 2
    drawn = budget.draw_up(str(artifact), ["gtx1080ti"], check=False)
    assert drawn.predictions[0].ms > drawn.predictions[0].roof > 0


@pytest.mark.parametrize(
    ("preset", "settings", "words"),
    [pytest.param(*n, id=n[0], marks=() if n[0] == QUICK else pytest.mark.slow) for n in NETWORKS],
)
def test_a_network_and_its_words(preset: str, settings: dict[str, str], words: set[str], tmp_path: Path) -> None:
    artifact = check(preset, settings, ExportOptions(size=SMALLEST, all_steps=True), tmp_path)
    found = {naming.scope(node.name).split(".")[0] for node in onnx.load(artifact).graph.node}
    assert words <= found and "other" not in found


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize(("preset", "settings", "words"), NETWORKS, ids=[n[0] for n in NETWORKS])
def test_its_sizes(
    preset: str, settings: dict[str, str], words: set[str], size: tuple[int, int], tmp_path: Path
) -> None:
    check(preset, settings, ExportOptions(size=size, all_steps=True), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "settings", "words"), NETWORKS, ids=[n[0] for n in NETWORKS])
def test_it_with_free_sizes(preset: str, settings: dict[str, str], words: set[str], tmp_path: Path) -> None:
    check(preset, settings, ExportOptions(size=(96, 96), dynamic=True, all_steps=True), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["br2net", "defusionnet"])
def test_it_as_published(preset: str, tmp_path: Path) -> None:
    """BTBNet at full width takes minutes."""
    check(preset, {}, ExportOptions(size=(160, 160), all_steps=True), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "settings"),
    ALL,
    ids=map(named, ALL),
)
def test_what_is_done_with_it(preset: str, settings: dict[str, str], album: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.init(preset, settings).save(tmp_path / "c.pth")
    use(export_artifact(checkpoint, options=ExportOptions(size=SMALLEST)).path, album, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("preset", "settings"), ABLATIONS, ids=map(named, ABLATIONS))
def test_an_ablation(preset: str, settings: dict[str, str], tmp_path: Path) -> None:
    check(preset, settings, ExportOptions(size=ODD, all_steps=True), tmp_path)
