"""Opening AOTInductor packages: what is not one, not ours, or not for here is refused before any of its code is loaded."""

from __future__ import annotations

import json
import platform
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from r2mrf_deploy import environment, runtimes
from r2mrf_deploy.errors import ArtifactError, InputError, R2mrfError, RuntimeUnavailable, UsageError
from r2mrf_deploy.files import sha256
from r2mrf_deploy.inspection import inspect
from r2mrf_deploy.manifest import Manifest, Target, TensorSpec
from r2mrf_deploy.runtimes import OpenOptions, aotinductor
from r2mrf_deploy.runtimes.aotinductor import AOTInductor, target_here
from tests.conftest import forge

INPUT = TensorSpec(name="image", dtype="uint8", shape=[1, 64, 64, 3], layout="NHWC")
OUTPUT = TensorSpec(name="map", dtype="float32", shape=[1, 1, 64, 64], layout="NCHW")
HERE = target_here("cpu")
Make = Callable[..., Path]


@pytest.fixture
def package(tmp_path: Path) -> Make:
    """Make a package without code in it: what is refused has to be refused before the code is wanted."""

    def make(device: str = "cpu", target: Target = HERE, manifest: bool = True, **changes: Any) -> Path:
        path = tmp_path / "x.pt2"
        said = Manifest(file=path.name, sha256="", bytes=0, kind="pt2", inputs=[INPUT], outputs=[OUTPUT], target=target)
        facts = {"AOTI_DEVICE_KEY": device, "r2mrf": said.embedded()}
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("x/data/aotinductor/model/a.wrapper_metadata.json", json.dumps(facts))
            archive.writestr("x/data/aotinductor/model/a.wrapper.so", b"not code" * 1000)
        if manifest:
            known = {"sha256": sha256(path), "bytes": path.stat().st_size}
            forge(said.model_copy(update=known | changes), path)
        return path

    return make


def test_a_package_without_code_is_not_loaded(package: Make) -> None:
    with pytest.raises(ArtifactError, match=r"x\.pt2 is no package that PyTorch can load .*; export it again") as error:
        runtimes.open(package())
    assert "\n" not in str(error.value)


def test_a_loaded_package_gives_its_outputs_by_name(package: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._inductor, "aoti_load_package", lambda *_, **__: lambda x: (x.float().mean(-1)[:, None],))
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    image.flags.writeable = False
    with runtimes.open(package()) as runner:
        assert runner.runtime == "aotinductor" and runner.device.endswith(", AOTInductor FP32")
        np.testing.assert_allclose(runner.run({"image": image})["map"][:, 0], image.mean(-1), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"runtime_version": "2.1.0"},
            rf"made for PyTorch 2\.1\.0, but this machine has {torch.__version__.split('+')[0]}.*r2mrf expo",
        ),
        ({"cpu": "riscv64 DEFAULT"}, rf"made for CPU riscv64 DEFAULT, but this machine has {platform.machine()}"),
        ({"device": "cuda"}, "was made for cpu, but its manifest says cuda"),
    ],
)
def test_what_was_made_for_something_else_is_refused(package: Make, change: dict[str, str], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        runtimes.open(package(target=HERE.model_copy(update=change)))


def test_a_gpu_s_package_needs_that_gpu(package: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    target = HERE.model_copy(update={"device": "cuda", "cpu": None, "compute_capabilities": ["9.0"]})
    path = package("cuda", target)
    if environment.cuda_driver() is not None:
        with pytest.raises(RuntimeUnavailable, match=r"x\.pt2 was made for a GPU: .*export it for the CPU"):
            runtimes.open(path)
    monkeypatch.setattr(aotinductor, "cuda_availability", lambda: runtimes.Availability(True))
    here = target.model_copy(update={"compute_capabilities": ["8.6"]})
    monkeypatch.setattr(aotinductor, "target_here", lambda *_: here)
    with pytest.raises(ArtifactError, match=r"compute capability 9\.0, but this machine has 8\.6; export it again"):
        runtimes.open(path)
    with pytest.raises(ArtifactError, match="known are cpu and cuda"):
        runtimes.open(package("xpu"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "onnx"}, "describes a file of kind 'onnx'"),
        (
            {"inputs": [INPUT.model_copy(update={"dtype": "float32"})]},
            "the file has image: uint8.*says image: float32",
        ),
        ({"outputs": [OUTPUT.model_copy(update={"name": "focus"})]}, "its manifest says"),
        ({"sha256": "0" * 64}, "SHA-256 differs"),
    ],
)
def test_a_manifest_that_does_not_match_is_refused(package: Make, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        runtimes.open(package(**change))


def test_without_a_manifest_it_must_be_trusted(package: Make) -> None:
    path = package(manifest=False)
    with pytest.raises(ArtifactError, match=r"executable code .*no manifest.*r2mrf export.*`trust`"):
        runtimes.open(path)
    with pytest.raises(ArtifactError, match="no package that PyTorch can load"):  # it went as far as the code
        runtimes.open(path, trust=True)
    loud = path.rename(path.with_suffix(".PT2"))
    with pytest.raises(ArtifactError, match="executable code"):
        runtimes.open(loud)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "empty", "another zip", "nonsense"])
def test_damaged_packages(package: Make, damage: str) -> None:
    path = package(manifest=False)
    whole = path.read_bytes()
    middle = len(whole) // 2
    flipped = whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :]
    path.write_bytes({"truncated": whole[:-40], "flipped": flipped, "text": b"hello"}.get(damage, b""))
    if damage in ("another zip", "nonsense"):
        facts = {"AOTI_DEVICE_KEY": "cpu", "r2mrf": '{"inputs": 3, "target": {}}'} if damage == "nonsense" else {}
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.wrapper_metadata.json" if facts else "a.txt", json.dumps(facts))
    for read in (lambda: runtimes.open(path, trust=True), lambda: inspect(path)):
        with pytest.raises(ArtifactError, match=r"x\.pt2 is") as error:
            read()
        assert "\n" not in str(error.value)


def test_a_package_that_is_not_ours_does_not_say_its_inputs(tmp_path: Path) -> None:
    path = tmp_path / "x.pt2"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.wrapper_metadata.json", json.dumps({"AOTI_DEVICE_KEY": "cpu"}))
    with pytest.raises(ArtifactError, match="does not say what its inputs are"):
        runtimes.open(path, trust=True)
    assert "contract inside the file" not in inspect(path)


def test_options_that_mean_nothing_on_the_device_are_refused(package: Make) -> None:
    for options, flag in (
        (OpenOptions(cuda_graph=True), "cuda_graph"),
        (OpenOptions(spin_wait=True), "spin_wait"),
    ):
        with pytest.raises(UsageError, match=f"runs on the cpu, which does not support `{flag}`"):
            runtimes.open(package(), options=options)
    with pytest.raises(UsageError, match="runs on the cuda, which does not support `threads`"):
        runtimes.open(package("cuda"), options=OpenOptions(threads=1))
    with pytest.raises(UsageError, match="AOTInductor does not support `buffers`"):
        runtimes.open(package(), options=OpenOptions(buffers="pycuda"))


def test_inspect_reads_it_without_running_it(package: Make, tmp_path: Path) -> None:
    facts = inspect(package())
    assert facts["kind"] == "pt2" and facts["device"] == "cpu"
    assert facts["manifest"]["target"]["runtime_version"] == HERE.runtime_version
    alone = inspect(package(manifest=False).rename(tmp_path / "alone.pt2"))
    assert "alone.pt2.json is missing" in alone["manifest"]
    assert alone["contract inside the file"]["target"]["runtime_version"] == HERE.runtime_version


def test_without_a_compiler_packages_run_and_none_is_made(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from r2mrf_deploy.export.chain import export_artifact

    monkeypatch.setenv("CXX", "no-such-compiler")
    state = AOTInductor().availability()
    assert state.ok and "cannot be made" in state.reason and "g++" in state.cure
    with pytest.raises(RuntimeUnavailable, match=r"no C\+\+ compiler; install g\+\+"):
        export_artifact(small, tmp_path / "x.pt2")


def test_wrong_names_are_refused(package: Make, tmp_path: Path) -> None:
    with pytest.raises(R2mrfError, match=r"does not open \.pt2 files; aotinductor does"):
        runtimes.open(package(), "pytorch")
    with pytest.raises(InputError, match="no such file"):
        runtimes.open(tmp_path / "y.pt2")
