"""Millions of photographs over the machines of a Ray cluster, or over the cores of this one: `r2mrf predict --ray`.

Ray Data streams `parts` of the photographs through three steps (see `workers`), with as many tasks and actors as the cluster
has room for. A part's Parquet file is its checkpoint: see `parts` for why no row is lost or doubled.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from r2mrf_deploy import environment
from r2mrf_deploy.errors import InputError, RuntimeUnavailable, UsageError
from r2mrf_deploy.files import refuse_unwritable
from r2mrf_deploy.predict import ray_cluster, stores, summaries, workers
from r2mrf_deploy.predict.journal import Journal
from r2mrf_deploy.predict.outputs import Outputs
from r2mrf_deploy.predict.parts import MOST_DEATHS, SIZE, Part, Parts
from r2mrf_deploy.predict.sources import JOURNAL, LISTING, Sources
from r2mrf_deploy.progress import Progress, ProgressCallback, silent
from r2mrf_deploy.runtimes import OpenOptions
from r2mrf_deploy.wording import count, masked

ROUND = 4096
"""Parts of one execution of Ray Data. Its driver has memory for every part; between two executions actors start anew."""
OPENING = 1800
"""Seconds within which a worker must have opened the artifact: the cluster may be busy, or the runtime builds an engine."""
SEEN = 90
"""Seconds within which a network file system shows here what another machine has written."""
MOST_NAMED = 8
"""Files and addresses that the journal keeps as they were given; of more it keeps a digest."""


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
    address = ray_cluster.address_of(address)
    outputs, options, parts = outputs or Outputs(("map",)), options or OpenOptions(), Parts(output.absolute())
    summaries.refuse_without_parquet()
    _refuse(output, parts, outputs, address, resume)
    sources = Sources(given, output=output, recursive=recursive)
    systems = _stores(given)
    threads = options.threads or 1
    cpus = (actors or max(1, environment.cores() // (2 * threads))) * threads + 1
    with ray_cluster.connected(address, cpus), ray_cluster.errors():
        progress(Progress("opening the model on a worker", 0))
        opening = workers.Opening(workers.Model.of(artifact), runtime, trust, options, flip, batch)
        opened = _opened(opening, threads)
        pool = _Pool.of(opened, actors, threads)
        settings = {
            "ray": SIZE, "given": _places(given), "recursive": recursive, "model": model,
            "runtime": opened.runtime, **asdict(outputs), "save": sorted(outputs.save), "flip": flip,
        }  # fmt: skip
        with Journal(output, settings, resume=resume) as journal:
            parts.forget_attempts()
            if not parts.listing.exists():
                parts.write_list(sources, systems, progress)
            parts = parts.opened()
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
    if address and address.startswith("ray://"):
        raise UsageError(f"`ray_address` {address}: run this on a machine of the cluster, with its HOST:PORT or auto")
    refuse_unwritable(parts.listing)
    refuse_unwritable(parts.file(0))
    if not parts.listing.exists() and parts.there():
        raise UsageError(f"{folder} holds parts of a run whose {LISTING} is gone: name another `output`")
    if parts.listing.exists() and not resume:
        raise UsageError(f"{folder} holds a run of before: `resume` goes on with it; or name another `output`")
    if parts.listing.exists() and not parts.opened().run:
        raise UsageError(f"{parts.listing} is not the list of a run: name another `output`")
    if parts.listing.exists() and not (folder / JOURNAL).exists():
        raise UsageError(f"{folder} holds parts of a run whose {JOURNAL} is gone: name another `output`")


def _places(given: Sequence[str | Path]) -> list[str] | str:
    """What was given, as it is told from others when the run is resumed."""
    places = [masked(str(each)) if "://" in str(each) else os.path.abspath(each) for each in given]  # noqa: PTH100
    if len(places) <= MOST_NAMED:
        return places
    digest = hashlib.sha256("\0".join(places).encode("utf-8", "surrogateescape")).hexdigest()
    return f"{count(len(places), 'name')} (SHA-256 {digest[:16]})"


def _stores(given: Sequence[str | Path]) -> tuple[Any, ...]:
    """The file systems of the addresses among what was given; None for one that cannot be opened, as its row will say."""
    found: list[Any] = []
    for address in (each for each in map(stores.local, map(str, given)) if "://" in each):
        stores.refuse_passwords(address)
        try:
            found.append(stores.system(address))
        except InputError:
            found.append(None)
    return tuple(found)


def _opened(opening: workers.Opening, threads: int) -> workers.Opened:
    """Open the artifact on a worker, as the actors will.

    Raises:
        UsageError: no machine has so many CPUs: Ray would wait for one that does.
        RuntimeUnavailable: it takes too long.
    """
    import ray

    gpus = min(1, int(ray.cluster_resources().get("GPU", 0)))
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("GPU", 0) >= gpus]
    most = max((int(machine.get("CPU", 0)) for machine in machines), default=0)
    if threads > most:
        which = "machine with a GPU" if gpus else "machine"
        raise UsageError(f"`threads` {threads}: no {which} of the cluster has more than {count(most, 'CPU')}")
    task = ray.remote(num_cpus=threads, num_gpus=gpus)(workers.opened)
    try:
        return ray.get(task.remote(opening), timeout=OPENING)
    except ray.exceptions.GetTimeoutError:
        why = f"no worker opened the model within {OPENING // 60} minutes: is the cluster busy?"
        raise RuntimeUnavailable(why) from None


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
    job.parts.forget_attempts()
    end = time.monotonic() + SEEN
    while (lost := len(counts.keys() - job.parts.there())) and time.monotonic() < end:
        time.sleep(1)
    if lost:
        raise RuntimeUnavailable(f"{count(lost, 'file')} of {job.parts.file(0).parent} went missing; `resume` goes on")
    return Summary(job.parts.file(0).parent, total, done, failed, error)


def _round(
    job: workers.Job, opening: workers.Opening, pool: _Pool, some: Sequence[Part]
) -> Iterator[Mapping[str, Any]]:
    """Make some parts. Yields what `workers.write` says of each as soon as its file is there."""
    import ray.data

    context = ray.data.DataContext.get_current().copy()  # whoever calls this may have data of their own
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_consecutive_actor_init_deaths = MOST_DEATHS
    context.raise_original_map_exception = True
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(pool.threads))
    rows = [{"number": part.number, "start": part.start, "length": part.length} for part in some]
    # Ray says on standard error on how many threads it does this; each step keeps the context in which it is made
    with ray_cluster.without_stderr(), ray.data.DataContext.current(context):
        made = ray.data.from_items(rows, override_num_blocks=len(rows))
        made = made.map_batches(workers.read, batch_size=1, batch_format="numpy", fn_args=(job,))
        made = made.map_batches(
            workers.Network, batch_size=1, batch_format="numpy", fn_constructor_args=(job, opening),
            compute=ray.data.ActorPoolStrategy(size=min(pool.size, len(rows))), num_cpus=pool.threads, num_gpus=pool.gpus,
            runtime_env={"env_vars": threads},  # of its own too, or Ray makes one step of this and the one before
        )  # fmt: skip
        made = made.map_batches(workers.write, batch_size=1, batch_format="numpy", fn_args=(job,))
    for batch in made.iter_batches(batch_size=None, prefetch_batches=0, batch_format="numpy"):  # not one behind
        yield from (dict(zip(batch, row, strict=True)) for row in zip(*batch.values(), strict=True))
