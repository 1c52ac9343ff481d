"""Checkpoints: a `.pth` that says which network it holds.

It is a dictionary with `format`, `network`, `config`, `state_dict`, `preprocess` and `metrics`. Plain state dicts are read
too: the network and its config are inferred from the names and shapes of the parameters. Reading runs no code from the
file (`weights_only=True`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from r2mrf_deploy import images, networks, sample_photographs
from r2mrf_deploy.errors import CheckpointError, UsageError
from r2mrf_deploy.files import sha256, write_atomically
from r2mrf_deploy.fitting import as_input
from r2mrf_deploy.manifest import DEFAULT_SIZE, Preprocess, TensorSpec
from r2mrf_deploy.networks.base import Detector, NetworkConfig, shapes_of
from r2mrf_deploy.torch_file import read_file

_FORMATS = "r2mrf-checkpoint/"
FORMAT = f"{_FORMATS}1"
IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), longest_side=max(DEFAULT_SIZE))
"""ImageNet's statistics, and the scale at which the papers train and test: what a checkpoint that says nothing gets."""


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

    @classmethod
    def of(cls, family: str, module: Detector, metrics: Mapping[str, Any] | None = None) -> Checkpoint:
        """The checkpoint of a network in memory."""
        return cls(family, module.config, module.state_dict(), metrics=metrics or {})

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
        initialise(module, _photographs(folder), seed)
        return cls.of(family, module, {"trained": False})

    @classmethod
    def load(
        cls,
        path: Path | str,
        *,
        network: str | None = None,
        settings: Mapping[str, str] | None = None,
        defaults: Mapping[str, str] | None = None,
    ) -> Checkpoint:
        """Read a checkpoint, or a plain state dict of one of the networks.

        Args:
            path: the file.
            network: the preset of a plain state dict whose shapes leave it open. A checkpoint says what it holds, and
                `network` must not contradict it.
            settings: config fields to set, as strings: what a plain state dict leaves open, or an ablation.
            defaults: the same, for what a plain state dict leaves open and `settings` does not set.

        Raises:
            InputError: no such file.
            CheckpointError: the file is damaged, is not a checkpoint, would run code, or its weights do not fit.
            UsageError: `network` or `settings` is wrong.
        """
        path, settings = Path(path), settings or {}
        content = read_file(path)
        if content.get("format") == FORMAT:
            checkpoint = _from_ours(path, content)
            checkpoint = replace(checkpoint, config=checkpoint.config.with_settings(settings))
            _refuse_contradiction(path, checkpoint, network, settings)
        elif str(content.get("format", "")).startswith(_FORMATS):
            raise CheckpointError(
                f"{path}: its format {content['format']!r} was written by a later version of r2mrf-deploy; "
                f"this one reads {FORMAT!r}: update it"
            )
        else:
            checkpoint = _from_plain(path, content, network, settings, defaults or {})
        _check_weights(path, checkpoint)
        return replace(checkpoint, sha256=sha256(path))

    def save(self, path: Path | str, *, half: bool = False) -> Path:
        """Write the checkpoint, whole or not at all.

        Args:
            path: the file.
            half: round the weights to FP16, which halves the file; `load` converts them back to FP32.

        Raises:
            CheckpointError: a weight is not finite, or too large for FP16.
        """
        state = {k: v.half() if half and v.is_floating_point() else v for k, v in self.state_dict.items()}
        if bad := {k for k, v in state.items() if not v.isfinite().all()}:
            raise CheckpointError(f"{path} is not written: {_first(bad)} has values that are not finite")
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


def _photographs(folder: Path | str | None) -> Tensor:
    """Normalised photographs [N, 3, 256, 256] for `init`, at most 16."""
    if folder is None:
        found = [sample_photographs.sample(n) for n in ("astronaut", "coffee", "motorcycle_left", "rocket")]
    else:
        found = [images.read(p) for p in images.find([folder])[:16]]
    spec = TensorSpec(name="tensor", dtype="float32", shape=[1, 3, 256, 256], layout="NCHW")
    return torch.cat([torch.from_numpy(as_input(p, spec, IMAGENET)) for p in found])


def _from_ours(path: Path, content: dict[str, Any]) -> Checkpoint:
    for key, kind in (("network", str), ("config", dict), ("state_dict", dict)):
        if not isinstance(content.get(key), kind):
            raise CheckpointError(f"{path}: its {key!r} is missing or not a {kind.__name__}")
    for name, value in content["state_dict"].items():
        if not isinstance(value, Tensor):
            raise CheckpointError(f"{path}: {name} is not a tensor")
    try:
        config = networks.get(content["network"]).config_class.from_dict(content["config"])
        preprocess = Preprocess.model_validate(content.get("preprocess", IMAGENET))
    except UsageError as e:
        raise CheckpointError(f"{path}: {e}") from None
    except ValidationError as e:
        first = e.errors()[0]
        field = ".".join(map(str, ("preprocess", *first["loc"])))
        raise CheckpointError(f"{path}: its {field} is wrong: {first['msg']}") from None
    state = {k: v.float() if v.is_floating_point() else v for k, v in content["state_dict"].items()}
    return Checkpoint(content["network"], config, state, preprocess, content.get("metrics", {}))


def _refuse_contradiction(path: Path, checkpoint: Checkpoint, network: str | None, settings: Mapping[str, str]) -> None:
    if network is None or network == checkpoint.network:
        return
    family, config = networks.preset(network, settings)
    said, found = config.to_dict(), checkpoint.config.to_dict()
    differing = [f"{k}={v}" for k, v in found.items() if family == checkpoint.network and v != said[k]]
    if family != checkpoint.network or differing:
        held = " with ".join([checkpoint.network, *differing[:1]])
        raise UsageError(f"`network` {network}: {path} says that it holds {held}; omit `network`")


def _from_plain(
    path: Path, content: dict[str, Any], network: str | None, settings: Mapping[str, str], defaults: Mapping[str, str]
) -> Checkpoint:
    state = _plain_state(path, content)
    in_our_names = (networks.get(family).adopt(state) for family in networks.families())
    state = next(filter(None, in_our_names), state)
    if network is not None:
        return Checkpoint(*networks.preset(network, settings), state)
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    for family in networks.families():
        found = networks.get(family).infer(shapes)
        if found is None:
            continue
        known, open_fields = found
        settings = {f: defaults[f] for f in open_fields if f in defaults} | dict(settings)
        if missing := [f for f in open_fields if f not in settings]:
            raise CheckpointError(
                f"{path} is a plain state dict of {family}, which does not say its {', '.join(missing)}: "
                f"give `settings` {' '.join(f'{m}=...' for m in missing)}"
            )
        config = networks.get(family).config_class.from_dict(known).with_settings(settings)
        return Checkpoint(family, config, state)
    first = ", ".join(f"{k} {list(v)}" for k, v in list(shapes.items())[:2])
    raise CheckpointError(
        f"{path}: its {len(shapes)} tensors ({first}, ...) fit none of {', '.join(networks.families())}; "
        "give the preset as `network` to see what differs"
    )


def _plain_state(path: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    """The state dict in what training scripts save: bare or under a usual key, with or without a wrapper's prefix."""
    for key in ("state_dict", "model_state_dict", "model", "net"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    if not content or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in content.items()):
        raise CheckpointError(f"{path} is not a checkpoint: it holds no state dict")
    for prefix in ("module.", "network.", "model."):
        if all(k.startswith(prefix) for k in content):
            content = {k.removeprefix(prefix): v for k, v in content.items()}
    return content


def _check_weights(path: Path, checkpoint: Checkpoint) -> None:
    wanted = shapes_of(networks.create, checkpoint.network, checkpoint.config)
    given = {k: tuple(v.shape) for k, v in checkpoint.state_dict.items()}
    differing = {"missing": wanted.keys() - given.keys(), "unexpected": given.keys() - wanted.keys()}
    wrong = [f"{len(names)} {title} ({_first(names)})" for title, names in differing.items() if names]
    if bent := {k for k in wanted.keys() & given.keys() if wanted[k] != given[k]}:
        k = min(bent)
        wrong.append(f"{len(bent)} misshapen ({k} is {list(given[k])}, not {list(wanted[k])})")
    if wrong:
        raise CheckpointError(f"{path}: its weights do not fit {checkpoint.network}: {'; '.join(wrong)}")
    for name, value in checkpoint.state_dict.items():
        if bad := int((~value.isfinite()).sum()):
            raise CheckpointError(f"{path}: {name} has {bad} values that are not finite; the training diverged")


def _first(names: set[str]) -> str:
    shown = sorted(names)[:2]
    return ", ".join(shown) + (", ..." if len(names) > 2 else "")
