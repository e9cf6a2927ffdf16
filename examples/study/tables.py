"""The study's tables, made from its rows."""

import math
from collections.abc import Sequence

from examples.study import deciding, plan, screening
from examples.study.cells import SIGNED, Lines, number, ranged, table
from examples.study.comparing import MEASURES, PROSE, PROSE_RISE, Compared, Measure
from examples.study.methods import METHODS
from examples.study.plan import PRIMARY, SECONDARY, START, Run
from examples.study.rows import Row

OWN = "adamw"


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
        ("What the protocol decides", decided),
        ("Seeds that were used for choosing", choosing),
        ("Settings of the rule", settings),
        ("The screen without training", screen),
        ("Levels", levels),
        ("The data", data),
        ("Every row", everything),
    ):
        lines += [f"## {heading}", "", *section(found), ""]
    return "\n".join(lines)


def first(found: Compared) -> Lines:
    """Compares every method with AdamW, on the deciding seeds."""
    return _against(found, plan.SEEDS)


def secondary(found: Compared) -> Lines:
    """Compares the cells that also reach the other level, on the deciding seeds."""
    return first(Compared(found.rows.values(), SECONDARY))


def choosing(found: Compared) -> Lines:
    """Compares every method with AdamW, on seeds of pilots, choices and controls."""
    return _against(found, plan.CONTROL_SEEDS)


def _against(found: Compared, seeds: Sequence[int]) -> Lines:
    lines: Lines = []
    for task, steps in found.lengths:
        body = [
            row
            for method in METHODS
            if (row := _method(found, task, method, steps, seeds))
        ]
        if body:
            lines += [f"### {task}, {steps} steps", "", *table(HEADS, body), ""]
    return lines[:-1] or ["No method has rows of these seeds yet."]


def settings(found: Compared) -> Lines:
    """Compares single runs of the rule with AdamW, each at its own task loss."""
    heads = ["run", "setting", "task loss"]
    heads += [f"{m.title} over AdamW's" for m in MEASURES if m.ratio]
    heads.append(f"{PROSE_RISE.title}, minus AdamW's")
    body = []
    for run in sorted(found.rows):
        method = METHODS.get(run.method)
        if method is None or not method.uses_texts or run.seed != plan.PILOT_SEED:
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
    "time of a step over AdamW's",
)


def _method(
    found: Compared, task: str, method: str, steps: int, seeds: Sequence[int]
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
        made = found.against(*given, measure, OWN, shared)
        return ranged(made, ".2f" if measure.ratio else SIGNED)

    cost = found.cost(*given, OWN)
    return [
        METHODS[method].title,
        str(len(shared)),
        *(
            cell
            for measure in MEASURES
            if measure.ratio
            for cell in (
                ranged(found.alone(*given, measure, shared), ".4f"),
                against(measure),
            )
        ),
        ranged(found.alone(*given, PROSE_RISE, shared), SIGNED),
        *(against(measure) for measure in MEASURES if not measure.ratio),
        number(math.nan if cost is None else cost, ".2f"),
    ]


def decided(found: Compared) -> Lines:
    """Returns the comparator, and the outcome of the claims."""
    tasks = dict.fromkeys(task for task, _ in found.lengths)
    main = next(iter(tasks), None)
    if main is None:
        return ["No pilot is done yet."]
    short = min(steps for task, steps in found.lengths if task == main)
    own = deciding.comparator(found, main, short)
    lines = [
        "The controls are not complete, so that the comparator is not known. Ratios "
        "are to AdamW, and nothing is decided."
        if own is None
        else f"The comparator is {METHODS[own].title}: by the rule of the protocol, on "
        f"{main} with {short} steps.",
        "",
        *_outcomes(found, own),
        *_mofo(found, main, own or OWN),
    ]
    if own in (None, OWN):
        return lines
    # With no comparator, ratios are to AdamW.
    return [
        *lines,
        "",
        f"Nothing is decided by the ratios to {METHODS[OWN].title}:",
        "",
        *_outcomes(found, None),
    ]


def _mofo(found: Compared, task: str, own: str) -> Lines:
    """Returns a table of MoFO's place on each kind of text."""
    body = []
    for steps in (found.budget.short, found.budget.long):
        places = [
            deciding.mofo(found, measure, (task, steps), own)
            for measure in deciding.KINDS
        ]
        cells = [
            f"{ranged(place[0], '.2f')}, {place[1]}" if place else "-"
            for place in places
        ]
        body.append([f"{task} {steps}", *cells])
    heads = [f"MoFO over {METHODS[own].title}", *(m.title for m in deciding.KINDS)]
    return ["", *table(heads, body)]


def _outcomes(found: Compared, own: str | None) -> Lines:
    lengths = deciding.lengths(found)
    verdicts = {
        claim: {
            measure: deciding.judge(found, claim, measure, lengths, own)
            for measure in deciding.KINDS
        }
        for claim in deciding.CLAIMS
    }
    body = [
        _judged(claim, measure, verdict)
        for claim, by_measure in verdicts.items()
        for measure, verdict in by_measure.items()
    ]
    heads = ["method", "claim", "outcome", "pooled ratio", "of which", "missing"]
    lines = table(heads, body)
    for claim, by_measure in verdicts.items():
        if cells := by_measure[PROSE].cells:
            rise, seen = deciding.visible(found, claim.method, cells)
            whole = deciding.judge_all(found, claim, by_measure)
            lines += [
                "",
                f"{METHODS[claim.method].title}: the loss on prose changes by "
                f"{ranged(rise, SIGNED)}, which is {'' if seen else 'not '}a visible "
                f"rise. The claim as a whole is {whole}.",
            ]
    return lines


def _judged(
    claim: deciding.Claim, measure: Measure, verdict: deciding.Verdict
) -> list[str]:
    each = [
        f"{task} {steps}: {ranged(ratio, '.2f')}"
        for (task, steps), ratio in verdict.cells.items()
    ]
    missing = [f"{task} {steps}" for task, steps in verdict.missing]
    return [
        METHODS[claim.method].title,
        f"{measure.title} at most {claim.pooled:g}, all below {claim.every:g}",
        verdict.outcome,
        ranged(verdict.ratio, ".2f"),
        ", ".join(each) or "-",
        ", ".join(missing) or "-",
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
