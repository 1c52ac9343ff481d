"""Export to AOTInductor: one package and its manifest, checked against PyTorch, or nothing."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils import cpp_extension

from r2mrf_deploy import environment, formats, runtimes, sample_photographs
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.cli import main
from r2mrf_deploy.errors import ArtifactError, BuildError, CheckFailed, InputError, RuntimeUnavailable
from r2mrf_deploy.export import aotinductor
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.options import ExportOptions, FormatOptions
from r2mrf_deploy.files import sha256
from r2mrf_deploy.images import resize
from r2mrf_deploy.manifest import Manifest
from r2mrf_deploy.runtimes import OpenOptions
from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner
from tests.conftest import forge, manifest_of
from tests.fuzzing import mutations, survivors

pytestmark = pytest.mark.artifact

CAT = sample_photographs.sample("chelsea")
compiles = pytest.mark.skipif(environment.cxx() is None, reason="needs a C++ compiler")


@pytest.fixture(scope="module")
def package(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """96x128, with every step's outputs, made by the command."""
    path = tmp_path_factory.mktemp("pt2") / "small.pt2"
    assert main(["export", str(small), "-o", str(path), "--size", "96x128", "--all-steps", "--device", "cpu"]) == 0
    return path


@compiles
@pytest.mark.slow
def test_the_package_computes_what_pytorch_computes(small: Path, package: Path) -> None:
    image = resize(CAT, (96, 128))[None]
    wanted = PyTorchRunner(Checkpoint.load(small), all_steps=True).run({"image": image})
    before = torch.get_num_threads()
    with runtimes.open(package, options=OpenOptions(threads=1)) as runner:
        assert runner.runtime == "aotinductor" and "1 thread," in runner.device
        found, timing = runner.run_timed({"image": image})
        with pytest.raises(InputError, match=r"must have shape \[1, 96, 128, 3\]"):
            runner.run({"image": image[:, :90]})
    torch.set_num_threads(before)
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        assert value.std() > 0.05
        np.testing.assert_allclose(found[name], value, atol=1e-4 * value.std())  # sums in another order
    assert timing.latency == timing.compute > 0


@compiles
@pytest.mark.slow
def test_package_and_manifest(small: Path, package: Path) -> None:
    manifest = manifest_of(package)
    assert manifest is not None and manifest.target is not None
    assert manifest.checkpoint_sha256 == sha256(small)
    assert (manifest.kind, manifest.config["steps"]) == ("pt2", 2)
    assert {r.name for r in manifest.rewrites} >= {"split concat", "commute"}, "the exact rewrites are in it"
    assert str(manifest.inputs[0]) == "image: uint8 [1×96×128×3] NHWC"
    assert [str(o) for o in manifest.outputs][:2] == [
        "map: float32 [1×1×96×128] NCHW",
        "step1_branch5: float32 [1×1×24×32] NCHW",
    ]
    assert manifest.parity[0]["verdict"] == "pass" and manifest.parity[0]["runtime"] == "aotinductor"
    assert (manifest.target.device, manifest.target.runtime_version) == ("cpu", torch.__version__)
    with zipfile.ZipFile(package) as archive:
        assert {stack_flags(archive.read(n)) for n in archive.namelist() if n.endswith(".so")} == {6}
    assert main(["inspect", str(package)]) == 0
    alone = shutil.copy(package, package.with_name("alone.pt2"))  # under another name, and without its manifest
    with runtimes.open(alone, trust=True) as runner:
        assert list(runner.inputs) == manifest.inputs and list(runner.outputs) == manifest.outputs


@compiles
@pytest.mark.slow
def test_a_dynamic_package_takes_every_size_in_its_range(small: Path, tmp_path: Path) -> None:
    options = ExportOptions(size=(96, 128), dynamic=True, format=FormatOptions(device="cpu"))
    done = export_artifact(small, tmp_path / "d.pt2", options)
    assert done.manifest.profiles == {
        "image": {"min": [1, 64, 64, 3], "opt": [1, 96, 128, 3], "max": [4, 1280, 1280, 3]}
    }
    assert [str(o) for o in done.manifest.outputs] == ["map: float32 [batch×1×height×width] NCHW"]
    assert done.parity.photographs == 4, "sizes of every kind of rounding are compared too"
    reference = PyTorchRunner(Checkpoint.load(small))
    with runtimes.open(done.path) as runner:
        # sides of every remainder by 4 and some by 32: where rounding was settled for one size, others differ or crash
        for height in (*range(64, 72), 97, 128, 161):
            for width in (64, 65, 66, 67, 130):
                image = resize(CAT, (height, width))[None]
                wanted = reference.run({"image": image})["map"]
                np.testing.assert_allclose(runner.run({"image": image})["map"], wanted, atol=1e-5)
        for shape in ((1, 63, 64, 3), (1, 64, 1281, 3), (5, 64, 64, 3)):
            with pytest.raises(InputError, match="outside the package's range"):
                runner.run({"image": np.zeros(shape, np.uint8)})


@compiles
@pytest.mark.slow
def test_code_that_computes_something_else_is_not_written(
    small: Path, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Checkpoint.load(small)
    changed = {k: v + 0.01 if k == "fusion.bias" else v for k, v in read.state_dict.items()}
    other = Checkpoint(read.network, read.config, changed).save(tmp_path / "other.pth")

    def wrong(program: Any, package_path: str, **_: Any) -> None:
        shutil.copy(package, package_path)

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", wrong)
    options = ExportOptions(size=(96, 128), all_steps=True, format=FormatOptions(device="cpu"))
    with pytest.raises(CheckFailed, match="was not written: it does not compute what PyTorch computes"):
        export_artifact(other, tmp_path / "x.pt2", options)
    assert [p.name for p in tmp_path.iterdir()] == ["other.pth"]


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("name", ["../../outside", "/tmp/outside", "a\\..\\..\\outside", "C:/outside"])
def test_a_package_that_would_be_unpacked_outside_its_folder_is_not_unpacked(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """PyTorch's loader follows such names, and would write the file."""
    path = shutil.copy(package, tmp_path / "x.pt2")
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"small/data/aotinductor/model/{name}" if name.startswith("..") else name, "here")
    monkeypatch.setattr(torch._inductor, "aoti_load_package", _never)
    with pytest.raises(ArtifactError, match="would be unpacked outside its folder"):
        runtimes.open(path, trust=True)
    forge(Manifest.bind(_manifest(package), path, []), path)  # a manifest that matches makes it no better
    with pytest.raises(ArtifactError, match="would be unpacked outside its folder"):
        runtimes.open(path)


@compiles
@pytest.mark.slow
def test_a_package_is_compared_with_its_manifest_before_it_is_parsed(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copy(package, tmp_path / "x.pt2")
    shutil.copy(package.with_name("small.pt2.json"), tmp_path / "x.pt2.json")
    with path.open("ab") as f:
        f.write(b"more")
    monkeypatch.setattr(formats, "read", _never)
    with pytest.raises(ArtifactError, match="SHA-256 differs"):
        runtimes.open(path)


@compiles
@pytest.mark.slow
def test_a_package_changed_after_it_was_verified_is_not_loaded(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copy(package, tmp_path / "x.pt2")
    shutil.copy(package.with_name("small.pt2.json"), tmp_path / "x.pt2.json")
    artifact = Artifact.open(path)
    with path.open("ab") as f:
        f.write(b"more")
    monkeypatch.setattr(torch._inductor, "aoti_load_package", _never)
    with pytest.raises(ArtifactError, match="was changed after it was compared with its manifest"):
        runtimes.open(artifact)


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("count", [500])
def test_damage_to_a_package_is_refused_or_harmless(package: Path, tmp_path: Path, count: int) -> None:
    """Damage in the code, its metadata and the directory of the archive; nothing is loaded."""
    whole = package.read_bytes()
    with zipfile.ZipFile(package) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    directory = range(whole.rindex(b"PK\5\6") - 2000, len(whole))
    damaged = mutations(whole, count, directory)
    for found in survivors(tmp_path / "x.pt2", damaged, formats.read, ArtifactError):
        with zipfile.ZipFile(tmp_path / "x.pt2") as archive:
            assert {name: archive.read(name) for name in archive.namelist()} == members
        assert found == formats.read(package)


def _manifest(package: Path) -> Manifest:
    manifest = manifest_of(package)
    assert manifest is not None
    return manifest


def _never(*_: object, **__: object) -> None:
    raise AssertionError("it came too far")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "x.pt2", "--precision", "int8", "--calibration", "."], "AOTInductor files (.pt2) have no INT8"),
        (["-o", "x.pt3"], "no exporter writes .pt3 files; known are .onnx .xml .plan .pt2"),
        (["-o", "x.pt2", "--size", "16x16"], "too small"),
        (["-o", "x.pt2", "--device", "tpu"], "tpu"),
        (["--device", "cpu"], "--device is not supported by ONNX: leave it out"),
    ],
)
def test_wrong_use(
    small: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["export", str(small), *arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said
    assert not list(tmp_path.iterdir())


def test_a_device_that_is_not_here_is_refused(small: Path, tmp_path: Path) -> None:
    if environment.cuda_driver() is not None:
        with pytest.raises(RuntimeUnavailable, match=r"`device` cuda: .* or use cpu"):
            export_artifact(small, tmp_path / "x.pt2", ExportOptions(format=FormatOptions(device="cuda")))
    assert not list(tmp_path.iterdir())


def stack_flags(library: bytes) -> int:
    """The flags of PT_GNU_STACK: 4 read, 2 write, 1 execute."""
    (start,), (size, count) = struct.unpack_from("<Q", library, 32), struct.unpack_from("<HH", library, 54)
    headers = [struct.unpack_from("<II", library, start + n * size) for n in range(count)]
    (flags,) = [flags for kind, flags in headers if kind == 0x6474E551]
    return flags


def test_no_library_asks_for_an_executable_stack(tmp_path: Path) -> None:
    compiler = shutil.which("cc")
    if compiler is None or platform.machine() != "x86_64" or sys.platform != "linux":
        pytest.skip("needs a C compiler for x86-64 Linux")
    (tmp_path / "x.c").write_text("int answer(void) { return 42; }")
    library = tmp_path / "x.so"
    command = [compiler, "-shared", "-fPIC", "-Wl,-z,execstack", "-o", str(library), str(tmp_path / "x.c")]
    subprocess.run(command, check=True)
    assert stack_flags(library.read_bytes()) == 7
    package = tmp_path / "x.pt2"
    with zipfile.ZipFile(package, "w") as archive:
        archive.write(library, "model/x.so")
        archive.writestr("model/x.json", "{}")
        archive.writestr("model/empty.so", b"")
    aotinductor._without_executable_stacks(package)
    with zipfile.ZipFile(package) as archive:
        assert archive.testzip() is None and archive.read("model/x.json") == b"{}" and len(archive.namelist()) == 3
        changed = Path(archive.extract("model/x.so", tmp_path / "changed"))
    assert stack_flags(changed.read_bytes()) == 6 and ctypes.CDLL(str(changed)).answer() == 42
    assert sorted(p.name for p in tmp_path.iterdir()) == ["changed", "x.c", "x.pt2", "x.so"]


@pytest.mark.parametrize(
    ("program", "crashes"), [("import os; os.abort()", True), ("raise OSError", False), ("", False)]
)
def test_a_crash_of_pytorch_is_an_error_and_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, program: str, crashes: bool
) -> None:
    monkeypatch.setattr(aotinductor, "_LOAD", program)
    if crashes:
        with pytest.raises(BuildError, match=r"PyTorch \S+ crashes here .* \(SIGABRT\): install another"):
            aotinductor._refuse_crash(tmp_path / "x.pt2")
    else:
        aotinductor._refuse_crash(tmp_path / "x.pt2")  # its check, which follows, says what is wrong


@pytest.mark.parametrize("given", [None, "", "/nowhere", "cuda-13"])
def test_cuda_home_is_the_toolkit_with_the_stub_and_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str | None
) -> None:
    """The compiler on the PATH is a link to that of a toolkit; PyTorch and the linker must look in one folder."""
    toolkit, link = tmp_path / "cuda-13", tmp_path / "bin" / "nvcc"
    for file in (toolkit / "bin" / "nvcc", toolkit / "targets" / "x86_64-linux" / "lib" / "stubs" / "libcuda.so"):
        file.parent.mkdir(parents=True)
        file.touch(mode=0o755)
    link.parent.mkdir()
    link.symlink_to(toolkit / "bin" / "nvcc")
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    if given is not None:
        monkeypatch.setenv("CUDA_HOME", str(toolkit) if given == "cuda-13" else given)
    before = os.environ.get("CUDA_HOME")
    monkeypatch.setenv("PATH", str(link.parent), prepend=":")
    monkeypatch.setattr(cpp_extension, "CUDA_HOME", "/guess")
    with aotinductor.cuda_home("cuda"):
        assert os.environ["CUDA_HOME"] == cpp_extension.CUDA_HOME == str(toolkit)
    for _ in range(2):
        assert os.environ.get("CUDA_HOME") == before and cpp_extension.CUDA_HOME == "/guess"
        with aotinductor.cuda_home("cpu"):
            assert os.environ.get("CUDA_HOME") == before and cpp_extension.CUDA_HOME == "/guess"


def test_the_exporter_links_in_that_folder(small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr(environment, "cuda_toolkit", lambda: tmp_path)
    monkeypatch.setattr(aotinductor, "cuda_home", lambda _, whole=aotinductor.cuda_home: whole("cuda"))

    def compiled(*_: object, **__: object) -> None:
        seen.append(os.environ.get("CUDA_HOME"))
        raise RuntimeError("enough")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compiled)
    with pytest.raises(BuildError, match="enough"):
        export_artifact(small, tmp_path / "x.pt2", ExportOptions((96, 128)))
    assert seen == [str(tmp_path)]
