"""The papers' equations in PyTorch, and nothing else; this file is their registry.

A new network is one file with a config dataclass, its presets and its module, and one line here; or a file in another
package, and an entry point of it (see `plugins`).
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping

from r2mrf_deploy import plugins
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
    """The networks, one name for each paper; then those that other packages add."""
    return [*_REGISTRY, *plugins.added(plugins.NETWORKS, _REGISTRY)]


def get(family: str) -> type[Detector]:
    """The class of a network.

    Raises:
        UsageError: there is no such network.
        PluginError: it is another package's, and cannot be imported.
    """
    if family in _REGISTRY:
        module, _, attribute = _REGISTRY[family].partition(":")
        return getattr(importlib.import_module(module), attribute)
    if entry := plugins.added(plugins.NETWORKS, _REGISTRY).get(family):
        return plugins.load(entry, Detector)
    raise UsageError(
        f"no network {family!r}: {did_you_mean(family, families())}; is the package that adds it installed?"
    )


def working() -> Iterator[tuple[str, type[Detector]]]:
    """The name and class of every network but those of other packages that cannot be imported."""
    yield from ((family, get(family)) for family in _REGISTRY)
    yield from plugins.working(plugins.NETWORKS, _REGISTRY, Detector, plugins.load)


def presets() -> dict[str, tuple[str, NetworkConfig]]:
    """Every preset: its name -> (network, config). Of two with one name, the first counts."""
    found: dict[str, tuple[str, NetworkConfig]] = {}
    for family, network in working():
        for name, config in network.presets.items():
            found.setdefault(name, (family, config))
    return found


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
