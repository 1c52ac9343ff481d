"""A model repository: what is in it, what is refused, and that nothing is lost."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from r2mrf_deploy import weights
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, InputError, R2mrfError, UsageError
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.manifest import Manifest, Target
from r2mrf_deploy.runtimes import open as open_runner
from r2mrf_deploy.serving import checks
from r2mrf_deploy.serving.pipeline import VERDICTS
from r2mrf_deploy.serving.repository import model_names, write_repository
from tests.conftest import Once, TinyOnnx, forge, manifest_of

pytest.importorskip("tritonclient.grpc", reason="needs tritonclient")

FILES = ("net_decode/1/model.py", "net_decode/config.pbtxt", "net_draw/1/model.py", "net_draw/config.pbtxt")
ENSEMBLE = (*FILES, "net_draw/labels.txt", "net_jpeg/config.pbtxt", "net_jpeg/labels.txt")


@pytest.fixture
def net(tiny_onnx: TinyOnnx) -> Path:
    return tiny_onnx("net")


@pytest.fixture(scope="module")
def xml(exported: Path, once: Once) -> Path:
    pytest.importorskip("openvino", reason="needs openvino")
    return once("serving-xml", lambda folder: build_artifact(exported, folder / "net.xml")) / "net.xml"


def plan_of(onnx: Path, magic: bytes = b"ftrt") -> Path:
    """A file with a plan's header, and its manifest."""
    plan, said = onnx.with_suffix(".plan"), manifest_of(onnx)
    assert said
    head = bytearray(200)
    head[:4], head[24:28] = magic, bytes((10, 9, 0, 34))
    head[16:24] = (200).to_bytes(8, "little")
    plan.write_bytes(head)
    target = Target(runtime="tensorrt", runtime_version="10.9.0.34", compute_capabilities=["8.6"])
    contract = said.model_copy(update={"kind": "plan", "target": target})
    forge(Manifest.bind(contract, plan, []), plan)
    return plan


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_repository_holds_what_triton_needs_and_nothing_else(net: Path, tmp_path: Path) -> None:
    write_repository([net], tmp_path / "native")
    own = {"net/config.pbtxt", "net/1/model.onnx"}
    assert files(tmp_path / "native") == {*own, *ENSEMBLE}
    assert (tmp_path / "native" / "net_jpeg" / "1").is_dir()  # a version, which an ensemble has nothing in
    write_repository([net], tmp_path / "python", backend="python")
    by_us = {"net/1/model.py", "net/1/model.onnx.json"}
    assert files(tmp_path / "python") == {*own, *by_us, *ENSEMBLE}
    write_repository([net], tmp_path / "tensors", jpeg=False)
    assert files(tmp_path / "tensors") == own
    labels = (tmp_path / "native" / "net_draw" / "labels.txt").read_text().splitlines()
    assert tuple(labels) == VERDICTS
    assert (tmp_path / "native" / "net" / "1" / "model.onnx").read_bytes() == net.read_bytes()


def test_each_format_has_its_backend(net: Path, xml: Path, tmp_path: Path) -> None:
    for source, backend, more in ((plan_of(net), "tensorrt", set()), (xml, "openvino", {"net/1/model.bin"})):
        repository = tmp_path / backend
        write_repository([source], repository, jpeg=False)
        assert files(repository) == {"net/config.pbtxt", f"net/1/model{source.suffix}", *more}
        config = checks.read(repository / "net")
        assert config.backend == backend
        assert config.instance_group[0].kind == (1 if backend == "tensorrt" else 2)  # KIND_GPU, KIND_CPU
    assert config.parameters["PERFORMANCE_HINT"].string_value == "LATENCY"


def test_the_copy_for_our_own_runner_is_the_same_artifact(net: Path, xml: Path, tmp_path: Path) -> None:
    for source in (net, xml, plan_of(net)):
        repository = tmp_path / source.suffix[1:]
        write_repository([source], repository, backend="python", jpeg=False)
        copy = Artifact.open(repository / "net" / "1" / f"model{source.suffix}")
        before = Artifact.open(source)
        assert copy.manifest and before.manifest and before.contract and copy.contract
        assert (copy.manifest.sha256, copy.manifest.file) == (before.manifest.sha256, copy.path.name)
        assert copy.contract.embedded() == before.contract.embedded()
        assert not copy.manifest.parity and not copy.manifest.latency  # they tell of the machine that measured
        if source != net.with_suffix(".plan"):
            with open_runner(copy) as runner:
                assert [spec.name for spec in runner.inputs] == ["image"]


def test_no_file_names_a_place_of_this_machine(exported: Path, tmp_path: Path) -> None:
    write_repository([exported], tmp_path / "python", backend="python")
    write_repository([exported], tmp_path / "native")
    for file in (p for p in tmp_path.rglob("*") if p.is_file()):
        content = file.read_bytes()
        for place in {exported.parent, tmp_path, Path.cwd(), Path.home(), Path(sys.prefix)} - {
            Path("/root"),
            Path("/"),
        }:
            assert os.fsencode(place) not in content, f"{file} names {place}"


def test_what_triton_runs_finds_its_packages_first(net: Path, tmp_path: Path) -> None:
    """Triton's Python may have other packages of the same names; those of R2MRF_PACKAGES win, and their .pth files count."""
    write_repository([net], tmp_path / "repo", backend="python")
    stub = tmp_path / "packages" / "elsewhere" / "r2mrf_deploy" / "serving"
    stub.mkdir(parents=True)
    (stub / "models.py").write_text("Network, Decode, Draw = 'network', 'decode', 'draw'")
    for package in (stub, stub.parent):
        (package / "__init__.py").touch()
    (tmp_path / "packages" / "editable.pth").write_text(str(stub.parents[1]))
    show = "import runpy, sys; print(*(runpy.run_path(p)['TritonPythonModel'] for p in sys.argv[1:]))"
    models = [tmp_path / "repo" / name / "1" / "model.py" for name in ("net", "net_decode", "net_draw")]
    for folders, said in ((str(tmp_path / "packages"), "network decode draw"), ("", "models.Network'>")):
        done = subprocess.run(
            [sys.executable, "-c", show, *map(str, models)],
            env=os.environ | {"R2MRF_PACKAGES": folders}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert said in done.stdout


def test_a_repository_is_added_to(net: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    repository, other = tmp_path / "repo", tiny_onnx("other")
    write_repository([net], repository)
    write_repository([other], repository, backend="python")
    assert {p.name.partition("_")[0] for p in repository.iterdir()} == {"net", "other"} and len(files(repository)) == 20
    before = (repository / "other" / "config.pbtxt").read_bytes()
    write_repository([net], repository, backend="python", jpeg=False)
    names = {p.name for p in repository.iterdir()}
    assert names == {
        "net",
        "other",
        "other_decode",
        "other_draw",
        "other_jpeg",
    }  # no ensemble of the old network is left
    assert checks.read(repository / "net").backend == "python"
    assert (repository / "other" / "config.pbtxt").read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {
        "repo",
        *(f"{n}.onnx{s}" for n in ("net", "other") for s in ("", ".json")),
    }


def test_a_folder_that_is_no_repository_is_left_as_it_is(net: Path, tmp_path: Path) -> None:
    def notes(folder: Path) -> None:
        (folder / "notes.txt").write_text("mine")

    def foreign_model(folder: Path) -> None:
        (folder / "net").mkdir()
        (folder / "net" / "config.pbtxt").write_text('name: "net"')

    def renamed(folder: Path) -> None:
        write_repository([net], folder)
        (folder / "net").rename(folder / "mine")

    for number, fill in enumerate((notes, foreign_model, renamed)):
        folder = tmp_path / f"there{number}"
        folder.mkdir()
        fill(folder)
        before = {p: (folder / p).read_bytes() for p in files(folder)}
        for server in ("triton", "ovms"):
            with pytest.raises(ArtifactError, match=r"cannot write .*there\d: it holds .* did not write for"):
                write_repository([net], folder, server=server)  # type: ignore[arg-type]
        assert {p: (folder / p).read_bytes() for p in files(folder)} == before
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ArtifactError, match="file: it is not a folder"):
        write_repository([net], tmp_path / "file")
    with pytest.raises(ArtifactError, match="link: it is a symbolic link"):
        write_repository([net], tmp_path / "link")
    (tmp_path / "empty").mkdir()
    write_repository([net], tmp_path / "empty")


def _checkpoint(folder: Path, net: Path) -> Path:
    return weights.checkpoint("r2mrf-lite")


def _package(folder: Path, net: Path) -> Path:
    (folder / "x.pt2").write_bytes(b"PK")
    return folder / "x.pt2"


def _unknown(folder: Path, net: Path) -> Path:
    return Path(shutil.copy(net, folder / "alone.onnx"))


def _damaged(folder: Path, net: Path) -> Path:
    net.write_bytes(net.read_bytes() + b"\0")
    return net


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (_checkpoint, UsageError, r"is a checkpoint: export it first: r2mrf export r2mrf-lite\.pth"),
        (_package, UsageError, r"x\.pt2: no server takes it; export or build an \.plan, \.onnx, \.xml"),
        (_unknown, ArtifactError, r"alone\.onnx has no manifest .* make it again"),
        (_damaged, ArtifactError, "SHA-256 differs"),
        (lambda folder, net: folder / "none.onnx", InputError, r"none\.onnx: no such file"),
        (
            lambda folder, net: plan_of(net, b"vtrt"),
            UsageError,
            "TensorRT-RTX, which Triton's own backend does not open",
        ),
    ],
)
def test_what_no_server_takes_is_refused(
    make: Callable[[Path, Path], Path], error: type[R2mrfError], message: str, net: Path, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        write_repository([make(tmp_path, net)], tmp_path / "repo")
    assert not (tmp_path / "repo").exists() and not list(tmp_path.glob(".r2mrf-*"))


def test_models_have_names_that_addresses_take(tmp_path: Path) -> None:
    def named(*paths: str) -> list[str]:
        return model_names([tmp_path / path for path in paths])

    assert named("a/r2mrf-lite.onnx", "b/über scharf 2.xml") == ["r2mrf-lite", "ber_scharf_2"]
    assert named("a/net.onnx", "b/net.onnx") == ["a_net_onnx", "b_net_onnx"]
    assert named("net.onnx", "net.plan") == ["net_onnx", "net_plan"]
    for clash in (("a b.onnx", "a_b.onnx"), ("net.onnx", "net_draw.onnx"), ("net.onnx", "net.onnx")):
        with pytest.raises(UsageError, match="another artifact has a model of the name"):
            named(*clash)
    with pytest.raises(UsageError, match="has no letter that an address takes"):
        named("模型.onnx")


@pytest.mark.parametrize("there", [False, True])
def test_a_full_disk_leaves_what_was_there(there: bool, net: Path, tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="needs a limit on the size of files")
    repository, other = tmp_path / "repo", tiny_onnx("other")
    if there:
        write_repository([other], repository)
    before: dict[str, Any] = {p: (repository / p).read_bytes() for p in files(repository)}
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))
    try:
        with pytest.raises(ArtifactError, match=r"cannot write .*repo: File too large"):
            write_repository([net], repository)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert {p: (repository / p).read_bytes() for p in files(repository)} == before
    assert not list(tmp_path.glob(".r2mrf-*"))


def test_if_a_move_fails_everything_is_moved_back(net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repo"
    write_repository([net], repository)
    before = {p: (repository / p).read_bytes() for p in files(repository)}
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == "net_draw" and self.parent.name == "repository":
            raise PermissionError(13, "Permission denied")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(ArtifactError, match=r"cannot write .*repo: Permission denied"):
        write_repository([net], repository, backend="python")
    assert {p: (repository / p).read_bytes() for p in files(repository)} == before


def test_a_model_of_another_artifact_is_never_replaced(tiny_onnx: TinyOnnx, tmp_path: Path) -> None:
    """The ensemble of `lite` would have the name of an artifact that is there."""
    first, second = tiny_onnx(name="lite_jpeg"), tiny_onnx(name="lite")
    write_repository([first], tmp_path / "repository", backend="python")
    before = sorted(p.name for p in (tmp_path / "repository").iterdir())
    with pytest.raises(UsageError, match="has a model lite_jpeg of another artifact"):
        write_repository([second], tmp_path / "repository", backend="python")
    assert sorted(p.name for p in (tmp_path / "repository").iterdir()) == before
