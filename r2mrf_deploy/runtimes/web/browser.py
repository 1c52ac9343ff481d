"""Chromium without a window, driven by Playwright from a thread of its own.

Playwright belongs to the thread that started it, while runners are called from many. So it runs in an event loop in its own
thread, where a call can also be given up. If this process ends in any way, Playwright's driver ends the browser. The profile
is removed with it, unless the process was killed: then a folder `playwright_...` stays among the temporary files.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import re
import shutil
import subprocess
import sys
import threading
import weakref
from collections.abc import Coroutine
from concurrent.futures import CancelledError, Future, TimeoutError
from contextlib import AbstractContextManager, suppress
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from r2mrf_deploy import environment
from r2mrf_deploy.errors import R2mrfError, RuntimeUnavailable, first_line

VARIABLE = "R2MRF_CHROMIUM"
"""The environment variable that names the browser's program."""
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "msedge", "microsoft-edge")
CURE = f"install Chromium (Debian: apt-get install chromium), or name its program in {VARIABLE}"
STARTING = 60.0
"""Seconds for the browser to start, and for it to end."""
WEBGPU = ("--enable-unsafe-webgpu", "--enable-features=Vulkan", "--ignore-gpu-blocklist")
"""What Chromium needs in order to offer WebGPU without a window; without a GPU it is SwiftShader's, on the processor."""

T = TypeVar("T")


class BrowserFailed(R2mrfError):
    """A browser that ended, or a script that failed in it; the message is the script's own."""


def program() -> Path | None:
    """The browser's program: the one that the environment names, one on the PATH, or one of Playwright's own."""
    if named := os.environ.get(VARIABLE):
        return Path(found) if (found := shutil.which(named)) else None
    for name in NAMES:
        if found := shutil.which(name):
            return Path(found)
    return next((file for folder in _downloads() for file in _in_downloads(folder)), None)


def _downloads() -> list[Path]:
    """Where Playwright keeps the browsers that it downloads."""
    own = os.environ.get("PLAYWRIGHT_BROWSERS_PATH")
    home = {"darwin": "~/Library/Caches", "win32": os.environ.get("LOCALAPPDATA", "~")}.get(sys.platform, "~/.cache")
    return [Path(own)] if own else [Path(home).expanduser() / "ms-playwright"]


def _in_downloads(folder: Path) -> list[Path]:
    places = ("chrome-linux*/chrome", "chrome-mac*/*.app/Contents/MacOS/*", "chrome-win*/chrome.exe")
    return [file for place in places for file in sorted(folder.glob(f"chromium-*/{place}"), reverse=True)]


def missing() -> tuple[str, str]:
    """What a browser needs and is not here, and how to get it; empty if nothing is missing."""
    if not environment.importable("playwright"):
        return "playwright is not installed", environment.installs("playwright")
    if program() is None:
        named = os.environ.get(VARIABLE)
        return (f"{VARIABLE} names no program: {named}" if named else "there is no Chromium"), CURE
    return "", ""


@cache
def version(chromium: Path) -> str | None:
    """The browser's name and version; None if it does not say."""
    try:
        done = subprocess.run([chromium, "--version"], capture_output=True, text=True, timeout=STARTING, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r"([A-Z][\w ]*?) ?(\d+(\.\d+)+)", done.stdout)
    return f"{found[1]} {found[2]}" if found else None


class Browser(AbstractContextManager["Browser"]):
    """One browser with one page."""

    def __init__(self, *arguments: str) -> None:
        """Start a browser, with an empty profile that is removed at the end.

        Raises:
            RuntimeUnavailable: a browser or Playwright is missing, or the browser does not start.
        """
        reason, cure = missing()
        if reason:
            raise RuntimeUnavailable(f"{reason}; {cure}")
        sandbox = [] if getattr(os, "geteuid", lambda: 1)() else ["--no-sandbox"]  # Chromium has none for root
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True, name="browser")
        self._thread.start()
        self._playwright: Any = None
        self._browser: Any = None
        self._page: Any = None
        self._calls: set[Future[Any]] = set()
        _open.add(self)
        try:
            self._wait(self._start([*sandbox, *arguments]), 2 * STARTING)
        except BaseException as e:
            self.close()
            if isinstance(e, BrowserFailed):
                raise RuntimeUnavailable(f"{program()} does not start: {e}") from None
            raise

    @property
    def version(self) -> str:
        return f"Chromium {self._browser.version}"

    def goto(self, address: str, seconds: float) -> None:
        """Open an address in the page."""
        self._wait(self._page.goto(address, timeout=seconds * 1e3), seconds + STARTING)

    def blank(self) -> None:
        """Open an empty page that browsers trust as they do one of this machine; nothing is asked for over a network."""

        async def answer(route: Any) -> None:
            await route.fulfill(body="<!doctype html>", content_type="text/html")

        self._wait(self._page.route("**/*", answer), STARTING)
        self.goto("http://127.0.0.1/", STARTING)

    def call(self, script: str, argument: Any = None, *, seconds: float) -> Any:
        """Call an asynchronous function of JavaScript in the page.

        Raises:
            BrowserFailed: it threw an error, did not end in time, or the browser ended.
        """
        return self._wait(self._page.evaluate(script, argument), seconds)

    def abandon(self) -> None:
        """Give up the calls that are under way."""
        for call in list(self._calls):
            call.cancel()

    def close(self) -> None:
        """End the browser. It may be called twice, and from any thread."""
        _open.discard(self)
        if not self._thread.is_alive():
            return
        self.abandon()
        with suppress(BrowserFailed, RuntimeUnavailable):
            self._wait(self._stop(), STARTING)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(STARTING)
        if not self._thread.is_alive():
            self._loop.close()

    def __exit__(self, *_: object) -> None:
        self.close()

    async def _start(self, arguments: list[str]) -> None:
        from playwright.async_api import async_playwright

        self._playwright = await async_playwright().start()
        self._browser = await self._playwright.chromium.launch(
            executable_path=str(program()), args=arguments, headless=True, timeout=STARTING * 1e3
        )
        self._page = await self._browser.new_page()

    async def _stop(self) -> None:
        if self._browser is not None:
            with suppress(Exception):  # it may have ended already, in any way
                await self._browser.close()
        if self._playwright is not None:
            with suppress(Exception):
                await self._playwright.stop()

    def _wait(self, work: Coroutine[Any, Any, T], seconds: float) -> T:
        """Do something in the browser's thread, and wait for it."""
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop is closed
            work.close()
            raise BrowserFailed("it was closed") from None
        self._calls.add(future)
        try:
            return future.result(seconds)
        except TimeoutError:
            raise BrowserFailed(f"it did not answer within {seconds:g} s") from None
        except CancelledError:
            raise BrowserFailed("it was given up") from None
        except R2mrfError:
            raise
        except Exception as e:  # Playwright's own, or one about its driver that ended
            raise BrowserFailed(_said(e)) from None
        finally:
            future.cancel()
            self._calls.discard(future)


_open: weakref.WeakSet[Browser] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    for browser in list(_open):
        browser.close()


def _said(error: Exception) -> str:
    """What an error of Playwright says, without its own words around it."""
    return re.sub(r"^(\w+\.\w+: )?((\w*Error): )?", "", first_line(error)) or type(error).__name__
