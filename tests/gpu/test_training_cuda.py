"""Training on a real GPU: composites are the CPU's, and a training killed there goes on to weights that can be used."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from r2mrf_deploy import images, sample_photographs
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.progress import Progress
from r2mrf_deploy.training.recipe import SCRATCH, Iteration
from r2mrf_deploy.training.run import Hardware, TrainingConfig, train
from r2mrf_deploy.training.synthesis.composites import Composites, Synthesis
from tests.conftest import SMALL

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def device() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device and a PyTorch for it")


def test_composites_are_the_cpu_s() -> None:
    """All but the sensor's noise, which is drawn on the device.

    Sums in another order move a value by its rounding, and JPEG's coefficients now and then by a whole step.
    """
    clean = Synthesis(size=128, noise=(0.0, 0.0), jpeg=0.0)
    sharp = [np.ascontiguousarray(p) for p in sample_photographs.sharp()[:3]]
    for synthesis, allowed in ((clean, 1e-4), (replace(clean, jpeg=1.0), 1e-3)):
        cpu, cuda = (Composites(sharp, synthesis, seed=3, device=name) for name in ("cpu", "cuda"))
        for _ in range(3):
            for wanted, found in zip(cpu.batch(8), cuda.batch(8), strict=True):
                assert found.device.type == "cuda" and wanted.std() > 0.1
                assert (found.cpu() - wanted).abs().mean() < allowed


@pytest.mark.parametrize("precision", ["32", "bf16-mixed"])
def test_a_training_is_stopped_resumed_and_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr("r2mrf_deploy.training.data.VALIDATED", 4)
    monkeypatch.setattr("r2mrf_deploy.training.module.STATISTICS", 2)
    (tmp_path / "sharp").mkdir()
    for n, photograph in enumerate(sample_photographs.sharp()[:4]):
        (tmp_path / "sharp" / f"{n}.png").write_bytes(images.png(photograph))
    recipe = replace(SCRATCH, iterations=20, batch=4, size=96)
    order = TrainingConfig(
        "r2mrf-edge", recipe, SMALL, sharp=tmp_path / "sharp", every=5, validate_every=10,
        precision=precision,  # type: ignore[arg-type]
    )  # fmt: skip
    stopped = train(order, tmp_path / "run", Hardware(accelerator="gpu", limit=0.0))
    assert not stopped.finished
    told: list[Progress] = []
    done = train(order, tmp_path / "run", Hardware(accelerator="gpu"), resume=True, progress=told.append)
    losses = [p.loss for p in told if isinstance(p, Iteration)]
    assert done.finished and np.isfinite(losses).all() and done.validation["mae"] < 1
    assert all(v.device.type == "cpu" for v in Checkpoint.load(done.path).state_dict.values())
    with Predictor.open(done.path) as predictor:
        assert np.isfinite(predictor(sample_photographs.sample("chelsea"))).all()
