"""Calibrate a network: make its map a probability, by temperature scaling (Guo et al., ICML 2017, section 4.2).

The logits are divided by one temperature, which is fitted on photographs with masks. Over 1, it makes the map less sure;
the order of the pixels does not change, nor does what is over 0.5. It is stored in the weights, so every artifact that is
exported from them has it, and no runtime needs to know.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from r2mrf_deploy.datasets import Dataset
from r2mrf_deploy.errors import InputError, UsageError
from r2mrf_deploy.files import refuse_unwritable
from r2mrf_deploy.metrics import Curves, Scores, average, judge
from r2mrf_deploy.predictor import Predictor
from r2mrf_deploy.progress import Progress, ProgressCallback, silent

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from r2mrf_deploy.checkpoint import Checkpoint
    from r2mrf_deploy.checkpoint_files import Loading

Pairs = Iterable[tuple[np.ndarray, np.ndarray]]
"""Maps, float [H, W] in [0, 1], 1 = in focus, and their masks, bool [H, W]."""
_Judged = tuple[float, tuple[Scores, Curves]]
"""The cross-entropy and the scores of one map."""

COLDEST, HOTTEST = 0.05, 20.0
"""The least and the largest temperature that `temperature` finds."""
SURE = 2.0**-24
"""How near to 0 and to 1 a map's values are taken to be at most: 1 - SURE is the largest FP32 number below 1. It bounds the
logits to ±16.6."""
FINENESS = 256
"""Cells of the histogram for each unit of the logits."""


def temperature(pairs: Pairs) -> float:
    """The temperature T, from `COLDEST` to `HOTTEST`, for which the sigmoid of the maps' logits over T has the least
    cross-entropy with the masks: the mean over each photograph's pixels, then over the photographs.

    The cross-entropy depends on a pixel's logit and label alone and is convex in 1 / T. So a histogram of the logits
    suffices, which takes 270 kB however many photographs there are, and its slope is bisected. A cell holds the mean of its
    logits; what it leaves out is at most 4.8e-7 / T² of cross-entropy.

    Raises:
        ValueError: there is no pair, or the sizes differ.
    """
    cells = 2 * (int(np.ceil(_logits(np.ones(1))[0] * FINENESS)) + 1)
    weights, sums = np.zeros(2 * cells), np.zeros(2 * cells)  # out of focus, then in focus
    for found, mask in pairs:
        if found.shape != mask.shape:
            raise ValueError(f"a map is {found.shape}, its mask {mask.shape}")
        logits = _logits(found).ravel()
        cell = np.floor(logits * FINENESS).astype(np.int64) + cells // 2 + cells * mask.ravel()
        weights += np.bincount(cell, minlength=2 * cells) / logits.size
        sums += np.bincount(cell, logits, 2 * cells) / logits.size
    held = weights > 0
    if not held.any():
        raise ValueError("there is nothing to calibrate on")
    weights, logits, label = weights[held], sums[held] / weights[held], (np.arange(2 * cells) >= cells)[held]

    def slope(inverse: float) -> float:
        """The derivative of the cross-entropy by 1 / T."""
        return float(weights @ (logits * (1 / (1 + np.exp(-inverse * logits)) - label)))

    if slope(1 / HOTTEST) >= 0:
        return HOTTEST
    if slope(1 / COLDEST) <= 0:
        return COLDEST
    low, high = np.log(COLDEST), np.log(HOTTEST)
    while (middle := (low + high) / 2) not in (low, high):  # until they are neighbours in FP64
        low, high = (low, middle) if slope(np.exp(-middle)) < 0 else (middle, high)
    return float(np.exp(middle))


def cross_entropy(found: np.ndarray, mask: np.ndarray) -> float:
    """The mean of a map's negative log-likelihood in nats: float [H, W] in [0, 1] against bool [H, W]."""
    logits = _logits(found)
    return float(np.logaddexp(0, np.where(mask, -logits, logits)).mean())


def _logits(found: np.ndarray) -> np.ndarray:
    p = np.clip(found.astype(np.float64), SURE, 1 - SURE)
    return np.log(p / (1 - p))


@dataclass(frozen=True)
class Figures:
    """How well maps fit their masks."""

    nll: float
    """The mean negative log-likelihood (cross-entropy) in nats, over each photograph and then over the photographs."""
    scores: Scores

    def to_dict(self) -> dict[str, float]:
        return {"nll": self.nll, **self.scores.to_dict()}


@dataclass(frozen=True)
class Calibrated:
    """A calibrated checkpoint's file, and what calibration has changed."""

    path: Path
    network: str
    temperature: float
    """Of this calibration."""
    before: Figures
    after: Figures
    """Of the calibrated network's own maps."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "file": str(self.path),
            "network": self.network,
            "temperature": self.temperature,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
        }


def calibrate(
    source: Path,
    dataset: Dataset,
    output: Path,
    *,
    progress: ProgressCallback = silent,
    **loading: Unpack[Loading],
) -> Calibrated:
    """Fit the temperature of a checkpoint's map on photographs with masks, and write a checkpoint with it in its weights.

    The maps are those of `r2mrf predict`, at the size of the photographs. Where a map is enlarged to it, the temperature
    acts before the enlargement and is fitted after it, and so is nearly the best one.

    The file's `metrics` lose the `validation` of the map as it was, and get `calibration`: `temperature` (of all
    calibrations so far), `photographs` and `dataset`.

    Args:
        source: a checkpoint, which is not changed.
        dataset: neither the photographs that it was trained on, on which it is surer than it may be, nor those that it will
            be judged by.
        output: the checkpoint to write.
        loading: as for `Checkpoint.load`.

    Raises:
        UsageError: `output` is the checkpoint itself, or its network cannot be calibrated (`Detector.temper`).
        InputError: a photograph or a mask cannot be read, or their sizes differ; or no temperature fits.
        CheckpointError, ArtifactError: the checkpoint cannot be read, or `output` cannot be written.
    """
    from r2mrf_deploy.checkpoint import Checkpoint

    if output.exists() and source.exists() and output.samefile(source):
        raise UsageError(f"`output` {output} is the checkpoint that is calibrated: choose another name")
    refuse_unwritable(output)
    dataset.check_sizes()
    checkpoint = Checkpoint.load(source, **loading)
    checkpoint.module().temper(1)  # one that cannot be calibrated is refused before its maps are computed
    before: list[_Judged] = []
    found = temperature(_judging(_maps(checkpoint, dataset, "computing maps", progress), before))
    if found in (COLDEST, HOTTEST):
        why = (
            f"its maps are no better than chance: is it trained, and is white {dataset.white} in the masks (`white`)?"
            if found == HOTTEST
            else "its maps have no errors there: give photographs that it finds harder"
        )
        raise InputError(f"no temperature calibrates {source} on {dataset.folder}: {why}")
    network = checkpoint.module()
    network.temper(found)
    record = {
        "temperature": found * _earlier(checkpoint.metrics),
        "photographs": len(dataset),
        "dataset": dataset.folder.name,
    }
    kept = {k: v for k, v in checkpoint.metrics.items() if k != "validation"}  # which is the other map's
    tempered = replace(checkpoint, state_dict=network.state_dict(), metrics={**kept, "calibration": record})
    after = [_judge(*pair) for pair in _maps(tempered, dataset, "computing calibrated maps", progress)]
    return Calibrated(tempered.save(output), checkpoint.network, found, _figures(before), _figures(after))


def _maps(
    checkpoint: Checkpoint, dataset: Dataset, doing: str, progress: ProgressCallback
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    from r2mrf_deploy.runtimes.pytorch.eager import PyTorchRunner

    with Predictor.of(PyTorchRunner(checkpoint)) as predictor:
        for number in range(len(dataset)):
            yield predictor(dataset.image(number)), dataset.truth(number)
            progress(Progress(doing, number + 1, len(dataset)))


def _judge(found: np.ndarray, mask: np.ndarray) -> _Judged:
    return cross_entropy(found, mask), judge(found, mask)


def _judging(pairs: Pairs, judged: list[_Judged]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The same pairs; each is judged on its way."""
    for found, mask in pairs:
        judged.append(_judge(found, mask))
        yield found, mask


def _figures(judged: Sequence[_Judged]) -> Figures:
    return Figures(float(np.mean([nll for nll, _ in judged])), average([scores for _, scores in judged])[0])


def _earlier(metrics: Mapping[str, Any]) -> float:
    """The temperature that a checkpoint's weights already have in them."""
    record = metrics.get("calibration")
    known = record.get("temperature") if isinstance(record, Mapping) else None
    return float(known) if isinstance(known, float) else 1.0
