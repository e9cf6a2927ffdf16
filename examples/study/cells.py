"""Formatting of tables."""

import math
from collections.abc import Sequence

from examples.study.evidence import Estimate

Lines = list[str]
SIGNED = "+z.4f"  # of differences in nats


def table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> Lines:
    """Returns a Markdown table, whose first column is text."""
    return [
        f"| {' | '.join(heads)} |",
        f"|---|{'---:|' * (len(heads) - 1)}",
        *(f"| {' | '.join(cells)} |" for cells in body),
    ]


def number(value: float, form: str) -> str:
    """Returns a formatted number, or a dash if it is not finite."""
    return format(value, form) if math.isfinite(value) else "-"


def ranged(found: Estimate | None, form: str) -> str:
    """Returns a value with its interval, or a dash without one."""
    if found is None or not math.isfinite(found.value):
        return "-"
    low, high = number(found.low, form), number(found.high, form)
    return f"{found.value:{form}} [{low}, {high}]"
