import io

import numpy as np
import pytest
import torch
from PIL import Image

from r2mrf_deploy import sample_photographs
from r2mrf_deploy.training.synthesis import camera


@pytest.fixture(scope="module")
def picture():
    """[1, 3, 100, 141]: no multiple of a block's side."""
    return torch.tensor(sample_photographs.sample("astronaut")[60:160, 150:291]).permute(2, 0, 1)[None].float() / 255


def by_pillow(image, quality):
    buffer = io.BytesIO()
    pixels = (255 * image[0]).round().byte().permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return torch.tensor(np.array(Image.open(buffer))).permute(2, 0, 1)[None].float() / 255


def rms(a, b):
    return float((a - b).square().mean().sqrt())


def value(x):
    return torch.full((1, 1, 1, 1), float(x))


@pytest.mark.parametrize("quality", [30, 60, 90])
def test_jpeg_is_what_a_real_encoder_gives(picture, quality):
    """The loss is the same picture by picture: what differs is how decoders enlarge colours and round."""
    real, ours = by_pillow(picture, quality), camera.jpeg(picture, value(quality))
    loss = rms(real, picture)
    assert rms(ours, picture) == pytest.approx(loss, rel=0.1)
    assert rms(ours, real) < 0.45 * loss


def test_each_picture_has_its_own_quality(picture):
    both = camera.jpeg(picture.repeat(2, 1, 1, 1), torch.tensor([20.0, 95.0]).view(2, 1, 1, 1))
    assert torch.allclose(both[:1], camera.jpeg(picture, value(20)), atol=1.5 / 255)  # a value on the edge of rounding
    assert rms(both[:1], picture) > 2 * rms(both[1:], picture)


def test_softening_keeps_the_mean_and_has_the_variance_asked_for():
    point = torch.zeros(1, 3, 9, 9)
    point[:, :, 4, 4] = 1
    spread = camera.soften(point, value(0.7))[0, 0]
    line = torch.arange(-4.0, 5)
    assert spread.sum() == pytest.approx(1, abs=1e-6)
    assert (spread.sum(0) * line**2).sum() == pytest.approx(0.7**2, rel=0.03)  # the tails beyond 2 pixels are cut


def test_contrast_is_about_the_mean(picture):
    flat = camera.flatten_contrast(picture, value(0.5))
    assert flat.mean() == pytest.approx(float(picture.mean()), abs=1e-5)
    assert flat.std() == pytest.approx(0.5 * float(picture.std()), rel=1e-4)
    assert torch.allclose(camera.flatten_contrast(picture, value(1)), picture, atol=1e-6)
