"""The generated tasks, by their names for `--task`."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from examples.finetune.data import records, word_problems
from examples.finetune.data.records import Split


class Task(NamedTuple):
    """A generated task.

    Attributes:
      title: its name in reports.
      rows: makes rows from a count, `seed` and `split` ("train" or "test"); the two
        splits are disjoint for all seeds and counts.
      available: the largest count, from `split`.
    """

    title: str
    rows: Callable[..., list[dict[str, str]]]
    available: Callable[[Split], int]


TASKS: Mapping[str, Task] = {
    "json": Task(
        "generated sentences to be written as JSON", records.rows, records.available
    ),
    "mathematics": Task(
        "generated school mathematics", word_problems.problems, word_problems.available
    ),
}
