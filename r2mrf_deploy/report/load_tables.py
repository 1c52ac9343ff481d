"""What became of a load on servers, for people: two tables, since one would not fit a screen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from r2mrf_deploy.files import write_atomically
from r2mrf_deploy.report import forms
from r2mrf_deploy.report.screen import Sheet
from r2mrf_deploy.report.tables import figure
from r2mrf_deploy.wording import count

if TYPE_CHECKING:
    from r2mrf_deploy.bench.load import LoadResult

NONE = "-"
LATE = 1.1
"""The share of an open loop's time in which a server that keeps up has answered everything."""


def load_table(results: Sequence[LoadResult]) -> Sheet:
    """What the clients saw: answers in a second, and latencies in milliseconds."""
    figures = ("requests", "errors", "per s", "p50 ms", "p90", "p99", "p99.9")
    table = Sheet("model", "load", "batch", numbers=figures, once=("model", "batch"))
    for r in results:
        latencies = [figure(value) for value in r.latency.percentiles.values()] if r.latency else [NONE] * 4
        numbers = (f"{r.requests:,}", f"{r.errors:,}", figure(r.throughput))
        table.add(f"{r.model} at {r.address}", r.load, str(r.batch), *numbers, *latencies)
    return table


def server_table(results: Sequence[LoadResult]) -> Sheet:
    """What the servers counted meanwhile; those that keep no statistics are left out."""
    figures = ("requests", "executions", "batch", "queue", "compute")
    title = "by the server's own statistics: the mean batch, and milliseconds of a request:"
    table = Sheet("model", "load", numbers=figures, spare=("executions",), title=title)
    for r in results:
        for s in r.server:
            times = (NONE if value is None else figure(value) for value in (s.batch, s.queue_ms, s.compute_ms))
            table.add(s.model, r.load, f"{s.requests:,}", f"{s.executions:,}", *times)
    return table


def load_lines(results: Sequence[LoadResult]) -> list[str]:
    """What the tables do not say."""
    early = dict.fromkeys(name for r in results for name in r.early)
    lines = [
        f"{name}: its computation is counted until the last of a batch has begun; it takes longer" for name in early
    ]
    for r in results:
        if r.errors:
            lines.append(f"{r.title}: {count(r.errors, 'request')} failed, the first with: {r.first_error}")
        if not r.server:
            lines.append(f"{r.title}: the server keeps no statistics")
        if r.load.rate is not None and r.seconds > LATE * r.load.duration:
            behind = f"the last answer came {figure(r.seconds - r.load.duration)} s after the last request was due"
            lines.append(f"{r.title}: the server fell behind: {behind}")
    return lines


def write(results: Sequence[LoadResult], table: Path | None, markdown: Path | None) -> list[Path]:
    """Write the figures as CSV and the tables as Markdown, and return the paths."""
    written = []
    if table and results:
        rows = load_rows(results)
        written.append(write_atomically(table, forms.csv_bytes(list(rows[0]), [list(r.values()) for r in rows])))
    if markdown:
        text = f"{forms.markdown(load_table(results))}\n{forms.markdown(server_table(results), load_lines(results))}"
        written.append(write_atomically(markdown, text.encode()))
    return written


def load_rows(results: Sequence[LoadResult]) -> list[dict[str, str | int | float | None]]:
    """One flat row for each load, for CSV."""
    rows = []
    for r in results:
        own = r.server[0] if r.server else None
        row: dict[str, str | int | float | None] = {
            "address": r.address, "model": r.model, "server": r.device, "batch": r.batch, "inputs": " ".join(r.inputs),
            "in_flight": r.load.concurrency if r.load.rate is None else None, "rate_per_s": r.load.rate,
            "requests": r.requests, "errors": r.errors, "first_error": r.first_error, "seconds": r.seconds,
            "throughput_per_s": r.throughput, "images_per_second": r.throughput * r.batch,
            "latency_mean_ms": r.latency.mean if r.latency else None,
        }  # fmt: skip
        for p in ("50", "90", "99", "99.9"):
            row[f"latency_p{p}_ms"] = r.latency.percentiles[p] if r.latency else None
        row |= {
            "server_mean_batch": own.batch if own else None,
            "server_queue_ms": own.queue_ms if own else None,
            "server_compute_ms": own.compute_ms if own else None,
        }
        rows.append(row)
    return rows
