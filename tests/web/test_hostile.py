"""Whatever is dropped on the page, it says what is wrong with it, and works on."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.web.conftest import Open
from tests.web.driving import call, file, give, photograph, settled, until

pytestmark = pytest.mark.artifact
CUT_OFF, LARGE, DAMAGED = "is cut off", "million pixels", "is damaged"


def cat(kind: str, **options: Any) -> bytes:
    return file(photograph("chelsea", 150, 225), kind, **options)


def png(width: int, height: int, rows: bytes = bytes(1000)) -> bytes:
    """A PNG file that claims a size, and has the pixels that are given."""
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    chunks = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg_bomb() -> bytes:
    content = bytearray(cat("JPEG"))
    at = content.index(b"\xff\xc0")
    content[at + 5 : at + 9] = struct.pack(">HH", 60_000, 60_000)
    return bytes(content)


def half(content: bytes) -> bytes:
    return content[: len(content) // 2]


def tiff(content: bytes = b"") -> bytes:
    return file(Image.new("RGB", (9, 9)), "TIFF") + content


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>alert(1)</script>' \
      b'<image href="http://example.org/a.png"/><foreignObject><body onload="alert(2)"/></foreignObject></svg>'  # fmt: skip
WEBP_BOMB = b"RIFF" + struct.pack("<I", 22) + b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0\xff\xff\0\xff\xff\0"
BMP_BOMB = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 100, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 1, 0, 0, 0, 0, 0)
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0\0\0\x14ispe\0\0\0\0\0\0\0\x09\0\0\0\x09"
HEIC_BOMB = HEIC[:-8] + struct.pack(">II", 60_000, 60_000)

REFUSED = {
    "empty.jpg": (b"", "is empty"),
    "text.jpg": (b"hello, I am a text " * 99, "is not a picture"),
    "noise.jpg": (zlib.compress(bytes(range(256)) * 400), "is not a picture"),
    "drawing.svg": (SVG, "is a drawing"),
    "drawing.png": (b"\xef\xbb\xbf <?xml version='1.0'?>" + SVG, "is a drawing"),
    "bomb.png": (png(60_000, 60_000), LARGE),
    "bomb.jpg": (jpeg_bomb(), LARGE),
    "bomb.gif": (b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\0\0\0;", LARGE),
    "bomb.bmp": (BMP_BOMB, LARGE),
    "bomb.webp": (WEBP_BOMB, LARGE),
    "bomb.heic": (HEIC_BOMB, LARGE),
    "nothing.png": (png(0, 9), "no pixels"),
    "few rows.png": (png(500, 500), DAMAGED),
    "cut.jpg": (half(cat("JPEG")), CUT_OFF),
    "no end.jpg": (cat("JPEG")[:-2], CUT_OFF),
    "head.jpg": (cat("JPEG")[:30], CUT_OFF),
    "cut.png": (half(cat("PNG")), CUT_OFF),
    "cut.gif": (half(cat("GIF")), CUT_OFF),
    "cut.webp": (half(cat("WEBP")), CUT_OFF),
    "cut.bmp": (half(cat("BMP")), CUT_OFF),
    "cut.avif": (half(cat("AVIF")), CUT_OFF),
    "wrong.png": (cat("PNG").replace(b"IDAT", b"IDAT\xff", 1), "is "),
    "photo.heic": (HEIC, "cannot open HEIC"),
    "photo.tif": (tiff(), "cannot open TIFF"),
    "photo.nef": (tiff(), "is a raw photograph"),
    "film.mp4": (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "is a film"),
}


def test_each_is_refused_with_a_message_and_a_photograph_is_taken_after_it(opened: Open) -> None:
    page = opened()
    give(page, *((name, content) for name, (content, _) in REFUSED.items()), ("cat.png", cat("PNG")))
    settled(page)
    buttons = page.locator("#strip button")
    assert buttons.count() == len(REFUSED) + 1
    for name, (_, said) in REFUSED.items():
        page.get_by_role("button", name=name, exact=False).click()
        message = page.inner_text("#pending")
        assert said in message, name
        assert message.endswith((".", ").")), name
        assert page.locator("#frame").is_hidden(), name
    buttons.last.click()
    until(page, "!document.querySelector('#frame').hidden")
    assert "in focus" in page.inner_text("#verdict")
    assert page.evaluate("document.querySelectorAll('svg script, image, foreignObject').length") == 0


ODD = {
    "one pixel.png": file(Image.new("RGB", (1, 1), (9, 120, 200)), "PNG"),
    "line.png": file(photograph("coffee", 500, 1), "PNG"),
    "grey.jpg": cat("JPEG"),
    "sixteen bits.png": file(Image.new("I;16", (64, 48), 999), "PNG"),
    "cmyk.jpg": file(photograph("coffee", 60, 80).convert("CMYK"), "JPEG"),
    "junk after.jpg": cat("JPEG") + bytes(5000),
    "named.txt": cat("PNG"),
}


def test_what_is_odd_but_a_picture_is_taken(opened: Open) -> None:
    page = opened()
    frames = [photograph("chelsea", 60, 90).rotate(turn) for turn in (0, 90, 180)]
    moving = file(frames[0], "GIF", save_all=True, append_images=frames[1:])
    give(page, *ODD.items(), ("moving.gif", moving))
    settled(page)
    assert page.locator("#strip .thumb.done").count() == len(ODD) + 1
    page.get_by_role("button", name="moving.gif").click()
    until(page, "document.querySelector('#details').innerText.includes('the first of 3 frames')")


def test_the_page_takes_only_what_fits_on_a_phone(opened: Open) -> None:
    """Less than elsewhere; it is refused before it is decoded."""
    agent = "Mozilla/5.0 (Linux; Android 14) AppleWebKit/537.36 Chrome/150.0 Mobile Safari/537.36"
    page = opened("?ui=0", user_agent=agent)
    said = call(
        page,
        "return r2mrf.map(new Blob([bytes(content)])).catch((error) => error.message);",
        content=png(10_000, 10_000),
    )
    assert "at most 64 million fit here" in said


def test_a_file_that_is_too_long_is_not_read(opened: Open) -> None:
    page = opened("?ui=0")
    said = page.evaluate("""async () => {
      const part = new Uint8Array(1 << 26);
      const blob = new Blob(Array(9).fill(part));
      return r2mrf.map(blob).catch((error) => error.message);
    }""")
    assert "604 MB" in said


def drop(page: Any, *paths: Path) -> None:
    """Drop files and folders on the page, as a file manager does."""
    session = page.context.new_cdp_session(page)
    data = {"items": [], "files": [str(path) for path in paths], "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        session.send("Input.dispatchDragEvent", {"type": kind, "x": 400, "y": 300, "data": data})


def test_a_folder_that_is_dropped_gives_its_pictures(opened: Open, tmp_path: Path) -> None:
    folder, nothing = tmp_path / "album", tmp_path / "nothing"
    for each in (folder / "inner", nothing):
        each.mkdir(parents=True)
    for name in ("b 10.png", "b 9.png", "._b.png", "inner/c.png", "notes.txt"):
        (folder / name).write_bytes(cat("PNG"))
    page = opened()
    drop(page, nothing)
    until(page, "document.querySelector('#notice').innerText === 'This folder holds no pictures.'")
    drop(page, folder, folder / "inner" / "c.png")
    until(page, "document.querySelectorAll('#strip .thumb.done').length === 3")
    assert page.locator("#strip .called").all_text_contents() == ["c.png", "b 9.png", "b 10.png"]
    assert page.locator("#notice").is_hidden()
    assert page.locator("#dropping").is_hidden()


def test_a_crash_is_said_and_the_page_goes_on(opened: Open) -> None:
    """An error that nothing in the worker caught, as when its memory is used up."""
    page = opened()
    until(page, "document.querySelector('#state').innerText.includes('is ready')")
    worker = next(worker for worker in page.workers if "worker-" in worker.url)
    worker.evaluate("setTimeout(() => { throw new RangeError('out of memory'); })")
    until(page, "document.querySelector('#said').innerText.includes('was started again')")
    give(page, ("cat.png", cat("PNG")))
    settled(page)
    assert "in focus" in page.inner_text("#verdict")


def test_a_crash_over_a_photograph_fails_that_one_alone(opened: Open) -> None:
    page = opened()
    until(page, "document.querySelector('#state').innerText.includes('is ready')")
    page.evaluate("""() => {
      const { map } = r2mrf;
      r2mrf.map = (file, options) => (file.name === 'bad.png' ? crash(file) : map.call(r2mrf, file, options));
      const crash = (file) => r2mrf.run({ image: { dtype: 'uint8', shape: [1, 64, 64, 3], data: new ArrayBuffer(9) } });
    }""")
    give(page, ("bad.png", cat("PNG")), ("good.png", cat("PNG")))
    settled(page)
    states = page.evaluate("[...document.querySelectorAll('.thumb')].map(({ className }) => className)")
    assert states == ["thumb failed", "thumb done"]


def test_outside_names_are_text(opened: Open) -> None:
    name = "<img src=x onerror=alert(1)>\u202e\"'.png"
    page = opened()
    give(page, (name, cat("PNG")), (name, b""))
    settled(page)
    assert page.inner_text("#name") == name
    assert page.locator("[src='x'], [onerror]").count() == 0
