"""Millions of photographs over the machines of a Ray cluster, or over the cores of this one: `r2mrf predict --ray`.

Ray Data streams `parts` of the photographs through three steps (see `workers`), with as many tasks and actors as the cluster
has room for. A part's Parquet file is its checkpoint: see `parts` for why no row is lost or doubled.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from r2mrf_deploy import environment
from r2mrf_deploy.errors import R2mrfError, RuntimeUnavailable, UsageError, first_line
from r2mrf_deploy.files import refuse_unwritable, staging
from r2mrf_deploy.predict import stores, summaries, workers
from r2mrf_deploy.predict.journal import Journal
from r2mrf_deploy.predict.outputs import Outputs
from r2mrf_deploy.predict.parts import MOST_DEATHS, SIZE, Part, Parts
from r2mrf_deploy.predict.sources import JOURNAL, Sources
from r2mrf_deploy.progress import Progress, ProgressCallback, no_stdout, silent
from r2mrf_deploy.runtimes import OpenOptions
from r2mrf_deploy.wording import count, masked

ROUND = 4096
"""Parts of one execution of Ray Data. Its driver has memory for every part; between two executions actors start anew."""
_QUIET = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
"""Variables of Ray's. What goes wrong is raised as an exception too."""
_LOCAL = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # whatever its name says: Ray then listens on the loopback address alone
    "RAY_AUTH_MODE": "token",  # other users of this machine must not run code in our workers
    "RAY_AUTH_TOKEN": secrets.token_hex(32),  # which Ray reads once in a process
}


@dataclass(frozen=True)
class Summary:
    """What a run has done."""

    folder: Path
    """Of the Parquet files."""
    photographs: int
    """All that were listed."""
    done: int = 0
    """Those of them that this run has made rows of."""
    failed: int = 0
    """Those of this run whose rows have an error."""
    error: str = ""
    """The first error."""


def predict_on_ray(
    artifact: Path,
    given: Sequence[str | Path],
    output: Path,
    outputs: Outputs | None = None,
    *,
    address: str | None = None,
    actors: int | None = None,
    recursive: bool = False,
    runtime: str | None = None,
    trust: bool = False,
    options: OpenOptions | None = None,
    flip: bool = False,
    batch: int | None = None,
    resume: bool = False,
    model: str = "",
    progress: ProgressCallback = silent,
) -> Summary:
    """Write a row for each photograph into Parquet files below `output`/parts: `summaries.COLUMNS`, and a column of bytes,
    called as its kind, for each of the outputs.

    Whatever goes wrong with a photograph is said in its row's `error`. All machines must see `output` and the photographs
    that are not addresses under the same paths, and have this package; the artifact is sent to them.

    Args:
        given: files, folders, globs, addresses.
        address: of a running cluster; by default that of the variable RAY_ADDRESS, or else this machine's cores are used.
        actors: how many keep the artifact open; by default one for each GPU, or on CPUs so many as take half of the cores.
        options: `threads` are those of each actor, by default 1.
        batch: as for `Predictor.map`; those of a part that have one shape are computed together.
        resume: go on with the list of the run before, and try again what failed. Photographs are not listed again.
        model: as for `predict`.

    Raises:
        UsageError: `output` holds a run before, and `resume` is not set; `resume`, and it was another; something cannot be
            done on a cluster.
        RuntimeUnavailable: there is no such cluster, or its workers die. What is done stays.
        R2mrfError: what `Sources` raises, and what `Predictor.open` raises on a worker.
        ModuleNotFoundError: without ray.
    """
    outputs, options, parts = outputs or Outputs(("map",)), options or OpenOptions(), Parts(output.absolute())
    summaries.refuse_without_parquet()
    _refuse(output, parts, outputs, address, resume)
    sources = Sources(given, output=output, recursive=recursive)
    systems = _stores(given)
    threads = options.threads or 1
    with _ray(address, (actors or max(1, environment.cores() // (2 * threads))) * threads + 1), _errors():
        import ray

        progress(Progress("opening the model on a worker", 0))
        opening = workers.Opening(workers.Model.of(artifact), runtime, trust, options, flip, batch)
        gpus = min(1, int(ray.cluster_resources().get("GPU", 0)))
        opened = ray.get(ray.remote(num_cpus=threads, num_gpus=gpus)(workers.opened).remote(opening))
        pool = _Pool.of(opened, actors, threads)
        settings = {
            "ray": SIZE, "given": [_place(each) for each in given], "recursive": recursive, "model": model,
            "runtime": opened.runtime, **asdict(outputs), "save": sorted(outputs.save), "flip": flip,
        }  # fmt: skip
        with Journal(output, settings, resume=resume) as journal:
            parts.forget_attempts()
            if not parts.listing.exists():
                parts.write_list(sources, systems, progress)
            summary = _run(workers.Job(parts, outputs, systems, opened), opening, pool, progress)
            journal.finish()
            return summary


def _refuse(output: Path, parts: Parts, outputs: Outputs, address: str | None, resume: bool) -> None:
    """Refuse what cannot be done, before anything is started."""
    folder = parts.folder
    if re.match(r"\w\w+:/", output.as_posix()):
        raise UsageError("`output` is an address: name a folder, which all machines of the cluster see")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"`output` {folder} is a file: name a folder")
    if "coco" in outputs.save:
        raise UsageError("`save` coco is one file about all photographs: save contour, which is a column")
    if (address or os.environ.get("RAY_ADDRESS", "")).startswith("ray://"):
        raise UsageError(f"`ray_address` {address}: run this on a machine of the cluster, with its HOST:PORT or auto")
    refuse_unwritable(parts.listing)
    if parts.listing.exists() and not resume:
        raise UsageError(f"{folder} holds a run of before: `resume` goes on with it; or name another `output`")
    if parts.listing.exists() and not (folder / JOURNAL).exists():
        raise UsageError(f"{folder} holds parts of a run whose {JOURNAL} is gone: name another `output`")


def _place(given: str | Path) -> str:
    """What was given, as it is told from others when the run is resumed."""
    return masked(str(given)) if "://" in str(given) else os.path.abspath(given)  # noqa: PTH100


def _stores(given: Sequence[str | Path]) -> tuple[Any, ...]:
    """The file systems of the addresses among what was given."""
    addresses = [each for each in map(stores.local, map(str, given)) if "://" in each]
    return tuple(stores.system(address) for address in addresses)


@dataclass(frozen=True)
class _Pool:
    """The actors."""

    size: int
    threads: int
    """CPU threads of each."""
    gpus: int
    """GPUs of each."""

    @classmethod
    def of(cls, opened: workers.Opened, size: int | None, threads: int) -> _Pool:
        """As many as were asked for, or as suit the cluster.

        Raises:
            UsageError: the cluster has no room for so many.
        """
        import ray

        cores, gpus = (int(ray.cluster_resources().get(kind, 0)) for kind in ("CPU", "GPU"))
        size = size or (gpus if opened.on_gpu else max(1, cores // (2 * threads)))
        if opened.on_gpu and size > gpus:
            raise UsageError(f"`actors` {size}: the cluster has {count(gpus, 'GPU')}")
        if size * threads >= cores:
            takes = f"{size} of {count(threads, 'thread')} would take all {cores} CPUs of the cluster"
            raise UsageError(f"`actors` {size}: {takes}, and leave none to read and write")
        return cls(size, threads, int(opened.on_gpu))


def _run(job: workers.Job, opening: workers.Opening, pool: _Pool, progress: ProgressCallback) -> Summary:
    """Make every part that is not there."""
    before = job.parts.done()
    counts = {part.number: part.count for part in job.parts}
    total, done, failed, error = sum(counts.values()), 0, 0, ""
    left = sum(many for number, many in counts.items() if number not in before)
    todo = (part for part in job.parts if part.number not in before)
    while some := list(islice(todo, ROUND)):
        for row in _round(job, opening, pool, some):
            number = int(row["number"])
            done, failed, error = done + counts[number], failed + int(row["failed"]), error or str(row["error"])
            progress(Progress(job.parts.file(number).name, total - left + done, total))
    job.parts.tidy()
    return Summary(job.parts.file(0).parent, total, done, failed, error)


def _round(
    job: workers.Job, opening: workers.Opening, pool: _Pool, some: Sequence[Part]
) -> Iterator[Mapping[str, Any]]:
    """Make some parts. Yields what `workers.write` says of each as soon as its file is there."""
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = MOST_DEATHS
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(pool.threads))
    rows = [{"number": part.number, "start": part.start, "length": part.length} for part in some]
    with _without_stderr():  # which says on how many threads it does this
        made = ray.data.from_items(rows, override_num_blocks=len(rows))
    made = made.map_batches(workers.read, batch_size=1, batch_format="numpy", fn_args=(job,))
    made = made.map_batches(
        workers.Network, batch_size=1, batch_format="numpy", fn_constructor_args=(job, opening),
        compute=ray.data.ActorPoolStrategy(size=min(pool.size, len(rows))), num_cpus=pool.threads, num_gpus=pool.gpus,
        runtime_env={"env_vars": threads},  # of its own too, so that Ray does not make one step of this and the one before
    )  # fmt: skip
    made = made.map_batches(workers.write, batch_size=1, batch_format="numpy", fn_args=(job,))
    for batch in made.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):  # not one behind
        yield from (dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True))


@contextmanager
def _ray(address: str | None, cpus: int) -> Iterator[None]:
    """Connect to a cluster; or start one on this machine for `cpus` CPUs or all its cores, and end it and its files."""
    local = address is None and "RAY_ADDRESS" not in os.environ
    with ExitStack() as stack:
        stack.enter_context(_environment(_QUIET | (_LOCAL if local else {})))
        import ray
        import ray.data

        stack.enter_context(no_stdout())  # it says there what happens to workers
        for name in ("ray", "ray.data"):
            stack.callback(logging.getLogger(name).setLevel, logging.getLogger(name).level)
            logging.getLogger(name).setLevel(logging.CRITICAL)
        how: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
        if local:
            user = os.getuid() if hasattr(os, "getuid") else ""
            files = staging(Path(tempfile.gettempdir(), f"ray-{user}"))
            folder = files.__enter__()
            stack.callback(files.__exit__, None, None, None)  # whatever is raised has nothing to do with these files
            how |= {"address": "local", "num_cpus": max(cpus, environment.cores()), "include_dashboard": False,
                    "_temp_dir": str(folder)}  # fmt: skip
        else:
            _refuse_unreachable(address or os.environ["RAY_ADDRESS"])
        try:
            with _without_stderr():  # its C++ library says there how it logs
                ray.init(**({"address": address} | how))
        except (OSError, RuntimeError, ValueError) as e:
            raise RuntimeUnavailable(f"Ray cannot be started here, or reached: {first_line(e)}") from None
        stack.callback(ray.shutdown)
        yield


def _refuse_unreachable(address: str) -> None:
    """Raise RuntimeUnavailable where nothing listens at HOST:PORT: Ray would try for many minutes."""
    host, _, port = address.rpartition(":")
    if host and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as e:
            raise RuntimeUnavailable(f"no Ray cluster can be reached at {address}: {e.strerror or e}") from None


@contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set variables of the environment for a while; those that are set already stay as they are."""
    new = {name: value for name, value in values.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def _without_stderr() -> Iterator[None]:
    """Drop what libraries write on the file descriptor of standard error."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _errors() -> Iterator[None]:
    """Turn what Ray raises into one of our errors: that of the worker, if it raised one."""
    import ray

    try:
        yield
    except (R2mrfError, ModuleNotFoundError) as e:
        raise _cause(e) from None
    except ray.exceptions.RayError as e:
        raise _cause(e) from e


def _cause(e: Exception) -> Exception:
    """The error of ours that an exception of Ray's contains, or one that says what is wrong with the cluster."""
    inner: Any = e
    while inner is not None:
        if type(inner).__module__ == R2mrfError.__module__:
            return inner
        e, inner = inner, getattr(inner, "cause", None) or inner.__cause__
    if isinstance(e, ModuleNotFoundError) and e.name == "r2mrf_deploy":
        return RuntimeUnavailable("the cluster's machines have no r2mrf-deploy: install the same version on each")
    if isinstance(e, ModuleNotFoundError):
        return e
    return RuntimeUnavailable(f"Ray's workers failed: {first_line(e)}; what is done stays, `resume` goes on")
