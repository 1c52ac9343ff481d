"""What photographs send through a graph: the mean and the second moments of its tensors' channels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from r2mrf_deploy.errors import GraphError, first_line
from r2mrf_deploy.files import scratch
from r2mrf_deploy.progress import Progress, ProgressCallback, silent

PIXELS = 1024
"""How many pixels of a tensor are taken from each photograph, at random: steps of one length would hit the same columns."""
DAMPING = 1e-6
"""What is added to every channel's second moment, as a share of their mean: photographs that were not seen send something
through channels that were silent."""

_SILENT = 1e-12
"""The least mean second moment that is damped, so that a tensor of zeros can be inverted too."""


@dataclass(frozen=True, eq=False)
class Moments:
    """The moments of a tensor's C channels over pixels and photographs, in float64."""

    mean: np.ndarray
    """[C]."""
    second: np.ndarray
    """E[x xᵀ], [C, C]; not centred."""

    @property
    def covariance(self) -> np.ndarray:
        """[C, C]."""
        return self.second - np.outer(self.mean, self.mean)

    def part(self, channels: np.ndarray | slice) -> Moments:
        """Those of some of the channels."""
        return Moments(self.mean[channels], self.second[channels][:, channels])


def pooled(found: Sequence[Moments]) -> Moments:
    """Those of several tensors of the same channels, such as of one layer at several steps."""
    return Moments(np.mean([m.mean for m in found], 0), np.mean([m.second for m in found], 0))


def damped(second: np.ndarray) -> np.ndarray:
    """A second moment with `DAMPING`, which is then positive definite."""
    level = max(float(np.trace(second)) / len(second), _SILENT)
    return second + DAMPING * level * np.eye(len(second))


def observe(
    model: onnx.ModelProto,
    feeds: Sequence[Mapping[str, np.ndarray]],
    tensors: Collection[str],
    progress: ProgressCallback = silent,
) -> dict[str, Moments]:
    """Run a graph in ONNX Runtime, and find the moments of inner tensors [N, C, H, W].

    Args:
        model: an FP32 graph.
        feeds: its inputs, one photograph each. One photograph's tensors are in memory at a time.

    Raises:
        GraphError: ONNX Runtime does not run the graph.
    """
    import onnxruntime

    wanted = sorted(tensors)
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    present = {v.name for v in model.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in present)
    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 4  # its exceptions say it too
    sums: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    with scratch() as folder:
        file = folder / "watched.onnx"
        onnx.save(watched, file)
        try:
            session = onnxruntime.InferenceSession(str(file), settings, providers=["CPUExecutionProvider"])
        except Exception as e:  # ONNX Runtime's exceptions share no base class
            raise GraphError(f"ONNX Runtime does not open the graph: {first_line(e)}") from None
        for number, feed in enumerate(feeds, 1):
            try:
                arrays = session.run(wanted, dict(feed))
            except Exception as e:
                raise GraphError(f"ONNX Runtime does not run the graph: {first_line(e)}") from None
            for name, array in zip(wanted, arrays, strict=True):
                first, second = _moments(array)
                before = sums.get(name)
                sums[name] = (first, second) if before is None else (before[0] + first, before[1] + second)
            progress(Progress("observing photographs", number, len(feeds)))
    return {name: Moments(first / len(feeds), second / len(feeds)) for name, (first, second) in sums.items()}


def _moments(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean and the second moment of one photograph's tensor."""
    pixels = array.transpose(1, 0, 2, 3).reshape(array.shape[1], -1)
    if pixels.shape[1] > PIXELS:
        pixels = pixels[:, np.random.default_rng(0).choice(pixels.shape[1], PIXELS, replace=False)]
    x = pixels.astype(np.float64)  # in FP32 the sums may not be positive definite
    return x.mean(1), x @ x.T / x.shape[1]
