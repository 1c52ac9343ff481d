"""Scores and regions of maps whose truth is known."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from r2mrf_deploy.predict.regions import geojson, regions, seamed_ring
from r2mrf_deploy.predict.scores import Scores

SIZE = (80, 120)


@pytest.fixture
def ring() -> np.ndarray:
    """A rectangle with a hole, and a small one, at half the scale of a photograph of `SIZE`."""
    focus = np.zeros((40, 60), np.float32)
    focus[10:30, 10:50] = 1
    focus[15:20, 20:30] = 0
    focus[33:37, 2:6] = 0.8
    return focus


def test_regions_have_the_area_the_box_and_the_centre_of_what_is_in_focus(ring: np.ndarray) -> None:
    large, small = regions(ring, SIZE)
    # a contour runs between the centres of pixels, and cuts half of each corner's pixel off
    assert large.area == pytest.approx(4 * (20 * 40 - 5 * 10), abs=4)
    assert large.box == (20, 20, 100, 60) and len(large.rings) == 2
    y, x = (np.argwhere(ring[:30] > 0.5) + 0.5).mean(0) * 2
    assert large.centre == pytest.approx((x, y), abs=0.1)
    assert small.area == pytest.approx(4 * 16, rel=0.2) and small.centre == pytest.approx((8, 70), abs=0.1)


def test_a_region_at_the_border_reaches_it() -> None:
    (whole,) = regions(np.ones((3, 5), np.float32), (30, 50))
    assert whole.box == (0, 0, 50, 30)
    assert regions(np.zeros((3, 5), np.float32), (30, 50)) == []
    assert regions(np.full((1, 1), 0.7, np.float32), (1, 1))[0].box == (0, 0, 1, 1)


def test_single_pixels_of_a_large_map_are_no_regions() -> None:
    focus = np.zeros((400, 400), np.float32)
    focus[5, 5] = 1
    assert regions(focus, (400, 400)) == []


def test_contours_drawn_again_are_the_map(ring: np.ndarray) -> None:
    """As GeoJSON with holes, and as COCO's polygons, whose seams leave them out."""
    for feature in geojson(regions(ring, SIZE), SIZE)["features"]:
        rings = feature["geometry"]["coordinates"]
        assert all(r[0] == r[-1] for r in rings)
    drawn, seamed = Image.new("1", SIZE[::-1]), Image.new("1", SIZE[::-1])
    for region in regions(ring, SIZE):
        outer, *holes = region.coordinates
        ImageDraw.Draw(drawn).polygon([tuple(p) for p in outer], 1)
        for hole in holes:
            ImageDraw.Draw(drawn).polygon([tuple(p) for p in hole], 0)
        ImageDraw.Draw(seamed).polygon(seamed_ring(region.coordinates), 1)
    truth = np.kron(ring, np.ones((2, 2))) >= 0.5
    for image in (drawn, seamed):
        assert (np.asarray(image) != truth).mean() < 0.03  # Pillow draws the outline too


def test_scores_of_a_known_map(ring: np.ndarray) -> None:
    scores = Scores.of(ring, SIZE)
    assert (scores.width, scores.height, scores.peak_confidence, scores.verdict) == (120, 80, 1.0, "partial")
    assert scores.in_focus == pytest.approx((ring >= 0.5).mean(), abs=1e-4)
    assert scores.mean_confidence == pytest.approx(ring.mean(), abs=1e-4)
    assert (scores.region_left, scores.region_bottom) == (20, 60)
    assert scores.region_share == pytest.approx(750 / 2400, abs=1e-3)


def test_a_subject_is_sharp_in_the_centre() -> None:
    centre, border = np.zeros((2, 60, 90), np.float32)
    centre[20:40, 30:60] = 1
    border[:20, :30] = 1
    sharp, blurred = (Scores.of(focus, (60, 90)) for focus in (centre, border))
    assert sharp.in_focus == blurred.in_focus
    assert sharp.subject > 0.2 > 0.06 > blurred.subject
    assert Scores.of(np.ones((7, 5), np.float32), (7, 5)).subject == 1


def test_the_region_of_interest(ring: np.ndarray) -> None:
    weight = np.zeros_like(ring)
    weight[10:20, 10:50] = 1
    assert Scores.of(ring, SIZE, weight).roi == pytest.approx(350 / 400, abs=1e-4)
    assert Scores.of(ring, SIZE, 0 * weight).roi is None


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.8, 1.0, "all sharp"),
        (0.0, 0.2, "all blurred"),
        (0.48, 0.55, "flat"),
        (0.55, 0.6, "flat"),
        (0.1, 0.9, "partial"),
    ],
)
def test_all_sharp_and_all_blurred_are_told_apart_from_flat_maps(low: float, high: float, verdict: str) -> None:
    focus = np.linspace(low, high, 600, dtype=np.float32).reshape(20, 30)
    assert Scores.of(focus, (20, 30)).verdict == verdict
