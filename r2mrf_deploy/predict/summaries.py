"""Files about all photographs together, made from the journal: tables of scores, and contours in COCO's format.

They are written line by line, so that memory does not grow with the number of photographs.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TextIO, get_type_hints

from r2mrf_deploy.errors import ArtifactError, reading
from r2mrf_deploy.files import document, write_atomically
from r2mrf_deploy.predict.journal import records
from r2mrf_deploy.predict.regions import seamed_ring
from r2mrf_deploy.predict.scores import NAMES, Scores
from r2mrf_deploy.predict.sources import JOURNAL

ScoresFormat = Literal["jsonl", "csv", "parquet"]
COLUMNS = ("source", *NAMES, "note", "error")
"""The columns of a table of scores. One that does not apply is empty (null)."""
ROWS = 10_000
"""Rows of a Parquet file that are in memory at once."""


def refuse_without_parquet() -> None:
    """Raise ModuleNotFoundError if Parquet cannot be written."""
    import pyarrow  # noqa: F401


def write_scores(folder: Path, form: ScoresFormat = "jsonl") -> Path:
    """Write `scores.jsonl`, `scores.csv` or `scores.parquet`: one row for each photograph, with `COLUMNS`.

    Raises:
        ModuleNotFoundError: Parquet without pyarrow.
        ArtifactError: it cannot be written.
    """
    writers: dict[str, Callable[[Path, Iterator[dict[str, Any]]], None]] = {
        "jsonl": _jsonl,
        "csv": _csv,
        "parquet": _parquet,
    }
    rows = ({name: record.get(name) for name in COLUMNS} for record in records(folder / JOURNAL))
    return write_atomically(folder / f"scores.{form}", lambda path: writers[form](path, rows))


def _jsonl(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8") as f:
        f.writelines(json.dumps(row) + "\n" for row in rows)


def _csv(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", errors="surrogateescape", newline="") as f:
        table = csv.DictWriter(f, COLUMNS)
        table.writeheader()
        table.writerows(rows)


def _parquet(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    from pyarrow import parquet

    with parquet.ParquetWriter(path, schema()) as table:
        while some := list(islice(rows, ROWS)):
            table.write_table(arrow(some))


def schema(*kinds: str) -> Any:
    """The Arrow schema of `COLUMNS`, and of a column of bytes for each of `kinds` of outputs."""
    import pyarrow

    types = {int: pyarrow.int64(), float: pyarrow.float64()}
    hints = get_type_hints(Scores)
    scores = {name: next((types[k] for k in types if _holds(hints.get(name), k)), pyarrow.string()) for name in COLUMNS}
    return pyarrow.schema([*scores.items(), *((kind, pyarrow.binary()) for kind in kinds)])


def arrow(rows: Sequence[Mapping[str, Any]], *kinds: str) -> Any:
    """Rows as an Arrow table of `schema(*kinds)`. What a row does not have is null."""
    import pyarrow

    return pyarrow.Table.from_pylist([{k: _encodable(v) for k, v in row.items()} for row in rows], schema(*kinds))


def _holds(hint: Any, kind: type) -> bool:
    return hint is kind or kind in getattr(hint, "__args__", ())


def _encodable(value: Any) -> Any:
    """Text as Parquet can hold it: bytes of a file name that are not UTF-8 become escapes."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


def write_coco(folder: Path) -> Path:
    """Write `coco.json`: every photograph's contours as polygons in COCO's format, from their GeoJSON files.

    Raises:
        ArtifactError: it cannot be written, or a contour's file is damaged.
    """
    return write_atomically(folder / "coco.json", lambda path: _coco(path, folder))


def _coco(path: Path, folder: Path) -> None:
    with path.open("w", encoding="utf-8") as f:
        f.write(
            '{"info": {"description": "what is in focus"}, "categories": [{"id": 1, "name": "in focus"}],\n"images": ['
        )
        _list(f, (image for image, _ in _contoured(folder)))
        f.write('],\n"annotations": [')
        numbers = iter(range(1, 1 << 62))
        _list(f, ({"id": next(numbers)} | each for _, found in _contoured(folder) for each in found))
        f.write("]}\n")


def _contoured(folder: Path) -> Iterator[tuple[dict[str, Any], Sequence[dict[str, Any]]]]:
    """Each photograph that has contours, and its annotations."""
    kept = (
        record for record in records(folder / JOURNAL) if record["error"] is None and "contour" in record["outputs"]
    )
    for number, record in enumerate(kept, 1):
        image = {"id": number, "file_name": record["source"], "width": record["width"], "height": record["height"]}
        file = folder / record["outputs"]["contour"]
        with reading(file, ArtifactError, "is not a contour's file", "predict again"):
            features = json.loads(document(file))["features"]
            yield image, [_annotation(number, feature) for feature in features]


def _annotation(image: int, feature: dict[str, Any]) -> dict[str, Any]:
    rings = feature["geometry"]["coordinates"]
    xs, ys = zip(*rings[0], strict=True)
    box = [min(xs), min(ys), round(max(xs) - min(xs), 1), round(max(ys) - min(ys), 1)]
    common = {"image_id": image, "category_id": 1, "iscrowd": 0}
    return common | {"area": feature["properties"]["area"], "bbox": box, "segmentation": [seamed_ring(rings)]}


def _list(f: TextIO, values: Iterator[Any]) -> None:
    for number, value in enumerate(values):
        f.write((",\n" if number else "\n") + json.dumps(value))
