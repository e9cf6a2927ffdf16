"""What rows say, each number with its interval.

Every model is measured on the same items. An interval comes from drawing these items
anew, with replacement, many times (the bootstrap), and in each draw every row has the
same items: so differences between rows are paired.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from examples.study.methods import METHODS
from examples.study.plan import BASE, SEQUENCE, TEXTS
from examples.study.rows import Row

DRAWS = 1000
COVERED = 95  # percent of the draws that an interval holds

# The value on the items as they are, then on each draw of them.
Values = np.ndarray


@functools.cache
def _draws(name: str, size: int) -> np.ndarray:
    """Item numbers [1 + DRAWS, size]; the first row takes each item once."""
    random = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = random.integers(size, size=(DRAWS, size))
    return np.concatenate([np.arange(size)[None], drawn])


@dataclasses.dataclass(frozen=True)
class Evidence:
    """All rows of one budget.

    Args:
      rows: as `rows.read` gives them.
    """

    rows: Sequence[Row]

    def base(self, healed: bool = True) -> Row | None:
        """The row of a start."""
        return next(
            (
                row
                for row in self.rows
                if row["key"]["task"] == BASE and row["key"]["healed"] == healed
            ),
            None,
        )

    @functools.cached_property
    def counts(self) -> Mapping[str, Mapping[str, list[int]]]:
        """The tokens of each item, by set and kind."""
        return next((row["counts"] for row in self.rows if "counts" in row), {})

    def runs(self, task: str, **settings: Any) -> list[Row]:
        """The rows of a task whose keys have the given values.

        Args:
          task: the task.
          settings: values in the key; `seed` 0, `times` 1 and `healed` True where
            nothing else is said, and None for any.
        """
        wanted = {"seed": 0, "times": 1, "healed": True} | settings
        found = [
            row
            for row in self.rows
            if row["key"]["task"] == task
            and not diverged(row)
            and all(
                value is None or row["key"][name] == value
                for name, value in wanted.items()
            )
        ]
        return sorted(found, key=lambda row: (_place(row), *_strength(row)))

    def tasks(self) -> list[str]:
        """The tasks that have rows, in the order in which they were begun."""
        names = (row["key"]["task"] for row in self.rows)
        return [name for name in dict.fromkeys(names) if name not in (BASE, SEQUENCE)]

    def mean(self, row: Mapping[str, Any], name: str, kind: str) -> Values:
        """The mean per token of `losses` or `divergences` on a set."""
        sums = np.array(row["sets"][name][kind])
        counts = np.array(self.counts[name][kind], float)
        drawn = _draws(name, len(sums))
        return sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)

    def task_loss(self, row: Row) -> Values:
        """The loss on the row's own task."""
        return self.mean(row, row["key"]["task"], "losses")

    def base_loss(self, row: Row) -> Values:
        """The loss of the row's start on the row's task."""
        base = self.base(row["key"]["healed"])
        return self.mean(base or {}, row["key"]["task"], "losses")

    def prompt_divergence(self, row: Row) -> Values:
        """The forward KL from the start on the row's task's prompts."""
        return self.mean(row, row["key"]["task"], "divergences")

    def divergence(self, row: Mapping[str, Any]) -> Values:
        """The forward KL from the start on general text: the mean over the texts."""
        parts = [self.mean(row, name, "divergences") for name in TEXTS]
        return np.mean(parts, axis=0)

    def increase(self, row: Mapping[str, Any], healed: bool = True) -> Values:
        """By how much the loss on general text rose: the mean over the texts."""
        parts = [self.rise(row, name, healed) for name in TEXTS]
        return np.mean(parts, axis=0)

    def rise(self, row: Mapping[str, Any], name: str, healed: bool = True) -> Values:
        """By how much the loss on one set rose."""
        base = self.base(healed) or {}
        return self.mean(row, name, "losses") - self.mean(base, name, "losses")

    def flips(self, row: Row) -> tuple[int, int]:
        """Questions that were right and are wrong, and the reverse."""
        base = self.base(row["key"]["healed"]) or {"choices": {}}
        before = "".join(base["choices"].values())
        after = "".join(row["choices"].values())
        pairs = list(zip(before, after, strict=True))
        return pairs.count(("1", "0")), pairs.count(("0", "1"))


def diverged(row: Row) -> bool:
    """Whether a loss is no number any more; such a row is in no comparison."""
    parts = row.get("stages", [row])
    return any(None in found["losses"] for p in parts for found in p["sets"].values())


def _place(row: Row) -> int:
    names = list(METHODS)
    method = row["key"]["method"]
    return names.index(method) if method in names else len(names)


def _strength(row: Row) -> tuple[float, float]:
    return row["key"]["rate"], row["key"]["share"]


def title(row: Row) -> str:
    """A row's method, as tables name it."""
    name = row["key"]["method"]
    return METHODS[name].title if name in METHODS else name


def interval(values: Values) -> tuple[float, float]:
    """The interval that holds most of the draws; not-a-number where few are defined."""
    drawn = values[1:][np.isfinite(values[1:])]
    if drawn.size < 0.95 * (values.size - 1) or not math.isfinite(values[0]):
        return math.nan, math.nan
    low, high = np.percentile(drawn, [(100 - COVERED) / 2, (100 + COVERED) / 2])
    return float(low), float(high)


def against_each_other(rows: Iterable[Values], *, log: bool = False) -> list[Values]:
    """Takes out of several rows' values what all have in common in a draw.

    What is left tells rows from each other; that some items are hard for every model
    does not.
    """
    table = np.array(list(rows))
    table = np.log(table) if log else table
    shared = table.mean(axis=0)
    table = table - shared + shared[0]
    return list(np.exp(table) if log else table)
