"""An output is new or replaces a regular file: whatever else is there is refused and stays. Inputs are regular files too."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from r2mrf_deploy import images
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.bench import feeds
from r2mrf_deploy.datasets import _split
from r2mrf_deploy.errors import ArtifactError, R2mrfError
from r2mrf_deploy.files import refuse_unwritable, write_atomically
from r2mrf_deploy.graph import files as graph_files
from r2mrf_deploy.manifest import Manifest, TensorSpec
from r2mrf_deploy.parity.node_search import resumable
from tests.test_artifact import put

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
SPECIAL: dict[str, tuple[Callable[[Path], object], str]] = {
    "link": (
        lambda path: path.symlink_to("elsewhere"),
        "symbolic link to elsewhere; name that file, or remove the link",
    ),
    "pipe": (lambda path: os.mkfifo(path), "named pipe or a device; name a regular file"),
    "folder": (lambda path: path.mkdir(), "it is a folder"),
}


@needs_pipes
@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize(
    "write", [lambda path: write_atomically(path, b"new"), refuse_unwritable, lambda p: put(p, "new")]
)
def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path, kind: str, write: Callable[[Path], object]) -> None:
    (tmp_path / "elsewhere").write_text("old")
    make, said = SPECIAL[kind]
    path = tmp_path / "x.onnx"
    make(path)
    before = path.lstat()
    with pytest.raises(ArtifactError, match=said):
        write(path)
    assert path.lstat().st_mode == before.st_mode and (tmp_path / "elsewhere").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "x.onnx"]


@needs_pipes
@pytest.mark.parametrize("name", ["x.xml.json", "x.bin"])
def test_nor_are_an_artifact_s_other_files(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(ArtifactError, match=rf"{name}: it is a named pipe"):
        put(tmp_path / "x.xml", "new")
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_manifest_that_is_a_link_gets_no_evidence(tmp_path: Path) -> None:
    path = put(tmp_path / "x.bin", "content").path
    document = Manifest.path_for(path)
    document.rename(tmp_path / "shared.json")
    document.symlink_to("shared.json")
    assert "symbolic link to shared.json" in Artifact.open(path).record(latency=[{"runtime": "none"}])
    assert document.is_symlink()


def test_nothing_leaves_the_folder_that_must_contain_it(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    (tmp_path / "elsewhere").mkdir()
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path / "elsewhere")
    for name in ("../x", "/x", f"{tmp_path}/x", "a/../../x", "link/x"):
        with pytest.raises(ArtifactError, match="outside the folder"):
            write_atomically(folder / name, b"new", within=folder)
    assert write_atomically(folder / "a/x", b"new", within=folder).read_bytes() == b"new"
    (tmp_path / "name").symlink_to(folder)
    assert write_atomically(tmp_path / "name" / "x", b"new", within=folder).is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["elsewhere", "name", "out"]


@needs_pipes
@pytest.mark.parametrize(
    "read",
    [
        images.read,
        images.size,
        lambda path: images.find([path]),
        Manifest.read,
        Artifact.open,
        graph_files.read,
        lambda path: _split(path, {}),
        lambda path: feeds.load(path, TensorSpec(name="image", dtype="uint8", shape=[1], layout=None), [1]),
        lambda path: resumable(lambda _: pytest.fail("evaluated"), path, {}),
    ],
)
def test_an_input_that_may_never_end_is_refused(tmp_path: Path, read: Callable[[Path], object]) -> None:
    os.mkfifo(tmp_path / "x.onnx")
    for path in (tmp_path / "x.onnx", Path("/dev/zero")):
        with pytest.raises(R2mrfError, match="is a named pipe or a device"):
            read(path)


@needs_pipes
def test_so_is_a_manifest_beside_an_artifact(tmp_path: Path) -> None:
    path = put(tmp_path / "x.bin", "content").path
    Manifest.path_for(path).unlink()
    os.mkfifo(Manifest.path_for(path))
    with pytest.raises(ArtifactError, match=r"x\.bin\.json is a named pipe or a device: save it as a regular file"):
        Artifact.open(path)
