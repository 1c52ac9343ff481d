"""The folders of a Triton repository: which backend serves an artifact and how, and what lies in its folders."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from r2mrf_deploy import environment, runtimes
from r2mrf_deploy.artifact import Artifact, publish
from r2mrf_deploy.errors import UsageError, did_you_mean
from r2mrf_deploy.files import flush
from r2mrf_deploy.manifest import Contract
from r2mrf_deploy.serving import checks, triton
from r2mrf_deploy.serving.copies import contract_of, copied
from r2mrf_deploy.serving.options import Entry, Options
from r2mrf_deploy.serving.pipeline import VERDICTS
from r2mrf_deploy.serving.triton import FILES, LABELS, PARTS, Backend, Config, Service

MAX_BATCH = 8
"""The most images of one inference by default, where neither the artifact nor the user says."""
MOST_WORKERS = 4

_PYTHON = '''\
"""Run by Triton's python backend; written by `r2mrf serve-repo`."""

import os
import site
import sys

known = len(sys.path)
for folder in filter(None, os.environ.get("R2MRF_PACKAGES", "").split(os.pathsep)):
    site.addsitedir(folder)
sys.path[:] = sys.path[known:] + sys.path[:known]  # before the server's own packages, which may be other versions

from r2mrf_deploy.serving.models import {model} as TritonPythonModel  # noqa: E402, F401
'''


def service(name: str, artifact: Artifact, options: Options) -> Service:
    """How an artifact is served.

    Raises:
        UsageError: the backend does not open such a file, or has no use for an option.
    """
    contract, backend = contract_of(artifact), _backend(artifact, options)
    _refuse_without_map(artifact, contract, options)
    runtime = _runtime(artifact, backend, options)
    gpu = (
        options.gpu or artifact.path.suffix.lower() == ".plan" or any(word in runtime for word in ("cuda", "tensorrt"))
    )
    if gpu and artifact.path.suffix.lower() == ".xml":
        raise UsageError(f"`gpu`: {artifact.path.name} runs on a CPU; serve an .onnx or a .plan")
    if gpu:
        options.refuse("threads", why="it is for a CPU; leave it out")
    batch = _max_batch(artifact, contract, backend, options)
    compute = _measured_ms(artifact, _measured_as(artifact, backend, runtime, gpu), batch)
    return Service(
        name=name,
        contract=contract,
        backend=backend,
        file=f"model{artifact.path.suffix.lower()}",
        max_batch=batch,
        delay_us=triton.delay_us(options.target_ms, compute),
        instances=options.instances or 1,
        workers=options.workers or min(environment.cores(), MOST_WORKERS),
        threads=options.threads,
        runtime=runtime,
        gpu=gpu,
    )


def write(made: Service, artifact: Artifact, repository: Path, options: Options) -> list[Entry]:
    """Write the folders of an artifact's models, and read their configs back.

    Raises:
        ArtifactError: they do not say what the artifact says.
    """
    configs = triton.configs(made, PARTS if options.jpeg else ())
    for name, config in configs.items():
        folder = repository / name
        (folder / "1").mkdir(parents=True)
        _write(folder / checks.CONFIG, triton.text(config))
        if any("label_filename" in output for output in config["output"]):
            _write(folder / LABELS, "".join(f"{verdict}\n" for verdict in VERDICTS))
    if made.backend == "python":
        _write(repository / made.name / "1" / "model.py", _PYTHON.format(model="Network"))
        publish(repository / made.name / "1" / made.file, lambda file: copied(artifact, file), lambda _: ())
    else:
        copied(artifact, repository / made.name / "1" / made.file)
    if options.jpeg:
        for part, model in (("decode", "Decode"), ("draw", "Draw")):
            _write(repository / f"{made.name}_{part}" / "1" / "model.py", _PYTHON.format(model=model))
    found = {name: checks.read(repository / name) for name in configs}
    checks.check_network(found[made.name], made.contract)
    if options.jpeg:
        checks.check_ensemble(found[f"{made.name}_jpeg"], found)
    return [_entry(config) for config in configs.values()]


def _backend(artifact: Artifact, options: Options) -> Backend:
    suffix, asked = artifact.path.suffix.lower(), options.backend
    if asked is not None and asked not in (*FILES, "python"):
        raise UsageError(f"no `backend` {asked!r}: {did_you_mean(asked, (*FILES, 'python'))}")
    own = next((backend for backend, reads in FILES.items() if reads == suffix), None)
    if asked == "python":
        return "python"
    if own is None or asked not in (None, own):
        can = " or ".join(filter(None, (own, "python")))
        raise UsageError(f"`backend` {asked} does not open {artifact.path.name}: choose {can}")
    if getattr(artifact.header, "flavour", None) == "tensorrt_rtx":
        raise UsageError(
            f"{artifact.path.name} is a plan of TensorRT-RTX, which Triton's own backend does not open: build it with "
            "--library tensorrt, or serve it by `backend` python"
        )
    return own


def _refuse_without_map(artifact: Artifact, contract: Contract, options: Options) -> None:
    if options.jpeg and ("map" not in {spec.name for spec in contract.outputs} or len(contract.inputs) != 1):
        raise UsageError(
            f"{artifact.path.name} does not make an output map of one input: serve tensors only, with --no-jpeg"
        )


def _runtime(artifact: Artifact, backend: Backend, options: Options) -> str:
    """What runs the artifact in the python backend; empty for its default, and for other backends."""
    suffix = artifact.path.suffix.lower()
    if backend != "python":
        options.refuse("runtime", why=f"the backend {backend} runs the artifact itself; choose `backend` python")
        return ""
    if options.runtime is None:
        return "onnxruntime-cuda" if options.gpu and suffix == ".onnx" else ""
    if suffix not in (able := runtimes.get(options.runtime)).suffixes:
        raise UsageError(f"`runtime` {able.name} does not open {suffix} files")
    return options.runtime


def _max_batch(artifact: Artifact, contract: Contract, backend: Backend, options: Options) -> int:
    """The most images of one inference that the server may form; 0 if the artifact's batch is fixed."""
    if backend == "python":  # it computes the images of a batch in whatever batch the artifact takes
        return options.max_batch or MAX_BATCH
    image = contract.inputs[0]
    if isinstance(image.shape[0], int):
        options.refuse(
            "max_batch",
            why=f"the batch of {artifact.path.name} is fixed at {image.shape[0]}: export it with --dynamic, or serve it by "
            "`backend` python",
        )
        return 0
    limit = contract.profile(image.name).get("max", [None])[0]
    if limit and options.max_batch and options.max_batch > limit:
        raise UsageError(f"`max_batch` {options.max_batch}: {artifact.path.name} takes at most {limit}")
    return options.max_batch or limit or MAX_BATCH


def _measured_as(artifact: Artifact, backend: Backend, runtime: str, gpu: bool) -> str:
    """The runtime of this package that computes what the backend computes."""
    if backend == "python":
        return runtime or runtimes.default(artifact).name
    return "onnxruntime-cuda" if backend == "onnxruntime" and gpu else backend


def _measured_ms(artifact: Artifact, runtime: str, batch: int) -> float | None:
    """How long a batch takes, by the latency in the manifest; what is known of another batch is scaled by its images."""
    known: list[tuple[int, float]] = []
    for evidence in artifact.manifest.latency if artifact.manifest else ():
        with suppress(KeyError, TypeError, ValueError):  # a manifest's evidence may be anything
            if evidence["runtime"] == runtime and int(evidence["batch"]) > 0:
                known.append((int(evidence["batch"]), float(evidence["latency"]["median"])))
    if not known:
        return None
    wanted = batch or known[-1][0]  # a fixed batch was measured as it is
    nearest, median = min(reversed(known), key=lambda each: abs(each[0] - wanted))
    return median * wanted / nearest


def _entry(config: Config) -> Entry:
    wait = config.get("dynamic_batching")
    return Entry(
        name=config["name"],
        backend=config.get("backend", "ensemble"),
        max_batch=config["max_batch_size"],
        delay_ms=wait["max_queue_delay_microseconds"] / 1000 if wait else None,
        inputs=_tensors(config["input"]),
        outputs=_tensors(config["output"]),
    )


def _tensors(tensors: list[Mapping[str, Any]]) -> dict[str, str]:
    return {t["name"]: f"{t['data_type'].removeprefix('TYPE_')} {t['dims']}" for t in tensors}


def _write(path: Path, content: str) -> None:
    path.write_text(content, encoding="utf-8")
    flush(path)
