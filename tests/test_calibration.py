"""Temperature scaling: the temperature that spoilt the logits is found again, and the map that is written is tempered."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from r2mrf_deploy import images, sample_photographs
from r2mrf_deploy.calibration import COLDEST, HOTTEST, Calibrated, calibrate, cross_entropy, temperature
from r2mrf_deploy.checkpoint import Checkpoint
from r2mrf_deploy.cli import main
from r2mrf_deploy.datasets import Dataset, read_dataset
from r2mrf_deploy.errors import InputError, UsageError
from r2mrf_deploy.export.chain import export_artifact
from r2mrf_deploy.export.options import ExportOptions
from r2mrf_deploy.metrics import score
from r2mrf_deploy.predictor import Predictor


def sigmoid(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def spoilt(factor: float, sizes: tuple[tuple[int, int], ...] = ((200, 150), (90, 400))) -> list[tuple[np.ndarray, ...]]:
    """Maps that would be probabilities if their logits were divided by `factor`."""
    rng = np.random.default_rng(0)
    pairs = []
    for size in sizes:
        logits = 2 * rng.standard_normal(size)
        pairs.append((sigmoid(factor * logits).astype(np.float32), rng.random(size) < sigmoid(logits)))
    return pairs


@pytest.mark.parametrize("factor", [0.1, 0.7, 1.0, 2.5])
def test_the_temperature_that_spoilt_the_logits_is_found(factor: float) -> None:
    pairs = spoilt(factor)
    found = temperature(pairs)
    # 66,000 pixels, each with an information about log T of E[p (1 - p) z²] = 0.32: a standard error of 0.7 %
    assert found == pytest.approx(factor, rel=0.03)
    again = [(sigmoid(_logits(p) / found), mask) for p, mask in pairs]
    assert score(again)[0].ece < 0.01
    assert factor == 1.0 or score(pairs)[0].ece > 0.02


def test_no_other_temperature_has_less_cross_entropy_and_photographs_weigh_alike() -> None:
    """The second photograph is small and much less sure: pixels that weighed alike would hardly notice it."""
    (large, small), (colder, _) = spoilt(3.0, ((300, 300), (30, 30))), spoilt(0.5, ((30, 30), (1, 1)))
    pairs = [large, colder]
    found = temperature(pairs)

    def at(t: float) -> float:
        return float(np.mean([cross_entropy(sigmoid(_logits(p) / t), mask) for p, mask in pairs]))

    assert at(found) < min(at(found * 1.01), at(found / 1.01))
    assert found < 0.95 * temperature([large, small])


def test_cross_entropy_is_its_definition() -> None:
    ((found, mask),) = spoilt(1.0, ((40, 50),))
    p = found.astype(np.float64)
    assert cross_entropy(found, mask) == pytest.approx(-np.where(mask, np.log(p), np.log(1 - p)).mean())
    sure = np.array([[0.0, 1.0]], np.float32)
    assert cross_entropy(sure, np.array([[False, True]])) == pytest.approx(2.0**-24, rel=1e-6)
    assert cross_entropy(sure, np.array([[True, False]])) == pytest.approx(24 * np.log(2))


def test_what_has_no_temperature_is_at_a_bound() -> None:
    ((found, mask),) = spoilt(1.0, ((40, 50),))
    assert temperature([(found, ~mask)]) == HOTTEST  # worse than chance
    assert temperature([(found, found > 0.5)]) == COLDEST  # without error
    assert temperature([(np.float32([[0, 1]]), np.array([[False, True]]))]) == COLDEST
    with pytest.raises(ValueError, match="nothing to calibrate on"):
        temperature([])
    with pytest.raises(ValueError, match="its mask"):
        temperature([(found, mask[1:])])


def test_maps_are_taken_one_by_one() -> None:
    """A photograph's map can go before the next is computed."""
    alive = []

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        import weakref

        for _ in range(3):
            found, mask = spoilt(1.0, ((20, 20),))[0]
            alive.append(weakref.ref(found))
            yield found, mask
            del found
            assert len([r for r in alive if r() is not None]) <= 1

    temperature(pairs())
    assert len(alive) == 3


def _logits(p: np.ndarray) -> np.ndarray:
    p = np.clip(p.astype(np.float64), 2.0**-24, 1 - 2.0**-24)
    return np.log(p / (1 - p))


@pytest.fixture(scope="module")
def dataset(small: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Photographs whose masks are drawn by chance from the map of `small` with its logits halved: its temperature is 2."""
    folder, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for part in ("image", "gt"):
        (folder / part).mkdir()
    with Predictor.open(small) as predictor:
        for name in ("astronaut", "coffee", "rocket"):
            photograph = images.resize(sample_photographs.sample(name), (96, 128))
            mask = rng.random((96, 128)) < sigmoid(_logits(predictor(photograph)) / 2)
            (folder / "image" / f"{name}.png").write_bytes(images.png(photograph))
            (folder / "gt" / f"{name}.png").write_bytes(images.png(images.grey(mask.astype(np.float32))))
    return read_dataset(folder, white="sharp")


@pytest.fixture(scope="module")
def calibrated(small: Path, dataset: Dataset) -> Calibrated:
    return calibrate(small, dataset, dataset.folder / "c.pth")


@pytest.mark.artifact
def test_a_calibrated_checkpoint_and_its_artifact_have_the_tempered_map(
    small: Path, dataset: Dataset, calibrated: Calibrated, tmp_path: Path
) -> None:
    done = calibrated
    assert done.temperature == pytest.approx(2, rel=0.1)  # the masks of 37,000 pixels were drawn
    assert done.after.nll < done.before.nll and done.after.scores.ece < 0.5 * done.before.scores.ece
    assert done.after.scores.f_half == pytest.approx(done.before.scores.f_half, abs=1e-3)
    exported = export_artifact(done.path, tmp_path / "c.onnx", options=ExportOptions(size=(96, 128))).path
    photograph = dataset.image(1)
    with Predictor.open(small) as predictor:
        wanted = sigmoid(_logits(predictor(photograph)) / done.temperature)
    for path in (done.path, exported):
        with Predictor.open(path) as predictor:
            # rounding in another order, as in parity
            np.testing.assert_allclose(predictor(photograph), wanted, atol=1e-4)
    assert wanted.std() > 0.02


def test_calibrating_again_finds_nothing_and_records_the_whole(
    small: Path, dataset: Dataset, calibrated: Calibrated, tmp_path: Path
) -> None:
    once = calibrated
    scored = Checkpoint.load(once.path)
    replace(scored, metrics={**scored.metrics, "validation": {"mae": 0.5}}).save(tmp_path / "scored.pth")
    twice = calibrate(tmp_path / "scored.pth", dataset, tmp_path / "twice.pth")
    assert twice.temperature == pytest.approx(1, abs=1e-3)
    assert twice.before.nll == pytest.approx(once.after.nll, rel=1e-6)
    before, after = Checkpoint.load(small), Checkpoint.load(twice.path)
    # the validation was of the map before
    assert after.metrics == {**before.metrics, "calibration": after.metrics["calibration"]}
    record = after.metrics["calibration"]
    assert record["temperature"] == pytest.approx(once.temperature * twice.temperature)
    assert (record["photographs"], record["dataset"]) == (3, dataset.folder.name)
    changed = {name for name, value in before.state_dict.items() if not value.equal(after.state_dict[name])}
    assert changed <= {"fusion.weight", "fusion.bias"} and "fusion.weight" in changed


def test_the_command_says_what_it_did(
    small: Path, dataset: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "c.pth"
    line = ["calibrate", str(small), "--data", str(dataset.folder), "--white", "sharp", "-o", str(target)]
    assert main([*line, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["file"] == str(target) and said["temperature"] == pytest.approx(2, rel=0.1)
    assert said["after"]["nll"] < said["before"]["nll"] and said["after"]["ece"] < said["before"]["ece"]
    assert main(line) == 0
    shown = capsys.readouterr().out
    assert f"{target}: r2mrf, temperature {said['temperature']:.3f}" in shown
    assert f"{said['before']['nll']:.4f}" in shown and f"{said['after']['mae']:.4f}" in shown


def test_what_is_refused_writes_nothing(
    small: Path, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = small.read_bytes()
    link = tmp_path / "hard.pth"
    link.hardlink_to(small)
    for target in (small, small.parent / ".." / small.parent.name / small.name, link):
        with pytest.raises(UsageError, match="is the checkpoint that is calibrated"):
            calibrate(small, dataset, target)
    assert small.read_bytes() == content
    assert main(["calibrate", str(small), "--data", str(dataset.folder), "--white", "sharp", "-o", "c.onnx"]) == 2
    turned = read_dataset(dataset.folder, white="blurred")
    with pytest.raises(InputError, match=r"no better than chance.*is white blurred in the masks"):
        calibrate(small, turned, tmp_path / "c.pth")
    forbidden: Callable[..., None] = lambda *_: pytest.fail("no map may be computed")  # noqa: E731
    monkeypatch.setattr(Predictor, "__call__", forbidden)
    with pytest.raises(UsageError, match="R2MRF with this config cannot be calibrated"):
        calibrate(small, dataset, tmp_path / "c.pth", settings={"output": "branch1"})
    assert not (tmp_path / "c.pth").exists()
