import importlib.util

import numpy as np
import pytest

from r2mrf_deploy import sample_photographs
from r2mrf_deploy.errors import RuntimeUnavailable, UsageError

pytest.importorskip("skimage")


@pytest.mark.parametrize("name", sample_photographs.names())
def test_every_photograph_is_there_and_is_a_picture(name):
    picture = sample_photographs.sample(name)
    assert picture.dtype == np.uint8 and picture.ndim == 3 and picture.shape[2] == 3
    assert min(picture.shape[:2]) >= 256 and picture.std() > 5


def test_they_are_those_of_scikit_image():
    import skimage.data

    assert np.array_equal(sample_photographs.sample("chelsea"), skimage.data.chelsea())
    assert np.array_equal(sample_photographs.sample("motorcycle_left"), skimage.data.stereo_motorcycle()[0])
    grey = skimage.data.camera()
    assert np.array_equal(sample_photographs.sample("camera"), np.stack([grey] * 3, 2))


def test_the_demo_photograph_is_never_learnt_from():
    demo = sample_photographs.sample(sample_photographs.DEMO)
    sharp = sample_photographs.sharp()
    assert len(sharp) >= 10
    assert all(not np.array_equal(demo, picture) for picture in sharp)
    assert sample_photographs._REDUCTIONS[sample_photographs.DEMO] == 0
    assert min(side for picture in sharp for side in picture.shape[:2]) >= 160  # the default size of composites


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'chelsea'"):
        sample_photographs.sample("chelsa")


def test_without_scikit_image_the_cure_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeUnavailable, match=r"r2mrf-deploy\[eval\]"):
        sample_photographs.sample("coffee")


def test_a_scikit_image_that_lacks_the_file_is_said_so(monkeypatch, tmp_path):
    monkeypatch.setattr(sample_photographs, "_folder", lambda: tmp_path)
    with pytest.raises(RuntimeUnavailable, match="does not ship coffee"):
        sample_photographs.sample("coffee")
