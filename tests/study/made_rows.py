"""Rows for the tests, with few items and numbers that can be checked by hand."""

from collections.abc import Sequence
from typing import Any

from examples.finetune.model.packaged import DEFAULT_MODEL
from examples.study.methods import METHODS
from examples.study.plan import START, Run
from examples.study.rows import Row

COUNTS = [2, 3]  # tokens of the two items of every set
TASK = "docstrings"
BASE_LOSS, TEXT_LOSS = 2.0, 3.0
STEPS = 24


def sums(means: Sequence[float]) -> list[float]:
    """Returns an item's mean per token as rows store it, summed over its tokens."""
    return [mean * count for mean, count in zip(means, COUNTS, strict=True)]


def _key(run: Run) -> dict[str, Any]:
    return {
        "run": str(run),
        "method": {} if run.method == START else METHODS[run.method].key(),
        "budget": "smallest",
        "model": DEFAULT_MODEL,
        "data": "0",
        "protocol": "0",
    }


def start() -> Row:
    """Returns the start's row, with losses of 2 on the task and 3 on texts."""
    texts = ("prose", "code", "chat")
    return {
        "key": _key(Run(TASK, START)),
        "sets": {
            TASK: {"losses": sums([BASE_LOSS] * 2)},
            **{name: {"losses": sums([TEXT_LOSS] * 2)} for name in texts},
        },
        "margins": [1.0, -1.0],
        "counts": {
            name: {"losses": COUNTS, "divergences": COUNTS} for name in (TASK, *texts)
        },
        "about": {"training": 5, "held_out": 2, "duplicates": 1, "overlap": 0.25},
        "seconds": 1.0,
    }


def row(
    method: str,
    rate: float,
    loss: float,
    divergence: float,
    rise: float = 0.0,
    *,
    seed: int = 0,
    spread: float = 0.0,
    steps: int = STEPS,
) -> Row:
    """Returns the row of one run.

    Args:
      method: a key of `METHODS`.
      rate: its learning rate.
      loss: the loss on the task.
      divergence: forward KL on prose; twice as much on code, half on prompts.
      rise: the increase of the loss on every text.
      seed: the run's seed.
      spread: the difference between the two items.
      steps: the run's number of steps.
    """
    # The items' deviations cancel when weighted by their tokens.
    apart = [spread / COUNTS[0], -spread / COUNTS[1]]

    def text(factor: float) -> dict[str, list[float]]:
        return {
            "losses": sums([TEXT_LOSS + rise + one for one in apart]),
            "divergences": sums([factor * divergence * (1 + one) for one in apart]),
        }

    return {
        "key": _key(Run(TASK, method, steps, seed, rate)),
        "sets": {
            TASK: {
                "losses": sums([loss + one for one in apart]),
                "divergences": sums([divergence / 2] * 2),
            },
            "prose": text(1),
            "code": text(2),
            "chat": text(1),
        },
        "margins": [1.5, -1.0],
        "distance": 1000 * rate,
        "moved": 1.0,
        "training_loss": loss,
        "seconds_per_step": 1.5 if method == "adamw" else 3.0,
        "seconds": 60.0,
        "tokens": 100,
    }


def rows() -> list[Row]:
    """Returns AdamW's pilot, and three seeds of AdamW and MoFO, with half of its KL.

    AdamW reduces the loss from 2 to 1. The primary level is therefore 1.05, in the
    middle between the rows of each seed.
    """
    made = [
        start(),
        row("adamw", 5e-5, 1.2, 0.01),
        row("adamw", 1e-4, 1.0, 0.04),
        row("adamw", 2e-4, 1.1, 0.16),
    ]
    for seed in (11, 12, 13):
        more = 1 + (seed - 12) / 10
        for method, factor in (("adamw", 1.0), ("mofo", 0.5)):
            scale = factor * (more if method == "mofo" else 1.0)
            weak = row(method, 5e-5, 1.1, 0.01 * scale, 0.1 * factor, seed=seed)
            strong = row(method, 1e-4, 1.0, 0.04 * scale, 0.3 * factor, seed=seed)
            made += [weak, strong]
    return made
