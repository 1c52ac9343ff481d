"""A compressed artifact goes wherever any other does: to every class of GPU, to other formats, and into the benchmark."""

from __future__ import annotations

from pathlib import Path

import pytest

from r2mrf_deploy import gpus
from r2mrf_deploy.bench.protocol import Protocol, bench_artifacts
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.parity.artifacts import compare_artifacts
from r2mrf_deploy.runtimes.tensorrt import api
from tests.conftest import manifest_of

pytestmark = pytest.mark.artifact


def stated(path: Path) -> Contract:
    found = manifest_of(path)
    assert found is not None and found.compression is not None
    return found


@pytest.mark.skipif("tensorrt_rtx" not in api.installed(), reason="needs tensorrt-rtx")
@pytest.mark.parametrize("capability", gpus.RTX_COMPUTE_CAPABILITIES)
def test_a_plan_for_every_class_of_gpu(small_compressed: Path, tmp_path: Path, capability: str) -> None:
    name = next(g.name for g in gpus.GPUS.values() if g.compute_capability == capability)
    built = build_artifact(small_compressed, tmp_path / "x.plan", gpus=[name])
    assert built.manifest.target is not None and built.manifest.target.gpus == [name]
    assert built.manifest.precision == "int8"
    assert built.manifest.compression == stated(small_compressed).compression


def test_openvino_s_format_computes_the_same(small: Path, small_compressed: Path, album: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    built = build_artifact(small_compressed, tmp_path / "x.xml")
    assert built.parity is not None and built.parity.passed
    assert built.manifest.compression == stated(small_compressed).compression
    (found,) = compare_artifacts(small, [built.path], album)  # by the bound in the manifest
    assert found.verdict == "pass", found.reason


def test_it_is_timed_beside_the_full_network(small_compressed: Path, export: object) -> None:
    full = export()  # type: ignore[operator]
    done = bench_artifacts([full, small_compressed], ["onnxruntime"], Protocol(50, 0.2, 4, 4))
    assert not done.skipped and [m.name for m in done.measurements] == [full.name, small_compressed.name]
    assert all(m.speed_up > 0 for m in done.measurements)
