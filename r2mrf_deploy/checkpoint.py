"""Checkpoints: a `.pth` that says which network it holds.

It is a dictionary with `format`, `network`, `config`, `state_dict`, `preprocess` and `metrics`. What other training scripts
save is read too: `state_dicts` finds the weights in it, and infers the network and its config from their names and shapes.
Reading runs no code from the file (`weights_only=True`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from r2mrf_deploy import checkpoint_files, images, networks, safetensors_file, sample_photographs
from r2mrf_deploy.errors import CheckpointError, UsageError
from r2mrf_deploy.files import sha256, write_atomically
from r2mrf_deploy.fitting import as_input
from r2mrf_deploy.manifest import Preprocess, TensorSpec
from r2mrf_deploy.networks.base import IMAGENET, Detector, NetworkConfig
from r2mrf_deploy.progress import timed
from r2mrf_deploy.state_dicts import resolve
from r2mrf_deploy.torch_file import read_file
from r2mrf_deploy.weight_checks import checked, difference, shapes, wanted_shapes, with_counters
from r2mrf_deploy.wording import count, first

_FORMATS = "r2mrf-checkpoint/"
FORMAT = f"{_FORMATS}1"
LOG = logging.getLogger("r2mrf_deploy.checkpoint")
"""Says how a file of another layout was read: a warning where something else could have been meant, else information."""


@dataclass(frozen=True)
class Checkpoint:
    """A network's weights and what is needed to run them."""

    network: str
    config: NetworkConfig
    state_dict: Mapping[str, Tensor]
    preprocess: Preprocess = IMAGENET
    metrics: Mapping[str, Any] = field(default_factory=dict)
    sha256: str | None = None
    """SHA-256 of the file it was read from."""
    found: Mapping[str, Any] = field(default_factory=dict)
    """How its weights were found in a file of another layout (`state_dicts.Found.facts`); empty for a file of this one."""

    @classmethod
    def of(cls, family: str, module: Detector, metrics: Mapping[str, Any] | None = None) -> Checkpoint:
        """The checkpoint of a network in memory."""
        return cls(family, module.config, module.state_dict(), module.config.preprocess, metrics or {})

    @classmethod
    def init(
        cls,
        preset: str,
        settings: Mapping[str, str] | None = None,
        *,
        folder: Path | str | None = None,
        seed: int = 0,
    ) -> Checkpoint:
        """An untrained checkpoint whose map is informative on photographs (see `networks.initialise`).

        Args:
            preset: the preset's name.
            settings: config fields to replace, as strings.
            folder: photographs to take the statistics from; by default four of scikit-image's.
            seed: for drawing the weights.

        Raises:
            UsageError: no such preset or config field.
            InputError: the folder holds no photographs, or one cannot be read.
            RuntimeUnavailable: `folder` is None and scikit-image is not installed.
        """
        from r2mrf_deploy.networks.initialise import initialise

        family, config = networks.preset(preset, settings)
        module = networks.create(family, config)
        initialise(module, _photographs(folder, config.preprocess), seed)
        return cls.of(family, module, {"trained": False})

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        network: str | None = None,
        settings: Mapping[str, str] | None = None,
        weights_key: str | None = None,
        rename: Mapping[str, str] | None = None,
        defaults: Mapping[str, str] | None = None,
    ) -> Checkpoint:
        """Read a checkpoint, or the weights of one of the networks in what another training script saved.

        How the weights were found is logged, and kept in `found`. Weights of any floating-point type become float32.

        Args:
            path: a file of `torch.save`, or of safetensors.
            network: the preset of weights whose shapes leave it open. A checkpoint says what it holds, and `network` must
                not contradict it.
            settings: config fields to set, as strings: what the weights leave open, or an ablation.
            weights_key: the key of the weights in the file, such as "ema" or "state_dict.net", where several fit.
            rename: parts of the tensors' names to replace, as regular expressions: layers that are called otherwise.
            defaults: the same as `settings`, for what the weights leave open and `settings` does not set.

        Raises:
            InputError: no such file.
            CheckpointError: the file is damaged, is not a checkpoint, would run code, or its weights do not fit.
            UsageError: an argument is wrong.
            RuntimeUnavailable: safetensors is not installed.
        """
        path, settings = Path(path), settings or {}
        with timed(LOG, "read %s", path):
            content = read_content(path)
        said = content.get("format")
        if isinstance(said, str) and said == FORMAT:
            if given := [name for name, value in (("weights_key", weights_key), ("rename", rename)) if value]:
                raise UsageError(f"`{given[0]}`: {path} says which weights it holds; leave it out")
            checkpoint = _from_ours(path, content)
            checkpoint = replace(checkpoint, config=checkpoint.config.with_settings(settings))
            _refuse_contradiction(path, checkpoint, network, settings)
            state = with_counters(checkpoint.state_dict)
            wanted = wanted_shapes(checkpoint.network, checkpoint.config, len(state))
            if wrong := difference(wanted, shapes(state))[0]:
                raise CheckpointError(f"{path}: its weights do not fit {checkpoint.network}: {wrong}")
        elif isinstance(said, str) and said.startswith(_FORMATS):
            raise CheckpointError(
                f"{path}: its format {said!r} was written by a later version of r2mrf-deploy; "
                f"this one reads {FORMAT!r}: update it"
            )
        else:
            found = resolve(
                path, content, network=network, settings=settings, defaults=defaults, weights_key=weights_key, rename=rename
            )  # fmt: skip
            LOG.log(logging.WARNING if found.chosen else logging.INFO, "%s: %s", path.name, found)
            checkpoint = cls(found.family, found.config, found.state, found.config.preprocess, found=found.facts())
            state = dict(found.state)
        loaded = replace(checkpoint, state_dict=checked(path, state), sha256=sha256(path))
        LOG.debug("%s: %s, %s", path.name, loaded.network, count(loaded.parameters, "parameter"))
        return loaded

    def save(self, path: Path | str, *, half: bool = False) -> Path:
        """Write the checkpoint, whole or not at all.

        Args:
            path: the file.
            half: round the weights to FP16, which halves the file; `load` converts them back to FP32.

        Raises:
            CheckpointError: a weight is not finite, or too large for FP16.
        """
        state = _halved(self.state_dict) if half else dict(self.state_dict)
        if bad := {k for k, v in state.items() if not v.isfinite().all()}:
            raise CheckpointError(
                f"{path} is not written: there are values that are not finite in {first(sorted(bad), 2)}"
            )
        content = {
            "format": FORMAT,
            "network": self.network,
            "config": self.config.to_dict(),
            "state_dict": state,
            "preprocess": self.preprocess.model_dump(),
            "metrics": dict(self.metrics),
        }
        return write_atomically(Path(path), lambda temporary: torch.save(content, temporary))

    def module(self) -> Detector:
        """The network with these weights, in evaluation mode."""
        with torch.device("meta"):
            module = networks.create(self.network, self.config)
        module.load_state_dict(self.state_dict, assign=True)
        return module.eval()

    @property
    def parameters(self) -> int:
        buffers = ("running_mean", "running_var", "num_batches_tracked")
        return sum(v.numel() for k, v in self.state_dict.items() if not k.endswith(buffers))


def _halved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights as FP16, all in one storage: one of its own costs each of hundreds of tensors 180 bytes of the file."""
    floats = {k: v for k, v in state.items() if v.is_floating_point()}
    storage = torch.cat([torch.empty(0), *(v.detach().flatten() for v in floats.values())]).half()
    parts = storage.split([v.numel() for v in floats.values()])
    return dict(state) | {k: part.view_as(v) for part, (k, v) in zip(parts, floats.items(), strict=True)}


def _photographs(folder: Path | str | None, preprocess: Preprocess) -> Tensor:
    """Normalised photographs [N, 3, 256, 256] for `init`, at most 16."""
    if folder is None:
        found = [sample_photographs.sample(n) for n in ("astronaut", "coffee", "motorcycle_left", "rocket")]
    else:
        found = [images.read(p) for p in images.find([folder])[:16]]
    spec = TensorSpec(name="tensor", dtype="float32", shape=[1, 3, 256, 256], layout="NCHW")
    return torch.cat([torch.from_numpy(as_input(p, spec, preprocess)) for p in found])


def read_content(path: Path) -> dict[str, Any]:
    """Read the content of a checkpoint's file, whatever wrote it, without running code from it.

    Raises:
        InputError: no such file.
        CheckpointError: the file is damaged, is not a checkpoint's, would run code, or holds no dictionary.
        RuntimeUnavailable: safetensors is not installed.
    """
    safe = checkpoint_files.kind(path) == "safetensors"
    return safetensors_file.read(path) if safe else read_file(path)


def _from_ours(path: Path, content: dict[str, Any]) -> Checkpoint:
    for key, kind in (("network", str), ("config", dict), ("state_dict", dict)):
        if not isinstance(content.get(key), kind):
            raise CheckpointError(f"{path}: its {key!r} is missing or not a {kind.__name__}")
    for name, value in content["state_dict"].items():
        if not isinstance(name, str):
            raise CheckpointError(f"{path}: a tensor's name is {name!r}, not a text")
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name} is not a tensor")
    metrics = content.get("metrics", {})
    if not isinstance(metrics, dict) or not all(isinstance(name, str) for name in metrics):
        raise CheckpointError(f"{path}: its 'metrics' are not a dictionary of names and values")
    try:
        config = networks.get(content["network"]).config_class.from_dict(content["config"])
        preprocess = Preprocess.model_validate(content.get("preprocess", config.preprocess))
    except UsageError as e:
        raise CheckpointError(f"{path}: {e}") from None
    except ValidationError as e:
        fault = e.errors()[0]
        field = ".".join(map(str, ("preprocess", *fault["loc"])))
        raise CheckpointError(f"{path}: its {field} is wrong: {fault['msg']}") from None
    return Checkpoint(content["network"], config, content["state_dict"], preprocess, metrics)


def _refuse_contradiction(path: Path, checkpoint: Checkpoint, network: str | None, settings: Mapping[str, str]) -> None:
    if network is None or network == checkpoint.network:
        return
    family, config = networks.preset(network, settings)
    said, found = config.to_dict(), checkpoint.config.to_dict()
    differing = [f"{k}={v}" for k, v in found.items() if family == checkpoint.network and v != said[k]]
    if family != checkpoint.network or differing:
        held = " with ".join([checkpoint.network, *differing[:1]])
        raise UsageError(f"`network` {network}: {path} says that it holds {held}; omit `network`")
