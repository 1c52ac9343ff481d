"""The papers' equations in PyTorch, and nothing else; this file is their registry.

A new network is one file with a config dataclass, its presets and its module, and one line here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping

from r2mrf_deploy.errors import UsageError, did_you_mean
from r2mrf_deploy.networks.base import Detector, NetworkConfig

_REGISTRY = {
    "r2mrf": "r2mrf_deploy.networks.r2mrf:R2MRF",
    "br2net": "r2mrf_deploy.networks.br2net:BR2Net",
    "defusionnet": "r2mrf_deploy.networks.defusionnet:DeFusionNet",
    "btbnet": "r2mrf_deploy.networks.btbnet:BTBNet",
    "btbcrl": "r2mrf_deploy.networks.btbcrl:BTBCRL",
}


def families() -> list[str]:
    """The networks, one name for each paper."""
    return list(_REGISTRY)


def get(family: str) -> type[Detector]:
    """The class of a network.

    Raises:
        UsageError: there is no such network.
    """
    if family not in _REGISTRY:
        raise UsageError(f"no network {family!r}: {did_you_mean(family, _REGISTRY)}")
    module, _, attribute = _REGISTRY[family].partition(":")
    return getattr(importlib.import_module(module), attribute)


def presets() -> dict[str, tuple[str, NetworkConfig]]:
    """Every preset: its name -> (network, config)."""
    return {name: (family, config) for family in _REGISTRY for name, config in get(family).presets.items()}


def preset(name: str, settings: Mapping[str, str] | None = None) -> tuple[str, NetworkConfig]:
    """A preset's network and config, with the fields in `settings` replaced.

    Raises:
        UsageError: there is no such preset, or a setting is wrong.
    """
    known = presets()
    if name not in known:
        raise UsageError(f"no network {name!r}: {did_you_mean(name, known)}")
    family, config = known[name]
    return family, config.with_settings(settings or {})


def create(family: str, config: NetworkConfig) -> Detector:
    """The network with PyTorch's default initial weights."""
    return get(family)(config)
