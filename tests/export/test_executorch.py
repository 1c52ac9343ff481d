"""Export to ExecuTorch: programs for phones that compute what the checkpoint computes, from the rewritten graph."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.flop_counter import FlopCounterMode

from r2mrf_deploy import environment, runtimes, sample_photographs, weights
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.cli import main
from r2mrf_deploy.errors import BuildError, CheckFailed
from r2mrf_deploy.export import executorch
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.options import ExportOptions, FormatOptions, PrecisionOptions
from r2mrf_deploy.images import resize
from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner
from tests.conftest import SMALL, copied, manifest_of

pytestmark = pytest.mark.artifact
needs = pytest.mark.skipif(not environment.importable("executorch"), reason="needs ExecuTorch")

Programs = Callable[..., Path]
CAT = sample_photographs.sample("chelsea")


def test_a_program_computes_every_step_as_pytorch_does(small: Path, programs: Programs, tmp_path: Path) -> None:
    image = resize(CAT, (96, 128))[None]
    wanted = PyTorchRunner(Checkpoint.load(small), all_steps=True).run({"image": image})
    with runtimes.open(programs()) as runner:
        assert runner.runtime == "executorch" and runner.emulates == ""
        found, timing = runner.run_timed({"image": image})
    assert list(found) == list(wanted) and len(found) == 11
    for name, value in wanted.items():
        assert value.std() > 0.05
        np.testing.assert_allclose(found[name], value, atol=1e-4 * value.std())  # sums in another order
    assert timing.latency == timing.compute > 0
    assert main(["parity", str(small), str(copied(programs(), tmp_path)), "--per-step"]) == 0
    assert main(["inspect", str(programs())]) == 0


@pytest.mark.parametrize(("precision", "bound"), [("fp16", 0.01), ("int8", 0.05)])
def test_a_reduced_precision_computes_what_the_graph_does(
    programs: Programs, converted: Callable[[str], Path], precision: str, bound: float
) -> None:
    """Weights are random, and pass rounding on. With one range for all images, INT8 is off by another 0.03 on average."""
    image = resize(CAT, (96, 128))[None]
    with runtimes.open(programs(precision)) as runner, runtimes.open(converted(precision), "onnxruntime") as graph:
        found, wanted = runner.run({"image": image})["map"], graph.run({"image": image})["map"]
        assert ("FP32" in runner.emulates) == (precision == "fp16" and "x86" in environment.platform.machine())
    assert wanted.std() > 0.05 and 0 < np.abs(found - wanted).mean() < bound


def test_the_manifest_says_what_was_made_and_how_it_compares(exported: Path, programs: Programs) -> None:
    manifest, source = manifest_of(programs()), manifest_of(exported)
    assert manifest is not None and source is not None
    assert (manifest.kind, manifest.precision, manifest.source_sha256) == ("executorch", "fp32", source.sha256)
    assert manifest.tools["executorch"] == environment.version("executorch")
    assert manifest.rewrites == source.rewrites and manifest.inputs == source.inputs
    assert [(p["verdict"], p["runtime"]) for p in manifest.parity] == [("pass", "executorch")]


@needs
def test_what_is_lowered_has_the_multiply_adds_of_the_rewritten_graph(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted by PyTorch in the program that ExecuTorch is given: the step that a traced graph repeats is not in it."""
    counted = {}

    def count(program: Any, contract: str) -> bytes:
        with FlopCounterMode(display=False) as counter:
            program.module()(*program.example_inputs[0])
        raise BuildError(str(counter.get_total_flops() // 2))

    monkeypatch.setattr(executorch, "_lowered", count)
    for optimize in (True, False):
        options = ExportOptions(size=(96, 128), optimize=optimize)
        graph = export_artifact(small, tmp_path / f"{optimize}.onnx", options)
        with pytest.raises(BuildError) as told:
            build_artifact(graph.path, tmp_path / "x.pte")
        counted[optimize] = int(str(told.value))
        assert counted[optimize] == pytest.approx(graph.manifest.multiply_adds, rel=0.01)
    assert counted[True] < 0.95 * counted[False]


@needs
def test_a_program_that_computes_something_else_is_not_written(
    small: Path, programs: Programs, export: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Checkpoint.load(small)
    changed = {k: v + 0.01 if k == "fusion.bias" else v for k, v in read.state_dict.items()}
    other = Checkpoint(read.network, read.config, changed).save(tmp_path / "other.pth")
    monkeypatch.setattr(executorch, "_lowered", lambda *_: programs().read_bytes())
    with pytest.raises(CheckFailed, match="was not written: it does not compute what PyTorch computes"):
        export_artifact(other, tmp_path / "x.pte", ExportOptions(size=(96, 128), all_steps=True))
    assert [p.name for p in tmp_path.iterdir()] == ["other.pth"]


@needs
@pytest.mark.slow
def test_a_dynamic_program_takes_every_size_in_its_range(small: Path, tmp_path: Path) -> None:
    done = export_artifact(small, tmp_path / "d.pte", ExportOptions(size=(96, 128), dynamic=True))
    assert "MB of memory for the largest size" in done.note
    reference = PyTorchRunner(Checkpoint.load(small))
    with runtimes.open(done.path) as runner:
        for height, width in ((64, 64), (67, 65), (97, 130), (161, 66), (320, 481)):
            image = resize(CAT, (height, width))[None]
            wanted = reference.run({"image": image})["map"]
            np.testing.assert_allclose(runner.run({"image": image})["map"], wanted, atol=1e-5)


NARROW = {"br2net": {"width": "16"}, "btb": {"width": "0.25"}, "defusionnet": {"width": "8"}, "r2mrf": SMALL}


@needs
@pytest.mark.slow
@pytest.mark.parametrize(
    "preset", ["r2mrf", "r2mrf-vgg16", "r2mrf-densenet161", "r2mrf-lite", "br2net", "defusionnet", "btbnet", "btbcrl"]
)
def test_every_network_is_exported_and_each_step_compared(preset: str, tmp_path: Path) -> None:
    given = next(v for k, v in NARROW.items() if preset.startswith(k))
    checkpoint = Checkpoint.init(preset, given).save(tmp_path / "x.pth")
    done = export_artifact(checkpoint, tmp_path / "x.pte", ExportOptions(size=(96, 128), all_steps=True))
    assert done.parity is not None and done.parity.verdict == "pass" and done.parity.steps


@needs
@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_trained_weights_pass_parity_in_every_precision(precision: Any, album: Path, tmp_path: Path) -> None:
    options = ExportOptions(
        size=(160, 160), precision=PrecisionOptions(precision, calibration=album if precision == "int8" else None)
    )
    done = export_artifact(weights.folder() / "r2mrf-lite.pth", tmp_path / "x.pte", options)
    assert done.parity is not None and done.parity.verdict == ("emulated" if done.parity.emulates else "pass")


@needs
def test_wrong_use_is_refused_before_anything_is_made(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments, message in (
        (["--precision", "bf16"], "ExecuTorch files (.pte) have no BF16: choose from fp32, fp16, int8"),
        (["--device", "cpu"], "--device is not supported by ExecuTorch: leave it out"),
        (["--precision", "int8"], "INT8 needs photographs to calibrate on"),
    ):
        assert main(["export", str(small), "-o", str(tmp_path / "x.pte"), *arguments]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1 and message in said
    assert not list(tmp_path.iterdir())


@needs
def test_a_graph_without_a_contract_is_refused(tiny_onnx: Callable[..., Path], tmp_path: Path) -> None:
    source = Artifact.open(tiny_onnx(manifest=False))
    with pytest.raises(BuildError, match="has no contract of one input: export it with"):
        executorch.ExecuTorchExporter().write(source, tmp_path / "x.pte", FormatOptions(), lambda _: None)
