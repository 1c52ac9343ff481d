"""The check before an artifact is published, where it cannot be carried out, and what it remembers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy import runtimes
from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError
from r2mrf_deploy.export.check import Check, Remembering
from r2mrf_deploy.manifest import Target
from r2mrf_deploy.progress import silent
from r2mrf_deploy.runtimes.base import Availability
from r2mrf_deploy.runtimes.tensorrt.runner import TensorRT
from tests.conftest import manifest_of


@pytest.mark.parametrize("here", ["9.0", "8.6"])
def test_a_plan_for_another_gpu_is_not_run_and_one_for_this_gpu_must_open(
    tiny_onnx: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, here: str
) -> None:
    def refuse(*_: object) -> None:
        raise ArtifactError("it does not open on this GPU")

    monkeypatch.setattr(TensorRT, "availability", lambda _: Availability(True, details={"compute_capability": here}))
    monkeypatch.setattr(runtimes, "open", refuse)
    target = Target(runtime="tensorrt_rtx", runtime_version="1.7", compute_capabilities=["8.6", "8.9"])
    manifest = manifest_of(tiny_onnx())
    assert manifest is not None
    plan = Artifact(Path("x.plan"), contract=manifest.model_copy(update={"kind": "plan", "target": target}))
    check = Check(refuse, "PyTorch", silent)  # type: ignore[arg-type]
    if here == "8.6":
        with pytest.raises(ArtifactError, match="does not open"):
            check.compare(plan)
    else:
        found = check.compare(plan)
        assert found is not None and found.verdict == "not run" and "compute capability 9.0" in found.reason


def test_what_is_remembered_is_not_changed_by_who_reads_it(tiny_onnx: Callable[..., Path]) -> None:
    with Remembering(runtimes.open(Artifact.open(tiny_onnx()))) as remembering:
        feed = {s.name: np.ones([d or 1 for d in s.shape], s.dtype) for s in remembering.inputs}
        first = remembering.run(feed)
        kept = {name: array.copy() for name, array in first.items()}
        for array in first.values():
            array += 1
        for name, array in remembering.run(feed).items():
            np.testing.assert_array_equal(array, kept[name])
