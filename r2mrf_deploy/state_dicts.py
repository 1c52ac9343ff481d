"""Find a network's weights in what training scripts save.

Such a file holds dictionaries in dictionaries: weights, averaged weights, an optimizer's state. Joined with dots, their
keys and the names of the tensors are one flat list of names, and a network's weights are the names that begin with one
prefix (`state_dict.net`, `ema.module._orig_mod`). Every prefix is tried with every network. Names alone never decide: what
is taken has every tensor of the network, in its shape, and what else fitted, was left out or was assumed is said.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from r2mrf_deploy import networks
from r2mrf_deploy.errors import CheckpointError, R2mrfError, UsageError, did_you_mean
from r2mrf_deploy.networks.base import NetworkConfig, Shapes, Value
from r2mrf_deploy.weight_checks import describe, difference, shapes, wanted_shapes, with_counters
from r2mrf_deploy.wording import count

DEEPEST = 10
"""How many levels of keys and names a prefix may have."""
MOST = 1_000_000
"""The most entries that are looked at: far more than a file of weights has, and a few seconds of work."""
FEWEST = 20
"""A prefix with fewer tensors cannot be a network: the smallest has 54."""

_WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""What PyTorch's wrappers put into names: DataParallel and AveragedModel, torch.compile, FSDP, checkpointing."""
_USUAL = ("", "state_dict", "model_state_dict", "model", "net")
"""Keys of the weights that a training script evaluates, the most usual first."""
_AVERAGED = re.compile(r"(?<![a-z])(ema|swa|avg|averaged?|shadow|teacher)(?![a-z])")
"""Keys of averaged weights. They come second: after a short training they may lie near where they began."""


@dataclass(frozen=True)
class Found:
    """A network's weights and how they were found."""

    family: str
    config: NetworkConfig
    state: Mapping[str, Tensor]
    """Named as the network names them."""
    prefix: str
    """What came before these names in the file."""
    others: tuple[str, ...] = ()
    """Prefixes of other weights that fit."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """What lies beside the weights under the prefix: first part of the name -> number of tensors."""
    version: Mapping[str, Value] = field(default_factory=dict)
    """Config fields that are settled by which version of the authors' code wrote the file."""
    assumed: Mapping[str, Value] = field(default_factory=dict)
    """Config fields that nothing in the file settles."""

    @property
    def chosen(self) -> bool:
        """Whether something else in the file could have been meant."""
        return bool(self.others or self.left_out or self.version)

    def facts(self) -> dict[str, Any]:
        """How the weights were found, for `inspect`."""
        facts = {"prefix": self.prefix, "also_there": list(self.others), "left_out": dict(self.left_out)}
        return facts | {"version": dict(self.version), "assumed": dict(self.assumed)}

    def __str__(self) -> str:
        said = [f"read as {self.family}" + (f" from {self.prefix!r}" if self.prefix else "")]
        if self.others:
            said.append(f"other weights that fit: {_listed(self.others)} (`weights_key` chooses)")
        if self.left_out:
            said.append(f"left out: {_listed(self.left_out)}")
        for what, fields in (("by its authors' version", self.version), ("assumed", self.assumed)):
            if fields:
                said.append(f"{what}: {', '.join(f'{k}={v}' for k, v in fields.items())} (`settings` changes it)")
        return "; ".join(said)


@dataclass(frozen=True)
class _Fit:
    """A network and the tensors under a prefix."""

    found: Found
    matched: int
    """How many tensors of the network are there in their shape."""
    wrong: str = ""
    """What does not fit."""
    error: R2mrfError | None = None
    """Why it cannot be used although it may fit."""


def resolve(
    path: Path,
    content: Mapping[Any, Any],
    *,
    network: str | None = None,
    settings: Mapping[str, str] | None = None,
    defaults: Mapping[str, str] | None = None,
    weights_key: str | None = None,
    rename: Mapping[str, str] | None = None,
) -> Found:
    """Find a network's weights in a file's content.

    Args:
        path: the file, for messages.
        network, settings, defaults, weights_key, rename: as for `Checkpoint.load`.

    Raises:
        CheckpointError: nothing fits, or what fits leaves a setting open.
        UsageError: an argument is wrong.
    """
    named = _renamed(_tensors(path, content), rename or {})
    groups = _by_prefix(named)
    if weights_key is not None:
        chosen = {p: g for p, g in groups.items() if p == weights_key or p.startswith(f"{weights_key}.")}
        if not chosen:
            known = [p for p, g in groups.items() if p and len(g) >= FEWEST and p.count(".") < 2]
            near = did_you_mean(weights_key, known) if known else "its tensors lie under none"
            raise UsageError(f"`weights_key` {weights_key}: {path} holds no such key; {near}")
        groups = chosen
    large = {prefix: group for prefix, group in groups.items() if len(group) >= FEWEST}
    families = [networks.preset(network)[0]] if network else [name for name, _ in networks.working()]
    fits = [
        fit
        for prefix, group in large.items()
        for family in families
        if (fit := _fit(path, prefix, family, with_counters(group), network, settings or {}, defaults or {}))
    ]
    whole = sorted((f for f in fits if not f.wrong), key=lambda f: _rank(f.found.prefix))
    if not whole:
        raise CheckpointError(f"{path}: {_why_not(named, large, fits)}")
    best = whole[0]
    if best.error:
        raise best.error
    others = tuple(f.found.prefix for f in whole[1:])
    return Found(**{**vars(best.found), "others": others})


def _tensors(path: Path, content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Every tensor in a file's content, by the keys that lead to it, joined with dots, in the file's order."""
    found: dict[str, Tensor] = {}
    pending: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen = 0
    while pending:
        keys, value = pending.pop()
        if isinstance(value, Tensor):
            found.setdefault(".".join(keys), value)
            continue
        items = list(value.items() if isinstance(value, Mapping) else enumerate(value))
        seen += 1 + len(items)
        if seen > MOST:
            raise CheckpointError(f"{path} holds more than {MOST:,} entries: save only its state_dict")
        if len(keys) < DEEPEST:
            inner = [((*keys, str(k)), v) for k, v in items if _leads_to_tensors(v) and _is_name(k)]
            pending += reversed(inner)
    if not found:
        raise CheckpointError(f"{path} is not a checkpoint: it holds no state dict")
    return found


def _leads_to_tensors(value: Any) -> bool:
    return isinstance(value, Tensor | Mapping | list | tuple)


def _is_name(key: Any) -> bool:
    return isinstance(key, str) or (isinstance(key, int) and abs(key) <= MOST)


def _renamed(tensors: dict[str, Tensor], rename: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors with parts of their names replaced: whole parts, between dots, by regular expressions."""
    for old, new in rename.items():
        asked = f"`rename` {old}={new}"
        try:
            part = re.compile(rf"(?<![^.])(?:{old})(?![^.])")
            names = [".".join(filter(None, part.sub(new, name).split("."))) for name in tensors]
        except (re.error, IndexError) as e:
            raise UsageError(f"{asked}: this is not a regular expression and its replacement: {e}") from None
        if names == list(tensors):
            some = ", ".join(map(repr, list(tensors)[:3]))
            raise UsageError(f"{asked}: no name has that part; names are like {some}")
        if len(set(names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise UsageError(f"{asked}: then two tensors are called {twice!r}; rename fewer")
        tensors = dict(zip(names, tensors.values(), strict=True))
    return tensors


def _by_prefix(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Every prefix of the names, and the tensors under it by the rest of their names, without wrappers' parts."""
    groups: dict[str, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        parts = name.split(".")
        for depth in range(min(len(parts), DEEPEST)):
            if parts[depth] not in _WRAPPERS:
                rest = ".".join(p for p in parts[depth:] if p not in _WRAPPERS)
                groups.setdefault(".".join(parts[:depth]), {}).setdefault(rest, value)
    return groups


def _fit(
    path: Path,
    prefix: str,
    family: str,
    group: Mapping[str, Tensor],
    network: str | None,
    settings: Mapping[str, str],
    defaults: Mapping[str, str],
) -> _Fit | None:
    """Compare the tensors under a prefix with a network; None if they are nothing like it."""
    kind = networks.get(family)
    state, version = kind.adopt(group) or (dict(group), {})
    by_version = {k: str(v) for k, v in version.items()}
    if network is not None:
        _, config = networks.preset(network, by_version | dict(settings))
        assumed: dict[str, Value] = {}
    else:
        try:
            inferred = kind.infer(shapes(state))
            known, open_fields = inferred or ({}, [])
            config = kind.config_class.from_dict({**known, **version})
        except (IndexError, UsageError):  # a scalar where a layer has weights, a width beyond what is allowed
            return None
        if inferred is None:
            return None
        found = Found(family, config, state, prefix)
        given = {f: defaults[f] for f in open_fields if f in defaults} | dict(settings)
        if missing := [f for f in open_fields if f not in given]:
            how = " ".join(f"{m}=..." for m in missing)
            message = (
                f"is a plain state dict of {family}, which does not say its {', '.join(missing)}: give `settings` {how}"
            )
            return _Fit(found, len(state), error=CheckpointError(f"{path} {message}"))
        try:
            config = config.with_settings(given)
        except UsageError as e:
            return _Fit(found, len(state), error=e)
        assumed = {k: v for k, v in config.to_dict().items() if k not in {*known, *version, *given}}
    wanted = wanted_shapes(family, config, len(state))
    wrong, foreign = difference(wanted, shapes(state), lambda: _owned(family, wanted))
    if not (matched := sum(wanted.get(k) == v for k, v in shapes(state).items())):
        return None
    left_out: dict[str, int] = {}
    for name in foreign:
        first = name.partition(".")[0]
        left_out[first] = left_out.get(first, 0) + 1
    state = {k: state[k] for k in wanted if k in state}
    found = Found(family, config, state, prefix, (), left_out, version, assumed)
    return _Fit(found, matched, wrong and f"its weights do not fit {family}: {wrong}")


def _owned(family: str, wanted: Shapes) -> set[str]:
    """The first parts of all names that a network may have: a tensor below one of them must not be left out."""
    names = {*wanted}
    for _, config in (networks.preset(name) for name in networks.get(family).presets):
        names |= wanted_shapes(family, config, len(wanted)).keys()
    return {name.partition(".")[0] for name in names}


def _rank(prefix: str) -> tuple[bool, int]:
    first = prefix.partition(".")[0]
    averaged = _AVERAGED.search(prefix.lower()) is not None
    return averaged, _USUAL.index(first) if first in _USUAL else len(_USUAL)


def _why_not(tensors: Mapping[str, Tensor], groups: Mapping[str, Collection[str]], fits: list[_Fit]) -> str:
    tried = sorted(groups, key=lambda prefix: (prefix.count("."), -len(groups[prefix])))
    where = f"tried {_listed([p or 'no prefix' for p in tried[:8]])}" if tried else "that is too few"
    cures = "`weights_key` chooses a key, `rename` FROM=TO maps layers of other names"
    if fits:
        best = max(fits, key=lambda f: f.matched)
        prefix = f" (below {best.found.prefix!r})" if best.found.prefix else ""
        return f"{best.wrong}{prefix}; {where}; {cures}"
    return (
        f"what it holds, {count(len(tensors), 'tensor')} ({describe(tensors)}), fits none of "
        f"{', '.join(networks.families())}; {where}; {cures}; with the preset as `network` the message says what differs"
    )


def _listed(names: Collection[str]) -> str:
    return ", ".join(map(repr, names))
