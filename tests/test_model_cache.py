"""The cache of compiled models: it gives back what was kept, refuses what others may have written, and never fails."""

from __future__ import annotations

import logging
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from r2mrf_deploy import model_cache
from r2mrf_deploy.model_cache import ABANDONED, ModelCache, key

KEY = key("model", "runtime")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelCache:
    monkeypatch.setenv("R2MRF_CACHE", str(tmp_path / "cache"))
    found = ModelCache.of_user()
    assert found is not None
    return found


def keep(cache: ModelCache, name: str, content: bytes) -> None:
    with cache.adding(name) as file:
        assert file is not None
        file.write_bytes(content)


def test_what_was_kept_is_found_and_nobody_else_can_read_it(cache: ModelCache) -> None:
    assert cache.find(KEY) is None
    keep(cache, KEY, b"compiled")
    found = cache.find(KEY)
    assert found is not None and found.read_bytes() == b"compiled"
    assert cache.find(key("model", "another runtime")) is None
    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700 and stat.S_IMODE(found.stat().st_mode) == 0o600
    assert [file.name for file in cache.folder.iterdir()] == [found.name], "nothing unfinished is left"


def test_keys_tell_facts_and_processors_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    assert key("a", 1) == key("a", 1) != key("a", 2)
    here = key("a")
    monkeypatch.setattr(model_cache, "_processor", lambda: ("Linux", "x86_64", "another CPU", "flags: avx512f"))
    assert key("a") != here


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b + b"x", lambda b: b"C" + b[1:], lambda b: b""])
def test_a_damaged_file_is_removed(cache: ModelCache, damage) -> None:  # type: ignore[no-untyped-def]
    keep(cache, KEY, b"compiled")
    found = cache.find(KEY)
    assert found is not None
    found.write_bytes(damage(b"compiled"))
    assert cache.find(KEY) is None and not found.exists()


def test_a_link_or_a_file_that_others_can_write_is_not_used(cache: ModelCache, tmp_path: Path) -> None:
    keep(cache, KEY, b"compiled")
    found = cache.find(KEY)
    assert found is not None
    found.chmod(0o666)
    assert cache.find(KEY) is None
    (tmp_path / "elsewhere").write_bytes(b"compiled")
    found.symlink_to(tmp_path / "elsewhere")
    assert cache.find(KEY) is None and (tmp_path / "elsewhere").read_bytes() == b"compiled"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda p: p.chmod(0o777), "other users can write it"),
        (lambda p: p.chmod(0o770), "other users can write it"),
        (lambda p: p.parent.chmod(0o777), "other users can replace it"),
        (lambda p: (p.rename(p.with_name("real")), p.symlink_to(p.with_name("real"))), "it is a symbolic link"),
    ],
)
def test_a_folder_that_others_can_write_is_refused_in_one_line(  # type: ignore[no-untyped-def]
    cache: ModelCache, caplog: pytest.LogCaptureFixture, spoil, reason: str
) -> None:
    spoil(cache.folder)
    with caplog.at_level(logging.WARNING):
        assert ModelCache.of_user() is None
    (said,) = caplog.messages
    assert reason in said and "R2MRF_CACHE" in said and "\n" not in said


def test_a_folder_in_one_where_all_keep_their_own_is_used(cache: ModelCache) -> None:
    cache.folder.parent.chmod(0o1777)  # as /tmp is
    assert ModelCache.of_user() == cache


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only the administrator can give files away"
)
def test_a_folder_of_another_user_is_refused(cache: ModelCache, caplog: pytest.LogCaptureFixture) -> None:
    os.chown(cache.folder, 12345, -1)
    assert ModelCache.of_user() is None and "it belongs to another user" in caplog.text
    os.chown(cache.folder, 0, -1)
    keep(cache, KEY, b"planted")
    (file,) = cache.folder.iterdir()
    os.chown(file, 12345, -1)
    assert cache.find(KEY) is None


def test_the_folder_is_the_platform_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("R2MRF_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # which the specification says to ignore
    found = ModelCache.of_user()
    assert found is not None and found.folder == tmp_path / "home" / ".cache" / "r2mrf-deploy"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    found = ModelCache.of_user()
    assert found is not None and found.folder == tmp_path / "xdg" / "r2mrf-deploy"


def test_a_home_is_written_as_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("R2MRF_CACHE", "~/foo")
    found = ModelCache.of_user()
    assert found is not None and found.folder == tmp_path / "foo" / "r2mrf-deploy"


@pytest.mark.parametrize("place", ["file", "file/cache", "link", "taken"])
def test_without_a_place_there_is_no_cache_and_a_line_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, place: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "r2mrf-deploy").symlink_to("nowhere")
    monkeypatch.setenv("R2MRF_CACHE", str(tmp_path / place))
    assert ModelCache.of_user() is None
    (said,) = caplog.messages
    assert "is a file or a link to nothing" in said and "R2MRF_CACHE" in said and "\n" not in said


def test_what_cannot_be_marked_as_used_is_used(cache: ModelCache, monkeypatch: pytest.MonkeyPatch) -> None:
    keep(cache, KEY, b"compiled")

    def refused(*_: object) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr(os, "utime", refused)
    assert all((found := cache.find(KEY)) and found.read_bytes() == b"compiled" for _ in range(2))


def test_a_folder_that_vanished_and_a_write_that_fails_keep_nothing(cache: ModelCache) -> None:
    cache.folder.rmdir()
    with cache.adding(KEY) as file:
        assert file is None
    assert cache.find(KEY) is None
    cache.folder.mkdir(mode=0o700)
    with pytest.raises(OSError, match="disk full"), cache.adding(KEY) as file:
        assert file is not None
        file.write_bytes(b"half")
        raise OSError("disk full")
    assert cache.find(KEY) is None and not [*cache.folder.iterdir()]


def test_those_not_used_for_the_longest_time_make_room(cache: ModelCache) -> None:
    small = ModelCache(cache.folder, limit=30)
    names = [key(n) for n in range(4)]
    for number, name in enumerate(names[:3]):
        keep(small, name, bytes(10))
        (file,) = cache.folder.glob(f"{name}-*")
        os.utime(file, (number, number))
    assert small.find(names[0]) is not None  # used just now, so it is the youngest
    keep(small, names[3], bytes(15))
    assert [small.find(name) is not None for name in names] == [True, False, False, True]
    keep(small, KEY, bytes(31))
    assert small.find(KEY) is None and small.find(names[0]) is not None, "what never fits removes nothing"
    assert sum(file.stat().st_size for file in cache.folder.iterdir()) <= 30


def test_what_killed_processes_left_is_removed_after_a_while(cache: ModelCache) -> None:
    old, new = cache.folder / ".r2mrf-unfinished-old", cache.folder / ".r2mrf-unfinished-new"
    for folder in (old, new):
        folder.mkdir()
        (folder / "model").write_bytes(b"half")
    long_ago = time.time() - ABANDONED - 1
    os.utime(old, (long_ago, long_ago))
    keep(cache, KEY, b"compiled")
    assert not old.exists() and new.exists()


def test_files_of_the_user_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """R2MRF_CACHE may be a folder with anything in it, and so may be the cache's own."""
    monkeypatch.setenv("R2MRF_CACHE", str(tmp_path))
    cache = ModelCache.of_user()
    assert cache is not None and cache.folder == tmp_path / "r2mrf-deploy"
    own = ["2024-11-28.jpg", "a-b-c", f"{KEY}-1-notes.txt", f"{KEY}-1", "unfinished-novel/model"]
    for file in (folder / name for folder in (tmp_path, cache.folder) for name in own):
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(bytes(50))
        for each in (file, file.parent) if file.parent.name == "unfinished-novel" else (file,):
            os.utime(each, (0, 0))
    small = ModelCache(cache.folder, limit=30)
    for content in (b"first", bytes(28), bytes(29)):
        keep(small, KEY, content)
    small.find(KEY)
    assert all((folder / name).stat().st_size == 50 for folder in (tmp_path, cache.folder) for name in own)
    assert len([*cache.folder.iterdir()]) == len(own) + 1, "of its own it keeps what fits"


def test_many_at_once_lose_nothing(cache: ModelCache) -> None:
    """Each finds what it kept or nothing, never what is half written, and the bound holds at the end."""
    small = ModelCache(cache.folder, limit=500)

    def work(number: int) -> bool:
        name, content = key(number % 5), bytes([number % 5]) * 100
        keep(small, name, content)
        found = small.find(name)
        try:
            return found is None or found.read_bytes() == content
        except FileNotFoundError:  # another made room meanwhile
            return True

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(work, range(200)))
    assert sum(file.stat().st_size for file in cache.folder.iterdir()) <= 500
