"""`r2mrf-infer` on folders and batches: what it reads, what it writes and where, and what it says when it cannot."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from .conftest import TinyOnnx

pytestmark = pytest.mark.artifact


def picture(path: Path, level: int = 128, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 16), (level, level // 2, 255 - level)).save(path, options.pop("format", "png"), **options)
    return path


def run(infer: Path, *arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([infer, *arguments], capture_output=True, text=True, timeout=60, cwd=cwd)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_folder_is_its_images(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    """Without subfolders, other files, and macOS's notes about files."""
    photos = tmp_path / "photos"
    for name in ("b.png", "a.JPG", "._a.JPG", "deeper/c.png", "notes.txt"):
        picture(photos / name)
    done = run(infer, tiny_onnx(), photos, photos / "b.png", "--output", tmp_path / "out", "--no-overlays")
    assert done.returncode == 0 and done.stdout.split() == [str(tmp_path / "out" / f"{n}_map.png") for n in "ab"]
    assert names(tmp_path / "out") == {"a_map.png", "b_map.png"}


def test_one_bad_photograph_does_not_end_a_batch(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    for name in ("a.png", "b.png", "e.png", "z.png"):
        picture(photos / name)
    (photos / "b.png").write_bytes((photos / "a.png").read_bytes()[:60])
    (photos / "c.webp").write_bytes(b"RIFF")
    (out / "e_map.png").mkdir(parents=True)  # its map cannot be written
    os.mkfifo(tmp_path / "d.png")
    (tmp_path / "empty").mkdir()
    bad_exif = picture(tmp_path / "x.jpg", format="jpeg", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff" + b"\x01" * 40)
    sources = (photos, tmp_path / "d.png", "/dev/zero", tmp_path / "empty", tmp_path / "none.png", bad_exif)
    done = run(infer, tiny_onnx(), *sources, "-o", out, "--no-overlays")
    assert done.returncode == 2
    assert names(out) == {"a_map.png", "e_map.png", "z_map.png", "x_map.png"}
    said = done.stderr.splitlines()
    for name, part in (
        ("empty", "has no images (supported suffixes: .jpg"),
        ("b.png", "damaged"),
        ("c.webp", "unknown format: convert it to PNG or JPEG"),
        ("e_map.png", "it is there and is not a regular file"),
        ("d.png", "only regular files are read"),
        ("/dev/zero", "only regular files are read"),
        ("none.png", "no such file"),
    ):
        assert [line for line in said if name in line and part in line], (name, said)
    assert said[-1] == "3 of 9 images were done" and len(said) == 8


def test_names_are_unique_and_stay_in_the_folder(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    """A stem if it is alone; else the file name; else as many folders before it as are needed. Case does not distinguish."""
    here = tmp_path / "here"
    given = [
        "c/p.png",
        "d/p.png",
        "a.jpg",
        "a.png",
        "a.jpg.webp",
        "Q.png",
        "q.bmp",
        "x/d/p.png",
        "lone.png",
        "./lone.png",
    ]
    for level, name in enumerate(given):
        picture(here / name, 20 * level)
    file = tiny_onnx()
    before = names(Path("/"))
    assert run(infer, file, *given, "-o", "out", "--no-overlays", cwd=here).returncode == 0
    assert names(Path("/")) == before and names(here) == {Path(name).parts[0] for name in given} | {"out"}
    expected = ("c_p.png", "here_d_p.png", "x_d_p.png", "here_a.jpg", "a.png", "a.jpg.webp", "Q.png", "q.bmp", "lone")
    assert names(here / "out") == {f"{name}_map.png" for name in expected}


def test_ten_thousand_names_cost_no_time(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    """Of files that are not there, so that only their names and their refusals are left to do."""
    missing = [f"{n % 100}/{n}.png" for n in range(10_000)] + [f"{n}/p.png" for n in range(2_000)]
    done = run(infer, tiny_onnx(), *missing, "-o", tmp_path / "out")  # a quadratic choice takes longer than run() waits
    assert done.returncode == 2 and done.stderr.endswith("0 of 12000 images were done\n")


@pytest.mark.parametrize("name", ["x" * 250, "写" * 83])
def test_long_names_are_cut(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path, name: str) -> None:
    sources = [picture(tmp_path / f"{name}.{suffix}") for suffix in ("png", "PNG")]
    sources += [picture(tmp_path / f"{name[:77]}.png")]  # fits as it is
    done = run(infer, tiny_onnx(), *sources, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    made = names(tmp_path / "out")
    assert len(made) == 6 and all(len(os.fsencode(n)) <= 255 for n in made)
    assert {f"{name[:77]}_map.png", f"{name[:77]}_overlay.png"} < made


def test_a_source_is_never_replaced(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    sources = [picture(tmp_path / "p.png"), picture(tmp_path / "p_map.png"), picture(tmp_path / "q.png")]
    before = sources[1].read_bytes()
    (tmp_path / "link").symlink_to(tmp_path)
    done = run(infer, tiny_onnx(), *sources, "-o", tmp_path / "link")
    assert done.returncode == 2 and "would replace" in done.stderr and "choose another folder with -o" in done.stderr
    assert sources[1].read_bytes() == before and not (tmp_path / "q_map.png").exists()


def test_only_regular_files_are_replaced(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    out, precious = tmp_path / "out", tmp_path / "precious"
    out.mkdir()
    precious.write_text("precious")
    (out / "a_map.png").symlink_to(precious)
    (out / "b_map.png").symlink_to("nowhere")
    os.mkfifo(out / "c_map.png")
    (out / "d_map.png").write_text("an older map")
    sources = [picture(tmp_path / f"{n}.png") for n in "abcd"]
    done = run(infer, tiny_onnx(), *sources, "-o", out, "--no-overlays")
    assert done.returncode == 2 and done.stderr.count("it is there and is not a regular file; remove it first") == 3
    assert precious.read_text() == "precious" and (out / "b_map.png").is_symlink() and (out / "c_map.png").is_fifo()
    assert Image.open(out / "d_map.png").size == (20, 16) and len(names(out)) == 4


def test_nothing_is_left_where_writing_fails(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "x_overlay.png").write_text("an older one")
    done = subprocess.run(
        [infer, tiny_onnx(), tmp_path / "x.png", "-o", tmp_path / "out"],
        capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000)),
    )  # fmt: skip
    assert done.returncode == 2 and "x_overlay.png: File too large; name a folder with -o" in done.stderr
    assert names(tmp_path / "out") == {"x_map.png", "x_overlay.png"}
    assert (tmp_path / "out" / "x_overlay.png").read_text() == "an older one"


def test_a_full_disk_is_called_full(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([infer, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 2 and done.stderr == "cannot write to the standard output: the disk is full\n"
    space = tmp_path / "space"
    space.mkdir()
    mount = f"mount -t tmpfs -o size=100k tmpfs {space}"
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("needs a file system of its own: unshare -rm, mount -t tmpfs")
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "x.png")
    command = f"{mount} && {{ {infer} {tiny_onnx()} {tmp_path / 'x.png'} -o {space}; ls -A {space}; }}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert done.stderr == f"cannot write {space / 'x_overlay.png'}: the disk is full\n"
    assert done.stdout.split() == ["x_map.png"]


def test_a_checkpoint_has_to_be_exported(infer: Path, tmp_path: Path) -> None:
    (tmp_path / "my.pth").write_bytes(b"PK")
    done = run(infer, tmp_path / "my.pth", picture(tmp_path / "x.png"))
    assert done.returncode == 2 and done.stderr == (
        f"{tmp_path / 'my.pth'} is a checkpoint, which has to be exported first: "
        f"r2mrf export {tmp_path / 'my.pth'} -o my.onnx\n"
    )


def test_no_control_character_reaches_the_terminal(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    rude = "a\x1b]0;title\x07\r\n\x9b31m\u202egpj"
    good = picture(tmp_path / f"{rude}.png")
    (tmp_path / f"{rude}.bmp").write_text("no image")
    for arguments in (
        [tiny_onnx(), good, tmp_path / f"{rude}.bmp", "-o", tmp_path],
        [rude, good],
        ["x.onnx", f"--{rude}"],
    ):
        done = run(infer, *arguments)
        said = done.stdout + done.stderr
        assert done.returncode == 2 and not set(said) & set("\x1b\x07\r\x9b\u202e")
        assert all(line.startswith((str(tmp_path), "1 of 2", rude[0], "unknown option")) for line in said.splitlines())


def test_a_photograph_of_too_many_pixels_is_refused_unread(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    (tmp_path / "bomb.pgm").write_bytes(b"P5 20000 20000 255\n")
    done = run(infer, tiny_onnx(), tmp_path / "bomb.pgm", "-o", tmp_path / "out")
    assert done.returncode == 2 and done.stderr.endswith("has more than 178 million pixels: scale it down first\n")


@pytest.mark.slow
def test_a_hundred_megapixels_fit_in_a_gigabyte_and_a_half(infer: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    """Also where the file takes most to decode and has to be turned."""
    noise = np.random.default_rng(0).integers(0, 256, (866, 1155, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    large = Image.fromarray(noise).resize((11550, 8660))
    large.save(tmp_path / "x.jpg", exif=exif, progressive=True, subsampling=0)
    # through a small process, since what a process is started from counts to its peak
    measured = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr); "
    measured += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    command = [sys.executable, "-c", measured, infer, tiny_onnx(), tmp_path / "x.jpg", "-o", tmp_path / "out"]
    peak = 1024 * int(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    assert 6e8 < peak < 1.5e9
    assert Image.open(tmp_path / "out" / "x_overlay.png").size == (1536, 2048)
