"""What follows from a method's sweep of learning rates."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.stats

from examples.study.evidence import DRAWS, Evidence, Values, interval
from examples.study.rows import Row

# Shares of the most that AdamW's sweep takes off the task loss.
LEVELS = (0.9, 0.95, 0.98)


def sweep(evidence: Evidence, task: str, method: str, times: int = 1) -> list[Row]:
    """A method's rows of one task and length, the weakest first.

    For WiSE-FT that is by the share of the way, the end of AdamW's run last.
    """
    found = evidence.runs(task, method=method, times=times)
    if method != "wise" or not found:
        return found
    rate = found[0]["key"]["rate"]
    return found + evidence.runs(task, method="adamw", rate=rate, times=times)


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points that no other is as low as in both numbers.

    Args:
      points: pairs, of which less is better.

    Returns:
      Their places, by the first number.
    """
    order = sorted(range(len(points)), key=lambda place: points[place])
    kept, lowest = [], math.inf
    for place in order:
        if points[place][1] < lowest:
            kept.append(place)
            lowest = points[place][1]
    return kept


def rising(losses: Sequence[float]) -> int:
    """How many of a sweep's rows lead up to the one that learned most."""
    return int(np.argmin(losses)) + 1 if len(losses) else 0


def matched(
    losses: Sequence[Values], others: Sequence[Values], level: Values
) -> Values:
    """Another quantity where a sweep reaches a given task loss.

    Linear in the task loss between the two neighbours that have the level between them,
    on the part of the sweep in which more was learned at each higher rate.

    Args:
      losses: task losses, the weakest row first.
      others: what is wanted at the level, for the same rows.
      level: the task loss.

    Returns:
      Not-a-number where the sweep does not reach the level, or begins beyond it.
    """
    result = np.full(level.shape, np.nan)
    count = rising([loss[0] for loss in losses])
    for place in range(count - 1):
        above, below = losses[place], losses[place + 1]
        inside = (above >= level) & (level >= below) & np.isnan(result)
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(above > below, (above - level) / (above - below), 0.0)
        between = (1 - share) * others[place] + share * others[place + 1]
        result = np.where(inside, between, result)
    return result


def levels(evidence: Evidence, task: str) -> dict[float, Values]:
    """The task losses at which methods are compared, by share; none without AdamW."""
    losses = [evidence.task_loss(row) for row in sweep(evidence, task, "adamw")]
    if not losses:
        return {}
    start = evidence.base_loss(evidence.runs(task, method="adamw")[0])
    best = losses[int(np.argmin([loss[0] for loss in losses]))]
    return {share: start - share * (start - best) for share in LEVELS}


class Match(NamedTuple):
    """A method at one level of task loss.

    Attributes:
      divergence: forward KL on general text.
      ratio: that over AdamW's at the same level.
      increase: by how much the loss on general text rose.
      difference: that less AdamW's.
    """

    divergence: Values
    ratio: Values
    increase: Values
    difference: Values


def matches(evidence: Evidence, task: str, method: str, level: Values) -> Match:
    """A method and AdamW at one level; not-a-number where either does not reach it."""
    (log_kl, rise), (own_kl, own_rise) = (
        _at(evidence, sweep(evidence, task, name), level) for name in (method, "adamw")
    )
    return Match(np.exp(log_kl), np.exp(log_kl - own_kl), rise, rise - own_rise)


def over_adamw(evidence: Evidence, row: Row) -> Values:
    """A row's KL over AdamW's sweep of its length, at the row's own task loss."""
    theirs = sweep(evidence, row["key"]["task"], "adamw", row["key"]["times"])
    log_kl, _ = _at(evidence, theirs, evidence.task_loss(row))
    return np.exp(np.log(evidence.divergence(row)) - log_kl)


def _at(
    evidence: Evidence, rows: Sequence[Row], level: Values
) -> tuple[Values, Values]:
    losses = [evidence.task_loss(row) for row in rows]
    # KL grows as a power of the rate: its logarithm is the straighter line.
    logs = [np.log(evidence.divergence(row)) for row in rows]
    rises = [evidence.increase(row) for row in rows]
    return matched(losses, logs, level), matched(losses, rises, level)


def rank_correlation(
    first: Sequence[float], second: Sequence[float]
) -> tuple[float, tuple[float, float]]:
    """Spearman's, with an interval from drawing the rows anew; NaN below 4 rows."""
    if len(first) < 4:
        return math.nan, (math.nan, math.nan)
    drawn = np.random.default_rng(0).integers(len(first), size=(DRAWS, len(first)))
    orders = np.concatenate([np.arange(len(first))[None], drawn])
    ranks = scipy.stats.rankdata(np.array([first, second])[:, orders], axis=-1)
    apart = ranks - ranks.mean(axis=-1, keepdims=True)
    shared, (one, other) = apart.prod(axis=0).sum(axis=-1), (apart**2).sum(axis=-1)
    # A draw of one row alone orders nothing.
    spread = np.where(one * other > 0, one * other, np.nan)
    values = shared / np.sqrt(spread)
    return float(values[0]), interval(values)


def sign_test(lost: int, gained: int) -> float:
    """The chance of as uneven a split of changed answers if both were as likely."""
    changed = lost + gained
    return float(scipy.stats.binomtest(lost, changed).pvalue) if changed else 1.0


def over_seeds(differences: Sequence[float]) -> tuple[float, tuple[float, float]]:
    """The mean of differences paired by seed, with Student's interval."""
    mean = float(np.mean(differences))
    if len(differences) < 2:
        return mean, (math.nan, math.nan)
    error = float(scipy.stats.sem(differences))
    if error == 0:
        return mean, (mean, mean)
    low, high = scipy.stats.t.interval(
        0.95, len(differences) - 1, loc=mean, scale=error
    )
    return mean, (float(low), float(high))
