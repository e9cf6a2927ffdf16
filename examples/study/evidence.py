"""Numbers computed from rows, with the data for their intervals.

Every model is measured on the same items. The error of a number due to the items is
estimated by the bootstrap, which draws them many times with replacement. Each draw has
the same items for all rows, so that differences between rows are paired. The error due
to seeds is estimated from runs with other seeds.
"""

import functools
import math
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import scipy.stats

DRAWS = 1000
COVERED = 0.95  # coverage of an interval

# The value on all items, then on each draw of them, [1 + DRAWS].
Values = np.ndarray


@functools.cache
def draws(name: str, size: int) -> np.ndarray:
    """Returns item numbers [1 + DRAWS, size]; the first row has each item once.

    Args:
      name: the name of the set of items; equal names and sizes give equal draws.
      size: the number of items.
    """
    random = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = random.integers(size, size=(DRAWS, size))
    return np.concatenate([np.arange(size)[None], drawn])


def mean(
    name: str, sums: Sequence[float | None] | np.ndarray, counts: Sequence[int]
) -> Values:
    """Returns the mean per token on a set.

    Args:
      name: the name of the set.
      sums: for each item, the sum over its tokens; None in stored rows is NaN.
      counts: the number of tokens of each item.
    """
    drawn = draws(name, len(sums))
    totals = np.array(counts, float)[drawn].sum(axis=1)
    return np.array(sums, float)[drawn].sum(axis=1) / totals


class Seeds(NamedTuple):
    """The variation of a number from seed to seed.

    Attributes:
      variance: the variance of one seed's number.
      freedom: the degrees of freedom of its estimate.
    """

    variance: float
    freedom: int


def pooled(groups: Sequence[Sequence[float]]) -> Seeds:
    """Returns the variance within groups, each of which has its own mean.

    Args:
      groups: numbers by seed, for each method; groups of one do not contribute.
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
        """Returns the exponential of the number and its interval."""
        return Estimate(*(math.exp(part) for part in self))


def estimate(values: Values, seeds: Seeds | None = None, count: int = 1) -> Estimate:
    """Returns the interval of a number that is a mean over seeds.

    Its quantile is Student's with the degrees of freedom of the seeds' variance, for
    the error due to the items too.

    Args:
      values: the mean over seeds, on all items and on each draw of them.
      seeds: the variation from seed to seed; None to ignore it.
      count: the number of seeds in the mean.
    """
    value = float(values[0])
    tails = (1 - COVERED) / 2, (1 + COVERED) / 2
    # Quantiles rather than the variance, since interpolation between two task losses
    # that nearly coincide in a draw gives a few extreme values.
    ends = np.abs(np.quantile(values[1:], tails) - value)
    if seeds is not None:
        if not seeds.freedom:
            return Estimate(value, math.nan, math.nan)
        student = scipy.stats.t.ppf(tails[1], seeds.freedom)
        deviations = ends / scipy.stats.norm.ppf(tails[1])
        ends = student * np.hypot(deviations, math.sqrt(seeds.variance / count))
    low, high = map(float, ends)
    return Estimate(value, value - low, value + high)


def between(
    losses: tuple[Values, Values], others: tuple[Values, Values], level: Values
) -> Values:
    """Returns another quantity where the task loss reaches a level between two runs.

    Args:
      losses: task losses of the weaker and of the stronger run.
      others: the quantity in the same two runs.
      level: the task loss.

    Returns:
      The quantity, interpolated linearly in the task loss.
    """
    (above, below), (first, second) = losses, others
    share = (above - level) / (above - below)
    return (1 - share) * first + share * second


def bracketing(losses: Sequence[float], level: float) -> int | None:
    """Returns the index of the first of two neighbouring runs around a level.

    Args:
      losses: task losses by ascending rate; those after the lowest are ignored.
      level: the task loss.
    """
    best = int(np.argmin(losses)) if len(losses) else 0
    for place in range(best):
        if losses[place] >= level >= losses[place + 1]:
            return place
    return None


def rises(row: Mapping[str, Any], start: Mapping[str, Any], name: str) -> np.ndarray:
    """Returns the increase of each item's loss, summed over its tokens."""
    after, before = (np.array(r["sets"][name]["losses"], float) for r in (row, start))
    return after - before
