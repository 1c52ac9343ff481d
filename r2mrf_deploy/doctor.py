"""`r2mrf doctor`: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from r2mrf_deploy import environment, plugins, runtimes
from r2mrf_deploy.errors import PluginError, RuntimeUnavailable
from r2mrf_deploy.export import exporter
from r2mrf_deploy.serving import server
from r2mrf_deploy.web import library


@dataclass(frozen=True)
class Row:
    """A runtime, or a step of the toolkit that needs optional packages."""

    name: str
    does: str
    ok: bool
    version: str | None
    note: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


# step -> (the distributions it needs, the extra that installs them)
_STEPS = {
    "export": (("torch", "torchvision", "onnxscript", "onnxsim"), "export"),
    "sample photographs": (("scikit-image",), "eval"),
    "HEIC and raw photographs": (("pillow-heif", "rawpy"), "formats"),
    "films and cameras": (("av",), "video"),
    "pictures of over 178 megapixels": (("pyvips",), "large"),
    "object stores": (("fsspec",), "stores"),
    "scores as Parquet": (("pyarrow",), "parquet"),
    "models on servers": (("tritonclient",), "serve"),
    "data sets over many machines": (("ray",), "ray"),
}


def examine() -> list[Row]:
    """One row for each runtime, together with its variants, one for each step, one for each addition of another package."""
    rows = []
    known = runtimes.working()
    for runtime in known:
        if runtime.variant_of:
            continue
        state = runtime.availability()
        notes = [state.reason, state.cure]
        variants = [r for r in known if r.variant_of == runtime.name]
        if variants:
            notes.append("also " + ", ".join(r.name.removeprefix(runtime.name) for r in variants))
        for variant in variants if state.ok else ():
            if not (other := variant.availability()).ok:
                notes.append(f"not {variant.name}: {other.reason}; {other.cure}")
        note = "; ".join(filter(None, notes))
        rows.append(Row(runtime.name, "runs " + " ".join(runtime.suffixes), state.ok, state.version, note))
    for name, (packages, extra) in _STEPS.items():
        missing = [p for p in packages if environment.version(p) is None]
        note = f'{", ".join(missing)} missing: pip install "r2mrf-deploy[{extra}]"' if missing else ""
        rows.append(Row(name, "needs " + " ".join(packages), not missing, environment.version(packages[0]), note))
    return [*rows, _pages(), _server(), *_added()]


def _pages() -> Row:
    """What web pages are made with: no package of Python's."""
    missing = library.missing()
    note = f"{missing}; {library.cure()}" if missing else ""
    return Row("web pages", f"needs {library.NAME}", not missing, None if missing else library.version(), note)


def _server() -> Row:
    """What `r2mrf serve` would start."""
    try:
        found = server.find()
    except RuntimeUnavailable as e:
        return Row("inference server", "runs repositories", False, None, str(e))
    return Row("inference server", "runs repositories", True, environment.version("nvidia-pytriton"), found.path.name)


def _added() -> list[Row]:
    """What other packages add."""
    rows = []
    for group, find in _FINDS.items():
        for entry in plugins.registered(group):
            try:
                found, own = find(entry.name), plugins.load(entry, object)
                taken = (found if isinstance(found, type) else type(found)) is not own
                note = "left out: another has this name" if taken else ""
            except (PluginError, ImportError) as e:  # networks cannot be asked without PyTorch
                note = str(e)
            package = entry.dist
            does = f"from {package.name}" if package else "from another package"
            name = f"{plugins.kind(group)} {entry.name}"
            rows.append(Row(name, does, not note, package.version if package else None, note))
    return rows


_FINDS: dict[str, Callable[[str], Any]] = {
    plugins.NETWORKS: lambda name: importlib.import_module("r2mrf_deploy.networks").get(name),
    plugins.EXPORTERS: lambda name: exporter(Path(f"x.{name}")),
    plugins.RUNTIMES: runtimes.get,
}
"""The group of entry points -> what finds one of its names, as the commands do."""
