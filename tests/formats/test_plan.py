"""Plans are told from other files, damaged files and other versions by their header alone."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from r2mrf_deploy import formats
from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.formats import plan as plan_header
from r2mrf_deploy.formats.plan import PlanHeader
from r2mrf_deploy.manifest import Manifest, Target


def header(
    magic: bytes = b"vtrt", zero: int = 0, size: int = 100, version: bytes = b"\1\7\1t", targets: int = 4
) -> bytes:
    return struct.pack("<4sII4xQ4s4sI28x", magic, zero, 2, size, version, magic, targets)


def test_reads_an_rtx_header() -> None:
    assert plan_header.parse(header(targets=0b10101), 100) == PlanHeader(
        "tensorrt_rtx", "1.7.1.116", ("7.5", "8.6", "12.0")
    )


def test_reads_a_tensorrt_header() -> None:
    # its length and targets are not known to be in the same places, so they are not read
    found = plan_header.parse(header(b"ftrt", size=7, version=b"\x08\x06\1\6"), 100)
    assert found == PlanHeader("tensorrt", "8.6.1.6", ())


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a TensorRT plan"),
        (b"hello, I am a text", "not a TensorRT plan"),
        (b"PK\x03\x04" + bytes(200), "not a TensorRT plan"),
        (b"vtrt" + bytes(20), "truncated after 24 bytes"),
        (header(zero=1).ljust(100, b"\0"), "damaged: its header holds 1"),
        (header(size=101).ljust(100, b"\0"), "says 101 bytes, the file has 100"),
        (header(size=100).ljust(101, b"\0"), "says 100 bytes, the file has 101"),
    ],
)
def test_refuses_what_is_no_whole_plan(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "x.plan"
    file.write_bytes(content)
    with pytest.raises(ArtifactError, match=message):
        plan_header.read(file)


def test_refuses_what_cannot_be_read(tmp_path: Path) -> None:
    folder = tmp_path / "x.plan"
    folder.mkdir()
    with pytest.raises(ArtifactError, match=r"x\.plan cannot be read: Is a directory"):
        formats.read(folder)


def manifest(
    kind: str = "plan", runtime: str = "tensorrt_rtx", version: str = "1.7.1.116", sm: str = "8.6"
) -> Manifest:
    target = Target(runtime=runtime, runtime_version=version, compute_capabilities=[sm])
    return Manifest.model_validate(
        {"file": "x.plan", "sha256": "", "bytes": 0, "kind": kind, "inputs": [], "outputs": [], "target": target}
    )


RTX = PlanHeader("tensorrt_rtx", "1.7.1.116", ("8.6",))


def test_a_manifest_that_agrees_is_accepted() -> None:
    plan_header.check_manifest(RTX, manifest())
    # TensorRT's plans do not say for which GPU they are
    plan_header.check_manifest(PlanHeader("tensorrt", "11.4.0.1"), manifest(runtime="tensorrt", version="11.4.0.1"))


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"kind": "onnx"}, "describes a onnx file"),
        ({"runtime": "tensorrt"}, "says runtime tensorrt, the plan itself tensorrt_rtx"),
        ({"version": "1.6.0.1"}, "says version 1.6.0.1, the plan itself 1.7.1.116"),
        ({"sm": "8.9"}, "says compute capabilities 8.9, the plan itself 8.6"),
    ],
)
def test_a_manifest_that_differs_is_refused(said: dict[str, str], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        plan_header.check_manifest(RTX, manifest(**said))


@pytest.mark.parametrize(
    ("wrote", "installed", "compatible", "opens"),
    [
        ("1.7.1.116", "1.7.1.116", False, True),
        ("8.6.1.6", "8.6.1", False, True),  # the module says less than the plan
        ("8.6.1.6", "8.6.1.post1", False, True),
        ("1.7.1.116", "1.7.2.3", False, False),
        ("1.7.1.116", "1.8.0.1", False, False),
        ("10.3.0.26", "10.9.0.1", True, True),
        ("10.9.0.1", "10.3.0.26", True, False),  # compatible with later versions, not with earlier ones
        ("10.3.0.26", "11.0.0.1", True, False),
    ],
)
def test_versions(wrote: str, installed: str, compatible: bool, opens: bool) -> None:
    found = PlanHeader("tensorrt", wrote)
    if opens:
        plan_header.check_version(found, installed, version_compatible=compatible)
    else:
        with pytest.raises(ArtifactError, match=f"built by tensorrt {wrote}, but {installed} is installed"):
            plan_header.check_version(found, installed, version_compatible=compatible)
