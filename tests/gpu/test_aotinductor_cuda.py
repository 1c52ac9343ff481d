"""AOTInductor's packages on a real GPU: the CPU's map, static and dynamic, with a CUDA graph and without."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy import environment, runtimes, sample_photographs
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.errors import ArtifactError, InputError
from r2mrf_deploy.export.base import Exported
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.options import ExportOptions, FormatOptions
from r2mrf_deploy.images import resize
from r2mrf_deploy.manifest import Manifest
from r2mrf_deploy.runtimes import OpenOptions
from r2mrf_deploy.runtimes.pytorch.cuda import cuda_availability
from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner
from tests.conftest import forge

pytestmark = [pytest.mark.gpu, pytest.mark.slow]
CAT = sample_photographs.sample("chelsea")


@pytest.fixture(autouse=True, scope="module")
def device() -> None:
    state = cuda_availability()
    if not state.ok:
        pytest.skip(f"needs a CUDA device and a PyTorch for it: {state.reason}; {state.cure}")
    if environment.cxx() is None:
        pytest.skip(f"needs a C++ compiler: {environment.CXX}")


@pytest.fixture(scope="module", params=[False, True], ids=["static", "dynamic"])
def exported(
    device: None, small: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Exported:
    options = ExportOptions(size=(96, 128), dynamic=request.param, format=FormatOptions(device="cuda"))
    return export_artifact(small, tmp_path_factory.mktemp("pt2") / "x.pt2", options)


def picture(height: int = 96, width: int = 128) -> dict[str, np.ndarray]:
    return {"image": resize(CAT, (height, width))[None]}


@pytest.mark.parametrize("cuda_graph", [None, True])
def test_the_map_is_the_cpu_s(small: Path, exported: Exported, cuda_graph: bool | None) -> None:
    reference = PyTorchRunner(Checkpoint.load(small))
    sizes = [(96, 128), (117, 235), (65, 66), (96, 128)] if exported.manifest.profiles else [(96, 128)]
    with runtimes.open(exported.path, options=OpenOptions(cuda_graph=cuda_graph, spin_wait=True)) as runner:
        for size in sizes:
            wanted = reference.run(picture(*size))["map"]
            for _ in range(3):  # sums in another order, as parity allows
                np.testing.assert_allclose(runner.run(picture(*size))["map"], wanted, atol=1e-4)
        assert runner.device.endswith(", CUDA graph") == bool(cuda_graph)
        assert runner.in_flight == 2
        with pytest.raises(InputError):
            runner.run(picture(48, 64))


def test_the_manifest_names_the_device(exported: Exported) -> None:
    import torch

    target = exported.manifest.target
    assert target is not None and target.device == "cuda" and not target.built_without_gpu
    assert target.compute_capabilities == ["{}.{}".format(*torch.cuda.get_device_capability())]
    assert exported.parity is not None and exported.parity.verdict == "pass"
    assert torch.cuda.get_device_name() in exported.parity.device


def test_another_compute_capability_is_refused(exported: Exported, tmp_path: Path) -> None:
    manifest = Manifest.read(Manifest.path_for(exported.path))
    assert manifest.target is not None
    copy = tmp_path / exported.path.name
    copy.write_bytes(exported.path.read_bytes())
    other = manifest.target.model_copy(update={"compute_capabilities": ["6.1"]})
    forge(manifest.model_copy(update={"target": other}), copy)
    with pytest.raises(ArtifactError, match=r"compute capability 6\.1, but this machine has"):
        runtimes.open(copy)
