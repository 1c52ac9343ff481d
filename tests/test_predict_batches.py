"""What `predict` makes of a batch: a name for every output, nothing outside its folder, and a row for every failure."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy import images
from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.predict import Prediction, Predictor, predict
from r2mrf_deploy.predict import _names as names

brightness = cast(Predictor, lambda image: image.mean(2, dtype=np.float32) / 255)


def photograph(path: Path, level: int = 200) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), (level,) * 3).save(path)
    return path


def run(sources: list[Path], output: Path, **options: bool) -> list[Prediction]:
    return list(predict(brightness, sources, output, **options))


def levels(predictions: list[Prediction]) -> list[int]:
    """The grey level of each map, which is that of its photograph if no output was overwritten."""
    found = []
    for p in predictions:
        assert p.map is not None, p.error
        with Image.open(p.map) as focus:
            found.append(int(np.asarray(focus)[0, 0]))
    return found


def test_relative_folders_with_files_of_one_name_stay_in_the_output(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sources = [photograph(Path("c/p.png"), 10), photograph(Path("d/p.png"), 20)]
    done = run(images.find(["c", "d"]), Path("out"))
    assert levels(done) == [10, 20] and [p.source for p in done] == sources
    assert sorted(p.name for p in Path("out").iterdir()) == [
        "c_p.png_map.png", "c_p.png_overlay.png", "d_p.png_map.png", "d_p.png_overlay.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "given",
    [
        ("a.jpg", "a.png", "a.jpg.webp"),
        ("a.jpg", "a.png", "a.jpg.webp", "a.png.bmp", "b/a.png", "c/a.png"),
        ("A.jpg", "a.png", "Å.jpg", "a\u030a.png"),  # a file system may take these for one
        ("x/a_b/i.png", "x/a/b/i.png", "x/q/b/i.png", "a/b/i.png"),
    ],
)
def test_no_two_outputs_are_one_file(tmp_path: Path, given: tuple[str, ...]) -> None:
    sources = [photograph(tmp_path / name, 10 * n) for n, name in enumerate(given)]
    done = run(sources, tmp_path / "out", overlays=False)
    np.testing.assert_allclose(levels(done), [10 * n for n in range(len(given))], atol=2)  # JPEG rounds
    assert len({p.map.name.casefold() for p in done if p.map}) == len(given)


def test_names_that_are_exhausted_still_differ() -> None:
    """Joined by `_`, these paths are the same in full."""
    found = names([Path("/a_b/i.png"), Path("/a/b/i.png"), Path("/q/b/i.png")])
    assert len(set(found)) == 3 and not any("/" in name for name in found)


def test_many_files_of_one_name_are_named_in_linear_time() -> None:
    sources = [Path(f"/album{n // 100}/{n}/DSC_0001.jpg") for n in range(20_000)]
    assert len(set(names(sources))) == 20_000  # quadratic, this took minutes


@pytest.mark.parametrize("stem", ["x" * 240, "x" * 251, "写" * 77, "写" * 83])
def test_a_long_name_is_shortened_and_stays_its_own(tmp_path: Path, stem: str) -> None:
    try:
        sources = [photograph(tmp_path / f"{stem[:-1]}{end}.png", level) for end, level in (("1", 10), ("2", 20))]
    except OSError:
        pytest.skip("this file system has shorter names")
    done = run(sources, tmp_path / "out")
    assert levels(done) == [10, 20]
    assert all(p.overlay and p.overlay.is_file() and p.overlay.name.startswith(stem[:70]) for p in done)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    source, treasure = photograph(tmp_path / "a.png"), tmp_path / "treasure"
    treasure.write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_map.png").symlink_to(treasure)
    (row,) = run([source], tmp_path / "out")
    assert "symbolic link" in (row.error or "") and str(treasure) in (row.error or "")
    assert treasure.read_text() == "mine" and (tmp_path / "out" / "a_map.png").is_symlink()


def test_whatever_fails_is_that_photograph_s_row(tmp_path: Path) -> None:
    good = [photograph(tmp_path / f"{name}.png") for name in "abcd"]

    def fails(image: np.ndarray) -> np.ndarray:
        fails.calls += 1  # type: ignore[attr-defined]
        if error := errors.get(fails.calls):  # type: ignore[attr-defined]
            raise error
        return image[:, :, 0].astype(np.float32) / 255

    fails.calls = 0  # type: ignore[attr-defined]
    errors = {
        1: RuntimeError("[ONNXRuntimeError] : 1\nmore"),
        2: ArtifactError("the map is not finite"),
        3: MemoryError(),
    }
    rows = list(predict(cast(Predictor, fails), good, tmp_path / "out"))
    a, b, c, _ = good
    assert [row.error for row in rows] == [
        f"{a}: RuntimeError: [ONNXRuntimeError] : 1", f"{b}: the map is not finite", f"{c}: MemoryError: MemoryError", None,
    ]  # fmt: skip
    assert rows[3].map and rows[3].map.is_file()


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a folder that cannot be written")
def test_an_output_that_cannot_be_written_is_refused_before_the_first_map(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir(mode=0o500)
    with pytest.raises(ArtifactError, match="not a writable folder"):
        run([photograph(tmp_path / "a.png")], tmp_path / "out")


def test_an_overlay_can_be_smaller_and_a_jpeg(tmp_path: Path) -> None:
    source = photograph(tmp_path / "a.png")
    (row,) = predict(brightness, [source], tmp_path / "out", overlay_side=4, overlay_format="jpg")
    assert row.overlay == tmp_path / "out" / "a_overlay.jpg" and row.map
    with Image.open(row.overlay) as overlay, Image.open(row.map) as focus:
        assert (overlay.format, overlay.size) == ("JPEG", (4, 3)) and focus.size == (8, 6)


_PEAK = """
import re, sys
from pathlib import Path
import numpy as np
from r2mrf_deploy import images
from r2mrf_deploy.predict import predict

def peak():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

small = np.random.default_rng(0).random((32, 48), np.float32)
images.read(sys.argv[1])
before = peak()
(row,) = predict(lambda image: images.resize(small, image.shape[:2]), [Path(sys.argv[2])], Path(sys.argv[3]))
assert row.map, row.error
print(peak() - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's figures of a process")
def test_a_large_photograph_takes_little_more_than_its_pixels_and_its_map(tmp_path: Path) -> None:
    """Per pixel 3 bytes of colour and 4 of the map stay, and Pillow decodes into 4; drawing takes 2 at this size."""
    large = tmp_path / "large.jpg"
    Image.new("RGB", (6000, 4000), (90, 120, 150)).save(large)
    command = [sys.executable, "-c", _PEAK, photograph(tmp_path / "a.png"), large, tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / (6000 * 4000) < 14
