"""The results file: one row a run, kept for good as soon as it is there."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

from examples.finetune.files import read_json_lines, write_json_lines

Row = dict[str, Any]
NAME = "rows.jsonl"


def file_of(output: pathlib.Path, budget: str) -> pathlib.Path:
    """Where a budget's rows are."""
    return output / budget / NAME


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
