"""Plans without a GPU: a build without TensorRT refuses them, and one with TensorRT gets as far as the driver."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path

import pytest

from r2mrf_deploy import environment
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.files import sha256
from r2mrf_deploy.manifest import Manifest

from .conftest import OpenEngine, TinyOnnx

pytestmark = pytest.mark.artifact


@pytest.fixture
def plan(tiny_onnx: TinyOnnx, tmp_path: Path) -> Path:
    pytest.importorskip("tensorrt_rtx", reason="needs tensorrt-rtx")
    return build_artifact(tiny_onnx(), tmp_path / "x.plan").path


@pytest.fixture
def with_tensorrt(library: ctypes.CDLL) -> None:
    if b"tensorrt" not in library.r2mrf_backends():  # type: ignore[operator]
        pytest.skip("the C++ library was built without TensorRT: make cpp TENSORRT_ROOT=...")


def test_a_build_without_tensorrt_says_so(library: ctypes.CDLL, open_engine: OpenEngine, plan: Path) -> None:
    if b"tensorrt" in library.r2mrf_backends():  # type: ignore[operator]
        pytest.skip("the C++ library was built with TensorRT")
    with pytest.raises(RuntimeError, match=r"needs the backend tensorrt.*it has: openvino"):
        open_engine(plan)


@pytest.mark.usefixtures("with_tensorrt")
@pytest.mark.skipif(not environment.cuda_driver(), reason="tests what happens without a driver")
def test_a_good_plan_comes_as_far_as_the_driver(open_engine: OpenEngine, plan: Path) -> None:
    with pytest.raises(RuntimeError, match=r"NVIDIA driver.* is needed|^CUDA error \d+"):
        open_engine(plan)


@pytest.mark.usefixtures("with_tensorrt")
def test_damage_is_found_before_any_driver_is_asked(open_engine: OpenEngine, plan: Path) -> None:
    manifest = Manifest.read(Manifest.path_for(plan))
    assert manifest.target is not None
    content = plan.read_bytes()

    def refused(damaged: bytes, match: str, **target: object) -> None:
        plan.write_bytes(damaged)
        changed = {"sha256": sha256(plan), "target": manifest.target.model_copy(update=target)}  # type: ignore[union-attr]
        Manifest.path_for(plan).write_text(json.dumps(manifest.model_copy(update=changed).model_dump(mode="json")))
        with pytest.raises(RuntimeError, match=match):
            open_engine(plan)

    refused(content[:40], "truncated after 40 bytes")
    refused(content[:-1], "its header says")
    refused(b"x" + content[1:], "is not a TensorRT plan")
    refused(content, "its manifest says runtime tensorrt,", runtime="tensorrt")
    refused(content, "its manifest says compute capabilities 9.9", compute_capabilities=["9.9"])
    older = content[:25] + bytes([6]) + content[26:]
    version = ".".join(map(str, older[24:28]))
    refused(older, "is installed: build it again", runtime_version=version)
