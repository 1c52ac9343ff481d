import numpy as np
import torch
from torch import nn

from r2mrf_deploy.networks.base import IMAGENET, NetworkConfig
from r2mrf_deploy.training.data import Pictures, normalise
from r2mrf_deploy.training.module import APART, STATISTICS, Training
from r2mrf_deploy.training.recipe import SCRATCH


class Network(nn.Sequential):
    steps_range, default_steps, config = range(0), 1, NetworkConfig()


class Source:
    """Noise that follows from the iteration."""

    def seek(self, iteration, rank, ranks):
        self.iteration = iteration

    def batch(self, count):
        generator = torch.Generator().manual_seed(self.iteration)
        image = torch.rand(count, 3, 5, 5, generator=generator)
        return image, image[:, :1]


def test_averaged_weights_have_statistics_of_their_own_and_no_gradients():
    network = Network(nn.BatchNorm2d(3), nn.Conv2d(3, 1, 1))
    pictures = Pictures([np.full((8, 8, 3), 100, np.uint8)], [np.eye(8, dtype=np.float32)])
    module = Training(network, SCRATCH, lambda _: Source(), pictures, seed=0)
    scores = module.validate()
    assert scores.photographs == 1 and module.kept is module.averaged
    source, means = Source(), []
    for n in range(STATISTICS):
        source.seek(APART + n, 0, 1)
        means.append(normalise(source.batch(SCRATCH.batch)[0], IMAGENET).mean((0, 2, 3)))
    norm = module.averaged[0]
    assert torch.allclose(norm.running_mean, torch.stack(means).mean(0), atol=1e-6)  # float32 sums in another order
    assert norm.training and norm.momentum == 0.1  # as before
    assert not any(p.requires_grad for p in module.averaged.parameters())
    assert network[0].num_batches_tracked == 0
