"""Of a film that is damaged, missing or interrupted, what was seen is kept, and what went wrong is said."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r2mrf_deploy.errors import ArtifactError, InputError, UsageError
from r2mrf_deploy.predict.film import Film, film
from r2mrf_deploy.progress import Interrupted, Progress
from tests.predict.films import (
    av,
    brightness,
    clip,
    left_in,
    read,
    rows,
    run,
    write,
)


def blocks(count: int) -> Iterator[np.ndarray]:
    """Frames of about the same size in a file, whatever the encoder."""
    random = np.random.default_rng(0)
    for _ in range(count):
        yield np.kron(random.integers(0, 255, (6, 8, 1)), np.ones((8, 8, 3))).astype(np.uint8)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "libx264"), ("a.avi", "mpeg4")])
def test_of_a_truncated_film_all_that_was_decoded_is_kept(tmp_path: Path, name: str, codec: str) -> None:
    options = {"options": {"movflags": "+faststart"}} if name.endswith("mp4") else {}
    source = tmp_path / name
    write(source, blocks(50), codec=codec, **options)
    whole = run(source, tmp_path, save=("scores",))
    assert whole.frames == 50 and whole.error is None
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 6 // 10])
    found = run(source, tmp_path)
    assert 10 <= found.frames <= 35 and len(read(found.outputs["map"])[0]) == found.frames == len(rows(found))
    assert found.error and found.error.startswith(f"{source}: ") and "what could be decoded is kept" in found.error
    (second,) = re.findall(r"at (\d\.\d) s", found.error)
    assert float(second) == pytest.approx(found.frames / 25, abs=0.1)


@pytest.mark.parametrize("name", ["a.ts", "a.mp4"])
def test_damage_in_the_middle_is_said_and_passed_over(tmp_path: Path, name: str) -> None:
    source = tmp_path / name
    write(source, blocks(50))
    content = bytearray(source.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 400] = np.random.default_rng(0).bytes(400)
    source.write_bytes(content)
    found = run(source, tmp_path)
    assert found.error and re.search(r"damaged at (0\.[89]|1\.[0-2]) s", found.error)
    assert found.seconds > 1.9 and 40 < found.frames <= 50


def not_a_film(path: Path) -> None:
    path.write_bytes(b"text, " * 1000)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def playlist(path: Path) -> None:
    """libav would read what it names."""
    clip(path.parent, 2, "secret.ts")
    path.write_text("#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nsecret.ts\n#EXT-X-ENDLIST\n")


def beheaded(path: Path) -> None:
    """Without its table, which comes last."""
    content = clip(path.parent, 12, "whole.mp4").read_bytes()
    path.write_bytes(content[: content.index(b"moov")])


def sound(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 48_000), np.float32), format="fltp", layout="mono")
        frame.rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (not_a_film, "not a film"),
        (empty, "not a film"),
        (playlist, "not a film"),
        (beheaded, "not a film"),
        (sound, "no video"),
    ],
)
def test_what_is_no_film_is_refused(
    tmp_path: Path, make: Callable[[Path], None], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "bad.mp4"
    make(source)
    with pytest.raises(InputError, match=said) as refusal:
        run(source, tmp_path)
    assert "\n" not in str(refusal.value) and str(source) in str(refusal.value)
    assert left_in(tmp_path) == [] and capfd.readouterr().err == ""  # libav would say more, many times


def test_a_film_that_is_missing_or_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        run(tmp_path / "none.mp4", tmp_path)
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        run(tmp_path / "folder.mp4", tmp_path)


def test_a_film_is_never_written_onto_its_source(tmp_path: Path) -> None:
    source = clip(tmp_path, 2, "a_map.mp4")
    before = source.read_bytes()
    with pytest.raises(UsageError, match="overwrite"):
        film(brightness, str(tmp_path / "x" / ".." / "a_map.mp4"), tmp_path, "a", save=("map",))
    assert source.read_bytes() == before


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "treasure").write_text("mine")
    (tmp_path / "out" / "a_map.mp4").symlink_to(tmp_path / "treasure")
    with pytest.raises(ArtifactError, match="symbolic link"):
        run(clip(tmp_path, 2), tmp_path)
    assert (tmp_path / "treasure").read_text() == "mine"


@pytest.mark.parametrize(
    "options",
    [
        {"save": ()},
        {"save": ("png",)},
        {"smooth": -1.0},
        {"smooth": float("nan")},
        {"limit": 0.0},
        {"streams": 0},
        {"overlay_side": 0},
    ],
)
def test_meaningless_options_are_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=f"`{next(iter(options))}`"):
        run(clip(tmp_path, 1), tmp_path, **options)


def test_if_the_network_fails_the_old_files_stay(tmp_path: Path) -> None:
    before = run(clip(tmp_path, 12), tmp_path).outputs["map"].read_bytes()
    calls = iter(range(100))

    def fails(image: np.ndarray) -> np.ndarray:
        if next(calls) == 6:
            raise ArtifactError("the map is not finite")
        return brightness(image)

    with pytest.raises(ArtifactError, match="not finite"):
        run(tmp_path / "clip.mp4", tmp_path, fails)
    assert (tmp_path / "out" / "a_map.mp4").read_bytes() == before
    assert not list((tmp_path / "out").glob(".r2mrf-*"))


def test_ctrl_c_leaves_films_that_play(tmp_path: Path) -> None:
    def stops(progress: Progress) -> None:
        if progress.done == 20:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as interrupted:
        run(clip(tmp_path, 60), tmp_path, progress=stops)
    found = interrupted.value.done
    assert isinstance(found, Film) and 20 <= found.frames < 60
    assert {len(read(found.outputs[what])[0]) for what in ("map", "overlay")} == {found.frames} == {len(rows(found))}
    assert left_in(tmp_path) == ["a_map.mp4", "a_overlay.mp4", "a_scores.jsonl"]


def test_memory_does_not_grow_with_the_film(tmp_path: Path) -> None:
    """Frames that are taken and not yet written: one in the reader's hand, those of three stages and their queues."""
    taken, most = [0], [0]

    def look(image: np.ndarray) -> np.ndarray:
        taken[0] += 1
        return brightness(image)

    run(clip(tmp_path, 80), tmp_path, look, progress=lambda p: most.append(taken[0] - p.done) or time.sleep(0.005))
    assert max(most) <= 12
