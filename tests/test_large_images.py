"""A photograph that is read band by band is what it is when it is read at once, whoever reads it."""

from __future__ import annotations

import builtins
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import images, large_images
from r2mrf_deploy.errors import InputError
from r2mrf_deploy.large_images import Bands, Decoded, InVips, open_bands


def photograph(size: tuple[int, int] = (150, 220), channels: int = 3) -> np.ndarray:
    """Waves of other lengths in every channel, so that no two rows or columns are equal: uint8 [H, W, channels]."""
    y, x, c = np.mgrid[: size[0], : size[1], :channels]
    return np.rint(127 + 90 * np.sin(x / (9 + c)) + 37 * np.sin(y / (7 + 2 * c))).astype(np.uint8)


@pytest.fixture
def small_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pillow takes no photograph of more than 20,000 pixels, so that one of 33,000 is libvips's."""
    pytest.importorskip("pyvips")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)


def whole(bands: Bands, rows: int = 47) -> np.ndarray:
    """All rows, read in bands."""
    height = bands.size[0]
    return np.concatenate([bands.read(top, min(top + rows, height)) for top in range(0, height, rows)])


def test_what_pillow_reads_is_read_by_pillow(tmp_path: Path) -> None:
    Image.fromarray(photograph()).save(tmp_path / "x.jpg")
    with open_bands(tmp_path / "x.jpg") as bands:
        assert isinstance(bands, Decoded)
        assert bands.size == (150, 220)
        assert np.array_equal(whole(bands), images.read(tmp_path / "x.jpg"))
        assert np.array_equal(bands.reduced((30, 44)), images.resize(images.read(tmp_path / "x.jpg"), (30, 44)))


FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "jpeg": ("x.jpg", "RGB", {"quality": 95}),
    "grey jpeg": ("x.jpg", "L", {"quality": 95}),
    "cmyk jpeg": ("x.jpg", "CMYK", {"quality": 95}),
    "png": ("x.png", "RGB", {}),
    "alpha": ("x.png", "RGBA", {}),
    "grey and alpha": ("x.png", "LA", {}),
    "palette": ("x.png", "P", {}),
    "two tones": ("x.tif", "1", {}),
    "tiff": ("x.tif", "RGB", {}),
    "deflated tiff": ("x.tif", "RGB", {"compression": "tiff_adobe_deflate"}),
    "cmyk tiff": ("x.tif", "CMYK", {}),
    "webp": ("x.webp", "RGB", {"lossless": True}),
}


@pytest.mark.parametrize("case", FILES)
def test_vips_reads_what_pillow_would(tmp_path: Path, case: str, request: pytest.FixtureRequest) -> None:
    """To one level: the two may round a conversion differently."""
    name, mode, options = FILES[case]
    path = tmp_path / name
    Image.fromarray(photograph()).convert(mode).save(path, **options)
    expected = images.read(path)
    request.getfixturevalue("small_limit")
    with open_bands(path) as bands:
        assert isinstance(bands, InVips)
        found = whole(bands)
        reduced = bands.reduced((30, 44))
    assert (found.shape, found.dtype) == ((150, 220, 3), np.uint8)
    assert np.abs(found.astype(int) - expected).max() <= 1
    assert reduced.shape == (30, 44, 3)
    # the filters differ: box and triangle there, triangle here
    assert np.abs(reduced.astype(int) - images.resize(expected, (30, 44))).mean() < 5


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["x.jpg", "x.tif"])
def test_vips_turns_a_photograph_upright(
    tmp_path: Path, name: str, orientation: int, request: pytest.FixtureRequest
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photograph()).save(tmp_path / name, exif=exif, quality=95)
    expected = images.read(tmp_path / name)
    request.getfixturevalue("small_limit")
    with open_bands(tmp_path / name) as bands:
        assert bands.size == expected.shape[:2]
        assert np.abs(whole(bands).astype(int) - expected).max() <= 1
        size = bands.size[0] // 5, bands.size[1] // 5
        reduced = bands.reduced(size)
    assert np.abs(reduced.astype(int) - images.resize(expected, size)).mean() < 5


@pytest.mark.parametrize("largest", [65535, 255])
def test_sixteen_bits(tmp_path: Path, largest: int, request: pytest.FixtureRequest) -> None:
    values = np.random.default_rng(0).integers(0, largest, (150, 220), np.uint16, endpoint=True)
    values[0, 0] = largest
    Image.fromarray(values).save(tmp_path / "x.tif")
    expected = images.read(tmp_path / "x.tif")
    request.getfixturevalue("small_limit")
    with open_bands(tmp_path / "x.tif") as bands:
        assert np.array_equal(whole(bands), expected)


def test_tiled_tiffs_of_sixteen_bits_and_bigtiffs(tmp_path: Path, small_limit: None) -> None:
    tifffile = pytest.importorskip("tifffile")
    values = photograph(channels=4).astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "x.tif", values, tile=(64, 64), bigtiff=True, photometric="rgb", compression="zlib")
    with open_bands(tmp_path / "x.tif") as bands:
        assert np.array_equal(whole(bands), photograph())


def test_one_strip(tmp_path: Path, small_limit: None) -> None:
    """Some programs write all rows as one strip: it is not decoded as one."""
    tifffile = pytest.importorskip("tifffile")
    tifffile.imwrite(tmp_path / "x.tif", photograph(), rowsperstrip=150, photometric="rgb", compression="zlib")
    with open_bands(tmp_path / "x.tif") as bands:
        assert np.array_equal(whole(bands), photograph())


def test_the_format_of_vips(tmp_path: Path) -> None:
    pyvips = pytest.importorskip("pyvips")
    pyvips.Image.new_from_array(photograph()).write_to_file(str(tmp_path / "x.v"))
    with open_bands(tmp_path / "x.v") as bands:
        assert np.array_equal(whole(bands), photograph())


def test_float_pixels_are_refused(tmp_path: Path, small_limit: None) -> None:
    Image.fromarray(photograph()[:, :, 0].astype(np.float32)).save(tmp_path / "x.tif")
    with (
        pytest.raises(InputError, match=r"x\.tif: float pixels have no standard range"),
        open_bands(tmp_path / "x.tif"),
    ):
        pass


@pytest.mark.parametrize("name", ["x.jpg", "x.png", "x.tif", "tiled.tif", "turned.jpg", "x.webp"])
def test_truncated_files_are_refused(tmp_path: Path, name: str, request: pytest.FixtureRequest) -> None:
    """Wherever the damage shows: when it is opened, when it is reduced, or when the row is reached."""
    request.getfixturevalue("small_limit")
    import pyvips

    path, noise = tmp_path / name, np.random.default_rng(0).integers(0, 255, (150, 220, 3), np.uint8)
    if name == "tiled.tif":
        pyvips.Image.new_from_array(noise).tiffsave(str(path), tile=True, tile_width=64, tile_height=64)
    else:
        exif = Image.Exif()
        exif[0x0112] = 6 if name == "turned.jpg" else 1
        Image.fromarray(noise).save(path, exif=exif, **({"lossless": True} if name.endswith("webp") else {}))
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(InputError, match=name), open_bands(path) as bands:
        whole(bands)
    with pytest.raises(InputError, match=name), open_bands(path) as bands:
        bands.reduced((30, 44))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='900' height='900'></svg>"),
        ("x.pdf", b"%PDF-1.4\n"),
        ("x.tif", b"push graphic-context\nviewbox 0 0 640 480\n"),
        ("x.csv", b"1,2,3\n"),
        ("x.png", b""),
    ],
)
def test_what_is_not_a_photograph_is_not_offered_to_vips(
    tmp_path: Path, name: str, content: bytes, small_limit: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of its loaders run programs, or read files that a file names."""
    (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(large_images, "InVips", None)
    with pytest.raises(InputError, match="is not an image"), open_bands(tmp_path / name):
        pass


def test_slides_need_openslide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyvips = pytest.importorskip("pyvips")
    with pytest.raises(InputError, match="no such file"), open_bands(tmp_path / "x.svs"):
        pass
    (tmp_path / "x.svs").write_bytes(b"II*\0")
    monkeypatch.setattr(pyvips, "type_find", lambda *_: 0)
    with (
        pytest.raises(InputError, match=r"without OpenSlide: convert it to a tiled TIFF"),
        open_bands(tmp_path / "x.svs"),
    ):
        pass


@pytest.fixture
def without_pyvips(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    importing = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "pyvips":
            raise ModuleNotFoundError("No module named 'pyvips'", name="pyvips")
        return importing(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    yield


def test_without_pyvips_the_missing_module_has_its_name(
    tmp_path: Path, without_pyvips: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line says from it which extra to install. A file that no extra would help is refused for what it is."""
    Image.fromarray(photograph()).save(tmp_path / "x.png")
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    with open_bands(tmp_path / "x.png") as bands:
        assert bands.size == (150, 220)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    with pytest.raises(ModuleNotFoundError) as raised, open_bands(tmp_path / "x.png"):
        pass
    assert raised.value.name == "pyvips"
    for name in ("text.png", "damaged.jpg", "absent.png"):
        with pytest.raises(InputError, match=name), open_bands(tmp_path / name):
            pass
