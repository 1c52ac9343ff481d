"""The contract of every network: `Detector`, a module made from a `NetworkConfig`."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, ClassVar, TypeAlias, TypeVar, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from r2mrf_deploy.errors import UsageError, did_you_mean
from r2mrf_deploy.manifest import DEFAULT_SIZE, Preprocess

COUNTER = "num_batches_tracked"
"""The integer buffer that batch norm has since PyTorch 0.4.1. Inference does not use it, and state dicts may lack it."""
MOST = 1024
"""The most steps or channels a config may have: far beyond the papers' networks, and close to a machine's memory."""

IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), longest_side=max(DEFAULT_SIZE))
"""ImageNet's statistics, and the scale at which the papers train and test: what a checkpoint that says nothing gets."""

C = TypeVar("C", bound="NetworkConfig")

Value: TypeAlias = bool | int | float | str
"""The value of a config field."""
Shapes: TypeAlias = Mapping[str, tuple[int, ...]]
"""The shapes of a state dict's tensors, by name."""
Prediction: TypeAlias = Tensor | tuple[Tensor, dict[str, Tensor]]
"""The logits; with all steps, (the logits, the side outputs by name)."""
Adopted: TypeAlias = tuple[dict[str, Tensor], dict[str, Value]]
"""The authors' state dict in our names, and the config fields that their code, rather than a shape, settles."""
Inferred: TypeAlias = tuple[dict[str, Value], list[str]]
"""The config fields that a state dict's shapes settle, and the names of those that they leave open."""


@dataclass(frozen=True)
class NetworkConfig:
    """The options of a network, validated when the config is made.

    Every field has a default, whose type is the field's type. Annotations say what is allowed: `Literal[...]` and
    `Annotated[type, values]` list the values, and `int` is a number from 1 to `MOST`.
    """

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), include_extras=True)
        for field in dataclasses.fields(self):
            name, value, hint = field.name, getattr(self, field.name), hints[field.name]
            if type(value) is not type(field.default):
                raise UsageError(f"{name} must be {type(field.default).__name__}, not {value!r}")
            if hint is int and value not in range(1, MOST + 1):
                raise UsageError(f"{name} must be from 1 to {MOST}, not {value}")
            allowed = hint.__metadata__[0] if get_origin(hint) is Annotated else get_args(hint)
            if allowed and value not in allowed:
                raise UsageError(f"{name}={value!r} is not allowed: {did_you_mean(str(value), map(str, allowed))}")

    @property
    def preprocess(self) -> Preprocess:
        """What the network expects of an image, if its checkpoint does not say it."""
        return IMAGENET

    def to_dict(self) -> dict[str, Value]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Value]) -> C:
        """From a checkpoint's `config`.

        Raises:
            UsageError: a field is unknown, of the wrong type, or has a value that is not allowed.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in known:
                raise UsageError(f"no config field {name!r}: {did_you_mean(str(name), known)}")
        return cls(**values)

    def with_settings(self: C, settings: Mapping[str, str]) -> C:
        """With fields replaced by texts, name -> value.

        Raises:
            UsageError: a field is unknown, or a text is not a value of its type.
        """
        values = self.to_dict()
        for name, text in settings.items():
            if name not in values:
                raise UsageError(f"`settings` {name}: no such config field; {did_you_mean(name, values)}")
            values[name] = _parse(name, text, type(values[name]))
        return type(self)(**values)


def _parse(name: str, text: str, kind: type[Value]) -> Value:
    try:
        return {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        wanted = {bool: "true or false", int: "a whole number", float: "a number"}[kind]
        raise UsageError(f"`settings` {name}={text}: give {wanted}") from None


class Detector(nn.Module, ABC):
    """A network that finds what is in focus, made from an instance of its `config_class`.

    `Deployed` adds the preprocessing and the sigmoid; everything else finds a network through `networks.get`.
    """

    config_class: ClassVar[type[NetworkConfig]]
    presets: ClassVar[Mapping[str, NetworkConfig]]
    """Name -> config."""
    config: NetworkConfig

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config

    @abstractmethod
    def forward(self, image: Tensor, *, steps: int | None = None, all_steps: bool = False) -> Prediction:
        """Normalised image, float32 [N, 3, H, W], to logits [N, 1, H, W]; the map is their sigmoid.

        Args:
            steps: how many recurrent steps to run, one of `steps_range`; by default `default_steps`.
            all_steps: return (logits, side outputs by name), each [N, 1, h, w], in the order they are computed.
        """

    @property
    @abstractmethod
    def steps_range(self) -> range:
        """The numbers of recurrent steps that these weights can run."""

    @property
    def default_steps(self) -> int:
        """The number of steps that the weights are trained with."""
        return self.steps_range[-1]

    @abstractmethod
    def side_names(self, steps: int) -> list[str]:
        """The names of the side outputs of `steps` steps, in the order they are computed."""

    @abstractmethod
    def scope(self, path: str, call: int) -> str | None:
        """The scope, in the paper's terms, of the module at `path` when it is called for the `call`-th time (from 0).

        None where the module has no scope of its own. Profiles and searches are read by scopes.
        """

    @staticmethod
    @abstractmethod
    def infer(shapes: Shapes) -> Inferred | None:
        """Infer the config of a plain state dict from its tensors' shapes; None if it is another network's."""

    @classmethod
    def adopt(cls, state: Mapping[str, Tensor]) -> Adopted | None:
        """A state dict of the authors' own code in the names of this class; None if it is something else."""
        return None

    @property
    def last(self) -> nn.Conv2d | None:
        """The convolution that gives the map's logits and nothing else, with nothing but linear resizing after it.

        None where there is none, as where the map is a side output too, or a sum.
        """
        return None

    def temper(self, temperature: float) -> None:
        """Divide the map's logits by a temperature, by dividing the last convolution's weights by it. Exact in real
        arithmetic; the side outputs do not change.

        The weights are replaced, not written on, since a checkpoint's state dict may share their memory.

        Raises:
            UsageError: the network has no last convolution of its own, or the temperature is not positive and finite.
        """
        if not (math.isfinite(temperature) and temperature > 0):
            raise UsageError(f"`temperature` must be positive, not {temperature}")
        if self.last is None:
            raise UsageError(
                f"{type(self).__name__} with this config cannot be calibrated: no convolution gives its map's logits alone"
            )
        for weights in self.last.parameters():
            weights.data = weights.data / temperature

    def check_steps(self, steps: int | None) -> int:
        """The number of steps to run.

        Raises:
            UsageError: these weights cannot run that many.
        """
        if steps is None:
            return self.default_steps
        if steps not in self.steps_range:
            low, high = self.steps_range[0], self.steps_range[-1]
            able = f"{low} to {high} steps" if low < high else f"{low or 'no'} step{'s' * (low != 1)}"
            raise UsageError(f"these weights run with {able}, not {steps}")
        return steps


def entries(shapes: Shapes, name: str) -> int:
    """The number of modules in the module list `name` of a state dict."""
    return len({k.split(".")[1] for k in shapes if k.startswith(f"{name}.")})


@cache
def shapes_of(make: Callable[..., nn.Module], *args: Hashable) -> dict[str, tuple[int, ...]]:
    """The shapes of the state dict of the module that `make(*args)` makes, without allocating its tensors."""
    with torch.device("meta"):
        return {k: tuple(v.shape) for k, v in make(*args).state_dict().items()}
