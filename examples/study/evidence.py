"""Numbers from rows, each with what is needed for its interval.

Every model is measured on the same items. A number's item error comes from drawing them
anew, with replacement, many times (the bootstrap); in each draw every row has the same
items, so differences between rows are paired. Its seed error comes from repeating a run
with other seeds.
"""

import functools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

DRAWS = 1000
COVERED = 0.95  # of an interval

# The value on the items as they are, then on each draw of them, [1 + DRAWS].
Values = np.ndarray


@functools.cache
def draws(name: str, size: int) -> np.ndarray:
    """Item numbers [1 + DRAWS, size]; the first row takes each item once.

    Args:
      name: of the set of items; equal names and sizes give equal draws.
      size: the number of items.
    """
    random = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = random.integers(size, size=(DRAWS, size))
    return np.concatenate([np.arange(size)[None], drawn])


def mean(
    name: str, sums: Sequence[float] | np.ndarray, counts: Sequence[int]
) -> Values:
    """The mean per token on a set.

    Args:
      name: of the set.
      sums: for each item, summed over its tokens.
      counts: the tokens of each item.
    """
    drawn = draws(name, len(sums))
    totals = np.array(counts, float)[drawn].sum(axis=1)
    return np.array(sums)[drawn].sum(axis=1) / totals


class Seeds(NamedTuple):
    """How much a number differs from seed to seed.

    Attributes:
      variance: of one seed's number.
      freedom: the degrees of freedom from which it is known.
    """

    variance: float
    freedom: int


def pooled(groups: Sequence[Sequence[float]]) -> Seeds:
    """The variance within groups, each of which has a mean of its own.

    Args:
      groups: one number a seed, for each method; groups of one say nothing.
    """
    squares = sum(np.var(group) * len(group) for group in groups if len(group) > 1)
    freedom = sum(len(group) - 1 for group in groups if len(group) > 1)
    return Seeds(float(squares / freedom) if freedom else math.nan, freedom)


class Estimate(NamedTuple):
    """A number with its interval.

    Attributes:
      value: the number.
      low: the lower end.
      high: the upper end.
    """

    value: float
    low: float
    high: float

    def exp(self) -> "Estimate":
        """The exponential of number and ends, as of a logarithm of a ratio."""
        return Estimate(*(math.exp(part) for part in self))


def estimate(values: Values, seeds: Seeds | None = None, count: int = 1) -> Estimate:
    """The interval of a number that is a mean over seeds.

    Args:
      values: the mean over seeds, for the items as they are and each draw of them.
      seeds: how much one seed differs from another; None leaves that out.
      count: the number of seeds that the mean is over.
    """
    value = float(values[0])
    tails = (1 - COVERED) / 2, (1 + COVERED) / 2
    # Quantiles rather than the variance: interpolating between two task losses that
    # nearly meet in a draw gives a few values far away.
    low, high = (abs(end - value) for end in np.quantile(values[1:], tails))
    other = 0.0
    if seeds is not None:
        student = scipy.stats.t.ppf(tails[1], seeds.freedom) if seeds.freedom else None
        if student is None:
            return Estimate(value, math.nan, math.nan)
        other = float(student) * math.sqrt(seeds.variance / count)
    return Estimate(
        value, value - math.hypot(low, other), value + math.hypot(high, other)
    )


def between(
    losses: tuple[Values, Values], others: tuple[Values, Values], level: Values
) -> Values:
    """Another quantity where the task loss reaches a level between two runs.

    Args:
      losses: task losses of the weaker and of the stronger run.
      others: what is wanted at the level, of the same runs.
      level: the task loss.

    Returns:
      The quantity, linear in the task loss.
    """
    (above, below), (first, second) = losses, others
    share = (above - level) / (above - below)
    return (1 - share) * first + share * second


def bracketing(losses: Sequence[float], level: float) -> int | None:
    """The place of the first of two neighbouring runs with a level between them.

    Args:
      losses: task losses by ascending rate; only those up to the lowest one count.
      level: the task loss.
    """
    best = int(np.argmin(losses)) if len(losses) else 0
    for place in range(best):
        if losses[place] >= level >= losses[place + 1]:
            return place
    return None


def rises(row: Mapping[str, Any], start: Mapping[str, Any], name: str) -> np.ndarray:
    """By how much the loss of each item rose, summed over its tokens."""
    after, before = (np.array(r["sets"][name]["losses"]) for r in (row, start))
    return after - before
