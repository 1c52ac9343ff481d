import copy
import itertools

import numpy as np
import pytest
import torch

from r2mrf_deploy import networks
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.training import quick
from r2mrf_deploy.training.quick import train_quick

TINY = {"size": 64, "batch": 2}


@pytest.fixture(scope="module")
def texture():
    return [np.random.default_rng(i).integers(0, 256, (80, 80, 3), dtype=np.uint8) for i in range(2)]


@pytest.fixture
def network():
    torch.manual_seed(0)
    family, config = networks.preset(
        "r2mrf-edge", {"width": "4", "amdf_channels": "8", "initial_channels": "4", "steps": "2"}
    )
    return networks.create(family, config)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_a_fixed_number_of_iterations_gives_the_same_weights(network, texture):
    twin, other = copy.deepcopy(network), copy.deepcopy(network)
    run = train_quick(network, texture, iterations=3, **TINY)
    train_quick(twin, texture, iterations=3, seconds=600, **TINY)
    train_quick(other, texture, iterations=3, seed=1, **TINY)
    assert run.iterations == 3 and not run.shortened
    assert same(network, twin) and not same(network, other)


def test_the_network_is_left_ready_to_use(network, texture):
    before = copy.deepcopy(network)
    train_quick(network, texture, iterations=2, **TINY)
    assert not network.training
    for (name, module), old in zip(network.named_modules(), before.modules(), strict=True):
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.momentum == old.momentum
            assert module.num_batches_tracked == quick.STATISTICS, name
    assert all(p.is_contiguous() for p in network.parameters())
    with torch.no_grad():
        assert network(torch.rand(1, 3, 64, 96)).shape == (1, 1, 64, 96)


def test_it_learns_sharp_from_blurred(network, texture):
    """White noise is as plain a case as there is: the cross-entropy must fall well under ln 2 = 0.69."""
    losses = []
    run = train_quick(network, texture, iterations=40, size=64, batch=4, progress=lambda *p: losses.append(p))
    assert [p[:2] for p in losses] == [(i, 40) for i in range(1, 41)]
    assert run.loss == pytest.approx(np.mean([p[2] for p in losses[-4:]]))
    assert run.loss < 0.5


def test_a_time_limit_brings_the_schedule_to_its_end(network, texture, monkeypatch):
    rates = []
    learning_rate = quick._learning_rate
    monkeypatch.setattr(quick, "_learning_rate", lambda share: rates.append(learning_rate(share)) or rates[-1])
    clock = itertools.count(step=0.1)  # an iteration takes 0.1 s, however busy the machine
    monkeypatch.setattr(quick.time, "monotonic", lambda: next(clock))
    run = train_quick(network, texture, iterations=100_000, seconds=2, **TINY)
    assert run.shortened and 5 < run.iterations == len(rates) <= 20
    assert run.seconds <= 2.2
    assert rates[-1] < 0.2 * max(rates)


def test_the_schedule_rises_and_falls_to_nothing(network, texture, monkeypatch):
    shares = []
    learning_rate = quick._learning_rate
    monkeypatch.setattr(quick, "_learning_rate", lambda share: shares.append(share) or learning_rate(share))
    train_quick(network, texture, iterations=5, **TINY)
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert learning_rate(quick.RECIPE.warm_up) == pytest.approx(quick.RECIPE.learning_rate)
    assert learning_rate(quick.RECIPE.warm_up / 2) == pytest.approx(quick.RECIPE.learning_rate / 2)
    assert learning_rate(1.0) == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("limits", [{"iterations": None}, {"iterations": 0}, {"seconds": -1.0}, {"batch": 0}])
def test_senseless_limits_are_refused(network, texture, limits):
    with pytest.raises(UsageError):
        train_quick(network, texture, **limits)
