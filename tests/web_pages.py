"""Web pages for tests: what they need, and how to write one without running it."""

from __future__ import annotations

from pathlib import Path

import pytest

from r2mrf_deploy.artifact import Artifact, publish
from r2mrf_deploy.export.options import FormatOptions
from r2mrf_deploy.export.web import WebExporter
from r2mrf_deploy.progress import silent
from r2mrf_deploy.runtimes.web import browser
from r2mrf_deploy.web import library

OPERATORS = "| Conv | ai.onnx(1-10,11+) |  |\n| Cast | ai.onnx(6-8,9-12,13+) |  |\n"


def needs_npm() -> None:
    """Skip a test where ONNX Runtime Web is missing."""
    if reason := library.missing():
        pytest.skip(f"needs ONNX Runtime Web: {reason}; {library.cure()}")


def needs_browser() -> None:
    """Skip a test where a page cannot be made and run."""
    needs_npm()
    reason, cure = browser.missing()
    if reason:
        pytest.skip(f"needs a browser: {reason}; {cure}")


def unchecked(model: Path, folder: Path) -> Artifact:
    """The page of an ONNX artifact, written and published without being compared."""
    source = Artifact.open(model)

    def write(file: Path) -> object:
        return WebExporter().write(source, file, FormatOptions(), silent)[0]

    return publish(folder / "index.html", write, lambda _: [])  # type: ignore[arg-type]


def small_library(folder: Path) -> library.Library:
    """A stand-in for the npm package, of a few bytes, for tests that run nothing."""
    for parts in (library.WASM, library.WEBGPU):
        for name in (parts.script, parts.loader, parts.binary):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(f"/* {name} */".encode())
    (folder / library.OPERATORS).parent.mkdir(exist_ok=True)
    (folder / library.OPERATORS).write_text(OPERATORS)
    return library.Library(folder, library.version())
