"""Manifests are bound to their files; writing is all or nothing."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.manifest import Manifest, TensorSpec
from tests.conftest import forge, manifest_of


def test_round_trip(tiny_onnx) -> None:  # type: ignore[no-untyped-def]
    path = tiny_onnx()
    manifest = manifest_of(path)
    assert manifest is not None
    forge(manifest, path)
    assert manifest_of(path) == manifest


def test_a_changed_file_is_refused(tiny_onnx) -> None:  # type: ignore[no-untyped-def]
    path = tiny_onnx()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        manifest_of(path)


def test_a_missing_companion_is_named(tiny_onnx) -> None:  # type: ignore[no-untyped-def]
    path = tiny_onnx()
    manifest = manifest_of(path)
    assert manifest is not None
    forge(manifest.model_copy(update={"companions": {"x.bin": "0" * 64}}), path)
    with pytest.raises(ArtifactError, match=r"x\.bin is missing"):
        manifest_of(path)


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../x", "folder/x", "/etc/passwd", "folder", "x" * 5000, "a\0b", "a\nb"]
)
def test_hostile_companions_are_refused_in_one_line(tiny_onnx, name: str) -> None:  # type: ignore[no-untyped-def]
    path = tiny_onnx()
    path.with_name("folder").mkdir()
    manifest = manifest_of(path)
    assert manifest is not None
    forge(manifest.model_copy(update={"companions": {name: "0" * 64}}), path)
    with pytest.raises(ArtifactError) as refusal:
        manifest_of(path)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("companions", [{}, {"other.bin": "0" * 64}])
def test_openvino_s_weights_must_be_listed(tiny_onnx, companions: dict[str, str]) -> None:  # type: ignore[no-untyped-def]
    manifest = manifest_of(tiny_onnx())
    assert manifest is not None
    path = tiny_onnx().rename(tiny_onnx().with_suffix(".xml"))
    forge(manifest.model_copy(update={"kind": "openvino", "companions": companions}), path)
    with pytest.raises(ArtifactError, match=r"companions leave out tiny\.bin"):
        manifest_of(path)


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0, 0, 0], [1, 0, 1]),
        ([0, 0, 0], [1, -1, 1]),
        ([0, 0, 0], [1, float("nan"), 1]),
        ([0, 0, 0], [1, float("inf"), 1]),
        ([0, float("nan"), 0], [1, 1, 1]),
        ([0, 0], [1, 1, 1]),
    ],
)
def test_a_normalisation_that_is_none_is_refused(tiny_onnx, mean: list[float], std: list[float]) -> None:  # type: ignore[no-untyped-def]
    path = Manifest.path_for(tiny_onnx())
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(document | {"preprocess": {"mean": mean, "std": std}}), encoding="utf-8")
    with pytest.raises(ArtifactError, match=r"is not a manifest: preprocess\."):
        Manifest.read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a manifest"),
        ("{}", "kind|file"),
        ('{"format": "r2mrf-artifact/9"}', "is not a manifest"),
        ("\xff\xfe", "is not a manifest"),
    ],
)
def test_what_is_not_a_manifest(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.onnx.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ArtifactError, match=message):
        Manifest.read(path)


def test_free_dimensions_accept_anything_and_fixed_ones_only_themselves() -> None:
    spec = TensorSpec(name="x", dtype="uint8", shape=["n", 4, 3])
    assert spec.accepts((7, 4, 3))
    assert not spec.accepts((7, 5, 3))
    assert not spec.accepts((7, 4))
    assert not spec.static


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_atomically(path, b"old")

    def fail(temporary: Path) -> None:
        temporary.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match="No space left"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


def test_permissions_are_the_user_s_default(tmp_path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    path = write_atomically(tmp_path / "new" / "a.bin", b"x")
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
