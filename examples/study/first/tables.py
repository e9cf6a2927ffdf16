"""The tables of a study, from its rows alone."""

from collections.abc import Callable, Sequence

from examples.study import further, sweeps
from examples.study.cells import (
    OUTCOME,
    Lines,
    missing,
    named,
    outcome,
    ranged,
    spanned,
    table,
)
from examples.study.evidence import Evidence, Values, diverged
from examples.study.methods import METHODS
from examples.study.plan import TEXTS
from examples.study.rows import Row

ALPHAS = {"mofo_0.05": 0.05, "mofo": 0.15, "mofo_0.4": 0.4, "adamw": 1.0}
PREDICTORS = ("KL on task prompts", "KL on general text", "distance", "task loss")
SUFFERED = ("loss on general text rose by", "questions lost less won")


def markdown(evidence: Evidence) -> str:
    """All tables as one page."""
    lines = [
        "# Tables of the study",
        "",
        "Made from `rows.jsonl` alone by `python -m examples.study --report`. "
        "Brackets hold 95% intervals, from drawing the measured items anew; that of a "
        "difference or a ratio is paired, as all rows have the same items. Losses and "
        "KL are in nats per token. General text is the mean of "
        f"{' and '.join(TEXTS)}.",
        "",
    ]
    for heading, section in SECTIONS:
        lines += [f"## {heading}", "", *section(evidence), ""]
    return "\n".join(lines)


def everything(evidence: Evidence) -> Lines:
    """Every row."""
    heads = [
        *("method", "rate", "task loss", "fell by", "KL, prompts", "KL, general text"),
        *(f"{name} loss rose by" for name in TEXTS),
        *("questions lost, won (p)", "exact", "distance", "s a step"),
    ]
    lines: Lines = []
    for task in evidence.tasks():
        found = evidence.runs(task, seed=None, times=None, healed=None)
        if found:
            body = [_everything(evidence, row) for row in found]
            lines += [f"### {task}", "", *table(heads, body), ""]
    lost = [f"{_key(row)}" for row in evidence.rows if diverged(row)]
    lines += ["Diverged, and in no table: " + "; ".join(lost) + ".", ""] if lost else []
    return lines[:-1] or missing("every run")


def _key(row: Row) -> str:
    return f"{row['key']['task']}, {named(row)}, rate {row['key']['rate']:g}"


def _everything(evidence: Evidence, row: Row) -> list[str]:
    healed = row["key"]["healed"]
    loss = evidence.task_loss(row)
    lost, won = evidence.flips(row)
    exact = row["exact"].get(row["key"]["task"])
    return [
        named(row),
        f"{row['key']['rate']:g}",
        f"{loss[0]:.4f}",
        ranged(evidence.base_loss(row) - loss, ".4f"),
        ranged(evidence.prompt_divergence(row), ".4f"),
        ranged(evidence.divergence(row), ".4f"),
        *(ranged(evidence.rise(row, name, healed), "+z.4f") for name in TEXTS),
        f"{lost}, {won} ({sweeps.sign_test(lost, won):.2f})",
        f"{exact.count('1')}/{len(exact)}" if exact else "-",
        f"{row['distance']:.2f}",
        f"{row['seconds_per_step']:.2f}",
    ]


def fronts(evidence: Evidence) -> Lines:
    """The rows that no other row beats in both learning and KL."""
    body = []
    for task in evidence.tasks():
        found = evidence.runs(task)
        points = [
            (evidence.task_loss(row)[0], evidence.divergence(row)[0]) for row in found
        ]
        body += [
            [task, named(row), f"{row['key']['rate']:g}", *outcome(evidence, row)]
            for row in (found[place] for place in sweeps.front(points))
        ]
    if not body:
        return missing("every run")
    return table(["task", "method", "rate", *OUTCOME], body)


def at_equal_loss(evidence: Evidence) -> Lines:
    """Every method where its sweep reaches three levels of task loss."""
    lines: Lines = []
    heads = [
        "method",
        "rates run",
        "KL",
        "KL over AdamW's",
        "loss rose",
        "less AdamW's",
    ]
    for task in evidence.tasks():
        for share, level in sweeps.levels(evidence, task).items():
            body = [
                _match(evidence, task, name, level)
                for name in METHODS
                if sweeps.sweep(evidence, task, name)
            ]
            lines += [
                f"### {task}, task loss {level[0]:.4f}: {share:.0%} of AdamW's best",
                "",
                *table(heads, body),
                "",
            ]
    return lines[:-1] or missing("AdamW's sweep", "--method adamw")


def _match(evidence: Evidence, task: str, method: str, level: Values) -> list[str]:
    found = sweeps.matches(evidence, task, method, level)
    return [
        METHODS[method].title,
        str(len(sweeps.sweep(evidence, task, method))),
        ranged(found.divergence, ".4f"),
        "1" if method == "adamw" else ranged(found.ratio, ".2f"),
        ranged(found.increase, "+z.4f"),
        "0" if method == "adamw" else ranged(found.difference, "+z.4f"),
    ]


def fractions(evidence: Evidence) -> Lines:
    """MoFO's fractions, with AdamW as the fraction 1."""
    body = [
        [
            *(task, f"{row['key']['rate']:g}", f"{fraction:g}"),
            *outcome(evidence, row),
            f"{row['distance']:.2f}",
        ]
        for task in evidence.tasks()
        for rate, found in by_fraction(evidence, task).items()
        for fraction, row in found.items()
    ]
    if not body:
        return missing("MoFO's fractions", f"--method {' '.join(ALPHAS)}")
    return table(["task", "rate", "fraction", *OUTCOME, "distance"], body)


def by_fraction(evidence: Evidence, task: str) -> dict[float, dict[float, Row]]:
    """The rows of AdamW and MoFO by rate and fraction."""
    found: dict[float, dict[float, Row]] = {}
    for name, fraction in ALPHAS.items():
        for row in evidence.runs(task, method=name):
            found.setdefault(row["key"]["rate"], {})[fraction] = row
    return dict(sorted(found.items()))


def predictors(evidence: Evidence) -> Lines:
    """What forgetting follows, by rank over the rows of a task."""
    body = []
    for task in evidence.tasks():
        found = evidence.runs(task, seed=None)
        columns = predicting(evidence, found)
        for name in PREDICTORS:
            cells = [
                spanned(*sweeps.rank_correlation(columns[name], columns[other]), ".2f")
                for other in SUFFERED
            ]
            body.append([f"{task}, {len(found)} rows", name, *cells])
    if not body:
        return missing("every run")
    return table(["task", "", *SUFFERED], body)


def predicting(evidence: Evidence, rows: Sequence[Row]) -> dict[str, list[float]]:
    """The columns among which correlations are sought, by name."""
    flips = [evidence.flips(row) for row in rows]
    return {
        PREDICTORS[0]: [float(evidence.prompt_divergence(row)[0]) for row in rows],
        PREDICTORS[1]: [float(evidence.divergence(row)[0]) for row in rows],
        PREDICTORS[2]: [row["distance"] for row in rows],
        PREDICTORS[3]: [float(evidence.task_loss(row)[0]) for row in rows],
        SUFFERED[0]: [float(evidence.increase(row)[0]) for row in rows],
        SUFFERED[1]: [float(lost - won) for lost, won in flips],
    }


SECTIONS: tuple[tuple[str, Callable[[Evidence], Lines]], ...] = (
    ("The start, before and after healing", further.healing),
    ("AdamW from the model that was not healed", further.unhealed),
    ("Methods at equal task loss", at_equal_loss),
    ("The front of learned against forgotten", fronts),
    ("MoFO's fraction", fractions),
    ("What forgetting follows", predictors),
    ("Seeds", further.seeds),
    ("Ten times longer", further.longer),
    ("One task after another", further.continual),
    ("Every row", everything),
)
