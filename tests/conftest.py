"""Models that several tests build from."""

from __future__ import annotations

import os
import shutil
import signal

if "PYTEST_XDIST_WORKER" in os.environ:  # before PyTorch starts its threads: as many workers as cores would fight
    os.environ.setdefault("OMP_NUM_THREADS", "1")
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.files import sha256
from r2mrf_deploy.manifest import Manifest, TensorSpec

if TYPE_CHECKING:
    import onnx


heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
"""As `preexec_fn`, it lets a program hear Ctrl-C, which what runs in the background ignores."""
EXPORTED = {"exported", "export", "traced", "converted", "small_compressed", "programs"}
"""The fixtures that are exported files."""


def manifest_of(path: Path) -> Manifest | None:
    """The manifest of an artifact, which must match it."""
    return Artifact.open(path).manifest


def copied(path: Path, folder: Path) -> Path:
    """An artifact with its manifest, called `x`, to change."""
    shutil.copy(Manifest.path_for(path), folder / f"x{path.suffix}.json")
    return Path(shutil.copy(path, folder / f"x{path.suffix}"))


def forge(manifest: Manifest, model: Path) -> None:
    """Write a manifest beside a file, whether it is the file's or not."""
    manifest.write(Manifest.path_for(model))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What uses an exported file has the marker `artifact`, whether it says so or not."""
    for item in items:
        if {"exported", "export", "traced", "converted", "programs", "small_compressed"} & set(
            getattr(item, "fixturenames", ())
        ):
            item.add_marker("artifact")


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Commands keep what runtimes compile here, not in the home of whoever runs the tests."""
    os.environ["R2MRF_CACHE"] = str(tmp_path_factory.mktemp("cache"))


TinyOnnx = Callable[..., Path]
Once = Callable[[str, Callable[[Path], object]], Path]

# r2mrf-edge with so few channels that a test can afford it
SMALL = {"steps": "2", "width": "4", "amdf_channels": "8", "initial_channels": "8"}


@pytest.fixture(scope="session")
def dut5() -> Path:
    """Five photographs of DUT's with their masks, white = in focus, which are not ours to pass on."""
    folder = Path(os.environ.get("R2MRF_DUT5") or Path(__file__).parents[2] / "shared" / "data" / "dut5")
    if not folder.is_dir():
        pytest.skip(f"needs five photographs of DUT and their masks: R2MRF_DUT5=folder of image/ and gt/ (no {folder})")
    return folder


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """`once(name, fill)`: a folder that `fill(folder)` has filled, once for all workers of pytest-xdist."""
    from filelock import FileLock

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        folder, filled = root / name, root / f"{name}.filled"
        with FileLock(root / f"{name}.lock"):
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                fill(folder)
                filled.touch()
        return folder

    return make


@pytest.fixture(scope="session")
def small(once: Once) -> Path:
    """A checkpoint whose map is informative on photographs."""
    from r2mrf_deploy.checkpoint import Checkpoint

    return once("small", lambda folder: Checkpoint.init("r2mrf-edge", SMALL).save(folder / "small.pth")) / "small.pth"


@pytest.fixture(scope="session")
def exported(small: Path, once: Once) -> Path:
    """The same as an ONNX artifact beside it, 96x128, with every step's outputs."""
    from r2mrf_deploy.export.chain import export_artifact
    from r2mrf_deploy.export.options import ExportOptions

    once("exported", lambda _: export_artifact(small, options=ExportOptions(size=(96, 128), all_steps=True)))
    return small.with_suffix(".onnx")


@pytest.fixture(scope="session")
def export(small: Path, once: Once) -> Callable[..., Path]:
    """`export(**options)`: `small` as an ONNX artifact, 96x128. Tests share the file, so they leave it as it is."""
    from r2mrf_deploy.export.chain import export_artifact
    from r2mrf_deploy.export.options import ExportOptions

    def make(**options: Any) -> Path:
        name = "-".join(["export", *(f"{k}={v}" for k, v in sorted(options.items()))])
        given = ExportOptions(size=(96, 128), **options)
        return once(name, lambda folder: export_artifact(small, folder / "small.onnx", given)) / "small.onnx"

    return make


@pytest.fixture(scope="session")
def traced(once: Once) -> Callable[..., Path]:
    """`traced(preset, size=(320, 320), io="image", dynamic=False, **settings)`: a network's graph, not rewritten."""
    from r2mrf_deploy import networks
    from r2mrf_deploy.graph.trace import trace
    from r2mrf_deploy.networks.deployed import Deployed

    def make(
        preset: str, size: tuple[int, int] = (320, 320), io: str = "image", dynamic: bool = False, **settings: str
    ) -> Path:
        def fill(folder: Path) -> None:
            network = networks.create(*networks.preset(preset, settings))
            deployed = Deployed(network, network.config.preprocess, io=io)  # type: ignore[arg-type]
            (folder / "traced.onnx").write_bytes(trace(deployed, size, dynamic=dynamic).SerializeToString())

        return once("-".join(map(str, (preset, *size, io, dynamic, *settings.items()))), fill) / "traced.onnx"

    return make


@pytest.fixture(scope="session")
def album(once: Once) -> Path:
    """A folder of six photographs to calibrate on."""
    from r2mrf_deploy import images, sample_photographs

    def fill(folder: Path) -> None:
        for number, photograph in enumerate(sample_photographs.sharp()[:6]):
            (folder / f"{number}.png").write_bytes(images.png(images.resize(photograph, (120, 160))))

    return once("album", fill)


@pytest.fixture(scope="session")
def converted(exported: Path, album: Path, once: Once) -> Callable[[str], Path]:
    """`converted(precision)`: `exported` in a reduced precision. Tests share the file, so they leave it as it is.

    The weights are untrained and pass rounding on, so that parity may fail.
    """
    from r2mrf_deploy.export.convert import convert_artifact
    from r2mrf_deploy.export.options import PrecisionOptions

    def make(precision: str) -> Path:
        options = PrecisionOptions(precision, calibration=album if precision == "int8" else None)  # type: ignore[arg-type]

        def fill(folder: Path) -> object:
            return convert_artifact(exported, folder / "c.onnx", options, allow_failed_parity=True)

        return once(precision, fill) / "c.onnx"

    return make


@pytest.fixture(scope="session")
def small_compressed(export: Callable[..., Path], album: Path, once: Once) -> Path:
    """What `r2mrf compress` makes of `small`, 96x128, with its largest savings only: narrower, factored, parts in INT8."""
    from r2mrf_deploy.compression import CompressionOptions, compress_artifact, plans

    options = CompressionOptions(max_drop=0.2, allow_failed_parity=True)

    def fill(folder: Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(plans, "WORTH", 0.1)
            compress_artifact(export(), folder / "compressed.onnx", album, options)

    return once("compressed", fill) / "compressed.onnx"


@pytest.fixture(scope="session")
def programs(exported: Path, converted: Callable[[str], Path], once: Once) -> Callable[[str], Path]:
    """`programs(precision)`: `exported`, or what `converted` makes of it, as an ExecuTorch program."""
    pytest.importorskip("executorch.extension.pybindings._C", reason="needs ExecuTorch")
    from r2mrf_deploy.export.build import build_artifact

    def make(precision: str = "fp32") -> Path:
        source = exported if precision == "fp32" else converted(precision)

        def fill(folder: Path) -> object:
            return build_artifact(source, folder / "small.pte", allow_failed_parity=True)

        return once(f"program-{precision}", fill) / "small.pte"

    return make


@pytest.fixture
def tiny_onnx(tmp_path: Path) -> TinyOnnx:
    """Make a small model of the kind that `r2mrf export` writes, and its manifest: two convolutions and a resize.

    Input `image`: uint8 [1, 64, 64, 3], or free but for the channels; output `map`: float32 [1, 1, 64, 64].
    """

    def make(name: str = "tiny", precision: str = "fp32", dynamic: bool = False, manifest: bool = True) -> Path:
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(_tiny(precision, dynamic).SerializeToString())
        if manifest:
            forge(_manifest(path, precision, dynamic), path)
        return path

    return make


def _tiny(precision: str, dynamic: bool) -> onnx.ModelProto:
    from onnx import TensorProto, helper, numpy_helper

    kind = {"fp32": TensorProto.FLOAT, "fp16": TensorProto.FLOAT16, "bf16": TensorProto.BFLOAT16}[precision]
    rng = np.random.default_rng(0)

    def weights(name: str, array: np.ndarray) -> TensorProto:
        floats = numpy_helper.from_array(array.astype(np.float32), name)
        return floats if kind == TensorProto.FLOAT else helper.make_tensor(name, kind, array.shape, array.ravel())

    nodes = [
        helper.make_node("Cast", ["image"], ["float"], to=kind),
        helper.make_node("Transpose", ["float"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Mul", ["nchw", "scale"], ["x"]),
        helper.make_node("Conv", ["x", "w1"], ["c1"], strides=[2, 2], pads=[1, 1, 1, 1], name="conv1"),
        helper.make_node("Relu", ["c1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1], name="conv2"),
        helper.make_node("Resize", ["c2", "", "twice"], ["up"], mode="linear"),
        helper.make_node("Sigmoid", ["up"], ["sigmoid"]),
        helper.make_node("Cast", ["sigmoid"], ["map"], to=TensorProto.FLOAT),
    ]
    constants = [
        weights("w1", rng.standard_normal((8, 3, 3, 3)) / 5),
        weights("w2", rng.standard_normal((1, 8, 3, 3)) / 5),
        weights("scale", np.array([1 / 255])),
        numpy_helper.from_array(np.array([1, 1, 2, 2], np.float32), "twice"),
    ]
    image, map_ = _shapes(dynamic)
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, image)],
        [helper.make_tensor_value_info("map", TensorProto.FLOAT, map_)],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _shapes(dynamic: bool) -> tuple[list[int | str], list[int | str]]:
    if dynamic:
        return ["batch", "height", "width", 3], ["batch", 1, "height", "width"]
    return [1, 64, 64, 3], [1, 1, 64, 64]


def _manifest(path: Path, precision: str, dynamic: bool) -> Manifest:
    image, map_ = _shapes(dynamic)
    profile = {"min": [1, 32, 32, 3], "opt": [1, 64, 64, 3], "max": [2, 128, 128, 3]}
    return Manifest(
        file=path.name,
        sha256=sha256(path),
        bytes=path.stat().st_size,
        kind="onnx",
        network="r2mrf",
        inputs=[TensorSpec(name="image", dtype="uint8", shape=image, layout="NHWC")],
        outputs=[TensorSpec(name="map", dtype="float32", shape=map_, layout="NCHW")],
        profiles={"image": profile} if dynamic else {},
        precision=precision,
        opset=17,
        multiply_adds=123,
    )
