"""The protocol's decisions from the rows: the comparator and the claims."""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import numpy as np

from examples.finetune.model.packaged import DEFAULT_MODEL
from examples.study import evidence, plan
from examples.study.comparing import CODE, OWN, PROSE, PROSE_RISE, Compared, Measure
from examples.study.evidence import Estimate, Seeds
from examples.study.methods import CONTROLS

BETTER = 1.1  # A control must be better by this factor to replace AdamW.
FEWEST_SEEDS = 3
KINDS = (PROSE, CODE, OWN)
# The task whose training data are of the kind of text that this measure uses.
LEARNED = {CODE: "docstrings"}

Outcome = Literal["confirmed", "refuted", "not yet decided"]
Place = Literal["behind", "ahead", "neither"]


def comparator(found: Compared, task: str, steps: int) -> str | None:
    """Returns the method that all others are compared with.

    It is AdamW, or a control that is better. None before the controls are complete. For
    other models, it is that of the first.
    """
    if found.model not in (None, DEFAULT_MODEL):
        return plan.COMPARATOR
    cells = [
        plan.Cell(task, name, steps, seed)
        for seed in plan.CONTROL_SEEDS
        for name in ("adamw", *CONTROLS)
    ]
    if plan.level(found.losses, task, steps) is None or any(
        plan.next_run(found.losses, cell) is not None for cell in cells
    ):
        return None
    drifts = {
        name: float(np.mean([values[0] for values in differences]))
        for name in CONTROLS
        if (
            differences := found.by_seed(
                task, name, steps, PROSE, "adamw", plan.CONTROL_SEEDS
            )
        )
    }
    best = min(drifts, key=lambda name: drifts[name], default="adamw")
    return best if drifts.get(best, 0.0) <= -math.log(BETTER) else "adamw"


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim about a method at equal task loss.

    Attributes:
      method: a key of `METHODS`.
      every: in every task and length, the upper end must be below this.
      pooled: the pooled ratio must be at most this.
    """

    method: str
    every: float
    pooled: float


CLAIMS = (
    *(Claim(method, 0.6, 0.4) for method in plan.RULE),
    *(Claim(method, 0.8, 0.6) for method in plan.COMBINED),
)
TASKS = ("gsm8k", "json", "docstrings")  # for which the claims are judged


def lengths(found: Compared) -> list[tuple[str, int]]:
    """Returns the tasks and numbers of steps for which the claims are judged."""
    steps = found.budget.short, found.budget.long
    return [(task, length) for task in TASKS for length in steps]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The outcome of a claim on one kind of text.

    Attributes:
      outcome: the outcome by the protocol's rule.
      ratio: the ratio pooled over tasks and lengths; None without rows.
      cells: the ratio for each task and length with enough seeds.
      missing: the other tasks and lengths.
    """

    outcome: Outcome
    ratio: Estimate | None
    cells: dict[tuple[str, int], Estimate]
    missing: list[tuple[str, int]]


def judge(
    found: Compared,
    claim: Claim,
    measure: Measure,
    lengths: Sequence[tuple[str, int]],
    comparator: str | None,
) -> Verdict:
    """Judges a claim on one kind of text.

    Args:
      found: the rows.
      claim: the claim.
      measure: the kind of text.
      lengths: the tasks and numbers of steps that the protocol requires.
      comparator: the method to compare with. If it is not known yet, the ratio is to
        AdamW, and nothing is decided.
    """
    own = comparator or "adamw"
    asked = [one for one in lengths if one[0] != LEARNED.get(measure)]
    there = {
        one: each
        for one in asked
        if len(_shared(found, claim.method, one, own)) >= FEWEST_SEEDS
        and (each := _one(found, claim.method, measure, one, own)) is not None
    }
    missing = [one for one in asked if one not in there]
    if not there:
        return Verdict("not yet decided", None, there, missing)
    ratio = pooled(found, claim.method, measure, there, own).exp()
    highest = max(one.high for one in there.values())
    outcome: Outcome = "not yet decided"
    if comparator is not None and not missing:
        if highest < claim.every and ratio.value <= claim.pooled:
            outcome = "confirmed"
        elif ratio.low > claim.pooled:
            outcome = "refuted"
    return Verdict(outcome, ratio, there, missing)


def judge_all(
    found: Compared,
    claim: Claim,
    verdicts: Mapping[Measure, Verdict],
    comparator: str | None = None,
) -> Outcome:
    """Judges a claim on all kinds of text and on the rise of the prose loss.

    Args:
      found: the rows.
      claim: the claim.
      verdicts: the results of `judge` for KINDS.
      comparator: as for `judge`.
    """
    prose = verdicts[PROSE]
    if prose.outcome == "refuted":
        return "refuted"
    if any(verdict.outcome != "confirmed" for verdict in verdicts.values()):
        return "not yet decided"
    _, seen = visible(found, claim.method, prose.cells, comparator)
    return "not yet decided" if seen else "confirmed"


def mofo(
    found: Compared, measure: Measure, length: tuple[str, int], own: str
) -> tuple[Estimate, Place] | None:
    """Compares MoFO with the comparator on one kind of text.

    Args:
      found: the rows.
      measure: the kind of text.
      length: the task and the number of steps.
      own: the comparator.

    Returns:
      The ratio, and MoFO's place by the protocol's rule; None with too few seeds.
    """
    ratio = _one(found, "mofo", measure, length, own)
    if ratio is None or len(_shared(found, "mofo", length, own)) < FEWEST_SEEDS:
        return None
    if ratio.low > 1:
        return ratio, "behind"
    return ratio, "ahead" if ratio.high < 1 else "neither"


def _shared(
    found: Compared, method: str, length: tuple[str, int], own: str
) -> list[int]:
    task, steps = length
    cells, others = (found.cells(task, name, steps) for name in (method, own))
    return [seed for seed in plan.SEEDS if seed in cells and seed in others]


def _one(
    found: Compared, method: str, measure: Measure, length: tuple[str, int], own: str
) -> Estimate | None:
    seeds = _shared(found, method, length, own)
    task, steps = length
    return found.mean(task, method, steps, measure, own, seeds)


def pooled(
    found: Compared,
    method: str,
    measure: Measure,
    lengths: Iterable[tuple[str, int]],
    comparator: str,
) -> Estimate:
    """Returns the mean of a measure over tasks and lengths, each a mean over seeds.

    Args:
      found: the rows.
      method: the method.
      measure: the measure. If it is a ratio, it is the logarithm of that to the
        comparator.
      lengths: tasks and numbers of steps, each with seeds.
      comparator: the method whose seeds are used.
    """
    own = comparator if measure.ratio else None
    means, variance, freedom = [], 0.0, 0
    for task, steps in lengths:
        seeds = _shared(found, method, (task, steps), comparator)
        kept = found.by_seed(task, method, steps, measure, own, seeds)
        known = found.seeds(task, steps, measure, own)
        means.append(np.mean(kept, axis=0))
        variance += known.variance / len(kept)
        freedom += known.freedom
    seeds_of_all = Seeds(variance / len(means) ** 2, freedom)
    return evidence.estimate(np.mean(means, axis=0), seeds_of_all)


def visible(
    found: Compared,
    method: str,
    lengths: Iterable[tuple[str, int]],
    comparator: str | None = None,
) -> tuple[Estimate, bool]:
    """Returns the rise of the prose loss, and whether it differs from zero.

    Args:
      found: the rows.
      method: the method.
      lengths: as for `pooled`.
      comparator: as for `judge`.
    """
    rise = pooled(found, method, PROSE_RISE, lengths, comparator or "adamw")
    return rise, rise.low > 0
