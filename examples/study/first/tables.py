"""The tables of the first study, made from its rows."""

from collections.abc import Sequence

import numpy as np

from examples.study import evidence
from examples.study.cells import SIGNED, Lines, ranged, table
from examples.study.evidence import Seeds, Values
from examples.study.first.study import (
    FINALISTS,
    LEVELS,
    MEASURES,
    TASK,
    TITLES,
    Measure,
    Row,
    Rows,
    pull,
)

STAGES = ("gsm8k", "medicine", "programs")


def markdown(rows: Rows) -> str:
    """Returns all tables as one page."""
    lines = [
        "# Tables of the first study",
        "",
        "Made from `rows.jsonl` alone by `python -m examples.study --report`. Losses "
        "and KL are in nats per token; KL is forward, from the start. Brackets hold "
        "95% intervals. Prose is WikiText-2, code is HumanEval's solutions in the chat "
        "template, prompts are the task's.",
        "",
    ]
    for heading, section in (
        ("Three seeds, at equal task loss", seeds),
        ("One seed, at equal task loss", at_equal_loss),
        ("Ten times longer", longer),
        ("The L2 pull by its strength over the whole run", pulls),
        ("One task after another", sequences),
        ("Every row", everything),
    ):
        lines += [f"## {heading}", "", *section(rows), ""]
    return "\n".join(lines)


def _compared(
    values: Values | None, measure: Measure, seeds: Seeds | None, count: int = 1
) -> str:
    if values is None:
        return "-"
    found = evidence.estimate(values, seeds, count)
    if measure.logarithmic:
        return ranged(found.exp(), ".2f")
    return ranged(found, SIGNED)


def _heads(first: Sequence[str]) -> list[str]:
    return [
        *first,
        *(f"{m.title} over AdamW's" for m in MEASURES if m.logarithmic),
        *(f"{m.title}, minus AdamW's" for m in MEASURES if not m.logarithmic),
    ]


def seeds(rows: Rows) -> Lines:
    """Compares the methods with three seeds with AdamW of the same seed."""
    body = []
    for name in FINALISTS:
        cells = []
        for measure in MEASURES:
            found = rows.by_seed(name, measure)
            own = evidence.pooled([[float(one[0]) for one in found]])
            cells.append(_compared(np.mean(found, axis=0), measure, own, len(found)))
        body.append([TITLES[name], f"{FINALISTS[name]:g}", "3", *cells])
    return [
        "AdamW's rows are brought to the same task loss along the line through those "
        "at 5e-5 and 1e-4. The interval has the method's own variance over seeds and "
        "that over items.",
        "",
        *table(_heads(["method", "rate", "seeds"]), body),
    ]


def at_equal_loss(rows: Rows) -> Lines:
    """Compares every method where its sweep reaches three levels of task loss."""
    lines = [
        "Every method has one seed here. The interval has the variance over items and "
        "that over seeds, which is pooled over the three methods of the table above. A "
        "dash: the sweep does not reach the level, or begins beyond it.",
        "",
    ]
    for share in LEVELS:
        level = rows.levels[share]
        own = [rows.at(rows.sweep("adamw"), level, measure) for measure in MEASURES]
        body = []
        for name in TITLES:
            found = [rows.at(rows.sweep(name), level, measure) for measure in MEASURES]
            if name == "adamw" or found[0] is None:
                continue
            cells = [
                _compared(mine - theirs, measure, rows.seeds(measure))
                for mine, theirs, measure in zip(found, own, MEASURES, strict=True)
                if mine is not None and theirs is not None
            ]
            body.append([TITLES[name], *cells])
        drift = ", ".join(
            f"{measure.title} {np.exp(value[0]):.4f}"
            if measure.logarithmic
            else f"{measure.title} {value[0]:+.4f}"
            for measure, value in zip(MEASURES, own, strict=True)
            if value is not None
        )
        lines += [
            f"### {share:.0%} of AdamW's reduction: task loss {level[0]:.4f}",
            "",
            f"AdamW there: {drift}.",
            "",
            *table(_heads(["method"]), body),
            "",
        ]
    return lines[:-1]


def longer(rows: Rows) -> Lines:
    """Compares the runs of 240 steps with AdamW's sweep at the same task loss."""
    body = []
    for name in TITLES:
        for row in rows.runs(name, times=10):
            cells = [
                "" if name == "adamw" else _compared(found, measure, None)
                for measure in MEASURES
                for found in [rows.over_adamw(row, measure)]
            ]
            body.append([*_own(rows, row), *cells])
    return [
        "One seed; intervals are over items alone, and a difference in task loss of "
        "0.02, which is within what seeds differ by, changes a ratio by a third.",
        "",
        *table(_heads(_OWN), body),
    ]


_OWN = ("method", "rate", "task loss", *(measure.title for measure in MEASURES))


def _own(rows: Rows, row: Row) -> list[str]:
    values = [rows.value(row, measure)[0] for measure in MEASURES]
    return [
        _named(row),
        f"{row['key']['rate']:g}",
        f"{rows.loss(row)[0]:.4f}",
        *(
            f"{np.exp(value):.4f}" if measure.logarithmic else f"{value:{SIGNED}}"
            for measure, value in zip(MEASURES, values, strict=True)
        ),
    ]


def pulls(rows: Rows) -> Lines:
    """Lists the pull's rows, ordered by strength times the sum of learning rates."""
    found = [
        row
        for name in ("l2_weak", "l2", "l2_strong")
        for row in rows.runs(name, times=None, seed=0)
    ]
    found = sorted(found, key=pull)
    heads = ["method", "strength times sum of rates", *_OWN[1:]]
    body = [[_named(row), f"{pull(row):.2f}", *_own(rows, row)[1:]] for row in found]
    return table(heads, body)


def sequences(rows: Rows) -> Lines:
    """GSM8K, medicine, programs: backward transfer, and KL on prose and on code."""
    body = []
    for replay in (0.0, 0.2):
        for row in rows.runs("adamw", task="sequence", replay=replay) + [
            row
            for name in ("mofo", "half")
            for row in rows.runs(name, task="sequence", replay=replay)
        ]:
            last = row["stages"][-1]
            kept = [
                evidence.estimate(
                    rows.mean(stage, name, "losses") - rows.mean(last, name, "losses")
                )
                for stage, name in zip(row["stages"][:-1], STAGES, strict=False)
            ]
            drift = [
                evidence.estimate(rows.mean(last, name, "divergences"))
                for name in ("prose", "code")
            ]
            name = TITLES[row["key"]["method"]]
            body.append(
                [
                    f"{name} with replay" if replay else name,
                    *(f"{rows.mean(last, n, 'losses')[0]:.4f}" for n in STAGES),
                    *(ranged(one, SIGNED) for one in kept),
                    *(ranged(one, ".4f") for one in drift),
                ]
            )
    heads = ["method", *(f"{name} loss" for name in STAGES)]
    heads += [f"{name} transfer" for name in STAGES[:-1]]
    return [
        "One seed and one rate (1e-4); intervals are over items alone. Transfer is the "
        "loss right after a task's stage less that at the end: negative means "
        "forgotten. The third stage learns code, so KL on code is no forgetting here.",
        "",
        *table([*heads, "KL, prose", "KL, code"], body),
    ]


def everything(rows: Rows) -> Lines:
    """Lists every row with each measure."""
    lines: Lines = []
    for task in (TASK, "medicine"):
        found = [
            row
            for name in TITLES
            for row in rows.runs(name, task=task, seed=None, times=None)
        ]
        body = [
            [*_own(rows, row), _code(rows, row), f"{row['distance']:.2f}"]
            for row in found
        ]
        heads = [*_OWN, "code loss rose by", "distance"]
        lines += [f"### {task}", "", *table(heads, body), ""]
    return lines[:-1]


def _code(rows: Rows, row: Row) -> str:
    rise = rows.value(row, Measure("code loss rose by", "code", rise=True))
    return ranged(evidence.estimate(rise), SIGNED)


def _named(row: Row) -> str:
    key = row["key"]
    name = TITLES[key["method"]]
    if key["share"] < 1:
        name += f" {key['share']:g}"
    if key["seed"]:
        name += f", seed {key['seed']}"
    return f"{name}, 240 steps" if key["times"] > 1 else name
