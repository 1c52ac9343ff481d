"""The page of r2mrf-lite, a server for it, and Chromium.

Every test of the page watches it: in the end it may have asked no other host for anything, and neither an error nor a
violation of its policy may have been logged.
"""

from __future__ import annotations

import http.server
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from r2mrf_deploy import weights
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.runtimes.web import browser as chromium
from r2mrf_deploy.runtimes.web.site import Server
from r2mrf_deploy.web import library
from tests.conftest import Once

CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
"""Chromium's own test picture for a camera, and no question whether a page may use it."""


@pytest.fixture(scope="session")
def site(once: Once) -> Path:
    """The folder of the page."""
    if reason := library.missing() or chromium.missing()[0]:
        pytest.skip(reason)
    return once("web-site", lambda folder: build_artifact(weights.artifact("r2mrf-lite"), folder / "index.html"))


@pytest.fixture(scope="session")
def served(site: Path) -> Iterator[str]:
    """The address of the page on the project's own server."""
    with Server(Artifact.open(site / "index.html")) as server:
        yield server.address


class PlainHost(http.server.SimpleHTTPRequestHandler):
    """A static host that sends no headers of its own choice, and lets browsers keep nothing."""

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "no-store")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def plain_host(folder: Path, port: int = 0) -> Iterator[str]:
    """Serve a folder as a static host does, for as long as the `with` block lasts."""

    def handler(*given: Any) -> PlainHost:
        return PlainHost(*given, directory=str(folder))

    handler_types = {".mjs": "text/javascript", ".js": "text/javascript"}
    PlainHost.extensions_map = PlainHost.extensions_map | handler_types
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), handler) as host:
        thread = threading.Thread(target=host.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{host.server_port}/"
        host.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    if reason := chromium.missing()[0]:
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as started:
        running = started.chromium.launch(executable_path=str(chromium.program()), args=["--no-sandbox", *CAMERA])
        yield running
        running.close()


Open = Callable[..., Any]


@pytest.fixture
def opened(browser: Any, served: str) -> Iterator[Open]:
    """`opened(address="", **context)`: the page in a browser's new context, watched. `page.said` are its messages.

    A test that provokes an error takes it out of `page.said`.
    """
    contexts, said = [], list[str]()

    def watch(page: Any, address: str) -> None:
        page.set_default_timeout(30_000)
        page.on("console", lambda message: said.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: said.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        own = ("data:", "blob:", address)
        page.context.on("request", lambda r: r.url.startswith(own) or said.append(f"request: {r.url}"))
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error('violation', e.blockedURI))"
        )

    def open_page(query: str = "", address: str = "", **context: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 900}, **context))
        page = contexts[-1].new_page()
        watch(page, address or served)
        page.said = said
        page.goto((address or served) + query)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not said
