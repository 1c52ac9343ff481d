"""Six baselines of the paper's Table 1: their parts by known cases, and what four of them have learned."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from r2mrf_deploy import baselines
from r2mrf_deploy.baselines import asvb, dbdf, dhde, jnb, ksfv, parameters, ss
from r2mrf_deploy.baselines.propagation import propagate
from r2mrf_deploy.baselines.rings import log_spectra
from r2mrf_deploy.baselines.windows import luminance
from r2mrf_deploy.datasets import Dataset, Pair
from r2mrf_deploy.images import png
from r2mrf_deploy.sample_photographs import sample
from tests.benchmarks.conftest import load

ndimage = pytest.importorskip("scipy.ndimage")
pytest.importorskip("skimage")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


@pytest.mark.parametrize("radius", [0.0, 2.0, 4.0])
def test_the_likeliest_disc_is_the_one_that_blurred(radius: float, rng: np.random.Generator) -> None:
    """White gradients are what the model supposes; of them an integral is a photograph."""
    white = np.cumsum(0.02 * rng.standard_normal((160, 160)), axis=1)
    disc = asvb._disc(radius)
    assert disc.sum() == pytest.approx(1) and np.array_equal(disc, disc.T)
    seen = ndimage.convolve(white, disc, mode="reflect") + np.sqrt(asvb.NOISE) * rng.standard_normal(white.shape)
    fits = asvb._likelihoods(seen)[:, 30:-30, 30:-30].mean((1, 2))
    assert asvb.RADII[int(fits.argmax())] == radius


def test_as_many_atoms_as_a_patch_was_made_of(rng: np.random.Generator) -> None:
    atoms = np.linalg.qr(rng.standard_normal((64, 64)))[0]
    weights = np.array([5.0, 4, 3, 2, 1])
    patches = np.stack([weights[:n] @ atoms[7 : 7 + n] for n in range(6)])
    chosen, numbers = jnb.pursue(patches, atoms, 1e-9, 8)
    assert numbers.tolist() == [0, 1, 2, 3, 4, 5]
    assert chosen[5].tolist() == [7, 8, 9, 10, 11, -1, -1, -1]
    assert jnb.pursue(patches, atoms, 1.5, 8)[1].tolist() == [0, 1, 2, 3, 4, 4]  # what is left has the square 1
    assert jnb.pursue(patches, atoms, 1e-9, 2)[1].tolist() == [0, 1, 2, 2, 2, 2]


def test_pursuit_leaves_what_least_squares_leaves(rng: np.random.Generator) -> None:
    """The atoms of a learned dictionary are not orthogonal: the error must be that of the best combination of the chosen."""
    atoms, patches = rng.standard_normal((20, 9)), rng.standard_normal((30, 9))
    for tolerance in (6.0, 3.0, 1.0):
        chosen, numbers = jnb.pursue(patches, atoms, tolerance, 9)
        for patch, picked, number in zip(patches, chosen, numbers, strict=True):
            errors = []
            for n in (number - 1, number):
                some = atoms[picked[: max(n, 0)]]
                errors.append(((patch - np.linalg.lstsq(some.T, patch, rcond=None)[0] @ some) ** 2).sum())
            assert errors[1] <= tolerance + 1e-9 and (number == 0 or errors[0] > tolerance - 1e-9)


def test_the_log_spectrum_is_flat_of_noise_and_falls_with_blur(rng: np.random.Generator) -> None:
    noise = rng.standard_normal((128, 128))
    at = np.arange(16, 112, 8)
    logs = log_spectra(noise, 33, at, at, 0.25, 1e-6).mean((0, 1))
    assert len(logs) == 13 and np.ptp(logs) < 0.2
    blurred = log_spectra(ndimage.gaussian_filter(noise, 1.5), 33, at, at, 0.25, 1e-6).mean((0, 1))
    assert (np.diff(logs - blurred) > 0).all()


def test_a_smooth_region_follows_the_neighbours_that_resemble_it() -> None:
    values, colours, texture = np.zeros((12, 12)), np.zeros((12, 12, 3)), np.zeros((12, 12, 2))
    values[:, :6] = np.arange(12)[:, None] % 2  # half of the left is found in focus
    colours[:, 6:] = 10.0  # the right has another colour
    found = ss._refined(values, colours, texture)
    assert np.ptp(found[3:-3, :6]) < 0.4 and found[3:-3, :6].mean() == pytest.approx(0.5, abs=0.05)
    assert np.abs(found[:, 6:]).max() < 1e-6


def test_every_blur_takes_variance_and_features_fall_with_it(rng: np.random.Generator) -> None:
    kernels = ksfv._kernels()
    assert kernels.shape[0] == len(ksfv.DEFOCUS) + 2 * len(ksfv.MOTION) and (kernels[0] == 1).all()
    assert (kernels[1:, 0] < 0.5).all() and (kernels > 0).all()
    image = 0.5 + 0.1 * rng.standard_normal((64, 64))
    sharp, blurred = (ksfv.features(i)[:, 32, 32] for i in (image, ndimage.gaussian_filter(image, 2)))
    assert (sharp > blurred + 0.1).all() and sharp[0] > blurred[0] + 1


def test_features_of_known_distributions(rng: np.random.Generator) -> None:
    """Kurtosis 3 of Gaussian noise; more of sparse gradients, whose tails are heavier at the same variance."""
    filters = parameters.learned("dbdf")["filters"]
    at = np.array([40, 48])
    normal = dbdf.features(0.5 + 0.1 * rng.standard_normal((96, 96)), 41, filters, at, at)
    assert normal.shape == (dbdf.FEATURES, 2, 2)
    assert normal[0] == pytest.approx(np.log(3), abs=0.25)
    spikes = np.where(rng.random((96, 96)) < 0.02, 0.1 / np.sqrt(0.02), 0.0)
    sparse = dbdf.features(spikes, 41, filters, at, at)
    assert (sparse[:2] > normal[:2] + 0.5).all()


def test_filters_are_as_symmetric_as_a_square() -> None:
    filters = parameters.learned("dbdf")["filters"]
    assert filters.shape == (dbdf.FILTERS, dbdf.FILTER, dbdf.FILTER)
    for same in (filters[:, ::-1], filters[:, :, ::-1], filters.swapaxes(1, 2)):
        np.testing.assert_array_equal(same, filters)
    assert np.abs(filters.sum((1, 2))).max() < 0.01 * np.abs(filters).sum((1, 2)).min()  # half precision


def test_the_network_computes_what_pytorch_computes(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch")
    known = parameters.learned("dhde")
    patches = rng.random((5, 27, 27))
    x = torch.from_numpy(dhde.normalised(patches))[:, None]
    for layer, (_, stride) in enumerate(dhde.CONVOLUTIONS):
        weight, bias = (torch.from_numpy(known[f"filters{layer}.{part}"].copy()) for part in ("weight", "bias"))
        x = torch.nn.functional.conv2d(x, weight, bias, stride).relu()
    # float32 here, double there
    np.testing.assert_allclose(dhde._deep(patches, known), x.mean((2, 3)).numpy(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_the_expected_blur_rises_with_the_blur(name: str) -> None:
    grey = luminance(sample(name))[:200, :240]
    rows, columns = (at[::40] for at in np.nonzero(dhde.edges(grey)))
    found = []
    for sigma in (0.0, 0.8, 1.5, 3.0):
        blurred = np.round(255 * ndimage.gaussian_filter(grey, sigma)) / 255
        levels = dhde.probabilities(*dhde.described(blurred, rows, columns), parameters.learned("dhde"))
        np.testing.assert_allclose(levels.sum(1), 1)
        found.append((levels @ dhde.LEVELS).mean())
    assert (np.diff(found) > 0.1).all() and found[-1] <= dhde.LEVELS[-1]


def test_values_spread_as_far_as_the_colour() -> None:
    colours = np.zeros((15, 20, 3))
    colours[:, 10:] = (0.9, 0.2, 0.1)
    values, weights = np.zeros((15, 20)), np.zeros((15, 20))
    values[7, 2], weights[7, [2, 17]] = 1.0, 1.0
    found = propagate(values, weights, colours)
    assert found[:, :9].min() > 0.95 and found[:, 11:].max() < 0.05
    assert propagate(np.full((1, 2), 0.3), np.ones((1, 2)), np.zeros((1, 2, 3))) == pytest.approx(0.3, abs=1e-6)


def test_what_was_learned_is_small_and_whole() -> None:
    files = {path.stem: path.stat().st_size for path in parameters.FOLDER.glob("*")}
    assert files.keys() == set(baselines.LEARNED) and sum(files.values()) < 200_000
    for name in baselines.LEARNED:
        arrays = parameters.learned(name)
        assert all(np.isfinite(values).all() and values.any() for values in arrays.values())
        with pytest.raises(ValueError, match="read-only"):
            next(iter(arrays.values()))[...] = 0


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("learn_baselines")


@pytest.fixture
def half_sharp(tmp_path: Path, rng: np.random.Generator) -> Dataset:
    """Two photographs, in focus on the left; white is blurred."""
    pairs = []
    for number in range(2):
        image = np.clip(128 + 60 * ndimage.gaussian_filter(rng.standard_normal((96, 144)), 0.7) / 0.4, 0, 255)
        image[:, 72:] = ndimage.gaussian_filter(image, 2.5)[:, 72:]
        mask = np.where(np.arange(144) >= 72, 255, 0) * np.ones((96, 1))
        paths = [tmp_path / f"{kind}{number}.png" for kind in ("image", "mask")]
        for path, grey in zip(paths, (image, mask), strict=True):
            path.write_bytes(png(np.repeat(grey.astype(np.uint8)[..., None], 3, axis=2)))
        pairs.append(Pair(str(number), *paths))
    return Dataset(tmp_path, "blurred", pairs)


@pytest.mark.artifact
@pytest.mark.parametrize("name", baselines.LEARNED)
def test_learning_again_learns_the_same(
    name: str, script: ModuleType, half_sharp: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what was learned of two photographs tells their halves apart."""
    if name == "dhde":
        pytest.importorskip("torch")
    first, second = (script.LEARNERS[name][0](half_sharp, 1, np.random.default_rng(5)) for _ in range(2))
    shipped = parameters.learned(name)
    assert first.keys() == second.keys() == shipped.keys()
    for key, values in first.items():
        np.testing.assert_array_equal(values, second[key])
        assert values.shape == shipped[key].shape
    module = sys.modules[f"r2mrf_deploy.baselines.{name}"]
    monkeypatch.setattr(module, "learned", lambda _: {k: np.asarray(v, np.float64) for k, v in first.items()})
    found = baselines.get(name)(half_sharp.image(0))
    assert found[:, :56].mean() > found[:, -56:].mean() + 0.4
