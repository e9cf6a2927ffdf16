"""The study's tables, made from its rows."""

import math
from collections.abc import Sequence

import numpy as np

from examples.study import plan, screening, verdicts
from examples.study.cells import SIGNED, Lines, number, ranged, table
from examples.study.comparing import MEASURES, PROSE, PROSE_RISE, Compared, Measure
from examples.study.methods import METHODS
from examples.study.plan import PRIMARY, SECONDARY, START, Run
from examples.study.rows import Row
from examples.study.verdicts import OWN


def markdown(found: Compared, screened: Sequence[Row]) -> str:
    """Returns all tables as one page.

    Args:
      found: the rows.
      screened: the rows of the screen without training.
    """
    lines = [
        "# Tables of the study",
        "",
        "Made from `rows.jsonl`, and the screen from `screen.jsonl`, by `python -m "
        "examples.study --report`. Losses and KL are in nats per token; KL is forward, "
        "from the start. Brackets hold 95% intervals over items and seeds; those of "
        "single runs and of the screen are over items. [The "
        "protocol](../../../PROTOCOL.md) defines levels, measures and intervals.",
        "",
    ]

    def screen(_: Compared) -> Lines:
        return screening.table(screened) if screened else ["It has no rows yet."]

    for heading, section in (
        (f"At equal task loss: the {PRIMARY:.0%} level", first),
        (f"At the {SECONDARY:.0%} level", secondary),
        ("What the protocol decides", verdicts.decided),
        ("Seeds that were used for choosing", choosing),
        ("AdamW's seeds against each other", verdicts.apart),
        ("Settings of the rule", settings),
        ("The screen without training", screen),
        ("The first tables, with a level that no draw of the items changes", fixed),
        ("The first tables, interpolated in the logarithm of the task loss", by_log),
        ("Levels", levels),
        ("The data", data),
        ("Every row", everything),
    ):
        lines += [f"## {heading}", "", *section(found), ""]
    return "\n".join(lines)


def first(found: Compared) -> Lines:
    """Compares every method with AdamW, on the deciding seeds."""
    return _against(found, plan.SEEDS, timed=True)


def secondary(found: Compared) -> Lines:
    """Compares the cells that also reach the other level, on the deciding seeds."""
    return _against(Compared(found.rows.values(), SECONDARY), plan.SEEDS)


def fixed(found: Compared) -> Lines:
    """Returns what `first` and `verdicts.decided` are with a fixed level."""
    return _variant(Compared(found.rows.values(), fixed=True))


def by_log(found: Compared) -> Lines:
    """Returns what they are if interpolation is in the logarithm of the task loss."""
    return _variant(Compared(found.rows.values(), scale=np.log))


def _variant(found: Compared) -> Lines:
    return [*_against(found, plan.SEEDS), "", *verdicts.decided(found)]


def choosing(found: Compared) -> Lines:
    """Compares every method with AdamW, on seeds of pilots, choices and controls."""
    return _against(found, plan.CONTROL_SEEDS)


def _against(found: Compared, seeds: Sequence[int], *, timed: bool = False) -> Lines:
    lines: Lines = []
    heads = [*HEADS, *(["time of a step over AdamW's"] if timed else [])]
    for task, steps in found.lengths:
        body = [
            row
            for method in METHODS
            if (row := _method(found, task, method, steps, seeds, timed=timed))
        ]
        if body:
            lines += [f"### {task}, {steps} steps", "", *table(heads, body), ""]
            lines += _failed(found, task, steps, seeds)
    return lines[:-1] or ["No method has rows of these seeds yet."]


def _failed(found: Compared, task: str, steps: int, seeds: Sequence[int]) -> Lines:
    """Names the methods whose search for the primary level ended without it."""
    if found.share != PRIMARY:
        return []  # Rates are not searched for other levels.
    runs = [run for run in found.rows if (run.task, run.steps) == (task, steps)]
    cells = {
        plan.Cell(task, run.method, steps, run.seed): METHODS[run.method].title
        for run in sorted(runs)
        if run.seed in seeds
    }
    failed = [
        f"{title} with seed {cell.seed}"
        for cell, title in cells.items()
        if plan.next_run(found.losses, cell) is None and found.at(cell, PROSE) is None
    ]
    return [f"The level is not reached by {', '.join(failed)}.", ""] if failed else []


def settings(found: Compared) -> Lines:
    """Compares single runs of the rule with AdamW, each at its own task loss."""
    heads = ["run", "setting", "task loss"]
    heads += [f"{m.title} over AdamW's" for m in MEASURES if m.ratio]
    heads.append(f"{PROSE_RISE.title}, minus AdamW's")
    body = []
    for run in sorted(found.rows):
        method = METHODS.get(run.method)
        if method is None or run.seed != plan.PILOT_SEED:
            continue
        if not (method.uses_covariances and math.isfinite(found.losses[run])):
            continue
        against = {m: found.at_own_loss(run, m) for m in MEASURES}
        if against[PROSE] is not None:
            body.append(
                [
                    *(f"`{run}`", method.title, f"{found.losses[run]:.4f}"),
                    *(ranged(against[m], ".2f") for m in MEASURES if m.ratio),
                    ranged(against[PROSE_RISE], SIGNED),
                ]
            )
    return table(heads, body) if body else ["There are no rows yet."]


HEADS = (
    *("method", "seeds"),
    *(head for m in MEASURES if m.ratio for head in (m.title, "over AdamW's")),
    PROSE_RISE.title,
    *(f"{m.title}, minus AdamW's" for m in MEASURES if not m.ratio),
)


def _method(
    found: Compared,
    task: str,
    method: str,
    steps: int,
    seeds: Sequence[int],
    *,
    timed: bool,
) -> list[str]:
    """Returns a method's line; empty without a seed that AdamW has too."""
    own = found.cells(task, OWN, steps)
    mine = found.cells(task, method, steps)
    shared = [seed for seed in seeds if seed in own and seed in mine]
    if not shared:
        return []
    given = task, method, steps

    def against(measure: Measure) -> str:
        if method == OWN:
            return "1" if measure.ratio else "0"
        made = found.mean(*given, measure, OWN, shared)
        return ranged(made, ".2f" if measure.ratio else SIGNED)

    cost = found.cost(*given, OWN, shared)
    return [
        METHODS[method].title,
        str(len(shared)),
        *(
            cell
            for measure in MEASURES
            if measure.ratio
            for cell in (
                ranged(found.mean(*given, measure, None, shared), ".4f"),
                against(measure),
            )
        ),
        ranged(found.mean(*given, PROSE_RISE, None, shared), SIGNED),
        *(against(measure) for measure in MEASURES if not measure.ratio),
        *([number(math.nan if cost is None else cost, ".2f")] if timed else []),
    ]


def levels(found: Compared) -> Lines:
    """Returns the task losses at which methods are compared."""
    heads = ["task", "steps", "start", "AdamW's pilots: rate and task loss"]
    heads += [f"{share:.0%} level" for share in (PRIMARY, SECONDARY)]
    other, body = Compared(found.rows.values(), SECONDARY), []
    for task, steps in found.lengths:
        pilots = plan.rates(found.losses, plan.Cell(task, OWN, steps, plan.PILOT_SEED))
        body.append(
            [
                *(task, str(steps), f"{found.losses[Run(task, START)]:.4f}"),
                ", ".join(f"{rate:g}: {loss:.4f}" for rate, loss in pilots.items()),
                *(f"{one.level(task, steps)[0]:.4f}" for one in (found, other)),
            ]
        )
    return table(heads, body) if body else ["No pilot is done yet."]


def data(found: Compared) -> Lines:
    """Returns the number of rows of each task."""
    heads = ["task", "rows to learn from", "held out", "measured", "duplicates dropped"]
    heads += ["held-out 8-word sequences that occur in training"]
    body = []
    for task, start in found.starts.items():
        about = start["about"]
        body.append(
            [
                *(task, str(about["training"]), str(about["held_out"])),
                *(str(len(start["sets"][task]["losses"])), str(about["duplicates"])),
                f"{about['overlap']:.1%}",
            ]
        )
    return table(heads, body)


def everything(found: Compared) -> Lines:
    """Lists every row by its name for `--only`."""
    heads = ["run", "task loss", *(m.title for m in MEASURES), "distance", "s a step"]
    body = []
    for run in sorted(found.rows):
        if run.method == START or not math.isfinite(found.losses[run]):
            continue
        row = found.rows[run]
        values = [found.value(run, measure)[0] for measure in MEASURES]
        body.append(
            [
                f"`{run}`",
                f"{found.losses[run]:.4f}",
                *(
                    f"{math.exp(value):.4f}" if measure.ratio else f"{value:{SIGNED}}"
                    for measure, value in zip(MEASURES, values, strict=True)
                ),
                f"{row['distance']:.2f}",
                f"{row['seconds_per_step']:.2f}",
            ]
        )
    return table(heads, body)
