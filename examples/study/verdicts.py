"""The tables of what the protocol decides, made from the study's rows."""

import itertools

from examples.study import deciding, plan
from examples.study.cells import SIGNED, Lines, ranged, table
from examples.study.comparing import MEASURES, PROSE, Compared, Measure
from examples.study.methods import METHODS

OWN = "adamw"


def decided(found: Compared) -> Lines:
    """Returns the comparator, and the outcome of the claims."""
    tasks = {task for task, _ in found.lengths}
    main = next((task for task in deciding.TASKS if task in tasks), None)
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
            rise, seen = deciding.visible(found, claim.method, cells, own)
            whole = deciding.judge_all(found, claim, by_measure, own)
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


def apart(found: Compared) -> Lines:
    """Compares AdamW's deciding seeds, whose intervals should cover 1."""
    measures = [measure for measure in MEASURES if measure.ratio]
    body = []
    for task, steps in found.lengths:
        cells = found.cells(task, OWN, steps)
        seeds = [seed for seed in plan.SEEDS if seed in cells]
        for pair in itertools.combinations(seeds, 2):
            ratios = [found.apart(task, steps, measure, pair) for measure in measures]
            body.append(
                [
                    f"{task} {steps}, seed {pair[0]} over {pair[1]}",
                    *(ranged(ratio, ".2f") for ratio in ratios),
                ]
            )
    heads = ["AdamW", *(measure.title for measure in measures)]
    return table(heads, body) if body else ["There are no two seeds yet."]
