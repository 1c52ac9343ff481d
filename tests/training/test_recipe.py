import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.training import ema, recipe
from r2mrf_deploy.training.recipe import FINETUNE, PAPER, SCRATCH, WIDE


def test_the_paper_s_rate_is_poly_09():
    for share in (0.0, 0.25, 0.9):
        assert PAPER.rate(share) == pytest.approx(1e-3 * (1 - share) ** 0.9)
    assert PAPER.rate(1.0) == 0


@pytest.mark.parametrize(
    ("preset", "batch", "iterations"), [("r2mrf-r50", 4, 6000), ("br2net-vgg16", 8, 6000), ("defusionnet", 4, 10000)]
)
def test_each_paper_has_its_own_schedule(preset, batch, iterations):
    chosen, why = recipe.choose(preset, None, backbone=True)
    assert (chosen.name, chosen.batch, chosen.iterations) == ("paper", batch, iterations)
    assert why == "the backbone is pretrained"


def test_the_default_recipe_is_the_paper_s_where_the_backbone_is_trained():
    assert recipe.choose("r2mrf", None, backbone=False) == (WIDE, "the network starts from random weights")
    assert recipe.choose("br2net", None, backbone=False)[0] == SCRATCH
    why = "the backbone is pretrained, and no paper describes this preset"
    for preset in ("r2mrf-edge", "r2mrf-lite"):
        assert recipe.choose(preset, None, backbone=True) == (FINETUNE, why)
        assert recipe.choose(preset, None, backbone=False)[0] == SCRATCH
    assert recipe.choose("r2mrf", "finetune", backbone=True) == (FINETUNE, "as requested")
    assert recipe.choose("r2mrf-edge", "paper", backbone=False) == (PAPER, "as requested")
    assert recipe.choose("btbnet", None, backbone=True)[1].endswith("no schedule is known from its own paper")
    with pytest.raises(UsageError, match="did you mean 'r2mrf'"):
        recipe.choose("r2mrff", None, backbone=False)


def test_the_other_rises_and_falls_to_nothing():
    rates = [SCRATCH.rate(n / 100) for n in range(101)]
    top = rates.index(max(rates))
    assert top == 5 and rates[top] == pytest.approx(SCRATCH.learning_rate)
    assert rates[: top + 1] == sorted(rates[: top + 1]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert rates[0] == 0 and rates[-1] == pytest.approx(0, abs=1e-12)


def test_biases_and_norms_do_not_decay_and_the_paper_s_move_twice_as_fast():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    for chosen, multiple in ((PAPER, 2.0), (SCRATCH, 1.0)):
        optimizer = chosen.make_optimizer(network)
        recipe.set_rate(optimizer, 0.5)
        weights, others = optimizer.param_groups
        assert [p.shape for p in weights["params"]] == [network[0].weight.shape] and len(others["params"]) == 3
        assert (weights["weight_decay"], others["weight_decay"]) == (chosen.weight_decay, 0)
        assert (weights["lr"], others["lr"]) == (0.5, 0.5 * multiple)


def test_a_pretrained_backbone_moves_slower() -> None:
    network = nn.ModuleDict({"backbone": nn.Conv2d(3, 4, 3), "fusion": nn.Conv2d(4, 1, 1)})
    optimizer = replace(FINETUNE, backbone_rate=0.25, bias_rate=2.0).make_optimizer(network)
    recipe.set_rate(optimizer, 1.0)
    rates = {id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    assert {name: rates[id(p)] for name, p in network.named_parameters()} == {
        "backbone.weight": (0.25, FINETUNE.weight_decay),
        "backbone.bias": (0.5, 0.0),
        "fusion.weight": (1.0, FINETUNE.weight_decay),
        "fusion.bias": (2.0, 0.0),
    }


def test_the_average_is_soon_rid_of_the_initial_weights_and_then_slow():
    decays = [SCRATCH.decay(n) for n in range(20000)]
    assert decays[0] < 0.1 and decays == sorted(decays) and decays[-1] == SCRATCH.average


def test_an_average_moves_by_its_decay():
    network = nn.Linear(2, 2)
    average = copy.deepcopy(network)
    before = average.weight.clone()
    with torch.no_grad():
        network.weight.add_(1)
    ema.average_into(average, network, 0.75)
    assert torch.allclose(average.weight, before + 0.25)  # float32 rounding


def test_nonsense_is_refused():
    with pytest.raises(UsageError, match="did you mean 'paper'"):
        recipe.choose("r2mrf", "papers", backbone=False)
    with pytest.raises(UsageError, match="`iterations` must be over 0"):
        replace(SCRATCH, iterations=0)
    with pytest.raises(UsageError, match="`average`"):
        replace(SCRATCH, average=1.0)


def test_recurrence_begins_with_one_step() -> None:
    recipe = replace(SCRATCH, iterations=10, one_step=0.3)
    assert [recipe.runs_one_step(n) for n in range(5)] == [True, True, True, False, False]
    assert not any(PAPER.runs_one_step(n) for n in range(PAPER.iterations))
    with pytest.raises(UsageError, match="`one_step`"):
        replace(SCRATCH, one_step=1.0)
