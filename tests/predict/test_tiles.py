"""The map by tiles is the map without them where a pixel's value needs no surroundings; where it does, no seam shows."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy import images, weights
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.large_images import Bands, Decoded
from r2mrf_deploy.manifest import Preprocess
from r2mrf_deploy.metrics import agreement
from r2mrf_deploy.predict import tiles
from r2mrf_deploy.predict.tiles import Axis, Context, Rows
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.progress import Progress
from r2mrf_deploy.sample_photographs import sample
from tests.predict.conftest import BrightnessRunner


def brightness(tile: int | tuple[int, int] = 64) -> Predictor:
    """Of tiles of a free size up to `tile`, or of a static one."""
    fit = Preprocess(mean=(0, 0, 0), std=(1, 1, 1), longest_side=tile if isinstance(tile, int) else 1, fit="letterbox")
    return Predictor(BrightnessRunner() if isinstance(tile, int) else BrightnessRunner(size=tile), fit)


@dataclass
class Forward(Bands):
    """A photograph that is read once, from its first row to its last."""

    pixels: np.ndarray
    next: int = 0
    most: int = 0
    """The most rows that were read at once."""
    reductions: list[tuple[int, int]] = field(default_factory=list)

    @property
    def size(self) -> tuple[int, int]:  # type: ignore[override]
        return self.pixels.shape[0], self.pixels.shape[1]

    def read(self, top: int, bottom: int) -> np.ndarray:
        assert top == self.next < bottom <= len(self.pixels)
        self.next, self.most = bottom, max(self.most, bottom - top)
        return self.pixels[top:bottom]

    def reduced(self, size: tuple[int, int]) -> np.ndarray:
        self.reductions.append(size)
        return images.resize(self.pixels, size)


def noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height * 7919 + width).integers(0, 256, (height, width, 3), np.uint8)


def gradient(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.repeat((255 * (x + y) / max(1, height + width - 2)).astype(np.uint8)[:, :, None], 3, 2)


def map_of(predictor: Predictor, pixels: np.ndarray, **options: float) -> np.ndarray:
    return np.concatenate([rows.map for rows in tiles.tiled(predictor, Decoded(pixels), **options)])  # type: ignore[arg-type]


SIZES = [(1, 1), (63, 64), (64, 64), (65, 64), (64, 65), (129, 127), (301, 203), (1, 5000), (5000, 1), (40, 333)]


@pytest.mark.parametrize("overlap", [0, 0.25, 0.9])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_tiles_alone_change_nothing_that_needs_no_surroundings(size: tuple[int, int], overlap: float) -> None:
    """To the rounding of float32 sums."""
    for pixels in (noise(*size), gradient(*size)):
        found = map_of(brightness(), pixels, overlap=overlap, context=False)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, pixels.mean(2) / 255, atol=1e-6)


@pytest.mark.parametrize("tile", [(48, 80), (80, 48), (300, 300)], ids=str)
def test_tiles_have_the_size_of_a_static_input(tile: tuple[int, int]) -> None:
    """A photograph, or a side of it, that is shorter is filled up, not stretched."""
    predictor, pixels = brightness(tile), noise(151, 203)
    np.testing.assert_allclose(map_of(predictor, pixels, context=False), pixels.mean(2) / 255, atol=1e-6)


@pytest.mark.parametrize("overlap", [0, 0.1, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("side", [1, 63, 64, 65, 127, 128, 1001])
def test_windows_sum_to_one_in_every_pixel(side: int, overlap: float) -> None:
    axis, total = Axis.of(side, 64, overlap), np.zeros(side)
    for start, weight in zip(axis.starts, axis.weights, strict=True):
        assert len(weight) == min(64, side)
        assert weight.min() >= 0
        total[start : start + len(weight)] += weight
    np.testing.assert_allclose(total, 1, atol=1e-6)
    assert (axis.starts[0], axis.starts[-1]) == (0, side - axis.tile)
    steps = np.diff(axis.starts)
    assert (steps > 0).all()
    assert (steps <= 64 * (1 - overlap) + 1).all(), "a pixel more by rounding"
    assert sum(axis.finished(n) for n in range(len(axis.starts))) == side


def test_a_photograph_as_large_as_a_tile_is_computed_whole() -> None:
    predictor, pixels = brightness(), noise(64, 50)
    assert np.array_equal(map_of(predictor, pixels), predictor(pixels))
    assert sum(predictor.runner.batches) == 2  # type: ignore[attr-defined]


def test_sinks_get_every_row_once_and_the_photograph_is_read_once() -> None:
    pixels, seen, told = noise(301, 203), list[Rows](), list[Progress]()
    bands, predictor = Forward(pixels), brightness()
    tiles.run(predictor, bands, [seen.append], progress=told.append)
    assert [rows.top for rows in seen] == np.cumsum([0, *(len(rows.map) for rows in seen[:-1])]).tolist()
    assert np.array_equal(np.concatenate([rows.photograph for rows in seen]), pixels)
    assert np.concatenate([rows.map for rows in seen]).shape == (301, 203)
    assert (bands.next, bands.reductions) == (301, [(64, 43)])
    assert bands.most == 64
    total = len(Axis.of(301, 64, 0.25).starts) * len(Axis.of(203, 64, 0.25).starts)
    assert sum(predictor.runner.batches) == total + 1  # type: ignore[attr-defined]
    assert [p.done for p in told] == list(range(1, total + 1))
    assert {p.total for p in told} == {total}


def test_what_a_sink_raises_ends_the_work() -> None:
    def full(_: Rows) -> None:
        raise OSError("disk full")

    predictor = brightness(32)
    with pytest.raises(OSError, match="disk full"):
        tiles.run(predictor, Decoded(noise(2000, 64)), [full])
    assert sum(predictor.runner.batches) < 20, "of some 160"  # type: ignore[attr-defined]


@pytest.mark.parametrize("overlap", [-0.1, 0.91, 1.0, float("nan")])
def test_an_overlap_out_of_range_is_refused(overlap: float) -> None:
    with pytest.raises(UsageError, match="`overlap`"):
        map_of(brightness(), noise(100, 100), overlap=overlap)


@pytest.mark.parametrize(
    ("size", "side"), [((301, 203), 77), ((301, 203), 300), ((301, 203), 301), ((1, 900), 7)], ids=str
)
def test_the_reduced_map_is_means_over_equal_areas(size: tuple[int, int], side: int) -> None:
    pixels = noise(*size)
    found = tiles.run(brightness(), Decoded(pixels), context=False, side=side)
    height, width = images.within(size, (side, side))

    def areas(count: int, reduced: int) -> np.ndarray:
        """How much of each of `count` pixels lies in each of `reduced`: float [reduced, count]."""
        edges = np.arange(reduced + 1)[:, None] * count / reduced
        return np.diff(np.clip(edges - np.arange(count), 0, 1), axis=0) * reduced / count

    expected = areas(size[0], height) @ (pixels.mean(2) / 255) @ areas(size[1], width).T
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_reduced_map_of_a_small_photograph_is_its_map() -> None:
    pixels = noise(100, 150)
    np.testing.assert_allclose(tiles.run(brightness(), Decoded(pixels), context=False), pixels.mean(2) / 255, atol=1e-5)


def test_details_count_only_where_the_whole_is_unsure() -> None:
    rng = np.random.default_rng(0)
    whole = np.kron(np.array([[0, 1], [0.5, 0.9]]), np.ones((32, 32))).astype(np.float32)
    context = Context.of(whole, (256, 256), (64, 64))
    changed = np.abs(
        context.map(0, rng.normal(0, 3, (256, 256)).astype(np.float32))
        - context.map(0, np.zeros((256, 256), np.float32))
    )
    inside = {
        "0": changed[:100, :100],
        "1": changed[:100, 156:],
        "0.5": changed[156:, :100],
        "0.9": changed[156:, 156:],
    }
    assert inside["0"].max() < 0.01
    assert inside["1"].max() < 0.01
    assert inside["0.5"].mean() > inside["0.9"].mean() > 0.05


def test_what_tiles_say_of_themselves_as_a_whole_does_not_count() -> None:
    """Every tile of a photograph that is soft from pixel to pixel is out of focus. It has no details then."""
    context = Context.of(np.full((64, 64), 0.7, np.float32), (256, 256), (64, 64))
    for level in (0, 0.02, 0.5, 1):
        np.testing.assert_allclose(context.detail(np.full((64, 64), level, np.float32)), 0, atol=1e-5)
    np.testing.assert_allclose(context.map(0, np.zeros((256, 256), np.float32)), 0.7, atol=1e-6)


def test_the_context_has_no_seams_between_bands() -> None:
    rng = np.random.default_rng(0)
    context = Context.of(rng.random((37, 64), np.float32), (371, 641), (64, 64))
    detail = rng.normal(0, 1, (371, 641)).astype(np.float32)
    at_once = context.map(0, detail)
    banded = np.concatenate([context.map(top, detail[top : top + 48]) for top in range(0, 371, 48)])
    np.testing.assert_allclose(banded, at_once, atol=1e-4)  # Pillow takes the band's place in float32


@pytest.fixture(scope="module")
def lite() -> Predictor:
    return Predictor.open(weights.artifact("r2mrf-lite"))


def seams(focus: np.ndarray, tile: int, overlap: float) -> float:
    """How much more the map changes across the borders of tiles than within the 8 pixels beside them; 1 where no seam is."""
    at, beside = 0.0, 0.0
    for axis in (0, 1):
        change = np.abs(np.diff(focus, axis=axis)).mean(1 - axis)
        layout = Axis.of(focus.shape[axis], tile, overlap)
        borders = {*layout.starts, *(start + layout.tile for start in layout.starts)} - {0, focus.shape[axis]}
        for border in borders:
            at += change[border - 1]
            beside += np.delete(change[border - 9 : border + 8], 8).mean()
    return at / beside


PHOTOGRAPHS: dict[str, Callable[[], np.ndarray]] = {
    "coffee": lambda: images.resize(sample("coffee"), (800, 1200)),
    "gradient": lambda: gradient(800, 1200),
}


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_no_seam_shows(lite: Predictor, name: str, context: bool) -> None:
    """A tile counts nothing at its border, so that nothing can change abruptly there. Where tiles only abut, it does."""
    pixels = PHOTOGRAPHS[name]()
    assert seams(map_of(lite, pixels, context=context), 400, 0.25) < 1.2
    if not context:
        assert seams(map_of(lite, pixels, overlap=0, context=False), 400, 0) > 5, "the measure sees seams"


def test_tiles_agree_with_the_whole_where_the_whole_fits(lite: Predictor) -> None:
    """Tiles see less of the surroundings: they may differ in what is in focus, but not in most of the photograph."""
    pixels = images.resize(sample("coffee"), (400, 600))
    whole = lite.stretched((400, 600))(pixels)
    alone, in_context = (map_of(lite, pixels, context=context) for context in (False, True))
    # 0.007 is measured, 0.3 would be a map that says nothing
    assert np.abs(alone - whole).mean() < 0.02
    assert agreement(alone, whole) > 0.98
    # the context is the map of the photograph reduced to 400 pixels, whose contours are elsewhere by a pixel or two
    assert np.abs(in_context - whole).mean() < 0.07
    assert agreement(in_context, whole) > 0.95


MEASURED = """
import json, sys, time
from pathlib import Path
import numpy as np
from r2mrf_deploy.large_images import open_bands
from r2mrf_deploy.predict import streamed, tiles
from tests.predict.test_tiles import brightness

begun = time.perf_counter()
with open_bands(sys.argv[1]) as bands, streamed.png(Path(sys.argv[2]), bands.size) as write:
    reduced = tiles.run(brightness(512), bands, [lambda rows: write(np.rint(255 * rows.map).astype(np.uint8))])
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
mebibytes = int(status["VmHWM"].split()[0]) / 1024
print(json.dumps([bands.size, reduced.shape, float(reduced.std()), mebibytes, time.perf_counter() - begun]))
"""


@pytest.mark.parametrize(
    ("size", "most"),
    [((20000, 3000), 300), pytest.param((20000, 25000), 1000, marks=pytest.mark.slow)],
    ids=["60 megapixels", "500 megapixels"],
)
def test_memory_is_that_of_a_few_bands(tmp_path: Path, size: tuple[int, int], most: int) -> None:
    """`most` in MiB: Python and its libraries take 150. A band of 512 rows of 25,000 pixels takes 37 in bytes of RGB and 49
    in floats; there are some ten at once. All of 60 megapixels and their map take 400, and of 500 they take 3,300."""
    pyvips = pytest.importorskip("pyvips")
    if not Path("/proc/self/status").exists():
        pytest.skip("needs Linux, which says how much memory a process had")
    tile = pyvips.Image.new_from_array(sample("coffee"))
    large = tile.replicate(size[1] // tile.width + 1, size[0] // tile.height + 1).crop(0, 0, size[1], size[0])
    large.tiffsave(str(tmp_path / "x.tif"), tile=True, tile_width=512, tile_height=512, compression="jpeg", Q=85)
    program = f"from PIL import Image\nImage.MAX_IMAGE_PIXELS = 1_000_000\n{MEASURED}"  # so that libvips reads both
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "x.tif"), str(tmp_path / "x.png")],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        check=True,
    )
    found, reduced, deviation, mebibytes, seconds = json.loads(done.stdout)
    print(f"{size}: {mebibytes:.0f} MiB, {seconds:.0f} s")
    assert (tuple(found), max(reduced)) == (size, 2048)
    assert deviation > 0.01
    assert mebibytes < most
    header = (tmp_path / "x.png").read_bytes()[16:24]
    assert struct.unpack(">2I", header) == size[::-1]
