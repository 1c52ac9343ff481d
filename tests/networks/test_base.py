"""The contract that every registered network keeps, on small configurations: what it says of itself is what it does."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

import pytest
import torch

from r2mrf_deploy import networks
from r2mrf_deploy.errors import UsageError
from r2mrf_deploy.networks.base import MOST, Detector, NetworkConfig, shapes_of

ANY = range(1, MOST + 1)
R2MRF = {"backbone": "mobilenet_v3_large", "steps": 3, "width": 2, "amdf_channels": 4, "initial_channels": 2}
SMALLEST: dict[str, dict[str, Any]] = {
    "r2mrf": R2MRF,
    "br2net": {"backbone": "mobilenet_v3_large", "width": 2},
    "defusionnet": {"width": 1},
    "btbnet": {"width": 0.25},
    "btbcrl": {"width": 0.25},
}
# network, changes to its smallest config, the steps that its weights can run, and those that they are trained with
CASES: list[tuple[str, dict[str, Any], range, int]] = [
    ("r2mrf", {}, ANY, 3),
    ("r2mrf", {"share": False, "initial": "first"}, range(1, 4), 3),
    ("r2mrf", {"steps": 1, "output": "branch2"}, range(1, 2), 1),
    ("br2net", {}, range(5, 6), 5),
    ("br2net", {"attention": False, "fusion": "conv", "output": "h2l"}, range(5, 6), 5),
    ("defusionnet", {"share": True}, ANY, 3),
    ("defusionnet", {"steps": 2}, range(1, 3), 2),
    ("defusionnet", {"refine": "none"}, range(1), 0),
    ("btbnet", {"streams": 2}, ANY, 3),
    ("btbnet", {"streams": 1, "refine": "none"}, range(1), 0),
    ("btbcrl", {}, range(3, 4), 3),
    ("btbcrl", {"share": False, "scales": "single"}, range(3, 4), 3),
    ("btbcrl", {"steps": 2, "image": False, "cascade": False}, range(2, 3), 2),
]
each_case = pytest.mark.parametrize(("family", "changes", "steps_range", "default"), CASES)


def config(family: str, changes: dict[str, Any]) -> NetworkConfig:
    return networks.get(family).config_class(**(SMALLEST[family] | changes))


def on_meta(family: str, changes: dict[str, Any]) -> Detector:
    """The network without memory for its weights: shapes are all that is asked."""
    with torch.device("meta"):
        return networks.create(family, config(family, changes)).eval()


def test_every_network_is_here() -> None:
    assert list(SMALLEST) == networks.families()
    assert {family for family, *_ in CASES} == set(SMALLEST)


@pytest.mark.parametrize("family", SMALLEST)
def test_a_network_has_presets_of_its_own_config_class(family: str) -> None:
    network = networks.get(family)
    assert family in network.presets
    assert {type(preset) for preset in network.presets.values()} == {network.config_class}
    assert type(on_meta(family, {}).config) is network.config_class


@each_case
def test_the_steps_that_weights_can_run(family: str, changes: dict[str, Any], steps_range: range, default: int) -> None:
    net = on_meta(family, changes)
    assert (net.steps_range, net.default_steps) == (steps_range, default)
    assert default in steps_range and net.check_steps(None) == default
    for steps in (steps_range[0], steps_range[-1]):
        assert net.check_steps(steps) == steps
    for steps in (steps_range[0] - 1, steps_range[-1] + 1):
        with pytest.raises(UsageError, match=f"these weights run with .* not {steps}"):
            net.check_steps(steps)


@each_case
def test_side_names_are_those_of_forward(
    family: str, changes: dict[str, Any], steps_range: range, default: int
) -> None:
    net = on_meta(family, changes)
    for steps in {steps_range[0], default, min(steps_range[-1], default + 1)}:
        with torch.device("meta"), torch.no_grad():
            logits, side = net(torch.empty(2, 3, 40, 64), steps=steps, all_steps=True)
            alone = net(torch.empty(2, 3, 40, 64), steps=steps)
        assert list(side) == net.side_names(steps) and len(set(side)) == len(side)
        assert {tuple(v.shape[:2]) for v in side.values()} == {(2, 1)}
        assert logits.shape == alone.shape == (2, 1, 40, 64)
        assert steps in (default, 0) or net.side_names(steps) != net.side_names(default)


TEMPERED = [
    ("r2mrf", {}), ("r2mrf", {"steps": 1, "initial": "first"}), ("br2net", {"fusion": "conv"}), ("defusionnet", {}),
    ("defusionnet", {"refine": "none"}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "changes"), TEMPERED)
@torch.no_grad()
def test_a_temperature_divides_the_map_s_logits_and_nothing_else(family: str, changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    net = networks.create(family, config(family, changes)).eval()
    state = net.state_dict()
    before = {name: value.clone() for name, value in state.items()}
    image = torch.randn(1, 3, 64, 96)
    logits, sides = net(image, all_steps=True)
    assert logits.std() > 0
    net.temper(4)  # a power of two, so that nothing is rounded
    found, sides_after = net(image, all_steps=True)
    assert torch.equal(found, logits / 4)
    assert all(torch.equal(sides_after[name], value) for name, value in sides.items())
    assert all(torch.equal(state[name], value) for name, value in before.items())  # a checkpoint's, perhaps
    net.temper(0.3 / 4)
    torch.testing.assert_close(net(image), logits / 0.3)  # FP32's rounding


@each_case
def test_what_cannot_be_tempered_says_so(
    family: str, changes: dict[str, Any], steps_range: range, default: int
) -> None:
    net = on_meta(family, changes)
    if net.last is not None:
        for wrong in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(UsageError, match="`temperature` must be positive"):
                net.temper(wrong)
        return
    with pytest.raises(UsageError, match=f"{type(net).__name__} with this config cannot be calibrated"):
        net.temper(2)


def test_which_networks_can_be_tempered() -> None:
    """Where the map is a side output or a sum, no convolution is its own."""
    able = [(family, changes) for family, changes, *_ in CASES if on_meta(family, changes).last is not None]
    assert able == [
        ("r2mrf", {}), ("r2mrf", {"share": False, "initial": "first"}), ("defusionnet", {"share": True}),
        ("defusionnet", {"steps": 2}), ("defusionnet", {"refine": "none"}),
    ]  # fmt: skip


@each_case
def test_infer_gives_back_the_config(family: str, changes: dict[str, Any], steps_range: range, default: int) -> None:
    wanted = config(family, changes)
    shapes = shapes_of(networks.create, family, wanted)
    found = networks.get(family).infer(shapes)
    assert found is not None
    known, left_open = found
    assert not known.keys() & set(left_open)
    inferred = networks.get(family).config_class.from_dict({n: getattr(wanted, n) for n in left_open} | known)
    differing = {name for name, value in wanted.to_dict().items() if inferred.to_dict()[name] != value}
    assert differing <= {"output", "cascade", "initial_channels"}  # these change no weight here
    assert shapes_of(networks.create, family, inferred) == shapes
    assert [other for other in networks.families() if networks.get(other).infer(shapes)] == [family]


@each_case
def test_scopes_are_given_at_every_call(family: str, changes: dict[str, Any], steps_range: range, default: int) -> None:
    """Every module with weights is in a scope, and a module that is called again is in the next step's."""
    net = on_meta(family, changes)
    for path, module in net.named_modules():
        if next(module.parameters(recurse=False), None) is not None:
            parts = path.split(".")
            parents = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
            assert any(net.scope(parent, 0) for parent in parents), path
    assert net.scope("", 0) is None


def test_adopt_leaves_other_state_dicts_alone() -> None:
    for family in SMALLEST:
        assert networks.get(family).adopt({"conv.weight": torch.zeros(3)}) is None


class Whole(Detector):
    """The least that the contract asks for."""

    def forward(self, image, *, steps=None, all_steps=False):
        return image

    @property
    def steps_range(self):
        return range(1, 3)

    def side_names(self, steps):
        return []

    def scope(self, path, call):
        return None

    @staticmethod
    def infer(shapes):
        return None


ABSTRACT = ("forward", "steps_range", "side_names", "scope", "infer")


def test_what_the_contract_asks_for() -> None:
    assert Whole.__mro__[1] is Detector and inspect.isabstract(Detector)
    assert Detector.__abstractmethods__ == set(ABSTRACT)
    net = Whole(NetworkConfig())
    assert net.config == NetworkConfig() and net.default_steps == 2


@pytest.mark.parametrize("left_out", ABSTRACT)
def test_a_network_that_leaves_something_out_is_refused(left_out: str) -> None:
    members = {name: member for name, member in vars(Whole).items() if name in ABSTRACT and name != left_out}
    with pytest.raises(TypeError, match=left_out):
        type("Partial", (Detector,), members)(NetworkConfig())


@dataclass(frozen=True)
class Config(NetworkConfig):
    count: int = 1
    share: bool = True
    name: Annotated[str, ("one", "two")] = "one"
    factor: Annotated[float, (1.0, 0.5)] = 1.0
    kind: Literal["a", "b"] = "a"
    size: Literal[1, 3] = 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("count", 0, f"count must be from 1 to {MOST}, not 0"),
        ("count", MOST + 1, f"count must be from 1 to {MOST}"),
        ("count", True, "count must be int, not True"),
        ("share", 1, "share must be bool, not 1"),
        ("factor", 1, "factor must be float, not 1"),
        ("factor", float("nan"), "factor=nan is not allowed: choose from 0.5, 1.0"),
        ("name", "twoo", "name='twoo' is not allowed: did you mean 'two'"),
        ("kind", "c", "kind='c' is not allowed: choose from a, b"),
        ("size", 2, "size=2 is not allowed"),
    ],
)
def test_a_value_that_an_annotation_rules_out_is_refused(field: str, value: Any, message: str) -> None:
    for make in (Config, lambda **values: Config.from_dict(values), lambda **values: replace(Config(), **values)):
        with pytest.raises(UsageError) as error:
            make(**{field: value})
        assert message in str(error.value)


def test_settings_are_read_by_the_type_of_their_field() -> None:
    texts = {"count": "7", "share": "False", "name": "two", "factor": "0.5", "kind": "b", "size": "3"}
    changed = Config().with_settings(texts)
    assert changed == Config(7, False, "two", 0.5, "b", 3)
    assert Config.from_dict(changed.to_dict()) == changed and Config().with_settings({}) == Config()
    for name, text, message in (
        ("count", "1.5", "`settings` count=1.5: give a whole number"),
        ("factor", "half", "`settings` factor=half: give a number"),
        ("share", "yes", "`settings` share=yes: give true or false"),
        ("counts", "1", "`settings` counts: no such config field; did you mean 'count'"),
    ):
        with pytest.raises(UsageError, match=message):
            Config().with_settings({name: text})
    with pytest.raises(UsageError, match="no config field 'counts': did you mean 'count'"):
        Config.from_dict({"counts": 1})
