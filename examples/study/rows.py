"""The results file: one row a run, kept for good as soon as it is there."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from examples.finetune.files import read_json_lines, write_json_lines

Row = dict[str, Any]
NAME = "rows.jsonl"


def file_of(
    output: pathlib.Path, budget: str, data: pathlib.Path | None
) -> pathlib.Path:
    """Where rows are: those of another budget, or without files, lie elsewhere."""
    return output / (budget if data else f"{budget}-generated") / NAME


def read(path: pathlib.Path) -> list[Row]:
    """The rows in the order in which they were added; none where there is no file."""
    return read_json_lines(path)


def find(rows: list[Row], key: Mapping[str, Any]) -> Row | None:
    """The row of exactly these settings, if it is there."""
    wanted = json.loads(json.dumps(key))
    return next((row for row in rows if row["key"] == wanted), None)


def add(path: pathlib.Path, row: Row) -> None:
    """Adds a row, in the place of one with the same key. The file is whole always."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = {json.dumps(old["key"]): old for old in [*read(path), row]}
    write_json_lines(path, kept.values())


def comparable(rows: list[Row]) -> list[Row]:
    """The rows that were measured as the newest was: same sizes, model and texts."""
    return [row for row in rows if _measured(row) == _measured(rows[-1])]


def _measured(row: Row) -> list[Any]:
    return [row["key"].get(name) for name in ("budget", "model", "texts")]
