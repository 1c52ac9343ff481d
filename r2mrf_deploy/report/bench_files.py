"""The files of `r2mrf bench`: times and profiles in trtexec's JSON, the figures as CSV, Markdown and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from r2mrf_deploy.bench import summary
from r2mrf_deploy.bench.protocol import Bench
from r2mrf_deploy.files import refuse_unwritable, write_atomically
from r2mrf_deploy.report import bench_tables, forms, plots, tables


def refuse(plot: Path | None, *files: Path | None) -> None:
    """Check, before anything is timed, that the files can be written.

    Raises:
        UsageError, ArtifactError, RuntimeUnavailable: one of them cannot.
    """
    if plot:
        plots.refuse(plot)
    for file in filter(None, files):
        refuse_unwritable(file)


def write(
    bench: Bench,
    times: Path | None = None,
    profiles: Path | None = None,
    table: Path | None = None,
    markdown: Path | None = None,
    plot: Path | None = None,
) -> list[Path]:
    """Write the requested files and return their paths; `times` and `profiles` get one file per candidate."""
    written = []
    if times:
        written += _each(times, [(f"{m.name}-{m.runtime}", summary.times(m.turns)) for m in bench.measurements])
    if profiles:
        written += _each(profiles, [(f"{p.name}-{p.runtime}", p.to_trtexec()) for p in bench.profiles])
    if table:
        rows = bench_tables.bench_rows(bench.measurements)
        written.append(write_atomically(table, forms.csv_bytes(list(rows[0]), [list(r.values()) for r in rows])))
    if markdown:
        head = f"{tables.where(bench.machine, bench.tools)}\n\n"
        body = forms.markdown(bench_tables.bench_table(bench.measurements))
        notes = "".join(f"\n- {line}" for line in bench_tables.bench_lines(bench.measurements))
        written.append(write_atomically(markdown, f"{head}{body}{notes}\n".encode()))
    if plot:
        written.append(plots.latency(bench.measurements, plot))
    return written


def _each(path: Path, contents: list[tuple[str, list[dict[str, Any]]]]) -> list[Path]:
    """Write one file, or one per candidate with its number and name in the file name."""
    files = []
    for number, (title, content) in enumerate(contents, 1):
        own = path.with_name(f"{path.stem}-{number}-{title.replace('/', '_')}{path.suffix}")
        text = json.dumps(content, indent=1) + "\n"
        files.append(write_atomically(path if len(contents) == 1 else own, text.encode()))
    return files
