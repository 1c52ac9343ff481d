"""What every network is: a `Detector` with a config, a frozen dataclass of plain values that is validated when made."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias, TypeVar

from torch import Tensor, nn

from r2mrf_deploy.errors import UsageError, did_you_mean

MOST = 1024
"""The most steps or channels a config may have: far beyond the papers' networks, and close to a machine's memory."""

C = TypeVar("C", bound="NetworkConfig")

Prediction: TypeAlias = Tensor | tuple[Tensor, dict[str, Tensor]]
"""The logits; with all steps, (the logits, the side outputs by name)."""
Inferred = tuple[dict[str, Any], list[str]]
"""The config fields that a state dict's shapes settle, and the names of those that they leave open."""


@dataclass(frozen=True)
class NetworkConfig:
    """Subclasses list their fields with defaults and say in `check` what values are allowed."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, default = getattr(self, field.name), field.default
            if type(value) is not type(default):
                raise UsageError(f"{field.name} must be {type(default).__name__}, not {value!r}")
        self.check()

    def check(self) -> None:
        """Raise UsageError where a value is not allowed."""

    def one_of(self, name: str, allowed: Collection[Any]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise UsageError(f"{name}={value!r} is not allowed: {did_you_mean(str(value), map(str, allowed))}")

    def count(self, name: str) -> None:
        if not 1 <= getattr(self, name) <= MOST:
            raise UsageError(f"{name} must be from 1 to {MOST}, not {getattr(self, name)}")

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
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
        fields = {f.name: f for f in dataclasses.fields(self)}
        values: dict[str, Any] = {}
        for name, text in settings.items():
            if name not in fields:
                raise UsageError(f"`settings` {name}: no such config field; {did_you_mean(name, fields)}")
            values[name] = _parse(name, text, type(fields[name].default))
        return dataclasses.replace(self, **values)


def _parse(name: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"`settings` {name}={text}: give true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"`settings` {name}={text}: give a {'whole ' if kind is int else ''}number") from None


class Detector(nn.Module, ABC):
    """A network that marks what is in focus.

    It is made from its config. `Deployed` adds preprocessing and the sigmoid; everything else finds a network through
    `networks.get`.
    """

    config_class: ClassVar[type[NetworkConfig]]
    presets: ClassVar[Mapping[str, NetworkConfig]]
    """Name -> config."""
    config: Any
    """An instance of `config_class`."""

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
        """The number of steps that the weights were trained with."""
        return int(self.config.steps)

    @abstractmethod
    def side_names(self, steps: int) -> list[str]:
        """The names of the side outputs of `steps` steps, in the order they are computed."""

    @abstractmethod
    def scope(self, path: str, call: int) -> str | None:
        """The scope in the paper's terms of the module at a path, when it is called for the `call`-th time (from 0); None
        where the module is no part of its own. Profiles and searches are read by scopes."""

    @staticmethod
    @abstractmethod
    def infer(shapes: Mapping[str, tuple[int, ...]]) -> Inferred | None:
        """Infer the config of a plain state dict from its tensors' shapes, by name; None if it is another network's."""

    @classmethod
    def adopt(cls, state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """A state dict of the authors' own code in the names of this class; None where it is something else."""
        return None

    def check_steps(self, steps: int | None) -> int:
        """The number of steps to run.

        Raises:
            UsageError: these weights cannot run as many.
        """
        if steps is None:
            return self.default_steps
        if steps not in self.steps_range:
            low, high = self.steps_range[0], self.steps_range[-1]
            able = f"{low} to {high} steps" if low < high else f"{low or 'no'} step{'s' * (low != 1)}"
            raise UsageError(f"these weights run with {able}, not {steps}")
        return steps
