"""How tables are written: cells with intervals, and what stands for missing rows."""

import math
from collections.abc import Sequence

from examples.study.evidence import Evidence, Values, interval, title
from examples.study.rows import Row

COMMAND = "python -m examples.study --data DIR"

Lines = list[str]


def table(heads: Sequence[str], body: Sequence[Sequence[str]]) -> Lines:
    """A Markdown table."""
    return [
        f"| {' | '.join(heads)} |",
        f"|---|{'---:|' * (len(heads) - 1)}",
        *(f"| {' | '.join(cells)} |" for cells in body),
    ]


def number(value: float, form: str) -> str:
    """A number, or a dash where there is none."""
    return format(value, form) if math.isfinite(value) else "-"


def ranged(values: Values, form: str) -> str:
    """A value with its interval."""
    return spanned(values[0], interval(values), form)


def spanned(value: float, ends: tuple[float, float], form: str) -> str:
    """A value with an interval that is given."""
    if not math.isfinite(value):
        return "-"
    low, high = (number(end, form) for end in ends)
    return f"{value:{form}} [{low}, {high}]"


OUTCOME = ("task loss", "KL, general text", "loss rose by")


def outcome(evidence: Evidence, row: Row) -> list[str]:
    """What a run learned and forgot, under the heads `OUTCOME`."""
    return [
        f"{evidence.task_loss(row)[0]:.4f}",
        ranged(evidence.divergence(row), ".4f"),
        ranged(evidence.increase(row), "+z.4f"),
    ]


def missing(what: str, options: str = "") -> Lines:
    """What a section says that has no rows."""
    return [f"Not yet run: {what}. `{f'{COMMAND} {options}'.strip()}` runs it."]


def named(row: Row) -> str:
    """A row's method with whatever is unusual about the row."""
    key, name = row["key"], title(row)
    if key["share"] < 1:
        name += f" {key['share']:g}"
    if key["seed"]:
        name += f", seed {key['seed']}"
    if key["times"] > 1:
        name += f", {key['times']} times longer"
    return name if key["healed"] else f"{name}, not healed"
