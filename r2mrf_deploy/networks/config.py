"""The base of every network's config: a frozen dataclass of plain values, validated when made."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from r2mrf_deploy.errors import UsageError, did_you_mean

MOST = 1024
"""Of steps and of channels. Far beyond the papers' networks, and soon beyond a machine's memory."""

C = TypeVar("C", bound="NetworkConfig")


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
        """With fields replaced by the texts of `--set name=value`.

        Raises:
            UsageError: a field is unknown, or a text is not a value of its type.
        """
        fields = {f.name: f for f in dataclasses.fields(self)}
        values: dict[str, Any] = {}
        for name, text in settings.items():
            if name not in fields:
                raise UsageError(f"--set {name}: no such config field; {did_you_mean(name, fields)}")
            values[name] = _parse(name, text, type(fields[name].default))
        return dataclasses.replace(self, **values)


def _parse(name: str, text: str, kind: type) -> Any:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise UsageError(f"--set {name}={text}: give true or false")
        return text.lower() == "true"
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"--set {name}={text}: give a {'whole ' if kind is int else ''}number") from None
