"""The page on hosts of every kind: without headers, without a network, with a newer version, with damaged files."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from r2mrf_deploy.web import DIGITS
from tests.web.conftest import Open, plain_host
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
