"""Maps of a film are averaged over time, but not over cuts, which are found where they are and nowhere else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy import drawing, sample_photographs
from r2mrf_deploy.predict import smoothing
from tests.predict.films import (
    CODEC,
    rgb,
    rows,
    run,
    write,
)


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
