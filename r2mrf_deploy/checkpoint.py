"""Checkpoints: a `.pth` that says which network it holds.

A checkpoint of ours is a dictionary with `format`, `network`, `config`, `state_dict`, `preprocess` and `metrics`. Plain
state dicts are read too: the network and its config are found from the parameters' names and shapes. Reading runs no code
from the file (`weights_only=True`).
"""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from r2mrf_deploy import images, networks, sample_photographs
from r2mrf_deploy.errors import CheckpointError, UsageError, no_file
from r2mrf_deploy.files import sha256, write_atomically
from r2mrf_deploy.manifest import Preprocess, TensorSpec
from r2mrf_deploy.networks.base import Detector, NetworkConfig

_FORMATS = "r2mrf-checkpoint/"
FORMAT = f"{_FORMATS}1"
IMAGENET = Preprocess(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))


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
            settings: config fields to replace, as texts.
            folder: of photographs to take the statistics from; by default four that scikit-image ships.
            seed: for drawing the weights.

        Raises:
            UsageError: no such preset or config field.
            InputError: the folder holds no photographs, or one cannot be read.
            RuntimeUnavailable: no folder is given and scikit-image is not installed.
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
        """Read a checkpoint, or a plain state dict of a network of ours.

        Args:
            path: the file.
            network: for a plain state dict, a network's or a preset's name, where its shapes leave it open. A checkpoint of
                ours says what it holds, and must not be contradicted.
            settings: config fields to set, as texts: what a plain state dict leaves open, or an ablation.
            defaults: the same, only for what a plain state dict leaves open and `settings` does not say.

        Raises:
            InputError: no such file.
            CheckpointError: the file is damaged, is not a checkpoint, would run code, or its weights do not fit.
            UsageError: `network` or `settings` is wrong.
        """
        path = Path(path)
        content = read_file(path)
        if content.get("format") == FORMAT:
            checkpoint = _from_ours(path, content)
            if settings:
                checkpoint = replace(checkpoint, config=checkpoint.config.with_settings(settings))
            _refuse_contradiction(path, checkpoint, network, settings)
        elif str(content.get("format", "")).startswith(_FORMATS):
            raise CheckpointError(
                f"{path}: its format {content['format']!r} was written by a later r2mrf-deploy than this one, "
                f"which reads {FORMAT!r}: update it"
            )
        else:
            checkpoint = _from_plain(path, content, network, dict(settings or {}), dict(defaults or {}))
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
        if large := [k for k, v in state.items() if v.is_floating_point() and not torch.isfinite(v).all()]:
            raise CheckpointError(f"{path} is not written: {_first(set(large))} has values that are not finite")
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
    return torch.cat([torch.from_numpy(images.as_input(p, spec, IMAGENET)) for p in found])


def read_file(path: Path) -> dict[str, Any]:
    """Read the content of a PyTorch file without running code from it.

    Raises:
        InputError: no such file.
        CheckpointError: the file is damaged, is not PyTorch's, would run code, or holds no dictionary.
    """
    if not path.is_file():
        raise no_file(path)
    with path.open("rb") as f:
        if not f.read(2).startswith((b"PK", b"\x80")):  # a zip archive, or a pickle as before PyTorch 1.6
            raise CheckpointError(f"{path} is not a PyTorch checkpoint")
    try:
        with warnings.catch_warnings():  # about bare pickles of later protocols; what is wrong is said below
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        what = "it holds Python objects beside tensors, and reading those would run code from the file"
        raise CheckpointError(f"{path}: refused: {what}; save its state_dict alone") from None
    except (EOFError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile, OSError, AttributeError) as e:
        first = str(e).splitlines()[0] if str(e) else type(e).__name__
        raise CheckpointError(f"{path} is damaged, cut short or not a PyTorch checkpoint ({first})") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a checkpoint or a state dict")
    return content


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


def _refuse_contradiction(
    path: Path, checkpoint: Checkpoint, network: str | None, settings: Mapping[str, str] | None
) -> None:
    if network is None or network == checkpoint.network:
        return
    family, config = networks.preset(network, settings)
    said, found = config.to_dict(), checkpoint.config.to_dict()
    differing = [f"{k}={v}" for k, v in found.items() if family == checkpoint.network and v != said[k]]
    if family != checkpoint.network or differing:
        held = " with ".join([checkpoint.network, *differing[:1]])
        raise UsageError(f"`network` {network}: {path} holds {held}, as it says itself; leave `network` out")


def _from_plain(
    path: Path, content: dict[str, Any], network: str | None, settings: dict[str, str], defaults: dict[str, str]
) -> Checkpoint:
    state = _in_our_names(_plain_state(path, content))
    shapes = {k: tuple(v.shape) for k, v in state.items()}
    if network in networks.presets():
        family, config = networks.preset(network, settings)
        return Checkpoint(family, config, state)
    families = [network] if network else networks.families()
    for family in families:
        found = networks.get(family).infer(shapes)
        if found is None:
            continue
        known, open_fields = found
        settings = {f: defaults[f] for f in open_fields if f in defaults} | settings
        if missing := [f for f in open_fields if f not in settings]:
            raise CheckpointError(
                f"{path}: a plain state dict of {family}, which does not say its {', '.join(missing)}: "
                f"give `settings` {' '.join(f'{m}=...' for m in missing)}"
            )
        config = networks.get(family).config_class.from_dict(known).with_settings(settings)
        return Checkpoint(family, config, state)
    first = ", ".join(f"{k} {list(v)}" for k, v in list(shapes.items())[:2])
    raise CheckpointError(
        f"{path}: its {len(shapes)} tensors ({first}, ...) fit none of {', '.join(families)}; "
        "name the preset with `network` to see what differs"
    )


def _in_our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict of the authors' own code with our parameter names; any other state dict unchanged."""
    for family in networks.families():
        adopted = networks.get(family).adopt(state)
        if adopted is not None:
            return adopted
    return state


def _plain_state(path: Path, content: dict[str, Any]) -> dict[str, Tensor]:
    """Find the state dict in what training scripts save: bare or under a usual key, with or without a wrapper's prefix."""
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
    with torch.device("meta"):
        wanted = networks.create(checkpoint.network, checkpoint.config).state_dict()
    given = checkpoint.state_dict
    wrong: list[str] = []
    for title, names in (("missing", wanted.keys() - given.keys()), ("unexpected", given.keys() - wanted.keys())):
        if names:
            wrong.append(f"{len(names)} {title} ({_first(names)})")
    bent = {k for k in wanted.keys() & given.keys() if tuple(wanted[k].shape) != tuple(given[k].shape)}
    if bent:
        k = min(bent)
        wrong.append(f"{len(bent)} misshapen ({k} is {list(given[k].shape)}, not {list(wanted[k].shape)})")
    if wrong:
        raise CheckpointError(f"{path}: its weights do not fit {checkpoint.network}: {'; '.join(wrong)}")
    for name, value in given.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            bad = int((~torch.isfinite(value)).sum())
            raise CheckpointError(f"{path}: {name} has {bad} values that are not finite; the training diverged")


def _first(names: set[str]) -> str:
    shown = sorted(names)[:2]
    return ", ".join(shown) + (", ..." if len(names) > 2 else "")
