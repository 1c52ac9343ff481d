"""Imports go down the data flow, never up, and in no circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[1]

# From the bottom to the top: a module imports its own level and those below it. CONTRIBUTING.md says what each is.
LEVELS = (
    ("errors", "wording"),
    ("files", "archives", "progress", "concurrency", "environment", "gpus", "metrics", "plugins"),
    ("manifest",),
    ("raw_photographs", "image_files", "images", "pixels", "large_images", "drawing", "fitting"),
    ("sample_photographs", "datasets", "protocols", "baselines"),
    ("networks",),
    ("checkpoint_files", "safe_objects", "safetensors_file", "torch_file", "weight_checks", "state_dicts"),
    ("weights", "checkpoint"),
    ("graph",),
    ("web",),
    ("formats", "artifact", "model_cache"),
    ("runtimes",),
    ("predictor",),
    ("parity",),
    ("export",),
    ("bench", "predict"),
    ("evaluation", "calibration", "budget", "compression", "inspection", "doctor", "training", "serving"),
    ("report",),
    ("demo",),
    ("cli",),
    ("__main__",),
)


def modules() -> dict[str, Path]:
    found = {}
    for path in sorted((ROOT / "r2mrf_deploy").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, known: dict[str, Path]) -> set[str]:
    """The modules that a module imports anywhere: in functions and for types too."""
    found = set()
    for node in ast.walk(ast.parse(known[name].read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names if a.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            inner = {f"{node.module}.{a.name}" for a in node.names} & set(known)
            found |= inner or {node.module}
    return found - {name}


def level(module: str) -> int:
    part = module.split(".")[1]
    return next(number for number, parts in enumerate(LEVELS) if part in parts)


def test_every_module_has_a_level_and_imports_none_above_it() -> None:
    known = modules()
    upward = [
        f"{name} imports {other}"
        for name in known
        if name != "r2mrf_deploy"
        for other in imports(name, known)
        if other != "r2mrf_deploy" and level(other) > level(name)
    ]
    assert not upward


def test_no_circle() -> None:
    known = modules()
    graph = {name: imports(name, known) for name in known if name != "r2mrf_deploy"}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(graph)  # raises CycleError, naming it


def test_every_folder_is_on_the_map() -> None:
    """CONTRIBUTING's map names every module and folder of the package."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    parts = {name.split(".")[1] for name in modules() if "." in name}
    assert not [part for part in parts if f"`{part}/`" not in text and f"`{part}.py`" not in text]
