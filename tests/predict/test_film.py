"""Films become films of maps: every frame in its time and upright, whatever the source."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy import drawing
from r2mrf_deploy.errors import RuntimeUnavailable
from r2mrf_deploy.predict import film as films
from r2mrf_deploy.predict import footage
from r2mrf_deploy.predict.scores import Scores
from r2mrf_deploy.progress import Progress
from tests.predict.films import (
    CODEC,
    SIZE,
    av,
    brightness,
    clip,
    left_in,
    picture,
    read,
    rgb,
    rows,
    run,
    times,
    unopened,
    write,
)

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
