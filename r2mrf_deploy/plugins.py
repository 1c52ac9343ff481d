"""What other installed packages add: networks, export formats and runtimes, which they register by entry points.

    [project.entry-points."r2mrf_deploy.networks"]
    my-network = "my_package.my_network:MyNetwork"

A class is imported when it is asked for, or when all of its kind are looked through. One that cannot be imported or made
fails alone: what does not need it goes on with a warning.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from r2mrf_deploy.errors import PluginError

NETWORKS = "r2mrf_deploy.networks"
"""The name of a network -> its `Detector`."""
EXPORTERS = "r2mrf_deploy.exporters"
"""The suffix of a format, without its dot -> its `Exporter`."""
RUNTIMES = "r2mrf_deploy.runtimes"
"""The name of a runtime -> its `Runtime`."""

T = TypeVar("T")
R = TypeVar("R")
_LOG = logging.getLogger(__name__)


@cache
def registered(group: str) -> tuple[EntryPoint, ...]:
    """The entry points of a group, in the order of their packages' names."""
    return tuple(sorted(entry_points(group=group), key=lambda e: (_package(e), e.name)))


def added(group: str, own: Collection[str]) -> Mapping[str, EntryPoint]:
    """Name -> entry point, of a group.

    A name that is this package's `own`, or that a package before registered, is left out, and a warning says so.
    """
    found: dict[str, EntryPoint] = {}
    for entry in registered(group):
        if entry.name in own or entry.name in found:
            owner = "r2mrf-deploy" if entry.name in own else _package(found[entry.name])
            _LOG.warning("%s is left out: %s has that name already", _words(entry), owner)
        else:
            found[entry.name] = entry
    return found


def load(entry: EntryPoint, base: type[T]) -> type[T]:
    """Import the class of an entry point.

    Raises:
        PluginError: it cannot be imported, or is no subclass of `base`.
    """
    try:
        found = entry.load()
    except Exception as e:  # other people's code: anything
        raise PluginError(f"{_words(entry)} cannot be imported: {type(e).__name__}: {e}; {_cure(entry)}") from e
    if not (isinstance(found, type) and issubclass(found, base)):
        raise PluginError(f"{_words(entry)} is no subclass of {base.__module__}.{base.__name__}; {_cure(entry)}")
    return found


def made(entry: EntryPoint, base: type[T]) -> T:
    """An instance of the class of an entry point, which takes no arguments.

    Raises:
        PluginError: it cannot be imported or made, or is no subclass of `base`.
    """
    kind = load(entry, base)
    try:
        return kind()
    except Exception as e:  # such as an abstract method that a newer version of this package wants
        raise PluginError(f"{_words(entry)} cannot be used: {type(e).__name__}: {e}; {_cure(entry)}") from e


def working(
    group: str, own: Collection[str], base: type[T], get: Callable[[EntryPoint, type[T]], R]
) -> Iterator[tuple[str, R]]:
    """The name of each, and what `get` (`load` or `made`) makes of it; a warning names each that fails."""
    for name, entry in added(group, own).items():
        try:
            found = get(entry, base)
        except PluginError as e:
            _LOG.warning("%s", e)
        else:
            yield name, found


def kind(group: str) -> str:
    """What a group's entry points are: network, exporter, runtime."""
    return group.rpartition(".")[2].removesuffix("s")


def _words(entry: EntryPoint) -> str:
    return f"the {kind(entry.group)} {entry.name!r} of the package {_package(entry)} ({entry.value})"


def _package(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown"


def _cure(entry: EntryPoint) -> str:
    return f"mend it, or remove it: pip uninstall {_package(entry)}"
