"""Files that are written row by row are what a file written at once would be, and are there whole or not at all."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.predict import streamed
from r2mrf_deploy.predict.streamed import Kind

FORMS: dict[Kind, tuple[type, tuple[int, ...], str]] = {
    "grey8": (np.uint8, (), "L"),
    "grey16": (np.uint16, (), "I;16"),
    "rgba8": (np.uint8, (4,), "RGBA"),
}


def pixels_of(kind: Kind, size: tuple[int, int]) -> np.ndarray:
    """Noise, whose bytes no filter and no compression leaves as they are."""
    dtype, rest, _ = FORMS[kind]
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (*size, *rest), dtype, endpoint=True)


def in_pieces(write: streamed.Write, pixels: np.ndarray) -> None:
    """Write rows in pieces of 1, 2, 3, ... rows."""
    top = 0
    for rows in range(1, len(pixels) + 1):
        write(pixels[top : top + rows])
        top += rows
        if top >= len(pixels):
            break


@pytest.mark.parametrize("size", [(1, 1), (1, 3000), (3000, 1), (61, 127), (700, 1600)], ids=str)
@pytest.mark.parametrize("kind", FORMS)
def test_pillow_reads_a_png_back(tmp_path: Path, kind: Kind, size: tuple[int, int]) -> None:
    pixels = pixels_of(kind, size)
    with streamed.png(tmp_path / "x.png", size, kind) as write:
        in_pieces(write, pixels)
    with Image.open(tmp_path / "x.png") as image:
        assert image.mode == FORMS[kind][2]
        assert np.array_equal(np.asarray(image), pixels)
    assert os.listdir(tmp_path) == ["x.png"]  # noqa: PTH208


def test_a_png_is_chunks_of_at_most_a_mebibyte_whose_checksums_are_right(tmp_path: Path) -> None:
    """Pillow checks only the checksums of some chunks; a strict reader checks all."""
    pixels = pixels_of("rgba8", (700, 1600))
    with streamed.png(tmp_path / "x.png", (700, 1600), "rgba8") as write:
        write(pixels)
    content, at, names = (tmp_path / "x.png").read_bytes(), 8, []
    while at < len(content):
        (length,), name = struct.unpack_from(">I", content, at), content[at + 4 : at + 8]
        (checksum,) = struct.unpack_from(">I", content, at + 8 + length)
        assert checksum == zlib.crc32(content[at + 4 : at + 8 + length])
        assert length <= 1 << 20
        names.append(name)
        at += 12 + length
    assert names == [b"IHDR", *[b"IDAT"] * (len(names) - 2), b"IEND"]
    assert len(names) > 4, "noise of 4.5 MB does not fit in two chunks"


def test_a_smooth_map_takes_less_room_than_a_third(tmp_path: Path) -> None:
    """Which the filter is for: unfiltered, by run lengths, this one takes nearly all of its bytes."""
    y, x = np.mgrid[:512, :512] / 512
    smooth = np.rint(255 * (0.5 + 0.5 * np.sin(5 * x + 3 * y))).astype(np.uint8)
    with streamed.png(tmp_path / "x.png", smooth.shape) as write:
        write(smooth)
    assert (tmp_path / "x.png").stat().st_size < smooth.size / 3


@pytest.mark.parametrize("size", [(1, 1), (61, 127)], ids=str)
def test_numpy_reads_its_file_back(tmp_path: Path, size: tuple[int, int]) -> None:
    values = np.random.default_rng(0).random(size, np.float32)
    with streamed.npy(tmp_path / "x.npy", size) as write:
        in_pieces(write, values)
    found = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert found.dtype == np.float32
    assert np.array_equal(found, values)


@pytest.mark.parametrize("open_file", [streamed.png, streamed.npy])
def test_what_fails_leaves_the_file_that_was_there(tmp_path: Path, open_file: type) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"before")
    rows = np.zeros((2, 5), np.uint8 if open_file is streamed.png else np.float32)
    with pytest.raises(ValueError, match="2 of 4 rows"), open_file(path, (4, 5)) as write:
        write(rows)
    with pytest.raises(ValueError, match="4 rows, not 6"), open_file(path, (4, 5)) as write:
        for _ in range(3):
            write(rows)
    with pytest.raises(ValueError, match="rows are"), open_file(path, (4, 5)) as write:
        write(rows[:, :4])
    with pytest.raises(ValueError, match="rows are"), open_file(path, (4, 5)) as write:
        write(rows.astype(np.float64))
    with pytest.raises(KeyboardInterrupt), open_file(path, (4, 5)) as write:
        write(rows)
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_process_leaves_no_file_and_the_next_one_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "x.png"
    program = (
        "import sys, time, numpy as np\n"
        "from pathlib import Path\n"
        "from r2mrf_deploy.predict import streamed\n"
        "with streamed.png(Path(sys.argv[1]), (4, 1000)) as write:\n"
        "    write(np.zeros((2, 1000), np.uint8))\n"
        "    print('half', flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"half\n"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not path.exists()
    time.sleep(0.05)  # until the kernel has freed the lock
    with streamed.png(path, (1, 1)) as write:
        write(np.zeros((1, 1), np.uint8))
    assert list(tmp_path.iterdir()) == [path]


def test_paths_that_are_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="symbolic link"), streamed.png(tmp_path / "link", (1, 1)):
        pass
    with pytest.raises(ArtifactError, match="outside"), streamed.npy(tmp_path / "x", (1, 1), within=tmp_path / "in"):
        pass
    with pytest.raises(ValueError, match="a PNG cannot be 0x5"), streamed.png(tmp_path / "x", (0, 5)):
        pass
