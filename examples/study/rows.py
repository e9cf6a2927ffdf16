"""The results file, to which each run adds one row as soon as it is complete."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from examples.finetune.command.errors import InputError
from examples.finetune.system.files import read_json_lines, write_json_lines
from examples.study.plan import START, Run

Row = dict[str, Any]
NAME = "rows.jsonl"
SAME_LOSS = 1e-4  # greatest difference of the task loss of one start, by rounding


def file_of(
    output: pathlib.Path, model: str, budget: str, data: pathlib.Path | None
) -> pathlib.Path:
    """Returns the path of a model's rows with a budget, with files or without."""
    return output / model / (budget if data else f"{budget}-generated") / NAME


def read(path: pathlib.Path) -> list[Row]:
    """Returns the rows in order of addition; none if the file does not exist."""
    return read_json_lines(path)


def find(rows: Sequence[Row], key: Mapping[str, Any]) -> Row | None:
    """Returns the row with exactly these settings, if there is one."""
    return next((row for row in rows if row["key"] == key), None)


def add(path: pathlib.Path, row: Row) -> None:
    """Adds a row unless one has its key. The file is replaced atomically."""
    kept = read(path)
    if find(kept, row["key"]) is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json_lines(path, [*kept, row])


def run_of(row: Row) -> Run:
    """Returns the run of a row."""
    return parse(row["key"]["run"])


def parse(text: str) -> Run:
    """Parses the name of a run, such as "gsm8k/mofo/24/11/0.0001".

    Raises:
      ValueError: the name is invalid.
    """
    task, method, *rest = text.split("/")
    if method == START and not rest:
        return Run(task, START)
    length, seed, rate = rest
    return Run(task, method, int(length), int(seed), float(rate))


def task_loss(row: Row, start: Row) -> float:
    """Returns the mean loss per token on a row's task; infinite if it is NaN."""
    task = run_of(row).task
    losses = row["sets"][task]["losses"]
    if None in losses:
        return float("inf")
    return sum(losses) / sum(start["counts"][task]["losses"])


def check_start(path: pathlib.Path, kept: Row, measured: Mapping[str, Any]) -> None:
    """Checks that the start is that of the stored rows.

    It is made again if the cache is lost, and devices and versions differ in rounding.

    Args:
      path: the file of the rows.
      kept: the start's stored row.
      measured: the start's new measurements.

    Raises:
      InputError: their task losses differ.
    """
    task = run_of(kept).task
    count = sum(kept["counts"][task]["losses"])
    before, now = (sum(one["sets"][task]["losses"]) / count for one in (kept, measured))
    if not abs(now - before) <= SAME_LOSS:
        raise InputError(
            f"The start's loss on {task} is {now:.6f}, and {before:.6f} in {path}; "
            "give the --cache of those rows, or another --output"
        )


def comparable(rows: Sequence[Row]) -> list[Row]:
    """Returns the rows with the settings and data of the newest.

    Settings are sizes, model and protocol. Each task has data of its own.
    """
    kept = [row for row in rows if _settings(row) == _settings(rows[-1])]
    data = {run_of(row).task: row["key"]["data"] for row in kept}
    return [row for row in kept if row["key"]["data"] == data[run_of(row).task]]


def _settings(row: Row) -> list[Any]:
    return [row["key"][name] for name in ("budget", "model", "protocol")]
