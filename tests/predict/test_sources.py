"""What is given becomes a stream of photographs with names of their own, and nothing of a person's is written over."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy import images
from r2mrf_deploy.errors import InputError, UsageError
from r2mrf_deploy.predict import Sources, predict
from r2mrf_deploy.predict import sources as module
from tests.predict.conftest import Brightness, photograph

TREE = ("a.jpg", "b.png", "b.tif", "sub/a.jpg", "sub/deep/c.JPG", "sub/notes.txt", "sub/._a.jpg", "z.gif")
Found = Callable[..., dict[str, str]]


@pytest.fixture
def found(tmp_path: Path) -> Found:
    """`found(given..., listed=b"", recursive=False)`: name of the outputs -> photograph, below the folder `in`."""

    def find(*given: str, output: str = "out", listed: bytes | None = None, recursive: bool = False) -> dict[str, str]:
        stream = None if listed is None else io.BytesIO(listed)
        sources = Sources(
            [g if "://" in g else str(tmp_path / g) for g in given],
            output=tmp_path / output, listed=stream, recursive=recursive,
        )  # fmt: skip
        return {s.name: s.error or s.address.removeprefix(f"{tmp_path}/") for s in sources}

    for name in TREE:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    return find


def test_a_folder_keeps_its_structure_only_if_asked_for(found: Found) -> None:
    flat = {"a": "in/a.jpg", "b.png": "in/b.png", "b.tif": "in/b.tif", "z": "in/z.gif"}
    assert found("in") == flat
    assert found("in", recursive=True) == flat | {"sub/a": "in/sub/a.jpg", "sub/deep/c": "in/sub/deep/c.JPG"}


def test_a_name_depends_only_on_the_photograph_s_folder(found: Found, tmp_path: Path) -> None:
    before = found("in", recursive=True)
    photograph(tmp_path / "in" / "new" / "a.jpg")
    photograph(tmp_path / "in" / "0.jpg")
    assert before.items() <= found("in", recursive=True).items()


def test_globs_are_expanded_and_files_may_be_called_like_one(found: Found, tmp_path: Path) -> None:
    assert found("in/*.png") == {"b.png": "in/b.png"}  # as if the folder had been named, where there is a b.tif
    assert found("in/**/*.jpg") == {"a": "in/a.jpg", "sub/a": "in/sub/a.jpg"}
    photograph(tmp_path / "in" / "a.png")
    assert found("in/*.jpg", "in/*.png") == {"a.jpg": "in/a.jpg", "a.png": "in/a.png", "b.png": "in/b.png"}
    assert found("in/**") == found("in", recursive=True)
    photograph(tmp_path / "in" / "[x] *.png")
    assert found("in/[x] *.png") == {"[x] *": "in/[x] *.png"}


def test_several_folders_get_folders_of_their_own(found: Found, tmp_path: Path) -> None:
    for place in ("1/p/a.png", "2/p/a.png", "q/a.png"):
        photograph(tmp_path / place)
    assert found("1/p", "2/p", "q") == {"1_p/a": "1/p/a.png", "2_p/a": "2/p/a.png", "q/a": "q/a.png"}
    assert found("q", "q/a.png") == {"a": "q/a.png", "q/a": "q/a.png"}
    assert found("q", "./q/", f"file://{tmp_path}/q") == {"a": "q/a.png"}


@pytest.mark.parametrize("separator", ["\n", "\r\n", "\0"])
def test_a_list_keeps_folders_and_whole_names(found: Found, tmp_path: Path, separator: str) -> None:
    given = separator.join([str(tmp_path / "in" / n) for n in ("a.jpg", "sub/../b.png", "gone.jpg")])
    parts = "/".join(tmp_path.parts[1:])
    assert found(listed=given.encode()) == {
        f"{parts}/in/{name}": f"in/{name}" for name in ("a.jpg", "b.png", "gone.jpg")
    }


def test_a_list_separated_by_nul_may_hold_any_name(found: Found, tmp_path: Path) -> None:
    names = ["line\nend.png", "-dash.png", "кошка.png", "猫.png", "γάτα.png", "قط.png", "बिल्ली.png", "a b.png"]
    raw = os.fsencode(tmp_path) + b"/in/\xff.png"
    listed = b"\0".join([*(os.fsencode(tmp_path / "in" / n) for n in names), raw]) + b"\0"
    assert [Path(a).name for a in found(listed=listed).values()] == [*names, "\udcff.png"]


def test_a_long_list_is_read_in_pieces(found: Found) -> None:
    listed = b"".join(b"/photographs/%07d.jpg\n" % n for n in range(10_000))
    assert list(found(listed=listed)) == [f"photographs/{n:07}.jpg" for n in range(10_000)]


def test_what_does_not_exist_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.jpg: no such file"):
        Sources([tmp_path / "absent.jpg"], output=tmp_path / "out")
    (tmp_path / "empty").mkdir()
    (only,) = Sources([tmp_path / "empty"], output=tmp_path / "out")
    assert "holds no images (supported suffixes: " in (only.error or "")
    (only,) = Sources([str(tmp_path / "*.jpg")], output=tmp_path / "out")
    assert "no such file" in (only.error or "")


def test_outputs_never_lie_among_the_photographs(found: Found, tmp_path: Path) -> None:
    for given in ("in", "in/*.png", "in/**/*.png", f"file://{tmp_path}/in"):
        with pytest.raises(UsageError, match="would lie among the photographs"):
            found(given, output="in")
    with pytest.raises(UsageError, match="holds other files than outputs"):
        found("in/**/*.png", output="in/sub")
    with pytest.raises(UsageError, match="holds other files than outputs"):
        found("in", output="in/sub", recursive=True)
    assert found("in", output="in/new", recursive=True) == found("in", recursive=True)


def test_outputs_are_no_photographs(tmp_path: Path, brightness: Brightness) -> None:
    """A folder of outputs that lies in the folder that is searched is left out, the second time too."""
    photograph(tmp_path / "in" / "a.png")
    for _ in range(2):
        sources = Sources([tmp_path / "in"], output=tmp_path / "in" / "out", recursive=True)
        assert [Path(p.source).name for p in predict(brightness(), sources, tmp_path / "in" / "out")] == ["a.png"]
    with pytest.raises(UsageError, match="choose another"):  # of a list it is an error, since it was named
        listed = io.BytesIO(bytes(tmp_path / "in" / "out" / "a_map.png"))
        (row,) = predict(brightness(), Sources([], output=tmp_path / "in/out", listed=listed), tmp_path / "in" / "out")
        raise UsageError(row.error or "")


def test_a_photograph_is_not_overwritten_by_another_s_map(tmp_path: Path, brightness: Brightness) -> None:
    """Below `out` lies a folder of photographs, which the structure of another would write into."""
    photograph(tmp_path / "x" / "q" / "sub" / "a.png")
    treasure = photograph(tmp_path / "out" / "q" / "sub" / "a_map.png", 7)
    before = treasure.read_bytes()
    sources = Sources([tmp_path / "x" / "q", treasure.parent], output=tmp_path / "out", recursive=True)
    rows = list(predict(brightness(), sources, tmp_path / "out"))
    assert any("would lie among the photographs" in (row.error or "") for row in rows)
    assert treasure.read_bytes() == before


def test_folders_with_very_many_files_are_not_sorted(
    found: Found, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_SORTED", 3)
    assert sorted(found("in")) == ["a.jpg", "b.png", "b.tif", "z.gif"]  # each by its whole name


def test_they_are_counted_without_being_read(found: Found, tmp_path: Path) -> None:
    assert Sources([tmp_path / "in"], output=tmp_path / "out", recursive=True).count() == len(
        found("in", recursive=True)
    )
    assert Sources([], output=tmp_path / "out", listed=io.BytesIO(b"a.jpg\n")).count() is None


def test_object_stores(tmp_path: Path, brightness: Brightness) -> None:
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    pixels = np.full((6, 8, 3), 51, np.uint8)
    for name in ("/bucket/a.png", "/bucket/deep/a.png", "/bucket/deep/a.jpg", "/bucket/notes.txt"):
        store.pipe_file(name, images.png(pixels))
    store.pipe_file("/bucket/bad.png", b"bad")
    for given, recursive, expected in (
        ("memory://bucket", False, ["a", "bad"]),
        ("memory://bucket", True, ["a", "bad", "deep/a.jpg", "deep/a.png"]),
        ("memory://bucket/deep/*.jpg", False, ["a.jpg"]),
        ("memory://bucket/deep/a.jpg", False, ["a.jpg"]),
        ("memory://bucket/**/a.*", False, ["a.png", "deep/a.jpg", "deep/a.png"]),
    ):
        sources = Sources([given], output=tmp_path / "out", recursive=recursive)
        assert sorted(s.name for s in sources) == expected and sources.count() is None
    rows = {
        p.source: p for p in predict(brightness(), Sources(["memory://bucket"], output=tmp_path / "o"), tmp_path / "o")
    }
    assert rows["memory:///bucket/a.png"].in_focus == 0 and rows["memory:///bucket/a.png"].scores
    assert "memory:///bucket/bad.png is not an image" in (rows["memory:///bucket/bad.png"].error or "")
    (gone,) = Sources(["nowhere://x/a.png"], output=tmp_path / "out")
    assert "nowhere://x/a.png cannot be opened" in (gone.error or "")
    (gone,) = predict(brightness(), Sources(["memory://bucket/gone.png"], output=tmp_path / "o"), tmp_path / "o")
    assert "gone.png cannot be fetched" in (gone.error or "")


def test_addresses_in_a_list_keep_their_folders_and_do_not_end_it(tmp_path: Path) -> None:
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    for name in ("/x/IMG_1.jpg", "/y/IMG_1.jpg", "/y/IMG_1.png", "/empty/notes.txt"):
        store.pipe_file(name, b"")
    lines = [
        "memory://x/IMG_1.jpg",
        "memory://empty",
        "memory://y/IMG_1.jpg",
        "memory://y/IMG_1.png",
        "memory://no/*.jpg",
        "z.jpg",
    ]
    sources = list(Sources([], output=tmp_path / "out", listed=io.BytesIO("\n".join(lines).encode())))
    names = [
        "memory/x/IMG_1.jpg/IMG_1.jpg",
        "",
        "memory/y/IMG_1.jpg/IMG_1.jpg",
        "memory/y/IMG_1.png/IMG_1.png",
        "",
        "z.jpg",
    ]
    assert [s.name for s in sources] == [n.replace("IMG_1.jpg/", "").replace("IMG_1.png/", "") for n in names]
    assert [bool(s.error) for s in sources] == [False, True, False, False, True, False]


def test_a_list_may_hold_what_is_no_path(found: Found) -> None:
    listed = b"a.jpg\n" * 20_000 + b"b\0.jpg\nc.jpg\n"
    names = found(listed=listed)
    assert "is no path" in names[""] and "c.jpg" in names


def test_passwords_are_not_written_down(tmp_path: Path) -> None:
    pytest.importorskip("fsspec")
    for given in ("nowhere://me:pa/ss@word@host/a.png", "https://me:secret@localhost:1/a.png"):
        (source,) = Sources([given], output=tmp_path / "out")
        said = source.error or source.address
        assert "***@" in said and not any(word in said for word in ("secret", "ss@word"))
    nothing = "memory://me:secret@here/*.png"
    found = [*Sources([nothing], output=tmp_path), *Sources([], output=tmp_path, listed=io.BytesIO(nothing.encode()))]
    assert len(found) == 2 and all("no such file" in str(source.error) for source in found)
    assert "secret" not in repr(found)


def test_what_a_folder_cannot_be_asked_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photograph(tmp_path / "in" / "a.png")
    photograph(tmp_path / "in" / "closed" / "b.png")
    scandir = os.scandir

    def refuses(path: str | Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuses)
    found = list(Sources([tmp_path / "in"], output=tmp_path / "out", recursive=True))
    assert [s.name for s in found] == ["a", ""] and "cannot be searched: Permission denied" in (found[1].error or "")
