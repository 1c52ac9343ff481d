"""Model repositories for inference servers: `r2mrf serve-repo`.

A repository is prepared beside its place and moved there when everything in it is written and checked. It holds what a
server needs and nothing else: the model files, and what says how to serve them. A repository that is there already keeps its
other models; a folder with anything else in it is refused.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from r2mrf_deploy.artifact import Artifact
from r2mrf_deploy.errors import ArtifactError, UsageError
from r2mrf_deploy.files import locked, staging
from r2mrf_deploy.predict.names import names
from r2mrf_deploy.serving import checks, ovms
from r2mrf_deploy.serving.copies import opened
from r2mrf_deploy.serving.options import Entry, Options, Server
from r2mrf_deploy.serving.triton import PARTS

_TRITON_ONLY = ("backend", "runtime", "target_ms", "workers", "max_batch", "gpu")


def write_repository(
    artifacts: Sequence[Path],
    output: Path,
    *,
    server: Server = "triton",
    backend: str | None = None,
    runtime: str | None = None,
    target_ms: float | None = None,
    instances: int | None = None,
    workers: int | None = None,
    threads: int | None = None,
    max_batch: int | None = None,
    gpu: bool = False,
    jpeg: bool = True,
) -> list[Entry]:
    """Write a repository of models, or add to one.

    Args:
        artifacts: .onnx, .xml and .plan files. A model has the name of its file, and models of that name are replaced.
        output: the repository's folder.
        server: Triton or OpenVINO Model Server.
        backend, runtime, target_ms, instances, workers, threads, max_batch, gpu, jpeg: `Options`.

    Returns:
        The models that were written.

    Raises:
        UsageError: the server or the backend does not take an artifact or an option, or two models have the same name.
        InputError: no such file.
        ArtifactError: an artifact is damaged; `output` cannot be written, or holds something else than a repository.
        ModuleNotFoundError: Triton's configs need tritonclient, OpenVINO Model Server's models openvino.
    """
    options = Options(backend, runtime, target_ms, instances, workers, threads, max_batch, gpu, jpeg)
    if not artifacts:
        raise UsageError("name an ARTIFACT to serve")
    if server == "ovms":
        options.refuse(*_TRITON_ONLY, why="it is for Triton; leave it out")
    found = [opened(Path(path)) for path in artifacts]
    called = model_names([artifact.path for artifact in found])
    _refuse_place(output, server)
    with staging(output) as folder:
        new, aside = folder / "repository", folder / "aside"
        for each in (new, aside):
            each.mkdir()
        entries = _written(called, found, new, server, options)
        if not output.exists():
            new.rename(output)
            return entries
        with locked(output):
            olds = _models(output, server)
            if server == "ovms":
                fresh = {entry.name for entry in entries}
                kept = [e for e in ovms.read(output) if olds[e["config"]["name"]] not in called] if olds else []
                ovms.write_list(new, kept + ovms.config(called, found, options))
            else:
                fresh = {each.name for each in new.iterdir()}
            if clash := sorted(name for name in fresh if name in olds and olds[name] not in called):
                raise UsageError(
                    f"{output} has a model {clash[0]} of another artifact: rename the file, or name a new folder"
                )
            _replace(output, new, aside, fresh | {old for old, owner in olds.items() if owner in called})
    return entries


def model_names(paths: Sequence[Path]) -> list[str]:
    """The name of each artifact's model: that of its file, in letters that folders and addresses take, with as many of its
    folders before it as are needed.

    Raises:
        UsageError: two artifacts cannot be told apart, or a name has no such letter.
    """
    found = [re.sub(r"[^A-Za-z0-9_-]+", "_", name).strip("_-") for name in names(paths)]
    for name, path in zip(found, paths, strict=True):
        if not name:
            raise UsageError(f"{path}: its name has no letter that an address takes; rename the file")
    models = Counter(model.casefold() for name in found for model in (name, *(f"{name}_{part}" for part in PARTS)))
    for name, path in zip(found, paths, strict=True):
        if models[name.casefold()] > 1 or any(models[f"{name}_{part}".casefold()] > 1 for part in PARTS):
            raise UsageError(f"{path}: another artifact has a model of the name {name}; rename one, or name it once")
    return found


def _written(
    called: Sequence[str], found: Sequence[Artifact], new: Path, server: Server, options: Options
) -> list[Entry]:
    if server == "ovms":
        entries = [e for name, each in zip(called, found, strict=True) for e in ovms.write(name, each, new, options)]
        ovms.write_list(new, ovms.config(called, found, options))
        return entries
    from r2mrf_deploy.serving import triton_files

    services = [triton_files.service(name, each, options) for name, each in zip(called, found, strict=True)]
    return [
        entry
        for service, each in zip(services, found, strict=True)
        for entry in triton_files.write(service, each, new, options)
    ]


def _refuse_place(output: Path, server: Server) -> None:
    """Refuse a place at which there is something else than a repository.

    Raises:
        ArtifactError: there is a file, a link, or a folder with something in it that we did not write.
    """
    if output.is_symlink():
        raise ArtifactError(f"cannot write {output}: it is a symbolic link; name its folder, or remove the link")
    if output.exists() and not output.is_dir():
        raise ArtifactError(f"cannot write {output}: it is not a folder")
    if output.is_dir():
        _models(output, server)
        if not os.access(output, os.W_OK | os.X_OK):
            raise ArtifactError(f"cannot write {output}: it is not a writable folder")


def _models(output: Path, server: Server) -> Mapping[str, str]:
    """The models in a repository that we wrote: name -> the network that each belongs to. A new folder has none.

    Raises:
        ArtifactError: something else is there.
    """
    try:
        there = sorted(each for each in output.iterdir() if not (server == "ovms" and each.name == ovms.CONFIG))
        listed = {e["config"]["name"] for e in ovms.read(output)} if (output / ovms.CONFIG).is_file() else set()
    except OSError as e:
        raise ArtifactError(f"cannot read {output}: {e.strerror or e}") from None
    found = {}
    for each in there:
        owner = checks.owner(each) if server == "triton" and each.is_dir() else None
        if each.name in listed:
            base = each.name.removesuffix(f"_{ovms.JPEG}")
            owner = base if base in listed else each.name
        if owner is None:
            raise ArtifactError(
                f"cannot write {output}: it holds {each.name}, which r2mrf serve-repo did not write for {server}; name a "
                "new folder"
            )
        found[each.name] = owner
    return found


def _replace(output: Path, new: Path, aside: Path, olds: set[str]) -> None:
    """Move new models to their place and old ones aside; if that fails, everything is moved back."""
    moved: list[tuple[Path, Path]] = []
    try:
        for name in sorted(olds):
            if (output / name).exists():
                moved.append((output / name, (output / name).rename(aside / name)))
        for each in sorted(new.iterdir(), key=lambda each: each.name == ovms.CONFIG):  # the list comes last
            if each.is_file():
                each.replace(output / each.name)
            else:
                moved.append((each, each.rename(output / each.name)))
    except BaseException:  # Ctrl-C too
        for origin, place in reversed(moved):
            place.rename(origin)
        raise
