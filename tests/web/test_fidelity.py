"""The page computes what `predict` computes: the same pixels, the same input, the same map, scores and overlay.

What is exact is compared to the last bit. Chromium decodes with the same libraries as Pillow, so that even JPEG is equal
here; other browsers and versions may differ, and the tests of decoding allow for the rounding of one level.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import drawing, images, weights
from r2mrf_deploy.fitting import Fitting, as_input
from r2mrf_deploy.manifest import Preprocess, TensorSpec
from r2mrf_deploy.predict.scores import Scores
from r2mrf_deploy.predictor import Predictor
from tests.web.driving import array, call, encoded, file, module, photograph

pytestmark = pytest.mark.artifact
MEASURES = ("in_focus", "mean_confidence", "peak_confidence", "subject")


@pytest.fixture(scope="module")
def page(browser: Any, served: str) -> Any:
    """The page without its interface."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"{served}?ui=0")
    yield page
    context.close()


@pytest.fixture(scope="module")
def predictor() -> Any:
    with Predictor.open(weights.artifact("r2mrf-lite")) as opened:
        yield opened


# Resizing

SIZES = [
    ((1, 1), (32, 32)), ((1, 500), (1, 400)), ((500, 1), (400, 1)), ((117, 235), (320, 320)), ((320, 320), (320, 320)),
    ((235, 117), (400, 199)), ((301, 451), (266, 400)), ((64, 64), (700, 500)), ((800, 1200), (800, 400)),
    ((1200, 800), (400, 800)), ((40, 3000), (5, 400)), ((3000, 30), (30, 30)),
    ((1500, 2000), (300, 400)),  # in strips
    ((1600, 1200), (1599, 1199)),  # the same, by almost nothing
    ((2400, 600), (60, 400)),  # Pillow takes the columns first
]  # fmt: skip


@pytest.mark.parametrize(("size", "to"), SIZES, ids=str)
def test_photographs_are_resized_to_the_same_bits(page: Any, site: Path, size: Any, to: Any) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    found = call(
        page,
        "const { resized, sourceOf } = await import(module); return text(resized(sourceOf(bytes(image), ...size), ...to));",
        module=module(site, "resize"), image=image, size=size, to=to,
    )  # fmt: skip
    assert np.array_equal(array(found, np.uint8, *to, 3), images.resize(image, to))


@pytest.mark.parametrize(("size", "to"), [*SIZES[:9], ((300, 400), (1500, 2000))], ids=str)
def test_maps_are_resized_to_the_same_bits(page: Any, site: Path, size: Any, to: Any) -> None:
    focus = np.random.default_rng(1).random(size, np.float32)
    found = call(
        page,
        "const { resizedMap } = await import(module); const values = new Float32Array(bytes(focus).buffer);"
        "return text(resizedMap({ values, height: size[0], width: size[1] }, ...to));",
        module=module(site, "resize"), focus=focus, size=size, to=to,
    )  # fmt: skip
    assert np.array_equal(array(found, np.float32, *to), images.resize(focus, to))


# Fitting


def contract(
    shape: list[Any], layout: str, dtype: str, fit: str, profile: dict[str, Any] | None = None
) -> dict[str, Any]:
    spec = TensorSpec(name="x", dtype=dtype, shape=shape, layout=layout)  # type: ignore[arg-type]
    preprocess = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), longest_side=400, fit=fit)  # type: ignore[arg-type]
    return {"spec": spec, "preprocess": preprocess, "profile": profile or {}}


CONTRACTS = {
    "letterbox": contract([1, 320, 320, 3], "NHWC", "uint8", "letterbox"),
    "stretch": contract([1, 96, 128, 3], "NHWC", "uint8", "stretch"),
    "tensor": contract([1, 3, 120, 90], "NCHW", "float32", "letterbox"),
    "batch": contract([2, 3, 64, 64], "NCHW", "float16", "stretch"),
    "free": contract(["n", "h", "w", 3], "NHWC", "uint8", "letterbox"),
    "profile": contract(
        ["n", "h", "w", 3], "NHWC", "uint8", "stretch", {"min": [1, 64, 64, 3], "max": [4, 256, 256, 3]}
    ),
}
PHOTOGRAPHS = [(1, 1), (1, 500), (500, 1), (117, 235), (235, 117), (320, 320), (700, 500), (96, 128), (2, 3)]


@pytest.mark.parametrize("name", CONTRACTS)
def test_photographs_are_fitted_to_the_same_bits(page: Any, site: Path, name: str) -> None:
    """And maps are cut out to the same bits, whether they have the input's size or another."""
    given, rng = CONTRACTS[name], np.random.default_rng(2)
    said = {
        "inputs": [given["spec"].model_dump()], "preprocess": given["preprocess"].model_dump(),
        "profiles": {"x": given["profile"]} if given["profile"] else {},
    }  # fmt: skip
    for size in PHOTOGRAPHS:
        image = rng.integers(0, 256, (*size, 3), np.uint8)
        fitting = Fitting.of(size, **given)
        maps = [
            rng.random(fitting.canvas, np.float32),
            rng.random((fitting.canvas[0] + 3, fitting.canvas[1]), np.float32),
        ]
        found = call(
            page,
            "const { fittingOf, place, asInput, contentOf } = await import(fitting);"
            "const { sourceOf } = await import(resize);"
            "const placed = fittingOf(size, contract);"
            "const input = asInput(place(sourceOf(bytes(image), ...size), placed), placed.canvas, contract);"
            "const [height, width] = placed.canvas;"
            "const cut = [[first, 0], [second, 3]].map(([map, more]) =>"
            "  contentOf({ values: new Float32Array(bytes(map).buffer), height: height + more, width }, placed));"
            "return { input: text(input.data), shape: input.shape, maps: cut.map(({ values }) => text(values)) };",
            fitting=module(site, "fitting"), resize=module(site, "resize"), size=size, image=image, contract=said,
            first=maps[0], second=maps[1],
        )  # fmt: skip
        expected = as_input(image, **given)
        assert found["shape"] == list(expected.shape), size
        assert np.array_equal(array(found["input"], expected.dtype, *expected.shape), expected), size
        for map_, text in zip(maps, found["maps"], strict=True):
            cut = fitting.content_of(map_)
            assert np.array_equal(array(text, np.float32, *cut.shape), cut), size


def test_the_network_is_given_what_python_gives_it(page: Any, predictor: Predictor) -> None:
    """By the page's own way from RGB bytes."""
    image = np.random.default_rng(3).integers(0, 256, (117, 235, 3), np.uint8)
    found = call(
        page,
        "const { data, shape } = await r2mrf.fitted({ height: 117, width: 235, data: bytes(image).buffer });"
        "return { data: text(data), shape };",
        image=image,
    )
    (expected,) = predictor.fit(image).views
    assert np.array_equal(array(found["data"], np.uint8, *found["shape"]), expected)


# Decoding


def decoded(page: Any, content: bytes, name: str = "x") -> np.ndarray:
    found = call(
        page,
        "const { height, width, data } = await r2mrf.pixels(new File([bytes(content)], name));"
        "return { size: [height, width], data: text(data) };",
        content=content, name=name,
    )  # fmt: skip
    return array(found["data"], np.uint8, *found["size"], 3)


def difference(page: Any, content: bytes) -> tuple[int, float]:
    """The largest and the mean difference from Python's pixels, in levels."""
    found, expected = decoded(page, content), images.load(content).pixels
    assert found.shape == expected.shape
    apart = np.abs(found.astype(int) - expected)
    return int(apart.max()), float(apart.mean())


def with_alpha() -> Image.Image:
    cat = photograph("chelsea", 100, 150)
    cat.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 150).astype(np.uint8), (100, 1))))
    return cat


EXACT = {
    "PNG": lambda: file(photograph("coffee", 200, 300), "PNG"),
    "grey PNG": lambda: file(photograph("coffee", 200, 300).convert("L"), "PNG"),
    "palette PNG": lambda: file(photograph("coffee", 200, 300).quantize(32), "PNG", transparency=3),
    "PNG with alpha": lambda: file(with_alpha(), "PNG"),
    "PNG with gamma": lambda: file(photograph("coffee", 90, 120), "PNG", pnginfo=_gamma()),
    "lossless WebP with alpha": lambda: file(with_alpha(), "WEBP", lossless=True, exact=True),
    "BMP": lambda: file(photograph("coffee", 90, 121), "BMP"),
    "GIF": lambda: file(photograph("coffee", 90, 121), "GIF"),
    "1x1": lambda: file(Image.new("RGB", (1, 1), (9, 120, 200)), "PNG"),
    "very wide": lambda: file(photograph("coffee", 3, 9000), "PNG"),
}  # fmt: skip


def _gamma() -> Any:
    from PIL import PngImagePlugin

    info = PngImagePlugin.PngInfo()
    info.add(b"gAMA", (100_000).to_bytes(4, "big"))  # which predict ignores, as it ignores colour profiles
    return info


@pytest.mark.parametrize("name", EXACT)
def test_lossless_formats_are_decoded_to_the_same_bytes(page: Any, name: str) -> None:
    assert difference(page, EXACT[name]()) == (0, 0)


LOSSY = {
    "4:2:0": {"format": "JPEG", "quality": 90}, "4:4:4": {"format": "JPEG", "quality": 90, "subsampling": 0},
    "4:2:2": {"format": "JPEG", "quality": 75, "subsampling": 1},
    "progressive": {"format": "JPEG", "quality": 90, "progressive": True}, "WebP": {"format": "WEBP", "quality": 80},
    "AVIF": {"format": "AVIF", "quality": 80},
}  # fmt: skip


MODES = [
    (name, mode) for name in LOSSY for mode in ("RGB", "L", "CMYK") if mode != "CMYK" or LOSSY[name]["format"] == "JPEG"
]


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_lossy_formats_are_decoded_alike(page: Any, record_property: Any, name: str, mode: str) -> None:
    """To one level: decoders may compute in other integers. Debian's Chromium 156 and Pillow 13 do not differ at all."""
    options = dict(LOSSY[name])
    kind = options.pop("format")
    apart, mean = difference(page, file(photograph("coffee", 300, 450).convert(mode), kind, **options))
    record_property("levels", (apart, mean))
    assert apart <= 1


def test_sixteen_bits_are_rounded_alike(page: Any) -> None:
    """To one level: browsers keep the upper byte of a value, Python rounds it."""
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    apart, _ = difference(page, file(Image.fromarray(values), "PNG"))
    assert apart <= 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF"])
def test_every_exif_orientation_is_applied(page: Any, kind: str) -> None:
    """Also where the browser itself applies none."""
    image = photograph("coffee", 40, 60)
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"lossless": True}}.get(kind, {})
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        apart, _ = difference(page, file(image, kind, exif=exif, **options))
        assert apart <= 1, orientation


def test_an_orientation_that_makes_no_sense_is_none(page: Any) -> None:
    exif = Image.Exif()
    exif[0x0112] = 9
    assert decoded(page, file(photograph("coffee", 40, 60), "JPEG", exif=exif)).shape == (40, 60, 3)


def test_an_orientation_in_xmp_is_applied_where_exif_has_none(page: Any) -> None:
    content = file(photograph("coffee", 40, 60), "JPEG", xmp=b'<x:xmpmeta tiff:Orientation="6"/>')
    assert difference(page, content)[0] <= 1
    assert decoded(page, content).shape == (60, 40, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
@pytest.mark.parametrize("exif", [None, 1, 3])
def test_xmp_of_png_and_webp_is_read_as_python_reads_it(page: Any, kind: str, exif: int | None) -> None:
    """An orientation in EXIF comes first."""
    from PIL import PngImagePlugin

    xmp = '<x:xmpmeta tiff:Orientation="6"/>'
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", xmp)
    options: dict[str, Any] = {"pnginfo": info} if kind == "PNG" else {"lossless": True, "xmp": xmp.encode()}
    if exif:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = exif
    content = file(photograph("coffee", 40, 60), kind, **options)
    assert difference(page, content) == (0, 0)
    assert decoded(page, content).shape == ((40, 60, 3) if exif else (60, 40, 3))


# From the file to the map


def analysed(page: Any, content: bytes, name: str = "x.jpg") -> dict[str, Any]:
    return call(
        page,
        "const digest = async (bitmap) => { const c = new OffscreenCanvas(bitmap.width, bitmap.height).getContext('2d');"
        "  c.drawImage(bitmap, 0, 0); const { data } = c.getImageData(0, 0, bitmap.width, bitmap.height);"
        "  return text(await crypto.subtle.digest('SHA-256', data)); };"
        "const r = await r2mrf.map(new File([bytes(content)], name));"
        "const { map: values, height, width } = r;"
        "const png = await r2mrf.file({ values, height, width }, r.photograph);"
        "return { ...r, map: text(values), overlay: await digest(r.overlay), drawn: [r.overlay.height, r.overlay.width],"
        "  picture: await digest(r.picture), png: text(await png.arrayBuffer()) };",
        content=content, name=name,
    )  # fmt: skip


def digest(pixels: np.ndarray) -> str:
    """The hash of a canvas with this picture: its pixels are opaque."""
    opaque = np.full((*pixels.shape[:2], 1), 255, np.uint8)
    return encoded(hashlib.sha256(np.concatenate([pixels, opaque], axis=2).tobytes()).digest())


FILES = {
    "photograph": lambda: file(photograph("chelsea"), "JPEG", quality=90),
    "odd": lambda: file(photograph("coffee", 117, 235), "PNG"),
    "portrait": lambda: file(photograph("astronaut", 500, 230), "WEBP", quality=80),
    "1x1": lambda: file(Image.new("RGB", (1, 1), (200, 30, 90)), "PNG"),
    "1x500": lambda: file(photograph("coffee", 1, 500), "PNG"),
    "large": lambda: file(photograph("motorcycle_left", 600, 2200), "JPEG", quality=85),
}


@pytest.mark.parametrize("name", FILES)
def test_the_map_is_that_of_predict(page: Any, predictor: Predictor, name: str) -> None:
    """Within 1e-3: both compute in FP32, and sum in another order. The scores follow from it; the overlay, to the bit."""
    content = FILES[name]()
    found = analysed(page, content)
    image = images.load(content).pixels
    (focus,) = predictor.focus([image])
    (expected,) = focus.views
    got = array(found["map"], np.float32, found["height"], found["width"])
    assert got.shape == expected.shape
    assert np.abs(got - expected).max() < 1e-3
    assert min(image.shape[:2]) == 1 or expected.std() > 0.05, "a flat map proves nothing"
    scores = Scores.of(np.clip(expected, 0, 1), image.shape[:2], None, [])
    for measure in MEASURES:  # pixels whose map is 0.5 within the bound may be counted either way
        slack = float((np.abs(expected - 0.5) < 1e-3).mean()) if measure == "in_focus" else 0
        assert abs(found["scores"][measure] - getattr(scores, measure)) <= 1e-3 + slack, measure
    assert found["scores"]["verdict"] == scores.verdict
    drawn = images.within(image.shape[:2], (2048, 2048))
    assert tuple(found["drawn"]) == drawn
    shown = images.resize(image, drawn)
    assert found["picture"] == digest(shown)
    overlay = drawing.overlay(shown, np.clip(images.resize(got, drawn), 0, 1))
    assert found["overlay"] == digest(overlay)


def test_a_saved_map_is_that_of_predict(page: Any, predictor: Predictor) -> None:
    """A greyscale file of the photograph's size."""
    content = FILES["large"]()
    found = analysed(page, content)
    got = array(found["map"], np.float32, found["height"], found["width"])
    with Image.open(io.BytesIO(array(found["png"], np.uint8, -1).tobytes())) as saved:
        assert saved.mode == "L"
        assert np.array_equal(np.asarray(saved), images.grey(images.resize(got, (600, 2200))))


def test_detail_is_the_longest_side_of_the_input(page: Any) -> None:
    content = FILES["portrait"]()
    sizes = call(
        page,
        "const sizes = [];"
        "for (const detail of [undefined, 480, 640]) {"
        "  const { content: { height, width } } = await r2mrf.map(new Blob([bytes(content)]), { detail, side: 0 });"
        "  sizes.push([height, width]); }"
        "return sizes;",
        content=content,
    )  # fmt: skip
    assert sizes == [[400, 184], [480, 221], [500, 230]]  # never enlarged


def test_scores_of_every_verdict(page: Any, site: Path) -> None:
    rng = np.random.default_rng(4)
    for low, high in ((0.8, 1), (0, 0.2), (0.45, 0.5), (0, 1), (0.5, 0.5)):
        focus = (low + (high - low) * rng.random((37, 53))).astype(np.float32)
        found = call(
            page,
            "const { scoresOf } = await import(module); return scoresOf(new Float32Array(bytes(focus).buffer), 37, 53);",
            module=module(site, "scores"), focus=focus,
        )  # fmt: skip
        expected = Scores.of(focus, (37, 53), None, [])
        assert found["verdict"] == expected.verdict
        for measure in MEASURES:  # Python's mean is summed in single precision, and both are rounded to four digits
            assert abs(found[measure] - getattr(expected, measure)) <= 1.01e-4, measure
