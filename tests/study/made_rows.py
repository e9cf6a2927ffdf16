"""Rows made up for the tests: few items, and numbers that can be worked out by hand."""

from collections.abc import Sequence
from typing import Any

from examples.study.budget import BUDGETS
from examples.study.plan import BASE, Run
from examples.study.rows import Row

BUDGET = BUDGETS["smallest"]
COUNTS = [2, 3]  # tokens of the two items of every set
TASK = "problems"
BASE_LOSS, TEXT_LOSS = 2.0, 3.0
CHOICES = "1100"


def sums(means: Sequence[float]) -> list[float]:
    """An item's mean per token, as rows keep it: summed over its tokens."""
    return [mean * count for mean, count in zip(means, COUNTS, strict=True)]


def base(healed: bool = True) -> Row:
    """The row of a start whose losses are 2 on the task and 3 on texts."""
    return {
        "key": Run(BASE, "adamw", 0.0, healed=healed).key(BUDGET),
        "sets": {
            TASK: {"losses": sums([BASE_LOSS] * 2)},
            "prose": {"losses": sums([TEXT_LOSS] * 2)},
            "code": {"losses": sums([TEXT_LOSS] * 2)},
        },
        "choices": {"knowledge": CHOICES},
        "exact": {TASK: "00"},
        "counts": {
            name: {"losses": COUNTS, "divergences": COUNTS}
            for name in (TASK, "prose", "code")
        },
    }


def measured(
    loss: float, divergence: float, increase: float, spread: float
) -> dict[str, Any]:
    """What is measured of a model: means, each item `spread` to one side of it."""
    # Weighted by their tokens, the items' deviations cancel.
    apart = [spread / COUNTS[0], -spread / COUNTS[1]]
    texts = {
        "losses": sums([TEXT_LOSS + increase + one for one in apart]),
        "divergences": sums([divergence * (1 + one) for one in apart]),
    }
    task = {
        "losses": sums([loss + one for one in apart]),
        "divergences": sums([divergence / 2] * 2),
    }
    return {
        "sets": {TASK: task, "prose": texts, "code": texts},
        "choices": {"knowledge": "1010"},
        "exact": {TASK: "01"},
    }


def row(
    method: str,
    rate: float,
    loss: float,
    divergence: float,
    increase: float = 0.0,
    spread: float = 0.0,
    **settings: Any,
) -> Row:
    """The row of one run.

    Args:
      method: a key of `METHODS`.
      rate: its learning rate.
      loss: on the task.
      divergence: forward KL on either text.
      increase: of the loss on either text.
      spread: how far apart the two items are.
      settings: other fields of `Run`.
    """
    return {
        "key": Run(TASK, method, rate, **settings).key(BUDGET),
        **measured(loss, divergence, increase, spread),
        "distance": 1000 * rate,
        "moved": 1.0,
        "training_loss": loss,
        "seconds_per_step": 1.5,
        "seconds": 60.0,
        "tokens": 100,
    }


def rows() -> list[Row]:
    """A start, AdamW's sweep and MoFO's, which needs half of AdamW's KL."""
    return [
        base(),
        row("adamw", 1e-4, 1.2, 0.01, 0.1),
        row("adamw", 2e-4, 1.0, 0.04, 0.3),
        row("adamw", 4e-4, 1.1, 0.16, 0.9),
        row("mofo", 1e-4, 1.3, 0.005, 0.0),
        row("mofo", 2e-4, 1.0, 0.02, 0.3),
    ]
