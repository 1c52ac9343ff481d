"""`r2mrf bench --server`: what it takes of the options of `bench`, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typer import Context

from r2mrf_deploy.cli import flags
from r2mrf_deploy.cli.common import kept_when_interrupted, line, print_json, shown_progress, table
from r2mrf_deploy.errors import CheckFailed, RuntimeUnavailable, UsageError
from r2mrf_deploy.wording import count

if TYPE_CHECKING:
    from r2mrf_deploy.bench.load import Load, LoadResult
    from r2mrf_deploy.runtimes.kserve.connection import Connection

OWN = ("concurrency", "rate", "images", "outputs")
"""Parameters of `bench` that are for servers only."""
_SHARED = {
    *("context", "artifacts", "server", "deadline", "retry_for", "token_file", "ca", "certificate", "key", "warm_up"),
    *("duration", "size", "batch", "shapes", "inputs", "csv", "markdown", "as_json"),
}


def refuse(context: Context, artifacts: Sequence[Path]) -> None:
    """Raise UsageError if an option was given that has no meaning for a server."""
    others = [p.name for p in context.command.params if p.name and p.name not in {*OWN, *_SHARED}]
    flags.refuse_given(context, others, "has no meaning for a server (`server`)")
    if len(artifacts) > 1:
        raise UsageError("beside `server`, one artifact at most says how photographs are fitted; time it by itself")


def loads(concurrency: str, rate: str | None, duration: float, warm_up: float) -> list[Load]:
    """A closed loop for each number of requests in flight, or an open loop for each rate."""
    from r2mrf_deploy.bench.load import Load

    flying = flags.parse_numbers("--concurrency", concurrency, "1,8")
    if any(n < 1 or n % 1 for n in flying):
        raise UsageError(f"--concurrency {concurrency}: give whole numbers from 1, such as 1,8")
    if rate is None:
        return [Load(int(n), None, duration, warm_up) for n in flying]
    if concurrency != "1":
        raise UsageError("`concurrency` and `rate` exclude each other: at a rate, as many are in flight as there are")
    return [Load(1, r, duration, warm_up) for r in flags.parse_numbers("--rate", rate, "10,20")]


def run(
    connections: Sequence[Connection],
    chosen: Sequence[Load],
    artifacts: Sequence[Path],
    csv: Path | None,
    markdown: Path | None,
    as_json: bool,
    **feeding: Any,
) -> None:
    """Put servers under load, and print what became of it.

    Raises:
        CheckFailed: some requests failed.
        RuntimeUnavailable: of some load, all did.
    """
    from r2mrf_deploy.artifact import Artifact
    from r2mrf_deploy.bench.load import bench_servers
    from r2mrf_deploy.report import bench_files, load_tables

    bench_files.refuse(None, csv, markdown)
    contract = Artifact.open(artifacts[0]).contract if artifacts else None

    def show(results: list[LoadResult]) -> None:
        if as_json:
            print_json({"loads": [r.to_dict() for r in results]})
        elif results:
            line(*dict.fromkeys(r.device for r in results))
            table(*(load_tables.load_table([*rows]) for _, rows in groupby(results, lambda r: (r.address, r.model))))
            if any(r.server for r in results):
                table(load_tables.server_table(results))
            line(*load_tables.load_lines(results))

    with kept_when_interrupted(show), shown_progress() as progress:
        results = bench_servers(connections, chosen, contract=contract, progress=progress, **feeding)
    show(results)
    written = load_tables.write(results, csv, markdown)
    if not as_json:
        line(*map(str, written), exact=True)
    if none := [r for r in results if r.latency is None]:
        raise RuntimeUnavailable(f"every request failed: {none[0].title}: {none[0].first_error}")
    if failed := sum(r.errors for r in results):
        raise CheckFailed(f"{count(failed, 'request')} of {sum(r.requests for r in results):,} failed")
