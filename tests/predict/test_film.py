"""Films become films of maps: every frame in its time and upright, whatever the source; and what goes wrong is said."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from r2mrf_deploy import drawing, sample_photographs
from r2mrf_deploy.errors import ArtifactError, InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.predict import film as films
from r2mrf_deploy.predict import footage, smoothing
from r2mrf_deploy.predict.film import Film, film
from r2mrf_deploy.predict.scores import Scores
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.progress import Interrupted, Progress

av = pytest.importorskip("av")

brightness = cast(Predictor, lambda image: image.mean(2, dtype=np.float32) / np.float32(255))
TICK = Fraction(1, 12_800)
SIZE = (48, 64)
CODEC = 4
"""Levels of 255 by which x264 at this quality, and the conversion to 219 levels, may change a smooth frame."""


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Grey, brighter from frame to frame, with a white bar above and a black one at the left: turned or mirrored, it looks
    different."""
    image = np.full((*size, 3), 60 + 8 * number % 120, np.uint8)
    image[:, : size[1] // 4] = 0
    image[: size[0] // 4] = 255
    return image


def write(
    path: Any,
    frames: Iterable[np.ndarray],
    *,
    ticks: Sequence[int] | None = None,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    rotate: int | None = None,
    aspect: Fraction | None = None,
    real_time: bool = False,
    **how: Any,
) -> None:
    """Write frames, 25 in a second or at these times, to a path or an open file."""
    start = time.monotonic()
    with av.open(str(path) if isinstance(path, Path) else path, "w", **how) as container:
        stream = container.add_stream(codec, rate=25)
        unit = TICK if codec != "mpeg4" else Fraction(1, 25)
        for number, frame in enumerate(frames):
            if not number:
                stream.height, stream.width = frame.shape[:2]
                stream.pix_fmt = pixels
                stream.codec_context.time_base = unit
                if codec == "libx264":
                    stream.options = {"crf": "8", "preset": "ultrafast", "tune": "zerolatency", "g": "5"}
                if codec == "libx265":
                    stream.options = {"x265-params": "log-level=none"}
                if rotate is not None:
                    stream.set_display_rotation(rotate)
                if aspect:
                    stream.codec_context.sample_aspect_ratio = aspect
            if real_time and (early := start + number / 25 - time.monotonic()) > 0:
                time.sleep(early)
            ready = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format=pixels)
            ready.pts = ticks[number] if ticks else number * int(Fraction(1, 25) / unit)
            ready.time_base = unit
            container.mux(stream.encode(ready))
        container.mux(stream.encode(None))


def clip(folder: Path, count: int = 12, name: str = "clip.mp4", **how: Any) -> Path:
    write(folder / name, map(picture, range(count)), **how)
    return folder / name


def read(path: Path) -> tuple[list[Any], Fraction]:
    """A film's frames and its average rate."""
    with av.open(str(path)) as container:
        return list(container.decode(video=0)), container.streams.video[0].average_rate


def unopened() -> tuple[Any, Any]:
    """What stands for a container and its stream of 25 frames in a second."""
    rate = Fraction(25)
    return SimpleNamespace(start_time=None), SimpleNamespace(time_base=1 / rate, average_rate=rate, start_time=None)


def rgb(path: Path) -> list[np.ndarray]:
    return [frame.to_ndarray(format="rgb24") for frame in read(path)[0]]


def times(path: Path) -> list[Fraction]:
    return [frame.pts * frame.time_base for frame in read(path)[0]]


def rows(found: Film) -> list[dict[str, Any]]:
    return [json.loads(row) for row in found.outputs["scores"].read_text().splitlines()]


def run(source: Path | str, folder: Path, predictor: Any = brightness, **options: Any) -> Film:
    return film(predictor, str(source), folder / "out", "a", **{"save": ("map", "overlay", "scores"), **options})


def left_in(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.glob("out/*"))


# Times


@pytest.mark.parametrize(
    "ticks",
    [
        None,
        [0, 512, 600, 1500, 4000, 4100, 9000, 9100, 9101, 12_000, 12_600, 13_000],
        [5000 + 512 * n for n in range(12)],
    ],
    ids=["constant", "variable", "late"],
)
def test_every_frame_keeps_its_time(tmp_path: Path, ticks: list[int] | None) -> None:
    source = clip(tmp_path, ticks=ticks)
    found = run(source, tmp_path)
    given = times(source)
    for what in ("map", "overlay"):
        shown = times(found.outputs[what])
        assert [t - shown[0] for t in shown] == [t - given[0] for t in given]
        assert read(found.outputs[what])[1] == read(source)[1]
    assert found.error is None and found.frames == 12 and found.dropped == 0
    assert [row["time"] for row in rows(found)] == pytest.approx([float(t - given[0]) for t in given], abs=1e-6)
    assert [row["frame"] for row in rows(found)] == list(range(12))
    assert found.frame_rate == pytest.approx(float(read(source)[1]), abs=1e-6)
    assert found.seconds == pytest.approx(12 / found.frame_rate, abs=1e-3)  # of a rate, libav keeps a rounded fraction


@pytest.mark.parametrize(
    ("name", "codec"), [("a.mkv", "libx264"), ("a.ts", "libx264"), ("a.avi", "mpeg4"), ("a.mov", "mpeg4")]
)
def test_other_containers_are_read(tmp_path: Path, name: str, codec: str) -> None:
    source = clip(tmp_path, name=name, codec=codec)
    assert footage.is_film(str(source))
    found = run(source, tmp_path)
    assert (found.frames, found.error, found.frame_rate, found.seconds) == (12, None, 25.0, pytest.approx(12 / 25))
    assert times(found.outputs["map"]) == [Fraction(n, 25) for n in range(12)]


def test_frames_without_times_or_going_back_follow_one_another() -> None:
    class Picture:
        time_base, duration = Fraction(1, 25), 1

        def __init__(self, pts: int | None) -> None:
            self.pts = pts

    reader = footage.Reader("a", *unopened(), None)
    empty = np.empty(0)
    found = []
    for pts in (0, 1, None, 2, 3, 900, 0, 1):  # a time twice; a gap; a recorder that was started again
        when, duration = reader._timed(Picture(pts))
        reader._last = footage.Frame(0, when, duration, empty, empty, empty)
        found.append(when * 25)
    assert found == [0, 1, 2, 3, 4, 900, 901, 902]


def test_a_limit_ends_a_film(tmp_path: Path) -> None:
    seen: list[Progress] = []
    found = run(clip(tmp_path, 30), tmp_path, limit=0.4, progress=seen.append)
    assert found.frames == 10 and found.error is None and len(read(found.outputs["map"])[0]) == 10
    assert [(p.done, p.total) for p in seen] == [(n, 10) for n in range(1, 11)]


# Pictures


def test_maps_overlays_and_scores_are_those_of_every_frame(tmp_path: Path) -> None:
    found = run(clip(tmp_path), tmp_path, streams=2)
    images = rgb(tmp_path / "clip.mp4")
    maps, overlays = (rgb(found.outputs[what]) for what in ("map", "overlay"))
    for image, focus, overlay, row in zip(images, maps, overlays, rows(found), strict=True):
        expected = brightness(image)
        assert np.abs(focus / 255 - expected[..., None]).mean() < CODEC / 255
        drawn = drawing.overlay(image, expected)
        assert np.abs(overlay.astype(int) - drawn).mean() < 2 * CODEC  # the yellow line has its colour at half the size
        assert {name: row[name] for name in Scores.__dataclass_fields__} == Scores.of(expected, SIZE).to_dict()
    assert found.in_focus == pytest.approx(np.mean([row["in_focus"] for row in rows(found)]), abs=1e-4)
    assert found.subject == pytest.approx(np.mean([row["subject"] for row in rows(found)]), abs=1e-4)
    assert found.to_dict()["width"] == 64 and found.height == 48 and found.frames_per_second > 0


@pytest.mark.parametrize("rotate", [0, 90, 180, -90])
def test_frames_are_turned_upright_once(tmp_path: Path, rotate: int) -> None:
    stored = [np.rot90(picture(n), -rotate // 90) for n in range(3)]
    source = tmp_path / "turned.mp4"
    if not hasattr(av.VideoStream, "set_display_rotation"):
        pytest.skip("this PyAV cannot write a rotation")
    write(source, map(np.ascontiguousarray, stored), rotate=rotate, aspect=Fraction(4, 3))
    found = run(source, tmp_path)
    assert (found.height, found.width, found.rotation) == (*SIZE, -rotate % 360)
    for frame in read(found.outputs["map"])[0]:
        focus = frame.to_ndarray(format="rgb24")[..., 0].astype(int)
        assert frame.rotation == 0 and focus[4, 4:60].min() > 240 and focus[16:44, 4:12].max() < 15
    with av.open(str(found.outputs["map"])) as container:  # the pixels turn too
        assert container.streams.video[0].sample_aspect_ratio == (Fraction(3, 4) if rotate % 180 else Fraction(4, 3))


def test_a_mirrored_film_is_mirrored_back() -> None:
    image = np.arange(6).reshape(2, 3, 1)
    assert (footage.turned(image, (-1, 0, 0, 1)) == image[:, ::-1]).all()
    assert (footage.turned(image, (0, -1, 1, 0)) == np.rot90(image)).all()
    assert (footage.turned(image, (0, 1, 1, 0)) == image.swapaxes(0, 1)).all()


@pytest.mark.parametrize("size", [(47, 63), (48, 63), (3, 2), (1, 1)])
def test_odd_sides_are_continued_by_one_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    image = np.full((*size, 3), 40, np.uint8)
    image[-1], image[:, -1] = 200, 200
    source = tmp_path / "odd.mkv"
    write(source, [image] * 3, codec="ffv1", pixels="bgr0")
    found = run(source, tmp_path)
    assert (found.height, found.width, found.frames) == (*size, 3)
    focus = rgb(found.outputs["map"])[1][..., 0]
    assert focus.shape == tuple(side + side % 2 for side in size)
    assert (
        np.abs(focus[-1].astype(int) - 200).max() <= 4 * CODEC
        and np.abs(focus[:, -1].astype(int) - 200).max() <= 4 * CODEC
    )


@pytest.mark.parametrize(
    ("codec", "pixels"),
    [
        ("libx265", "yuv420p10le"),
        ("libx264", "gray"),
        ("ffv1", "gray16le"),
        ("libx264", "yuv444p10le"),
        ("ffv1", "bgra"),
    ],
)
def test_any_pixel_format_becomes_eight_bits(tmp_path: Path, codec: str, pixels: str) -> None:
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    found = run(clip(tmp_path, 3, "a.mkv", codec=codec, pixels=pixels), tmp_path)
    for number, focus in enumerate(rgb(found.outputs["map"])):
        assert np.abs(focus.astype(int) - picture(number)).mean() < 2 * CODEC


def test_colours_of_high_definition_are_bt_709(tmp_path: Path) -> None:
    """Nothing in the file says so: of pure green, BT.601 would make another brightness."""
    green = np.zeros((720, 32, 3), np.uint8)
    green[..., 1] = 200
    stored = av.VideoFrame.from_ndarray(green, format="rgb24").reformat(format="yuv420p", dst_colorspace="ITU709")
    with av.open(str(tmp_path / "hd.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=25)
        stream.height, stream.width, stream.pix_fmt = 720, 32, "yuv420p"
        stored.colorspace = 2
        container.mux(stream.encode(stored))
        container.mux(stream.encode(None))
    seen: list[np.ndarray] = []
    found = run(tmp_path / "hd.mkv", tmp_path, lambda image: seen.append(image) or brightness(image))
    assert np.abs(seen[0].astype(int) - green).max() <= 3
    sharp = drawing.overlay(green, np.ones((720, 32), np.float32))
    overlay = run(tmp_path / "hd.mkv", tmp_path, lambda image: np.ones(image.shape[:2], np.float32)).outputs["overlay"]
    (frame,) = read(overlay)[0]
    assert frame.colorspace == 1  # AVCOL_SPC_BT709: the film says it
    assert np.abs(frame.to_ndarray(format="rgb24")[8:-8, 8:-8].astype(int) - sharp[8:-8, 8:-8]).max() <= 2 * CODEC
    assert found.frames == 1


def test_a_film_of_one_frame_and_one_small_overlay(tmp_path: Path) -> None:
    found = run(clip(tmp_path, 1), tmp_path, overlay_side=33)
    assert found.frames == 1 and found.cuts == 0 and found.error is None
    assert [f.shape[:2] for f in rgb(found.outputs["overlay"])] == [(26, 34)]
    assert [f.shape[:2] for f in rgb(found.outputs["map"])] == [SIZE]


def test_only_what_is_asked_for_is_written(tmp_path: Path) -> None:
    assert left_in(tmp_path) == []
    assert set(run(clip(tmp_path, 2), tmp_path, save=("scores",)).outputs) == {"scores"}
    assert left_in(tmp_path) == ["a_scores.jsonl"]
    run(tmp_path / "clip.mp4", tmp_path, save=("overlay",))
    assert left_in(tmp_path) == ["a_overlay.mp4", "a_scores.jsonl"]


@pytest.mark.parametrize("encoders", [("mpeg4",), ("no-such-encoder", "mpeg4")])
def test_another_encoder_does_where_x264_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoders: tuple[str, ...]
) -> None:
    monkeypatch.setattr(films, "ENCODERS", encoders)
    source = clip(tmp_path, name="a.ts")  # in ticks of 1/90000, which MPEG-4 has not
    found = run(source, tmp_path)
    assert times(found.outputs["map"]) == [Fraction(n, 25) for n in range(12)]
    assert np.abs(rgb(found.outputs["map"])[3].astype(int) - picture(3)).mean() < 2 * CODEC
    with av.open(str(found.outputs["map"])) as container:
        assert container.streams.video[0].codec_context.name == "mpeg4"


def test_without_any_encoder_the_cure_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(films, "ENCODERS", ("no-such-encoder",))
    with pytest.raises(RuntimeUnavailable, match="pip install"):
        run(clip(tmp_path, 1), tmp_path)


# Smoothing and cuts


def test_the_running_mean_is_exponential_in_time() -> None:
    mean, focus = np.full((2, 3), 0.2, np.float32), np.full((2, 3), 1.0, np.float32)
    np.testing.assert_allclose(smoothing.blend(mean, focus, 0.5, 2.0), 0.2 + 0.8 * (1 - np.exp(-0.25)), rtol=1e-6)
    twice = smoothing.blend(smoothing.blend(mean, focus, 0.1, 2.0), focus, 0.4, 2.0)
    np.testing.assert_allclose(twice, smoothing.blend(mean, focus, 0.5, 2.0), rtol=1e-6)  # whatever the frame rate
    assert (smoothing.blend(mean, focus, 0.04, 0.0) == focus).all()
    assert smoothing.blend(mean, focus, 0.04, 1.0).dtype == np.float32


def scene(
    name: str, count: int, *, pan: float = 0.0, noise: float = 0.0, gains: Sequence[float] = (1.0,)
) -> list[np.ndarray]:
    """Frames of a photograph: seen through a window that moves by this share of its width, noisy, brighter and darker."""
    photograph = sample_photographs.sample(name)
    height, width = photograph.shape[0] // 2, photograph.shape[1] // 2
    random = np.random.default_rng(0)
    frames = []
    for number in range(count):
        left = int(number * pan * width) % (width + 1)
        window = photograph[height // 2 : height // 2 + height, left : left + width].astype(np.float32)
        window = window * gains[number % len(gains)] + random.normal(0, noise, (height, width, 1))
        frames.append(np.clip(window, 0, 255).astype(np.uint8))
    return frames


def cuts(frames: Iterable[np.ndarray]) -> list[int]:
    small = [smoothing.thumbnail(frame) for frame in frames]
    return [n for n in range(len(small)) if smoothing.is_cut(small[max(0, n - 2) : n + 1])]


NAMES = sample_photographs.names()


@pytest.mark.parametrize("pan", [0.0, 0.05])
def test_a_cut_is_found_at_its_frame_and_nowhere_else(pan: float) -> None:
    pairs = [(a, b) for a in NAMES for b in NAMES if a != b]
    for a, b in pairs[:24]:
        joined = [*scene(a, 5, pan=pan, noise=10), *scene(b, 5, pan=pan, noise=10)]
        assert cuts(joined) == [5], (a, b)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_camera_does_is_no_cut(name: str) -> None:
    assert cuts(scene(name, 8, pan=0.12)) == []
    assert cuts(scene(name, 8, noise=40)) == []
    assert cuts(scene(name, 8, gains=(1.0, 0.6, 1.2), noise=5)) == []
    assert cuts(scene(name, 10, gains=[n / 10 for n in range(10)], noise=2)) == []  # from black
    assert (
        cuts([*scene(name, 5), *(drawing.resize(drawing.resize(f, (24, 24)), f.shape[:2]) for f in scene(name, 5))])
        == []
    )


def test_black_frames_differ_by_their_noise_only() -> None:
    black = np.zeros((90, 160, 3), np.float32)
    random = np.random.default_rng(1)
    assert cuts(np.abs(black + random.normal(0, 20, black.shape)).astype(np.uint8) for _ in range(8)) == []


def test_smoothing_does_not_smear_a_cut(tmp_path: Path) -> None:
    frames = [*scene(NAMES[0], 6), *scene(NAMES[1], 6)]
    size = tuple(min(f.shape[i] for f in frames) // 4 * 4 for i in (0, 1))
    source = tmp_path / "cut.mp4"
    write(source, [np.ascontiguousarray(f[: size[0], : size[1]]) for f in frames])
    level = iter([0.0] * 3 + [1.0] * 3 + [0.0] * 3 + [1.0] * 3)
    found = run(source, tmp_path, lambda image: np.full(image.shape[:2], next(level), np.float32), smooth=0.1)
    rest = float(np.exp(-0.04 / 0.1))  # of the past, after one frame
    rise = [0, 0, 0, 1 - rest, 1 - rest**2, 1 - rest**3]
    assert [row["cut"] for row in rows(found)] == [n == 6 for n in range(12)] and found.cuts == 1
    assert [row["mean_confidence"] for row in rows(found)] == pytest.approx(rise * 2, abs=1e-4)
    shown = [focus.mean() / 255 for focus in rgb(found.outputs["map"])]
    assert shown == pytest.approx(rise * 2, abs=CODEC / 255)


# What goes wrong


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


# Live


class Sender:
    """Sends a film over TCP as a camera does, frame by frame, to the first who connects."""

    def __init__(self, count: int) -> None:
        self._door = socket.create_server(("127.0.0.1", 0))
        self.address = f"tcp://127.0.0.1:{self._door.getsockname()[1]}"
        self.sent, self.ended = 0, float("inf")
        self._thread = threading.Thread(target=self._send, args=(count,), daemon=True)
        self._thread.start()

    def _frames(self, count: int) -> Iterator[np.ndarray]:
        for number in range(count):
            self.sent = number + 1
            yield picture(number)

    def _send(self, count: int) -> None:
        line, _ = self._door.accept()
        with (
            self._door,
            line,
            suppress(OSError, av.FFmpegError),
            line.makefile("wb", buffering=0) as out,
        ):  # the receiver may leave
            write(out, self._frames(count), real_time=True, format="mpegts")
        self.ended = time.monotonic()

    def wait(self) -> None:
        self._thread.join(20)


def slow(image: np.ndarray) -> np.ndarray:
    time.sleep(0.15)  # at 25 frames in a second, three of four are dropped
    return brightness(image)


def test_only_the_newest_frame_waits_for_the_network() -> None:
    live = footage.Live("a", *unopened(), None)
    soon = time.monotonic() + 60
    live._keep(["first", "second", "third"])
    assert live._take(soon) == "third" and live.dropped == 2
    live._keep(["fourth"])
    assert live._take(soon) == "fourth" and live.dropped == 2
    assert live._take(time.monotonic() + 0.05) is None


def test_a_stream_that_is_too_fast_loses_frames_and_no_time(tmp_path: Path) -> None:
    sender = Sender(75)
    found = run(sender.address, tmp_path, slow)
    assert time.monotonic() - sender.ended < 5  # all 75 would take 11
    sender.wait()
    assert found.frames + found.dropped == 75 == sender.sent  # TCP loses nothing, and the first frame is a whole one
    assert 3 <= found.frames < 40 and found.error is None
    seen = [round(row["time"] * 25) for row in rows(found)]
    assert seen[0] == 0 and min(np.diff(seen)) >= 1
    assert times(found.outputs["map"]) == [Fraction(n, 25) for n in seen]
    assert found.frame_rate == 25.0 and (found.width, found.height) == (64, 48)


def test_a_limit_ends_a_stream(tmp_path: Path) -> None:
    sender = Sender(250)
    start = time.monotonic()
    found = run(sender.address, tmp_path, slow, limit=1.0, smooth=0.2)
    assert time.monotonic() - start < 9  # the stream lasts 10; opening takes up to 3 seconds
    assert 1 <= found.frames <= 9 and found.error is None
    assert len(read(found.outputs["overlay"])[0]) == found.frames


def test_ctrl_c_ends_a_stream_with_films_that_play(tmp_path: Path) -> None:
    def stops(progress: Progress) -> None:
        if progress.done == 4:
            raise KeyboardInterrupt

    sender = Sender(250)
    with pytest.raises(Interrupted) as interrupted:
        run(sender.address, tmp_path, slow, progress=stops)
    assert interrupted.value.done.frames >= 4
    assert len(read(interrupted.value.done.outputs["map"])[0]) == interrupted.value.done.frames


@pytest.mark.parametrize("scheme", ["rtsp", "tcp"])
def test_a_dead_address_is_an_error_at_once(tmp_path: Path, scheme: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(InputError, match="cannot be opened") as refusal:
        run(f"{scheme}://me:secret@127.0.0.1:{port}/live", tmp_path)
    assert "secret" not in str(refusal.value) and "me:***@127.0.0.1" in str(refusal.value)


def test_an_address_that_says_nothing_is_an_error_within_ten_seconds(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # connections are taken, and nothing is sent
        start = time.monotonic()
        with pytest.raises(InputError, match="no answer"):
            run(f"tcp://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
    assert time.monotonic() - start < 10


@pytest.mark.skipif(not Path("/dev").is_dir(), reason="needs Linux's names of cameras")
def test_a_camera_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no camera 99 \(/dev/video99\)"):
        run("camera:99", tmp_path)


def test_inputs_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    assert all(map(footage.is_film, ("a.mp4", "b/C.MOV", "x.mkv", "camera:0.avi")))
    assert not any(
        map(footage.is_film, ("a.jpg", "mp4", "rtsp://host/a.mp4", "http://host/a.mp4", str(tmp_path / "folder.mp4")))
    )
    assert all(
        map(
            footage.is_live,
            ("camera:0", "camera:12", "rtsp://h/x", "RTSPS://h", "udp://@:1234", "srt://h:1", "tcp://h:1"),
        )
    )
    assert not any(map(footage.is_live, ("camera:", "camera:0.mp4", "xrtsp://h", "http://h", "rtsp:/h", "a.mp4")))
    assert footage.called("rtsp://me:secret@10.0.0.1:554/live/1?key=secret") == "10_0_0_1_554_live_1"
    assert footage.called("camera:3") == "camera_3" and footage.called("a/b.mp4") == "a/b.mp4"


def test_a_summary_says_what_was_dropped(tmp_path: Path) -> None:
    found = run(clip(tmp_path, 2), tmp_path)
    assert (
        replace(found, frames_per_second=24.96, dropped=3, cuts=1).summary()
        == "2 frames, 3 dropped, 1 cut, 25.0 per second"
    )
