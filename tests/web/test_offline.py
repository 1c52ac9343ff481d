"""The page on hosts of every kind: without headers, without a network, with a newer version, with damaged files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from r2mrf_deploy.web import DIGITS
from tests.web.conftest import Open, PlainHost, plain_host
from tests.web.driving import file, give, photograph, settled, until

pytestmark = pytest.mark.artifact
STATE = "document.querySelector('#state').innerText"
KEPT = "navigator.serviceWorker.getRegistration().then((found) => found?.active?.state === 'activated')"


def cat() -> bytes:
    return file(photograph("chelsea", 150, 225), "PNG")


def analyse(page: Any) -> None:
    give(page, ("cat.png", cat()))
    settled(page)
    assert "in focus" in page.inner_text("#verdict")


def kept(page: Any) -> None:
    """Wait until the service worker has stored the page."""
    until(page, READY)
    for _ in range(600):
        if page.evaluate(KEPT):
            return
        page.wait_for_timeout(50)
    raise AssertionError("the service worker was not activated")


READY = f"{STATE}.includes('is ready')"


def test_the_second_visit_is_isolated_and_a_later_one_needs_no_network(opened: Open, site: Path) -> None:
    with plain_host(site) as address:
        page = opened(address=address)
        until(page, READY)
        assert not page.evaluate("crossOriginIsolated")
        assert "WebAssembly, 1 thread." in page.evaluate(STATE)
        if page.evaluate("navigator.hardwareConcurrency") > 1:
            assert "Load this page again" in page.evaluate(STATE)
        kept(page)
        page.reload()
        until(page, READY)
        assert page.evaluate("crossOriginIsolated")
        cores = page.evaluate("Math.min(4, navigator.hardwareConcurrency)")
        assert page.evaluate("r2mrf.ready.then(({ threads }) => threads)") == cores
        analyse(page)
    page.reload()  # the host is gone
    until(page, READY)
    analyse(page)
    page.said[:] = [
        said for said in page.said if "ERR_CONNECTION_REFUSED" not in said
    ]  # what Chromium logs of that host


def test_a_newer_version_replaces_the_older(opened: Open, site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    index = folder / "index.html"
    version = "f" * DIGITS
    with plain_host(folder) as address:
        page = opened(address=address)
        kept(page)
        old = page.evaluate("JSON.parse(document.querySelector('#artifact').textContent).version")
        index.write_text(index.read_text().replace(f'"version":"{old}"', f'"version":"{version}"'))
        page.reload()
        assert version in page.inner_text("#made")
        for _ in range(600):
            names = page.evaluate("caches.keys()")
            if len(names) == 1 and names[0].endswith(version):
                break
            page.wait_for_timeout(50)
        assert [name.rpartition(" ")[2] for name in names] == [version]


def test_a_damaged_or_missing_file_is_said(opened: Open, site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    (model,) = folder.glob("model-*.onnx")
    content = bytearray(model.read_bytes())
    content[len(content) // 2] ^= 1
    model.write_bytes(content)
    with plain_host(folder) as address:
        page = opened(address=address)
        until(page, "!document.querySelector('#again').hidden")
        assert "is damaged, or belongs to another version of this page. Load the page again." in page.evaluate(STATE)
        give(page, ("cat.png", cat()))
        assert "waiting for the network" in page.inner_text("#pending")
        model.unlink()
        page.click("#again")
        until(page, f"{STATE}.includes('The server has no file model-')")
        shutil.copy(next(site.glob("model-*.onnx")), folder)
        page.click("#again")
        settled(page)
        assert "in focus" in page.inner_text("#verdict")
        page.said[:] = [said for said in page.said if "404" not in said]  # what Chromium logs of the file


def test_a_file_that_is_damaged_where_it_is_kept_is_loaded_again(opened: Open, site: Path) -> None:
    with plain_host(site) as address:
        page = opened(address=address)
        kept(page)
        first = page.evaluate("""async () => {
          const cache = await caches.open((await caches.keys())[0]);
          const { url } = (await cache.keys()).find(({ url }) => url.includes("/model-"));
          const bytes = new Uint8Array(await (await cache.match(url)).arrayBuffer());
          bytes[bytes.length >> 1] ^= 1;
          await cache.put(url, new Response(bytes));
          return bytes[bytes.length >> 1];
        }""")
        page.reload()
        until(page, READY)
        analyse(page)
        for _ in range(100):
            now = page.evaluate("""async () => {
              const cache = await caches.open((await caches.keys())[0]);
              const { url } = (await cache.keys()).find(({ url }) => url.includes("/model-"));
              const bytes = new Uint8Array(await (await cache.match(url)).arrayBuffer());
              return bytes[bytes.length >> 1];
            }""")
            if now != first:
                break
            page.wait_for_timeout(50)
        assert now == first ^ 1


def test_nothing_damaged_is_kept(opened: Open, site: Path, tmp_path: Path) -> None:
    """The page works, and is neither offline nor isolated until the host has the right file."""
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    (sample,) = folder.glob("sample-*")
    sample.write_bytes(sample.read_bytes() + b"more")
    with plain_host(folder) as address:
        page = opened(address=address)
        until(page, READY)
        for _ in range(600):
            if page.evaluate("navigator.serviceWorker.getRegistration().then((found) => !found)"):
                break
            page.wait_for_timeout(50)
        assert page.evaluate("caches.keys()") == []
        page.reload()
        until(page, READY)
        assert not page.evaluate("crossOriginIsolated")


def test_pages_below_and_after_the_page_are_left_alone(opened: Open, site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    (folder / "below").mkdir()
    other = "<!doctype html><title>Another</title><link rel=icon href=data:,>"
    for name in ("other.html", "below/index.html"):
        (folder / name).write_text(other)
    with plain_host(folder) as address:
        page = opened(address=address)
        kept(page)
        page.reload()
        until(page, "crossOriginIsolated")
        for name in ("other.html", "below/"):
            page.goto(address + name)
            assert page.title() == "Another"
            assert not page.evaluate("crossOriginIsolated")
        (folder / "index.html").write_text(other)
        page.goto(address)
        assert page.title() == "Another"
        assert not page.evaluate("crossOriginIsolated")
        assert page.evaluate("caches.keys()") == []
        assert page.evaluate("navigator.serviceWorker.getRegistration().then((found) => !found)")


@pytest.mark.parametrize("gone", [True, False])
def test_a_page_that_is_gone_is_not_shown_from_the_cache(
    opened: Open, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gone: bool
) -> None:
    """And one whose host fails is."""
    with plain_host(site) as address:
        page = opened(address=address)
        kept(page)
        monkeypatch.setattr(PlainHost, "do_GET", lambda host: host.send_error(410 if gone else 503))
        assert page.reload().status == (410 if gone else 200)
        if not gone:
            until(page, READY)
        assert page.evaluate("caches.keys().then((names) => names.length)") == (0 if gone else 1)
        page.wait_for_timeout(500)  # Chromium logs it for the page and for the service worker, a little later
        page.said[:] = [said for said in page.said if "410" not in said and "503" not in said]


def test_an_open_tab_keeps_its_files_when_a_newer_version_comes(opened: Open, site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "site"
    shutil.copytree(site, folder)
    index = folder / "index.html"
    with plain_host(folder) as address:
        page = opened(address=address)
        kept(page)
        old = page.evaluate("JSON.parse(document.querySelector('#artifact').textContent).version")
        index.write_text(index.read_text().replace(f'"version":"{old}"', f'"version":"{"f" * DIGITS}"'))
        second = page.context.new_page()
        second.goto(address)
        for _ in range(600):
            if second.evaluate("navigator.serviceWorker.getRegistration().then((found) => Boolean(found?.waiting))"):
                break
            second.wait_for_timeout(50)
        names = page.evaluate("caches.keys()")
        assert sorted(name.rpartition(" ")[2] for name in names) == sorted([old, "f" * DIGITS])


def test_a_page_from_a_file_says_that_it_needs_a_server(browser: Any, site: Path) -> None:
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())
    page.get_by_text("it has to come from a server: r2mrf serve FOLDER").wait_for(timeout=10_000)
    page.close()


def test_without_javascript_the_page_says_so(browser: Any, served: str) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(served)
    assert page.locator("noscript p").is_visible()
    assert page.locator("#drop").is_hidden()
    context.close()


@pytest.mark.parametrize(
    ("script", "said"),
    [("WebAssembly.validate = () => false", "SIMD"), ("delete window.OffscreenCanvas", "OffscreenCanvas"),
     ("delete window.DecompressionStream", "DecompressionStream"), ("delete window.WebAssembly", "WebAssembly")],
)  # fmt: skip
def test_what_a_browser_lacks_is_named(browser: Any, served: str, script: str, said: str) -> None:
    page = browser.new_page()
    page.add_init_script(script)
    page.goto(served)
    assert said in page.inner_text("#notice")
    assert page.locator("#intake").is_hidden()
    page.close()


def test_a_browser_that_alters_pixels_is_found_out(browser: Any, served: str) -> None:
    """As some do against fingerprinting: a map of altered pixels would be wrong."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(served)
    until(page, READY)
    next(worker for worker in page.workers if "worker-" in worker.url).evaluate("""() => {
      const { getImageData } = OffscreenCanvasRenderingContext2D.prototype;
      OffscreenCanvasRenderingContext2D.prototype.getImageData = function (...given) {
        const image = getImageData.apply(this, given);
        image.data[0] ^= 1;
        return image;
      };
    }""")
    give(page, ("cat.png", cat()))
    until(page, "document.querySelector('#pending.failed')")
    assert "against fingerprinting" in page.inner_text("#pending")
    context.close()
