"""A disk that fills up while a file is written: one clear line, and nothing left.

The limit on a file's size is the kernel's: writes beyond it fail in every library as they do on a full disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from r2mrf_deploy import images
from r2mrf_deploy.artifact import Artifact, publish
from r2mrf_deploy.cli import main
from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.export.aotinductor import AOTInductorExporter
from r2mrf_deploy.export.build import build_artifact
from r2mrf_deploy.export.convert import convert_artifact
from r2mrf_deploy.export.onnx import describe
from r2mrf_deploy.export.optimize import optimize_artifact
from r2mrf_deploy.export.options import FormatOptions, PrecisionOptions
from r2mrf_deploy.files import scratch, write_atomically
from r2mrf_deploy.progress import silent

resource = pytest.importorskip("resource", reason="needs a limit on the size of files")


@contextmanager
def full(limit: int) -> Iterator[None]:
    """No file can grow beyond `limit` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """An ONNX file with a MiB of weights in front of an image output."""
    from tests.conftest import _tiny

    model = _tiny("fp32", False)
    weights = np.random.default_rng(0).standard_normal((512, 512)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "wide"))
    model.graph.node.append(onnx.helper.make_node("MatMul", ["wide", "wide"], ["square"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("square", onnx.TensorProto.FLOAT, [512, 512]))
    path = tmp_path / "in" / "wide.onnx"
    path.parent.mkdir()
    path.write_bytes(model.SerializeToString())
    return path


def _training(_: Path, out: Path) -> None:
    from r2mrf_deploy.training.callbacks import AtomicCheckpoints

    AtomicCheckpoints().save_checkpoint({"w": torch.zeros(1 << 20)}, out)


def _package(model: Path, out: Path) -> None:
    """Export to AOTInductor, with a compiler that fails as PyTorch's does where it packs."""

    def compiled(_: object, package_path: str, **__: object) -> None:
        torch.save(torch.zeros(1 << 20), package_path)

    contract = describe(onnx.load(model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._inductor, "aoti_compile_and_package", compiled)
        source = Artifact(model, contract=contract)
        publish(
            out, lambda f: AOTInductorExporter().write(source, f, FormatOptions(device="cpu"), silent)[0], lambda _: []
        )


WRITERS: dict[str, tuple[str, Callable[[Path, Path], object]]] = {
    "torch.save": ("x.pth", lambda _, out: write_atomically(out, lambda f: torch.save(torch.zeros(1 << 20), f))),
    "bytes": ("x.png", lambda _, out: write_atomically(out, bytes(1 << 20))),
    "optimize": ("x.onnx", optimize_artifact),
    "convert": ("x.onnx", lambda model, out: convert_artifact(model, out, PrecisionOptions("fp16"))),
    "OpenVINO": ("x.xml", build_artifact),
    "AOTInductor": ("x.pt2", _package),
    "training": ("last.ckpt", _training),
}


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize("limit", [0, 64 << 10])
def test_one_clear_line_and_nothing_left(writer: str, limit: int, wide: Path, tmp_path: Path) -> None:
    if writer == "OpenVINO":
        pytest.importorskip("openvino", reason="needs openvino")
    name, write = WRITERS[writer]
    out = tmp_path / "out" / name
    with full(limit), pytest.raises(ArtifactError, match=rf"^cannot write .*{name}: File too large$|temporary file"):
        write(wide, out)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [wide]


def test_predict_says_it_too(
    tiny_onnx: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, photograph = tiny_onnx(), tmp_path / "photograph.png"
    photograph.write_bytes(images.png(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)))
    for limit, file, left in ((0, "predictions.jsonl", []), (2000, "photograph_overlay.jpg", ["predictions.jsonl"])):
        with full(limit):
            command = ["predict", str(model), str(photograph), "-o", str(tmp_path / "maps"), "--save", "overlay"]
            assert main(command) == 2
        assert f"{file}: File too large" in capsys.readouterr().err
        assert [p.name for p in (tmp_path / "maps").iterdir()] == left


def test_a_temporary_folder_that_is_full_names_the_cure(tmp_path: Path) -> None:
    told = pytest.raises(ArtifactError, match=r"temporary file in .*TMPDIR=FOLDER.*: File too large")
    with full(0), told, scratch() as folder:
        torch.save(torch.zeros(10), folder / "x")
