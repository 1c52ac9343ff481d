"""A photograph keeps its aspect in an input, and its map comes out where it went in."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r2mrf_deploy import images
from r2mrf_deploy.fitting import Fitting, as_input, size_in_words
from r2mrf_deploy.manifest import NEUTRAL, Preprocess, TensorSpec
from r2mrf_deploy.sample_photographs import sample

IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
LETTERBOX = NEUTRAL.model_copy(update={"fit": "letterbox"})
SIDES = st.integers(1, 900)


def image_spec(height: int | str, width: int | str, batch: int | str = 1) -> TensorSpec:
    return TensorSpec(name="image", dtype="uint8", shape=[batch, height, width, 3], layout="NHWC")


FREE = image_spec("height", "width", "batch")


@pytest.mark.parametrize(
    ("photograph", "content"),
    [
        ((427, 640), (214, 320)),  # 213.5 rounds up
        ((640, 427), (320, 214)),
        ((100, 50), (100, 50)),  # never enlarged
        ((1, 4000), (1, 320)),
        ((4000, 4000), (320, 320)),
    ],
)
def test_a_static_input_keeps_the_aspect(photograph: tuple[int, int], content: tuple[int, int]) -> None:
    found = Fitting.of(photograph, image_spec(320, 320), LETTERBOX)
    assert (found.content, found.canvas) == (content, (320, 320))


def test_an_artifact_that_does_not_say_how_stretches() -> None:
    found = Fitting.of((427, 640), image_spec(96, 128), NEUTRAL)
    assert (found.content, found.canvas) == ((96, 128), (96, 128))


@pytest.mark.parametrize(
    ("photograph", "canvas"),
    [((100, 50), (100, 50)), ((1000, 500), (200, 100)), ((1, 1), (32, 32)), ((40, 4000), (32, 200))],
)
def test_a_free_size_is_the_photograph_s_within_its_limits(
    photograph: tuple[int, int], canvas: tuple[int, int]
) -> None:
    scale = NEUTRAL.model_copy(update={"longest_side": 200})
    assert Fitting.of(photograph, FREE, scale).canvas == canvas
    profile = {"min": [1, 64, 64, 3], "max": [4, 1280, 1280, 3]}
    assert Fitting.of(photograph, FREE, scale, profile).canvas == tuple(max(64, side) for side in canvas)
    small = {"min": [1, 32, 32, 3], "max": [4, 90, 90, 3]}
    assert max(Fitting.of(photograph, FREE, scale, small).canvas) <= 90


@pytest.mark.parametrize(
    ("spec", "fit", "profile", "words"),
    [
        (image_spec(96, 128), "letterbox", {}, "96x128"),
        (image_spec(96, 128), "stretch", {}, "96x128, stretched"),
        (FREE, "stretch", {}, "at most 200x200"),
        (FREE, "letterbox", {"min": [1, 32, 32, 3], "max": [4, 90, 1280, 3]}, "at most 90x200"),
    ],
)
def test_the_size_of_an_input_in_words(spec: TensorSpec, fit: str, profile: dict[str, list[int]], words: str) -> None:
    scale = NEUTRAL.model_copy(update={"longest_side": 200, "fit": fit})
    assert size_in_words(spec, scale, profile) == words


@settings(max_examples=50, deadline=None)
@given(st.tuples(SIDES, SIDES), st.tuples(st.integers(32, 400), st.integers(32, 400)), st.booleans())
def test_what_goes_in_comes_out_in_place(photograph: tuple[int, int], size: tuple[int, int], free: bool) -> None:
    """A network that gives back one of its channels gives the photograph's own: nothing moves, and no padding shows."""
    image = np.empty((*photograph, 3), np.uint8)
    image[:] = np.linspace(0, 255, photograph[1], dtype=np.uint8)[:, None]
    fitting = Fitting.of(photograph, FREE if free else image_spec(*size), LETTERBOX)
    placed = fitting.place(image)
    assert placed.shape == (*fitting.canvas, 3)
    focus = fitting.cut(placed[:, :, 0].astype(np.float32))
    there_and_back = images.resize(images.resize(image, fitting.content)[:, :, 0].astype(np.float32), photograph)
    np.testing.assert_array_equal(focus, there_and_back)


def test_the_rest_is_the_photograph_mirrored() -> None:
    """Also where the photograph is much smaller than the input: a flat border would look out of focus."""
    image = sample("chelsea")[:40, :64]
    (top, left), placed = (140, 128), Fitting.of((40, 64), image_spec(320, 320), LETTERBOX).place(image)
    assert np.array_equal(placed[top : top + 40, left : left + 64], image)
    assert np.array_equal(placed[top - 40 : top, left : left + 64], image[::-1])
    assert np.array_equal(placed[top - 80 : top - 40, left : left + 64], image)
    assert np.array_equal(placed[top : top + 40, left + 64 : left + 128], image[:, ::-1])


def test_a_static_batch_holds_copies() -> None:
    found = as_input(sample("chelsea"), image_spec(64, 64, batch=3), LETTERBOX)
    assert found.shape == (3, 64, 64, 3) and np.array_equal(found[0], found[2])


def test_a_normalised_input_is_what_the_graph_would_compute() -> None:
    ramp = np.arange(256, dtype=np.uint8).reshape(16, 16)
    image = np.dstack([ramp, ramp.T, 255 - ramp])
    spec = TensorSpec(name="tensor", dtype="float32", shape=[1, 3, 16, 16], layout="NCHW")
    found = as_input(image, spec, IMAGENET)
    mean, std = (np.reshape(values, (3, 1, 1)) for values in (IMAGENET.mean, IMAGENET.std))
    assert (found.shape, found.dtype) == ((1, 3, 16, 16), np.float32)
    np.testing.assert_allclose(found[0], (image.transpose(2, 0, 1) / 255 - mean) / std, atol=1e-6)


def test_a_map_of_another_size_is_that_of_the_whole_input() -> None:
    fitting = Fitting.of((50, 100), image_spec(128, 128), LETTERBOX)
    quarter = np.zeros((32, 32), np.float32)
    quarter[:, 16:] = 1
    found = fitting.cut(quarter)
    assert found.shape == (50, 100) and found[:, :45].max() == 0 and found[:, 55:].min() == 1
