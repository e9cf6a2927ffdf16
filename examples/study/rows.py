"""The results file: one row a run, kept for good as soon as it is there."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from examples.finetune.system.files import read_json_lines, write_json_lines
from examples.study.plan import START, Run

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


def find(rows: Sequence[Row], key: Mapping[str, Any]) -> Row | None:
    """The row of exactly these settings, if it is there."""
    return next((row for row in rows if row["key"] == key), None)


def add(path: pathlib.Path, row: Row) -> None:
    """Adds a row unless one with its key is there. The file is whole always."""
    kept = read(path)
    if find(kept, row["key"]) is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(path, [*kept, row])


def run_of(row: Row) -> Run:
    """The run that a row is of."""
    return parse(row["key"]["run"])


def parse(text: str) -> Run:
    """The run of a name such as "gsm8k/mofo/24/11/0.0001".

    Raises:
      ValueError: it is no name of a run.
    """
    task, method, *rest = text.split("/")
    if method == START and not rest:
        return Run(task, START)
    length, seed, rate = rest
    return Run(task, method, int(length), int(seed), float(rate))


def start_of(rows: Sequence[Row], task: str) -> Row:
    """The row of the start, on a task."""
    name = str(Run(task, START))
    return next(row for row in rows if row["key"]["run"] == name)


def task_loss(row: Row, start: Row) -> float:
    """The mean loss per token on a row's own task; infinite where it is no number."""
    task = run_of(row).task
    losses = row["sets"][task]["losses"]
    if None in losses:
        return float("inf")
    return sum(losses) / sum(start["counts"][task]["losses"])


def comparable(rows: Sequence[Row]) -> list[Row]:
    """The rows that were measured as the newest was: same sizes, model, protocol."""
    return [row for row in rows if _measured(row) == _measured(rows[-1])]


def _measured(row: Row) -> list[Any]:
    return [row["key"][name] for name in ("budget", "model", "protocol")]
