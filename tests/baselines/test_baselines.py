"""The baselines: what a measure of sharpness must do, whichever it is."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest

from r2mrf_deploy import baselines
from r2mrf_deploy.baselines import hifst, lbp, spectrum, svd
from r2mrf_deploy.baselines.guided import guided
from r2mrf_deploy.baselines.windows import around, every, spread, stretch
from r2mrf_deploy.errors import InputError, UsageError

ndimage = pytest.importorskip("scipy.ndimage")
fft = pytest.importorskip("scipy.fft")
pytest.importorskip("skimage")

RNG = np.random.default_rng(7)
every_one = pytest.mark.parametrize("name", baselines.BASELINES)


def textured(height: int, width: int) -> np.ndarray:
    """Grains of about two pixels, as sharp photographs have: uint8 [H, W, 3]."""
    grains = ndimage.gaussian_filter(RNG.standard_normal((height, width)), 0.7)
    grey = np.clip(128 + 45 * grains / grains.std(), 0, 255)
    return np.repeat(grey[..., None], 3, axis=2).astype(np.uint8)


def half_blurred(height: int = 96, width: int = 128) -> np.ndarray:
    """Sharp on the left; on the right out of focus by σ = 3 pixels."""
    image = textured(height, width)
    blurred = ndimage.gaussian_filter(image.astype(np.float64), (3, 3, 0))
    image[:, width // 2 :] = np.round(blurred[:, width // 2 :]).astype(np.uint8)
    return image


@every_one
def test_the_sharp_half_scores_higher(name: str) -> None:
    found = baselines.get(name)(half_blurred())
    sharp, blurred = found[:, :48], found[:, -48:]  # windows of up to 32 pixels see both sides of the border
    assert sharp.mean() > blurred.mean() + 0.25
    assert np.mean(sharp.ravel()[:, None] > blurred.ravel()[None, ::7]) > 0.97


@every_one
def test_a_stronger_blur_scores_lower(name: str) -> None:
    image = textured(64, 192)
    for i, sigma in enumerate((1.0, 3.0)):
        part = slice(64 * (i + 1), 64 * (i + 2))
        image[:, part] = ndimage.gaussian_filter(image.astype(np.float64), (sigma, sigma, 0))[:, part]
    found = baselines.get(name)(image)
    middles = [found[16:-16, 64 * i + 24 : 64 * i + 40].mean() for i in range(3)]
    assert middles[0] > middles[1] > middles[2] - 1e-6 and middles[0] > middles[2]


@every_one
@pytest.mark.parametrize("turn", [np.fliplr, np.flipud, lambda a: np.swapaxes(a, 0, 1)], ids=["left", "up", "diagonal"])
def test_a_mirrored_photograph_has_the_mirrored_map(name: str, turn: object) -> None:
    image, focus = half_blurred(50, 67), baselines.get(name)
    # nothing prefers a side; what is left is rounding, which can carry an entropy over one of 256 levels
    np.testing.assert_allclose(focus(np.ascontiguousarray(turn(image))), turn(focus(image)), atol=0.02)  # type: ignore[operator]


@every_one
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 5), (33, 40)])
def test_any_size(name: str, size: tuple[int, int]) -> None:
    image = RNG.integers(0, 256, (*size, 3), dtype=np.uint8)
    focus = baselines.get(name)
    before = image.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = focus(image)
    assert found.shape == size and found.dtype == np.float32
    assert np.isfinite(found).all() and found.min() >= 0 and found.max() <= 1
    np.testing.assert_array_equal(image, before)
    np.testing.assert_array_equal(focus(image), found)


@every_one
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (90, 17, 203)])
@pytest.mark.parametrize("size", [(1, 1), (20, 31)])
def test_nothing_is_in_focus_in_a_flat_photograph(
    name: str, colour: tuple[int, int, int], size: tuple[int, int]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = baselines.get(name)(np.full((*size, 3), colour, np.uint8))
    np.testing.assert_array_equal(found, np.zeros(size, np.float32))


@every_one
@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint8),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((0, 8, 3), np.uint8),
    ],
    ids=["float", "grey", "alpha", "empty"],
)
def test_other_arrays_are_refused(name: str, wrong: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"uint8 \[H, W, 3\] RGB, not"):
        baselines.get(name)(wrong)


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="did you mean 'hifst'"):
        baselines.get("hifts")


def test_the_registry_has_every_module_and_needs_no_torch() -> None:
    assert [baselines.get(n).__module__.rpartition(".")[2] for n in baselines.BASELINES] == list(baselines.BASELINES)
    code = (
        "import sys, numpy as np; from r2mrf_deploy import baselines; assert 'scipy' not in sys.modules;"
        "[baselines.get(n)(np.eye(9, dtype=np.uint8)[..., None].repeat(3, 2)) for n in baselines.BASELINES];"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_codes_of_known_patterns() -> None:
    pit, peak = np.full((3, 3), 0.5), np.full((3, 3), 0.5)
    pit[1, 1], peak[1, 1] = 0.2, 0.8
    step = np.where(np.arange(3) > 1, 0.9, 0.1) * np.ones((3, 1))
    saddle = np.array([[0.5, 0.9, 0.5], [0.1, 0.5, 0.1], [0.5, 0.9, 0.5]])
    # all brighter; none; the three on one side; two apart, which is not uniform
    assert [int(lbp._codes(p)[1, 1]) for p in (pit, peak, step, saddle)] == [8, 0, 3, 9]
    shallow = np.full((3, 3), 0.5)
    shallow[1, 1] -= 0.9 * lbp.NEIGHBOUR
    assert lbp._codes(shallow)[1, 1] == 0


def test_pits_are_sharp_and_peaks_are_not() -> None:
    """Code 8 counts among 6 to 9; round an isolated peak no pixel has more than one brighter neighbour."""
    image = np.full((60, 120, 3), 128, np.uint8)
    image[2::6, 2:48:6] = 60
    image[2::6, 74::6] = 200
    found = lbp.focus(image)
    assert found[:, :24].min() > 0.9 and found[:, 96:].max() < 0.05  # clear of the middle


def test_detail_is_what_the_first_singular_values_leave() -> None:
    left, right = (np.linalg.qr(RNG.standard_normal((10, 10)))[0] for _ in range(2))
    values = np.array([6.0, 5, 4, 3, 2, 0, 0, 0, 0, 0])
    patches = np.stack([left @ np.diag(values) @ right, np.zeros((10, 10))])
    np.testing.assert_allclose(svd._detail(patches), [5 / 20, 0], atol=1e-12)


def test_slopes_of_known_spectra() -> None:
    """Blocks with amplitude f^-α and random phases: the window mixes neighbouring frequencies, hence the tolerance."""
    cycles = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    cycles[0, 0] = np.inf
    for wanted in (0.0, 1.0, 2.0):
        noise = np.fft.fft2(RNG.standard_normal((256, 256)))
        field = np.fft.ifft2(noise * cycles**-wanted).real
        blocks = (field / field.std()).reshape(8, 32, 8, 32).swapaxes(1, 2)
        assert spectrum._slopes(blocks).mean() == pytest.approx(wanted, abs=0.3)


def test_total_variation_of_a_chessboard_is_the_greatest() -> None:
    chess = np.indices((12, 12)).sum(0) % 2.0
    assert spectrum._spatial(chess)[6, 6] == pytest.approx(1)
    assert spectrum._spatial(np.full((12, 12), 0.3)).max() == 0


def test_layers_are_the_weakest_coefficients_in_order() -> None:
    patches = [RNG.standard_normal((2, side, side)).astype(np.float32) for side in hifst.PATCHES]
    layers = hifst._layers(patches)
    assert layers.shape == (sum(hifst.PATCHES), 2) and (np.diff(layers, axis=0) >= 0).all()


def test_layers_hold_high_frequencies_only() -> None:
    def patch(side: int) -> np.ndarray:
        i, j = np.indices((side, side))
        return np.asarray(fft.idctn(np.where(i + j >= side - 1, 1.0 + RNG.random((side, side)), 0.0), norm="ortho"))[
            None
        ]

    assert hifst._layers([patch(side) for side in hifst.PATCHES]).min() >= 1 - 1e-9  # the low ones are 0, and weaker


@pytest.mark.parametrize(("count", "stride"), [(1, 4), (2, 4), (9, 4), (10, 4), (11, 3), (67, 6), (8, 1)])
def test_the_grid_is_its_mirror_image(count: int, stride: int) -> None:
    grid = every(count, stride)
    np.testing.assert_array_equal(grid, count - 1 - grid[::-1])
    assert grid[0] == 0 and grid[-1] == count - 1
    assert np.diff(grid).max(initial=0) <= stride + 1  # rounding
    if stride == 1:
        assert len(grid) == count


def test_interpolation_keeps_planes_and_windows_their_centre() -> None:
    y, x = np.mgrid[:13, :17].astype(np.float64)
    plane = 2 * y - 3 * x + 1
    rows, columns = every(13, 4), every(17, 4)
    np.testing.assert_allclose(spread(plane[np.ix_(rows, columns)], rows, columns, plane.shape), plane, atol=1e-12)
    np.testing.assert_array_equal(around(plane, 7)[..., 3, 3], plane)
    np.testing.assert_array_equal(around(plane, 3)[0, 0, 0, 1:], plane[0, :2])  # the row outside is the border's again
    assert around(plane, 10).shape == (14, 18, 10, 10)


def test_stretch_fills_the_range_or_nothing() -> None:
    two = np.stack([np.arange(6.0).reshape(2, 3) - 4, np.full((2, 3), 0.7)])
    np.testing.assert_allclose(stretch(two), [np.arange(6).reshape(2, 3) / 5, np.zeros((2, 3))])
    np.testing.assert_array_equal(
        stretch(0.5 + 1e-9 * RNG.random((4, 4))), np.zeros((4, 4))
    )  # rounding is no structure


def test_the_guided_filter_keeps_the_guides_edge_and_no_other() -> None:
    guide = np.repeat([[0.0] * 20 + [1.0] * 20], 30, axis=0)
    noisy = guide + 0.1 * RNG.standard_normal(guide.shape)
    smooth = guided(noisy, guide, 4, 1e-4)
    assert np.abs(smooth - guide).mean() < 0.3 * np.abs(noisy - guide).mean()
    assert smooth[:, 20].mean() - smooth[:, 19].mean() > 0.95
    assert np.abs(np.diff(guided(guide, np.zeros_like(guide), 4, 1e-4), axis=1)).max() < 0.2  # a flat guide: a mean
