import math

import pytest
import torch
from torch.nn import functional as F

from r2mrf_deploy import networks
from r2mrf_deploy.networks.r2mrf import upsample
from r2mrf_deploy.training.losses import deep_supervision, overlap


@pytest.fixture
def outputs():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 16, 16, generator=generator)
    sides = {f"step1_branch{i}": torch.randn(2, 1, 4, 4, generator=generator) for i in range(1, 6)}
    mask = (torch.rand(2, 1, 16, 16, generator=generator) > 0.5).float()
    return logits, sides, mask


def test_it_is_the_sum_of_the_means_of_every_output(outputs):
    logits, sides, mask = outputs
    terms = [logits, *(upsample(side, (16, 16)) for side in sides.values())]
    expected = sum(F.binary_cross_entropy(x.double().sigmoid(), mask.double()) for x in terms)
    assert deep_supervision(logits, sides, mask).item() == pytest.approx(expected.item(), rel=1e-5)  # float32


def test_an_undecided_network_costs_ln2_for_each_output():
    zeros = {f"o{i}": torch.zeros(2, 1, 4, 4) for i in range(15)}
    loss = deep_supervision(torch.zeros(2, 1, 16, 16), zeros, torch.rand(2, 1, 16, 16))
    assert loss.item() == pytest.approx(16 * math.log(2), rel=1e-6)


def test_it_falls_when_any_one_output_improves(outputs):
    logits, sides, mask = outputs
    before = deep_supervision(logits, sides, mask)
    right = 4 * (F.avg_pool2d(mask, 4) - 0.5)
    for name in sides:
        assert deep_supervision(logits, sides | {name: right}, mask) < before
    assert deep_supervision(8 * (mask - 0.5), sides, mask) < before


def test_every_trainable_weight_of_the_network_is_reached():
    _, config = networks.preset("r2mrf-edge", {"width": "4", "amdf_channels": "8", "initial_channels": "4"})
    network = networks.create("r2mrf", config)
    logits, sides = network(torch.rand(2, 3, 64, 64), all_steps=True)
    deep_supervision(logits, sides, torch.ones(2, 1, 64, 64)).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []


def test_side_outputs_of_several_sizes_count_alike(outputs):
    logits, sides, mask = outputs
    coarse = F.avg_pool2d(sides["step1_branch1"], 2)
    terms = [logits, *(upsample(x, (16, 16)) for x in (sides["step1_branch2"], coarse))]
    expected = sum(F.binary_cross_entropy(x.double().sigmoid(), mask.double()) for x in terms)
    found = deep_supervision(logits, {"l2h0": sides["step1_branch2"], "h2l0": coarse}, mask)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)  # float32


def test_overlap_is_one_minus_the_mean_of_both_classes_ious():
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., :10, :] = 1  # 200 pixels
    found = torch.zeros(1, 1, 20, 20)
    found[..., :5, :] = 1  # 100 of them: IoU 100 / 200 in focus, 200 / 300 out of focus
    logits = 40 * (found - 0.5)
    assert overlap(logits, mask).item() == pytest.approx(1 - (101 / 201 + 201 / 301) / 2, abs=1e-6)
    assert overlap(40 * (mask - 0.5), mask).item() == pytest.approx(0, abs=1e-6)
    assert overlap(torch.full_like(mask, -20.0), torch.zeros_like(mask)).item() == pytest.approx(0, abs=1e-6)


def test_overlap_weighs_a_photograph_s_small_class_as_its_large_one(outputs):
    """A map that says "blurred" everywhere has a small cross-entropy where little is in focus, and half of the overlap."""
    mask = torch.zeros(1, 1, 20, 20)
    mask[..., :2, :2] = 1
    assert overlap(torch.full_like(mask, -20.0), mask).item() > 0.4
