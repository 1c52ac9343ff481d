"""The page is used by pointer, keyboard and screen reader, at any width, in light and dark; photographs come in by every
way, and results go out."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.web.conftest import Open
from tests.web.driving import array, call, encoded, file, give, luminance, photograph, settled, until

pytestmark = pytest.mark.artifact
READY = "document.querySelector('#state').innerText.includes('is ready')"


def cat(height: int = 150, width: int = 225) -> bytes:
    return file(photograph("chelsea", height, width), "PNG")


@pytest.fixture
def filled(opened: Open) -> Any:
    """The page with two photographs and a file that is none."""
    page = opened()
    give(page, ("cat.png", cat()), ("coffee.png", file(photograph("coffee", 120, 180), "PNG")), ("text.png", b"text"))
    settled(page)
    return page


# Ways in


def test_the_sample_is_analysed(opened: Open) -> None:
    page = opened()
    page.click("text=Try the sample")
    settled(page)
    assert page.inner_text("#verdict") == "A part of it is in focus"
    table = page.inner_text("#found")
    for text in ("In focus", "Subject", "Mean confidence", "Peak confidence", "451 × 300 pixels", "400 × 266 pixels",
                 "decode", "fit", "network", "WebAssembly"):  # fmt: skip
        assert text in table
    assert page.locator("#said").inner_text().startswith("sample.jpg: A part of it is in focus; ")
    assert page.locator("#strip").is_hidden()


def test_photographs_that_come_while_the_network_loads_wait_for_it(opened: Open) -> None:
    """Also some that come one directly after the other."""
    page = opened()
    give(page, ("a.png", cat()))
    give(page, ("b.png", cat(90, 120)))
    assert page.locator(".thumb").count() == 2
    settled(page)
    assert page.locator(".thumb.done").count() == 2
    assert page.inner_text("#name") == "b.png"


def test_a_picture_is_pasted(opened: Open) -> None:
    page = opened()
    page.evaluate("""(text) => {
      const data = new DataTransfer();
      data.items.add(new File([Uint8Array.from(atob(text), (c) => c.charCodeAt(0))], 'image.png', { type: 'image/png' }));
      dispatchEvent(new ClipboardEvent('paste', { clipboardData: data }));
    }""", encoded(cat()))  # fmt: skip
    settled(page)
    assert page.inner_text("#name") == "pasted.png"


def test_the_camera_takes_a_photograph_and_shows_what_is_in_focus_live(opened: Open) -> None:
    page = opened()
    until(page, "!document.querySelector('#use-camera').hidden && " + READY)
    page.click("#use-camera")
    until(page, "document.querySelector('#video').videoWidth")
    page.check("#live")
    until(page, "!document.querySelector('#live-view').hidden")
    until(page, "document.querySelector('#camera-state').innerText.includes('a frame')")
    page.uncheck("#live")
    page.click("#take")
    settled(page)
    assert not page.locator("#camera").is_visible()
    assert re.fullmatch(r"camera-\d{6}\.png", page.inner_text("#name"))
    assert page.evaluate("document.querySelector('#video').srcObject") is None  # its light is off


def test_a_camera_that_is_refused_is_explained(opened: Open) -> None:
    page = opened()
    page.evaluate("""() => {
      navigator.mediaDevices.getUserMedia = async () => { throw new DOMException('no', 'NotAllowedError'); };
    }""")
    until(page, "!document.querySelector('#use-camera').hidden")
    page.click("#use-camera")
    until(page, "document.querySelector('#camera-state').innerText.includes('was not permitted')")
    assert page.locator("#take").is_disabled()
    page.keyboard.press("Escape")
    assert not page.locator("#camera").is_visible()


# What is shown


def shown(page: Any, canvas: str) -> np.ndarray:
    """The pixels of a canvas."""
    height, width, pixels = call(
        page,
        "const canvas = document.querySelector(name); const { width, height } = canvas;"
        "const copy = new OffscreenCanvas(width, height).getContext('2d', { willReadFrequently: true });"
        "copy.drawImage(canvas, 0, 0);"
        "return [height, width, text(copy.getImageData(0, 0, width, height).data)];",
        name=canvas,
    )
    return array(pixels, np.uint8, height, width, 4)[:, :, :3]


def test_the_divider_follows_the_pointer_and_the_keys(filled: Any) -> None:
    page = filled
    box = page.locator("#frame").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 4, box["y"] + 90)
    assert page.input_value("#split") == "25"
    page.mouse.move(box["x"] - 99, box["y"] + 90)  # beyond the picture
    assert page.input_value("#split") == "0"
    page.mouse.up()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
    assert page.input_value("#split") == "0"
    page.focus("#split")
    page.keyboard.press("ArrowRight")
    assert page.input_value("#split") == "1"
    page.keyboard.press("End")
    assert page.input_value("#split") == "100"
    assert page.locator("#split").get_attribute("aria-valuetext") == "100 percent of the width shows the photograph"
    assert page.evaluate("getComputedStyle(document.querySelector('#after')).clipPath") == "inset(0px 0px 0px 100%)"


def test_a_finger_moves_the_divider(opened: Open) -> None:
    page = opened(has_touch=True)
    give(page, ("cat.png", cat()))
    settled(page)
    box = page.locator("#frame").bounding_box()
    page.touchscreen.tap(box["x"] + box["width"] * 0.75, box["y"] + 50)
    assert page.input_value("#split") == "75"


def test_overlay_map_and_photograph(filled: Any) -> None:
    """The photograph is that of the file; the map is grey; the overlay has a yellow line."""
    page = filled
    original = np.asarray(photograph("chelsea", 150, 225))
    assert np.array_equal(shown(page, "#before"), original)
    overlay = shown(page, "#after")
    assert (overlay == (255, 210, 0)).all(axis=2).any()
    page.get_by_role("radio", name="Map").check(force=True)
    grey = shown(page, "#after")
    assert np.ptp(grey, axis=2).max() == 0 and grey.std() > 20
    page.get_by_role("radio", name="Photograph").check(force=True)
    assert page.locator("#after").is_hidden()
    assert page.locator("#handle").is_hidden()


def test_what_is_saved(filled: Any) -> None:
    page = filled
    with page.expect_download() as download:
        page.click("#save-map")
    assert download.value.suggested_filename == "cat_map.png"
    with Image.open(download.value.path()) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "L", (225, 150))
        assert np.asarray(image).std() > 20
    with page.expect_download() as download:
        page.click("#save-overlay")
    assert download.value.suggested_filename == "cat_overlay.jpg"
    with Image.open(io.BytesIO(download.value.path().read_bytes())) as image:
        assert (image.format, image.size) == ("JPEG", (225, 150))


def test_more_photographs_than_are_kept_drawn(opened: Open) -> None:
    """What is shown again after it was dropped from memory is drawn again, from its file."""
    page = opened()
    give(page, *((f"{n}.png", file(photograph("chelsea", 40 + n, 60), "PNG")) for n in range(7)))
    settled(page)
    for number in (6, 0, 3):
        page.locator(".thumb").nth(number).click()
        until(
            page,
            f"document.querySelector('#before').height === {40 + number} && !document.querySelector('#frame').hidden",
        )
        assert np.array_equal(shown(page, "#before"), np.asarray(photograph("chelsea", 40 + number, 60)))
    page.click("#clear")
    assert page.locator("#result").is_hidden()
    assert page.locator("#drop .invite").is_visible()
    give(page, ("again.png", cat()))
    settled(page)
    assert page.inner_text("#name") == "again.png"


def test_detail_analyses_the_photograph_again(opened: Open) -> None:
    page = opened()
    give(page, ("cat.png", cat(600, 900)))
    settled(page)
    assert "400 × 267 pixels" in page.inner_text("#details")
    page.select_option("#detail", "640")
    until(page, "document.querySelector('#details').innerText.includes('640 × 427 pixels')")


# Keyboard, screen readers


def focused(page: Any) -> str:
    return page.evaluate("document.activeElement.id || document.activeElement.querySelector('.called')?.textContent "
                         "|| document.activeElement.value || document.activeElement.tagName")  # fmt: skip


def test_everything_is_reached_by_the_keyboard(filled: Any) -> None:
    page, order = filled, []
    page.evaluate("document.activeElement.blur()")
    for _ in range(30):
        page.keyboard.press("Tab")
        order.append(focused(page))
        if order[-1] == "licences":
            break
        ring = page.evaluate("""() => {
          const element = document.activeElement;
          const shown = { split: '#handle span', overlay: '.choices span' }[element.id || element.value];
          return getComputedStyle(shown ? document.querySelector(shown) : element).outlineWidth;
        }""")
        assert ring == "3px", order[-1]
    expected = [
        "choose",
        "use-camera",
        "try",
        "clear",
        "split",
        "overlay",
        "cat.png",
        "save-map",
        "save-overlay",
        "detail",
    ]
    assert [name for name in order if name in expected] == [name for name in expected if name in order]
    assert {"choose", "try", "clear", "split", "overlay", "cat.png", "save-map", "save-overlay", "detail", "SUMMARY",
            "licences"} <= set(order)  # fmt: skip


def test_the_row_of_photographs_is_one_stop_and_arrows_move_in_it(filled: Any) -> None:
    page = filled
    assert page.locator(".thumb[tabindex='0']").count() == 1
    page.locator(".thumb").first.focus()
    keys = [("ArrowLeft", 0), ("ArrowRight", 1), ("End", 2), ("ArrowRight", 2), ("ArrowLeft", 1), ("Home", 0)]
    for key, number in keys:
        name = ("cat.png", "coffee.png", "text.png")[number]
        page.keyboard.press(key)
        assert focused(page) == name
        assert page.inner_text("#name") == name
        assert page.locator(".thumb[aria-current='true']").inner_text().startswith(name)


def test_a_photograph_is_chosen_by_the_keyboard_alone(opened: Open) -> None:
    page, choosers = opened(), list[Any]()
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    until(page, READY)  # by when Playwright has told Chromium that it answers for the dialog
    page.keyboard.press("Tab")
    assert focused(page) == "choose"
    page.keyboard.press("Enter")
    while not choosers:
        page.wait_for_timeout(20)
    assert choosers[0].is_multiple()
    choosers[0].set_files([{"name": "cat.png", "mimeType": "image/png", "buffer": cat()}])
    settled(page)
    assert page.inner_text("#name") == "cat.png"


CONTROLS = {"button", "link", "radio", "slider", "combobox", "checkbox", "DisclosureTriangle", "progressbar"}


def test_every_control_has_a_name(filled: Any) -> None:
    """In the tree that Chromium gives to screen readers."""
    page = filled
    page.locator("summary").click()
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    controls = [n for n in nodes if not n.get("ignored") and n["role"]["value"] in CONTROLS]
    assert len(controls) >= 14
    assert [n for n in controls if not n.get("name", {}).get("value")] == []
    names = {n["role"]["value"]: n["name"]["value"] for n in controls}
    assert names["slider"] == "Divider between the photograph and the overlay"
    images = [n["name"]["value"] for n in nodes if not n.get("ignored") and n["role"]["value"] in ("img", "image")]
    assert "The photograph" in images and "" not in images
    assert {n["role"]["value"] for n in nodes} >= {"status", "main", "banner", "contentinfo", "region", "heading"}


# Looks


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_no_width_scrolls_sideways(opened: Open, width: int) -> None:
    page = opened(is_mobile=width < 400, has_touch=width < 400)
    page.set_viewport_size({"width": width, "height": 700})
    fits = "document.documentElement.scrollWidth <= innerWidth && visualViewport.scale === 1"
    page.locator("summary").click()
    assert page.evaluate(fits)
    give(page, ("a" * 150 + ".png", cat()), ("tall.png", cat(300, 20)), ("b" * 150, b"text"))
    settled(page)
    for number in range(3):
        page.locator(".thumb").nth(number).click()
        page.wait_for_timeout(50)
        assert page.evaluate(fits), number
    if width < 400:
        small = page.evaluate("""() => [...document.querySelectorAll('button, select, summary, a, .choices label')]
          .filter((element) => element.offsetParent && element.getBoundingClientRect().height < 44)
          .map((element) => element.id || element.className || element.tagName)""")
        assert small == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(opened: Open, scheme: str) -> None:
    """At least 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    page = opened(color_scheme=scheme)
    give(page, ("cat.png", cat()), ("text.png", b"text"))
    settled(page)

    def of(element: str, what: str) -> float:
        return luminance(page.evaluate(f"getComputedStyle(document.querySelector('{element}')).{what}"))

    pairs = {
        "h1": "body", ".lead": "body", "#state": "body", "#choose": "#choose", "#clear": "#clear", "#verdict": ".facts",
        "th span": ".facts", "table.small th": ".facts", ".thumb .what": ".thumb", ".thumb.failed .what": ".thumb",
        "#key": "body", "footer": "body", ".choices input:checked + span": ".choices input:checked + span",
    }  # fmt: skip
    for text, ground in pairs.items():
        low, high = sorted((of(text, "color"), of(ground, "backgroundColor")))
        assert (high + 0.05) / (low + 0.05) >= 4.5, text
    dark = of("body", "backgroundColor") < 0.1
    assert dark == (scheme == "dark")


def test_nothing_moves_when_the_result_comes(opened: Open) -> None:
    """From a photograph that is being analysed to its result, what is around it stays where it is."""
    page = opened()
    until(page, READY)
    page.evaluate("""() => {
      const { map } = r2mrf;
      r2mrf.map = async (...given) => {
        await new Promise((resolve) => { window.go = resolve; });
        return map.apply(r2mrf, given);
      };
    }""")
    give(page, ("cat.png", cat()))
    until(page, "window.go")
    page.evaluate("""() => {
      window.shifts = [];
      const observer = new PerformanceObserver((list) => shifts.push(...list.getEntries().map(({ value }) => value)));
      observer.observe({ type: 'layout-shift', buffered: false });
      go();
    }""")
    settled(page)
    page.wait_for_timeout(300)
    assert page.evaluate("shifts.reduce((sum, value) => sum + value, 0)") < 0.1  # what is called good (web.dev, CLS)


# What goes wrong


def reopened(page: Any, query: str = "") -> None:
    """Load a page that was opened with `?ui=0` as a person does, after the test has prepared it."""
    page.goto(page.url.removesuffix("?ui=0") + query)


def test_a_worker_that_does_not_start_is_said_and_tried_again(opened: Open) -> None:
    page = opened("?ui=0")
    page.route("**/worker-*.js", lambda route: route.abort())
    reopened(page)
    until(page, "!document.querySelector('#again').hidden")
    assert page.inner_text("#state").startswith("The worker of this page cannot be started. Load the page again")
    assert page.locator("#loading").is_hidden()
    give(page, ("cat.png", cat()))
    assert "waiting for the network" in page.inner_text("#pending")
    page.unroute("**/worker-*.js")
    page.click("#again")
    settled(page)
    assert page.inner_text("#verdict") == "A part of it is in focus"
    assert " is ready: " in page.inner_text("#state")
    page.said[:] = [said for said in page.said if "ERR_FAILED" not in said]  # what Chromium logs of the file


def test_the_progress_of_loading_is_not_read_out(opened: Open) -> None:
    """What screen readers read is that it begins and that it is ready."""
    page = opened("?ui=0")
    page.add_init_script("""addEventListener('DOMContentLoaded', () => {
      window.heard = [];
      new MutationObserver(() => heard.push(document.querySelector('#state').textContent))
        .observe(document.querySelector('#state'), { childList: true, characterData: true, subtree: true });
    })""")
    reopened(page)
    until(page, READY)
    assert len(page.evaluate("[...new Set(heard)]")) <= 2
    assert page.locator("#loaded").is_hidden()


@pytest.mark.parametrize("threads", ["-1", "0", "1.5", "many", "Infinity"])
def test_threads_that_are_no_number_of_them_are_the_default(opened: Open, threads: str) -> None:
    page = opened(f"?ui=0&threads={threads}")
    assert page.evaluate("r2mrf.threads === (crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1)")


def choose(page: Any, provider: str) -> None:
    """Choose what runs the network, also where the page shows no choice for want of WebGPU."""
    page.evaluate("""(provider) => {
      const select = document.querySelector('#provider');
      select.value = provider;
      select.dispatchEvent(new Event('change'));
    }""", provider)  # fmt: skip


def test_webgpu_that_does_not_start_takes_no_result_away(opened: Open) -> None:
    page = opened("?ui=0")
    page.route("**/ort.webgpu*", lambda route: route.abort())  # if there is a graphics card, its program is missing
    reopened(page)
    give(page, ("cat.png", cat()))
    settled(page)
    choose(page, "webgpu")
    until(page, "!document.querySelector('#again').hidden")
    assert page.locator("#frame").is_visible()
    assert page.inner_text("#verdict") == "A part of it is in focus"
    choose(page, "wasm")
    until(page, READY)
    settled(page)
    assert page.inner_text("#verdict") == "A part of it is in focus"
    page.said[:] = [said for said in page.said if "ERR_FAILED" not in said]


def test_whoever_asked_for_webgpu_can_leave_it(opened: Open) -> None:
    page = opened("?ui=0")
    page.add_init_script("Object.defineProperty(Navigator.prototype, 'gpu', { get: () => undefined })")
    page.route("**/ort.webgpu*", lambda route: route.abort())
    reopened(page, "?provider=webgpu")
    until(page, "!document.querySelector('#again').hidden")
    page.select_option("#provider", "wasm")
    until(page, READY)
    page.said[:] = [said for said in page.said if "ERR_FAILED" not in said]


def test_a_result_that_is_drawn_again_outlives_another_network(opened: Open) -> None:
    """The network is changed while a photograph that was dropped from memory is drawn: it is drawn once more."""
    page = opened()
    give(page, *((f"{n}.png", file(photograph("chelsea", 40 + n, 60), "PNG")) for n in range(7)))
    settled(page)
    page.evaluate("""() => {
      const { draw } = r2mrf;
      window.drawn = 0;
      r2mrf.draw = (...given) => {
        drawn += 1;
        if (drawn === 1) setTimeout(() => r2mrf.use('wasm'));
        return draw.apply(r2mrf, given);
      };
    }""")
    page.locator(".thumb").nth(3).click()
    settled(page)
    assert page.locator(".thumb.done").count() == 7
    assert np.array_equal(shown(page, "#before"), np.asarray(photograph("chelsea", 43, 60)))


def test_a_camera_that_comes_late_is_stopped(opened: Open) -> None:
    """Its dialog was closed and opened again before the first answer came."""
    page = opened()
    until(page, "!document.querySelector('#use-camera').hidden")
    page.evaluate("""() => {
      window.streams = [];
      window.answers = [];
      const { mediaDevices } = navigator;
      const ask = mediaDevices.getUserMedia.bind(mediaDevices);
      mediaDevices.getUserMedia = async (given) => {
        await new Promise((resolve) => answers.push(resolve));
        streams.push(await ask(given));
        return streams.at(-1);
      };
    }""")
    page.click("#use-camera")
    page.keyboard.press("Escape")
    page.click("#use-camera")
    until(page, "answers.length === 2")
    page.evaluate("answers.forEach((answer) => answer())")
    running = "streams.filter((stream) => stream.getTracks().some(({ readyState }) => readyState === 'live')).length"
    until(page, f"streams.length === 2 && {running} === 1")
    until(page, "!document.querySelector('#take').disabled")
    page.click("#camera-close")
    until(page, f"{running} === 0")
    assert page.locator("#take").is_disabled()
