"""The contact sheet sorts, filters and moves as it says, shows outside text as text, and asks for nothing from anywhere.

What a browser does is tested in one: Chromium, without a window.
"""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.predict import scores
from r2mrf_deploy.report import contact_sheet
from r2mrf_deploy.runtimes.web import browser as chromium
from tests.web.driving import luminance

CHROMIUM = chromium.program()
HOSTILE = "\"'></script><script>alert(2)</script>&amp;<img src=x onerror=alert(1)><!--\u2028\u2029"
VERDICTS = ("partial", "all sharp", "all blurred")


def thumbnail(side: int = 24) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (side, side * 2 // 3), (90, 120, 60)).save(content, "JPEG")
    return content.getvalue()


THUMBNAIL = thumbnail()


def row(number: int, **further: Any) -> dict[str, Any]:
    """A photograph whose scores do not rise with its number, and each in its own order."""
    return {
        "source": f"/pictures/{number}.jpg", "href": f"{number}.jpg", "thumbnail": THUMBNAIL, "error": None, "note": None,
        "width": 600, "height": 400, "in_focus": number * 3 % 10 / 10, "mean_confidence": number * 7 % 10 / 10,
        "peak_confidence": 1 - number * 3 % 10 / 20, "subject": (number + 5) % 10 / 10, "roi": None,
        "verdict": VERDICTS[number % 3],
    } | further  # fmt: skip


def failure(number: int) -> dict[str, Any]:
    return {"source": f"/pictures/damaged {number}.jpg", "href": None, "error": f"it is cut off at byte {number}"}


def blocks(path: Path, kind: str = "photograph") -> list[dict[str, Any]]:
    found = re.findall(rf'<script type="application/json" class="{kind}">(.*?)</script>', path.read_text())
    return [json.loads(text) for text in found]


# The file


def test_the_rows_are_a_stream_that_is_written_as_it_comes(tmp_path: Path) -> None:
    """One row is in memory at a time: those before it are in the file."""
    big = thumbnail() + bytes(1 << 20)

    def rows() -> Iterator[dict[str, Any]]:
        for number in range(4):
            yield row(number, thumbnail=big)
            written = sum(file.stat().st_size for file in tmp_path.rglob("*") if file.is_file())
            assert written > (number + 1) * len(big)

    assert contact_sheet.write(tmp_path / "sheet.html", rows(), title="Four") == 4
    assert [b["name"] for b in blocks(tmp_path / "sheet.html")] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]


def test_a_sheet_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "sheet.html"
    contact_sheet.write(path, [row(1)], title="Before")
    before = path.read_bytes()

    def rows() -> Iterator[dict[str, Any]]:
        yield row(2)
        raise OSError(28, "No space left on device")

    with pytest.raises(ArtifactError, match="No space left"):
        contact_sheet.write(path, rows(), title="After")
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "shown", "said"),
    [(5, 3, "The page shows 3 of 5 photographs; all are in predictions.jsonl."), (3, 3, None), (0, 0, None)],
)
def test_photographs_past_the_most_are_counted(tmp_path: Path, number: int, shown: int, said: str | None) -> None:
    path = tmp_path / "sheet.html"
    assert contact_sheet.write(path, map(row, range(number)), title="Some", most=3) == shown
    assert len(blocks(path)) == shown
    assert blocks(path, "summary") == [{"left": said}]


def test_data_cannot_end_its_element_and_is_ascii(tmp_path: Path) -> None:
    path = tmp_path / "sheet.html"
    hostile = row(1, source=f"/pictures/{HOSTILE}\n\udcff\u202e.jpg", note=HOSTILE, verdict=HOSTILE)
    empty, full = tmp_path / "empty.html", tmp_path / "full.html"
    contact_sheet.write(empty, [], title="")
    contact_sheet.write(full, [hostile], title=HOSTILE)
    contact_sheet.write(path, [hostile], title="")
    added = path.read_bytes()[len(empty.read_bytes().split(b'<script type="application/json"')[0]) :]
    assert added.decode("ascii", "ignore").count("<script") == added.decode("ascii", "ignore").count("</script") == 4
    assert "<img src=x" not in full.read_text()
    (facts,) = blocks(full)
    said = HOSTILE.replace("\u2028\u2029", r"\u2028\u2029")
    assert facts["source"] == rf"/pictures/{said}\n\udcff\u202e.jpg"
    assert facts["name"] == facts["source"].rpartition("/")[2]
    assert facts["note"] == facts["verdict"] == said


def test_figures_that_json_has_not_are_none(tmp_path: Path) -> None:
    path = tmp_path / "sheet.html"
    contact_sheet.write(path, [row(1, subject=float("nan"), roi=float("inf"), in_focus=0.0)], title="None")
    (facts,) = blocks(path)
    assert (facts["subject"], facts["roi"], facts["in_focus"]) == (None, None, 0.0)


@pytest.mark.parametrize(
    "address",
    ["https://example.org/a.jpg", "HTTP://example.org", "file:///a/b%20c.jpg", "a.jpg", "../a/b.jpg", "/a.jpg", "a/b:c.jpg",
     "./javascript:a.jpg", "?a:b", "#a:b"],
)  # fmt: skip
def test_an_address_of_a_photograph_is_a_link(address: str) -> None:
    assert contact_sheet.is_safe(address)


@pytest.mark.parametrize(
    "address",
    ["javascript:alert(1)", "JavaScript:alert(1)", " javascript:alert(1)", "java\nscript:alert(1)",
     "\x01javascript:alert(1)", "\tjavascript:alert(1)", "\u00a0javascript:alert(1)", "data:text/html,a", "vbscript:a",
     "blob:https://a/b", "ftp://a/b", "//example.org/a.jpg", " //example.org", "/\\example.org", "\\\\server\\a.jpg"],
)  # fmt: skip
def test_any_other_address_is_none(address: str) -> None:
    assert not contact_sheet.is_safe(address)


def test_the_legend_says_what_the_scores_are() -> None:
    text = " ".join(Path(contact_sheet.__file__).with_suffix(".html").read_text().split())
    assert f"95 % of the map is at least {scores.SURE}" in text
    assert f"95 % of it is at most {1 - scores.SURE:.1f}" in text
    assert f"90 % of it lies within a range of less than {scores.FLAT}" in text
    assert f"where the map is at least {scores.THRESHOLD}" in text
    assert scores.SUBJECT == 0.25
    assert "whose standard deviation is a quarter of each side" in text


# The page

Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Opens a sheet of some rows. In the end nothing may have been asked for, said to the console, or alerted."""
    events: list[str] = []
    context = browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    path = tmp_path / "sheet.html"

    def open_sheet(rows: Any, title: str = "Sheet", width: int = 1280, **further: Any) -> Any:
        contact_sheet.write(path, rows, title=title, **further)
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 800})
        page.set_default_timeout(5_000)
        page.on("console", lambda message: events.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: events.append(f"error: {error}"))
        page.on("dialog", lambda dialog: (events.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        page.on("request", lambda r: r.url.startswith(("data:", path.as_uri())) or events.append(f"request: {r.url}"))
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error('violation', e.blockedURI))"
        )
        page.goto(path.as_uri())
        return page

    yield open_sheet
    context.close()
    assert not events


def until(page: Any, condition: str) -> None:
    """Wait for a JavaScript expression to be true. (The page's policy refuses Playwright's own way, which is `eval`.)"""
    deadline = time.monotonic() + 5
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def names(page: Any) -> list[int]:
    """The numbers of the photographs, in the order in which they are shown."""
    return [int(name.removesuffix(".jpg")) for name in page.locator(".tile .name").all_text_contents()]


def focused(page: Any) -> str:
    """The name of the photograph whose tile has the focus; else the focused element's id."""
    return page.evaluate("document.activeElement.querySelector('.name')?.textContent ?? document.activeElement.id")


def by(key: str, rows: list[dict[str, Any]], descending: bool = True) -> list[int]:
    """The numbers of rows, sorted by a score, and equal ones by name."""
    ordered = sorted(rows, key=lambda r: (-r[key] if descending else r[key], int(Path(r["source"]).stem)))
    return [int(Path(r["source"]).stem) for r in ordered]


def test_sorts(opened: Open) -> None:
    rows = [row(number) for number in (10, 9, 3, 0, 1, 2, 8, 7, 5, 4, 6)]
    page = opened(rows)
    assert names(page) == list(range(11))  # 10 after 9, as people sort
    page.select_option("#order", "-1")
    assert names(page) == list(range(10, -1, -1))
    for key in ("subject", "in_focus", "mean_confidence", "peak_confidence"):
        page.select_option("#sort", key)
        assert names(page) == by(key, rows), key
        page.select_option("#order", "1")
        assert names(page) == by(key, rows, descending=False), key
    assert page.locator("#sort option[value=roi], #bounded option[value=roi]").count() == 0
    page.select_option("#sort", "mean_confidence")
    assert "Mean confidence 0.90" in page.locator(".tile").first.text_content()


def test_photographs_without_a_score_come_last_either_way(opened: Open) -> None:
    page = opened([row(0, roi=None), row(1, roi=0.2), row(2, roi=None), row(3, roi=0.8)])
    page.select_option("#sort", "roi")
    assert names(page) == [3, 1, 0, 2]
    page.select_option("#order", "1")
    assert names(page) == [1, 3, 0, 2]
    page.select_option("#bounded", "roi")
    assert len(names(page)) == 4
    page.fill("#least", "0.01")
    assert names(page) == [1, 3]


def test_filters(opened: Open) -> None:
    rows = list(map(row, range(12)))
    page = opened(rows)
    assert page.locator("#count").inner_text() == "12 photographs"
    assert page.locator("#verdicts label").all_inner_texts() == ["all blurred (4)", "all sharp (4)", "partial (4)"]
    page.get_by_label("all sharp (4)").uncheck()
    assert names(page) == [n for n in range(12) if n % 3 != 1]
    assert page.locator("#count").inner_text() == "8 of 12 photographs"
    page.fill("#least", "0.5")
    page.select_option("#bounded", "in_focus")
    assert names(page) == [n for n in range(12) if n % 3 != 1 and rows[n]["in_focus"] >= 0.5]
    assert page.locator("#bound").inner_text() == "0.50"
    page.click("text=Show all")
    assert names(page) == list(range(12))
    for box in page.locator("#verdicts input").all():
        box.uncheck()
    assert page.get_by_text("No photograph matches.").is_visible()
    assert page.locator("#count").inner_text() == "0 of 12 photographs"


def test_searches_in_names_only(opened: Open) -> None:
    """As people read them: whatever the case, and however an accent is stored."""
    page = opened(row(0, source=f"/pictures/{name}") for name in ("Cafe\u0301.jpg", "cafe.jpg", "[a].*.png"))
    for wanted, found in (("É", ["Cafe\u0301.jpg"]), ("CAFE", ["cafe.jpg"]), (".*", ["[a].*.png"]), ("pictures", [])):
        page.fill("#search", wanted)
        assert page.locator(".tile .name").all_text_contents() == found


def test_keys_move_through_the_photographs(opened: Open) -> None:
    page = opened(map(row, range(301)))
    page.keyboard.press("/")
    assert focused(page) == "search"
    page.keyboard.type("/")
    assert page.input_value("#search") == "/"
    page.fill("#search", "")
    assert page.locator(".tile[tabindex='0']").count() == 1
    page.locator(".tile").first.focus()
    columns = page.evaluate("getComputedStyle(document.querySelector('#grid')).gridTemplateColumns.split(' ').length")
    for key, reached in (
        ("ArrowLeft", 0), ("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowUp", 1), ("ArrowUp", 1), ("End", 300),
        ("ArrowRight", 300), ("ArrowDown", 300), ("ArrowLeft", 299), ("Home", 0), ("PageDown", columns), ("PageUp", 0),
    ):  # fmt: skip
        page.keyboard.press(key)
        assert focused(page) == f"{reached}.jpg", key
        assert page.locator(".tile[tabindex='0']").count() == 1
    page.keyboard.press("End")
    for _ in range(5):  # upwards, and never below the bar that stays
        page.keyboard.press("ArrowUp")
        top = page.evaluate("document.activeElement.getBoundingClientRect().top")
        assert top >= page.evaluate("document.querySelector('#controls').getBoundingClientRect().bottom") > 0


@pytest.mark.parametrize("key", ["Enter", "Space"])
def test_a_photograph_opens_and_gives_the_focus_back(opened: Open, key: str) -> None:
    region = {"region_left": 1.5, "region_top": 2.0, "region_right": 30.0, "region_bottom": 40.0}
    region |= {"region_x": 15.0, "region_y": 20.0, "region_share": 0.125}
    page = opened([row(0), row(1, note="It was turned.", roi=0.4, **region), row(2, href=None, thumbnail=None)])
    page.locator(".tile").nth(1).focus()
    page.keyboard.press(key)
    viewer = page.locator("#viewer")
    assert viewer.is_visible()
    said = viewer.inner_text()
    for text in ("1.jpg", "/pictures/1.jpg", "2 of 3", "600 × 400 pixels", "0.6000", "30.0\u00a0%", "0.4000", "all sharp",
                 "x 1.5 to 30", "y 2 to 40", "x 15", "12.5\u00a0%", "It was turned."):  # fmt: skip
        assert text in said
    assert page.locator("#viewer-link").get_attribute("href") == "1.jpg"
    assert page.evaluate("document.querySelector('#viewer-picture').naturalWidth") == 24
    page.keyboard.press("ArrowRight")
    assert page.locator("#viewer-name").inner_text() == "2.jpg"
    assert not page.locator("#viewer-link").is_visible()
    assert not page.locator("#viewer-picture").is_visible()
    assert "It was turned." not in viewer.inner_text()
    page.keyboard.press("ArrowRight")  # there is none
    assert page.locator("#viewer-name").inner_text() == "2.jpg"
    page.keyboard.press("Escape")
    assert not viewer.is_visible()
    until(page, "document.activeElement.querySelector('.name')?.textContent === '2.jpg'")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press(key)
    page.keyboard.press("ArrowLeft")
    assert page.locator("#viewer-name").inner_text() == "0.jpg"
    page.click("#next")
    page.click("#close")
    until(page, "document.activeElement.querySelector('.name')?.textContent === '1.jpg'")


def test_the_focus_returns_to_a_photograph_that_was_reached_in_the_large_view_alone(opened: Open) -> None:
    """Its tile was not built until then."""
    page = opened(map(row, range(200)))
    page.locator(".tile").first.click()
    for _ in range(150):
        page.keyboard.press("ArrowRight")
    assert page.locator(".tile").count() == 120
    page.keyboard.press("Escape")
    until(page, "document.activeElement.querySelector('.name')?.textContent === '150.jpg'")


def test_outside_text_is_inert(opened: Open) -> None:
    """`opened` sees to it that nothing is asked for, alerted or refused by the policy."""
    text = f"{HOSTILE}\n\udcff\u202e\x00"
    rows = [
        row(0, source=f"/pictures/{text}.jpg", note=text, verdict=text, href="javascript:alert(3)"),
        row(1, source=f"https://example.org/a.jpg?{text}", href="https://example.org/a.jpg?\"onclick='alert(4)'"),
        {"source": text, "error": text, "href": "javascript:alert(5)"},
    ]
    page = opened(rows, title=text)
    page.locator("#failed summary").click()
    assert page.locator("#failures li").count() == 1
    assert r"\n\udcff\u202e\x00" in page.locator("#failures li").inner_text()
    assert "<img src=x onerror=alert(1)>" in page.locator("h1").inner_text()
    hrefs = set()
    for number in range(2):
        page.locator(".tile").nth(number).click()
        hrefs.add(page.locator("#viewer-link").get_attribute("href"))
        assert "</script>" in page.locator("#viewer").inner_text()
        page.keyboard.press("Escape")
    assert hrefs == {None, rows[1]["href"]}
    page.click("#copy")
    assert page.locator("[src='x'], [onerror], [onclick], script:not([type]):not(:last-of-type)").count() == 0
    assert page.locator("a[href^='javascript']").count() == 0
    page.wait_for_timeout(100)


def test_only_its_own_script_runs(browser: Any, tmp_path: Path) -> None:
    """The policy is what keeps others out: one that is put into the file is refused."""
    path = tmp_path / "sheet.html"
    contact_sheet.write(path, [row(0)], title="Sheet")
    foreign = "<script>document.title = 'foreign'</script><img src='https://example.org/a.png'>"
    path.write_text(path.read_text().replace("<main>", f"{foreign}<main>"))
    page = browser.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.goto(path.as_uri())
    assert page.title() == "Sheet"
    assert names(page) == [0]
    assert ["script-src" in text or "img-src" in text for text in said] == [True, True]
    page.close()


def test_what_could_not_be_read_is_listed_apart(opened: Open) -> None:
    page = opened([failure(0), row(1), *map(failure, range(1, 200))])
    assert names(page) == [1]
    assert page.locator("#count").inner_text() == "1 photograph"
    page.get_by_text("200 photographs could not be read").click()
    listed = page.locator("#failures li")
    assert listed.count() == 120
    page.click("#more-failures")
    assert listed.count() == 200
    assert not page.locator("#more-failures").is_visible()
    assert listed.nth(199).inner_text() == "/pictures/damaged 199.jpg\nit is cut off at byte 199"


def test_without_failures_none_are_mentioned(opened: Open) -> None:
    page = opened([row(1)])
    assert not page.locator("#failed").is_visible()
    assert not page.locator("#left").is_visible()
    assert page.locator("#none").is_hidden()


def test_an_empty_sheet_says_so(opened: Open) -> None:
    page = opened([])
    assert page.get_by_text("No photograph matches.").is_visible()
    assert page.locator("#count").inner_text() == "0 photographs"


def test_thousands_open_with_few_elements(opened: Open) -> None:
    page = opened(map(row, range(2_500)), most=2_000)
    assert page.get_by_text("The page shows 2,000 of 2,500 photographs; all are in predictions.jsonl.").is_visible()
    assert page.locator("#count").inner_text() == "2,000 photographs"
    until(page, "document.querySelector('.tile img').naturalWidth === 24")
    assert page.locator("li").count() < 500
    assert 5 <= page.locator(".tile img[src]").count() < 120  # pictures near what is seen, and no others
    page.mouse.move(600, 600)
    page.mouse.wheel(0, 100_000)
    until(page, "document.querySelectorAll('.tile').length >= 240")
    until(page, "!document.querySelector('.tile img').hasAttribute('src')")


@pytest.mark.parametrize("width", [360, 1600])
def test_no_width_scrolls_sideways(opened: Open, width: int) -> None:
    long = "a" * 180 + ".jpg"
    page = opened([row(n, source=f"/pictures/{n}{long}", note=long) for n in range(30)] + [failure(1)], long, width)
    for fold in page.locator("details:not([open]) > summary").all():
        if fold.is_visible():
            fold.click()
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#least").is_visible()
    page.locator(".tile").first.click()
    box = page.locator("#viewer").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert page.locator("#viewer").evaluate("(viewer) => viewer.scrollWidth <= viewer.clientWidth")


@pytest.mark.parametrize("permitted", [True, False])
def test_copies_the_paths_that_are_shown(opened: Open, permitted: bool) -> None:
    page = opened(map(row, range(12)))
    page.fill("#search", "1")
    write = "async (text) => { window.copied = text; }" if permitted else "() => Promise.reject(new Error('refused'))"
    page.evaluate(f"Object.defineProperty(navigator, 'clipboard', {{ value: {{ writeText: {write} }} }})")
    page.click("#copy")
    if permitted:
        page.get_by_text("3 paths copied.").wait_for()
        copied = page.evaluate("window.copied")
    else:
        copied = page.input_value("#names-text")
        selected = "[document.activeElement.selectionStart, document.activeElement.selectionEnd]"
        assert page.evaluate(selected) == [0, len(copied)]
        page.locator("#names").get_by_text("Close").click()
    assert copied.splitlines() == ["/pictures/1.jpg", "/pictures/10.jpg", "/pictures/11.jpg"]
    assert not page.locator("#names").is_visible()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(opened: Open, scheme: str) -> None:
    """At least 4.5 to 1 (WCAG 2.2, 1.4.3)."""
    page = opened([row(0)])
    page.emulate_media(color_scheme=scheme)

    def of(element: str, what: str) -> float:
        return luminance(page.evaluate(f"getComputedStyle(document.querySelector('{element}')).{what}"))

    pairs = {".facts": ".tile", ".name": ".tile", "h1": "body", "#count": "#controls", "#viewer-link": "#viewer"}
    for text, ground in pairs.items():
        low, high = sorted((of(text, "color"), of(ground, "backgroundColor")))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
