"""Manifests are bound to their files; writing is all or nothing."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.manifest import Manifest, TensorSpec, write_atomically


def test_round_trip(tiny_onnx) -> None:  # type: ignore[no-untyped-def]
    path = tiny_onnx()
    manifest = Manifest.beside(path)
    assert manifest is not None
    manifest.save(path)
    assert Manifest.beside(path) == manifest


def test_a_changed_file_is_refused(tiny_onnx) -> None:  # type: ignore[no-untyped-def]
    path = tiny_onnx()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        Manifest.beside(path)


def test_a_missing_companion_is_named(tiny_onnx) -> None:  # type: ignore[no-untyped-def]
    path = tiny_onnx()
    manifest = Manifest.beside(path)
    assert manifest is not None
    manifest.model_copy(update={"companions": {"x.bin": "0" * 64}}).save(path)
    with pytest.raises(ArtifactError, match=r"x\.bin is missing"):
        Manifest.beside(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a manifest"),
        ("{}", "format|file"),
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
