"""The tables of what is not a short run of one seed: seeds, length, sequences."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from examples.study import sweeps
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
from examples.study.evidence import Evidence, Values, title
from examples.study.methods import METHODS
from examples.study.plan import FINALISTS, LONGER, SEQUENCE, STAGES
from examples.study.rows import Row


def healing(evidence: Evidence) -> Lines:
    """The start before and after healing."""
    before, after = evidence.base(False), evidence.base(True)
    if before is None or after is None:
        return missing("the model before healing")
    body = []
    # A start is measured on the tasks that its own runs learn.
    for name in (name for name in after["sets"] if name in before["sets"]):
        losses = [evidence.mean(row, name, "losses") for row in (before, after)]
        body.append(
            [
                f"loss, {name}",
                *(f"{loss[0]:.3f}" for loss in losses),
                ranged(losses[1] - losses[0], "+z.3f"),
            ]
        )
    for name in after["choices"]:
        right = [row["choices"][name] for row in (before, after)]
        shares = [f"{found.count('1') / len(found):.1%}" for found in right]
        pairs = list(zip(*right, strict=True))
        lost, won = pairs.count(("1", "0")), pairs.count(("0", "1"))
        body.append([f"accuracy, {name}", *shares, f"{lost} lost, {won} won"])
    return table(["", "4-bit", "healed", "change"], body)


def unhealed(evidence: Evidence) -> Lines:
    """What AdamW does to general text from either start."""
    body = []
    for task in evidence.tasks():
        for row in evidence.runs(task, method="adamw", healed=False):
            rate = row["key"]["rate"]
            twins = evidence.runs(task, method="adamw", rate=rate)
            rises = [ranged(evidence.increase(row, False), "+z.4f")]
            rises += [ranged(evidence.increase(twin), "+z.4f") for twin in twins]
            body.append([f"{task}, {rate:g}", *rises, *["-"] * (2 - len(rises))])
    if not body:
        return missing("AdamW from the model that was not healed", "--method adamw")
    heads = ["task, rate", "loss rose, from 4-bit", "loss rose, from healed"]
    return table(heads, body)


def seeds(evidence: Evidence) -> Lines:
    """The finalists at one rate over the seeds, each against AdamW of the same seed."""
    body = []
    for task in evidence.tasks():
        own = {
            row["key"]["seed"]: row
            for row in evidence.runs(
                task, seed=None, method="adamw", rate=FINALISTS["adamw"]
            )
        }
        for name, rate in FINALISTS.items():
            found = evidence.runs(task, seed=None, method=name, rate=rate)
            pairs = [
                (r, own[r["key"]["seed"]]) for r in found if r["key"]["seed"] in own
            ]
            if len(pairs) > 1:
                body.append([task, *_seeds(evidence, name, pairs)])
    if not body:
        return missing("the finalists' seeds", f"--method {' '.join(FINALISTS)}")
    heads = [
        "task",
        "method",
        "seeds",
        "task loss",
        "less AdamW's",
        "log KL less AdamW's",
    ]
    return table([*heads, "loss rise less AdamW's"], body)


def _seeds(
    evidence: Evidence, name: str, pairs: Sequence[tuple[Row, Row]]
) -> Iterator[str]:
    measures: tuple[Callable[[Row], Values], ...] = (
        evidence.task_loss,
        lambda row: np.log(evidence.divergence(row)),
        evidence.increase,
    )
    yield METHODS[name].title
    yield str(len(pairs))
    yield f"{np.mean([evidence.task_loss(row)[0] for row, _ in pairs]):.4f}"
    for measure in measures:
        differences = [float(measure(a)[0] - measure(b)[0]) for a, b in pairs]
        yield spanned(*sweeps.over_seeds(differences), "+z.4f")


def longer(evidence: Evidence) -> Lines:
    """The long runs, each against AdamW's that learned most, and AdamW's sweep."""
    body = []
    for task in evidence.tasks():
        own = evidence.runs(task, times=LONGER, method="adamw")
        best = min(own, key=lambda row: evidence.task_loss(row)[0], default=None)
        for row in evidence.runs(task, times=LONGER):
            rate, distance = f"{row['key']['rate']:g}", f"{row['distance']:.2f}"
            body.append([task, named(row), rate, *outcome(evidence, row)])
            body[-1] += _against(evidence, row, best)
            body[-1] += [ranged(sweeps.over_adamw(evidence, row), ".2f"), distance]
    if not body:
        return missing("the longer runs", f"--method {' '.join(FINALISTS)}")
    heads = ["task", "method", "rate", *OUTCOME, "less AdamW's best"]
    heads += ["KL over its", "loss rise less its", "KL over AdamW's at this loss"]
    return table([*heads, "distance"], body)


def _against(evidence: Evidence, row: Row, own: Row | None) -> list[str]:
    """What a run learned and forgot, against another of the same task."""
    if own is None:
        return ["-"] * 3
    return [
        ranged(evidence.task_loss(row) - evidence.task_loss(own), "+z.4f"),
        ranged(evidence.divergence(row) / evidence.divergence(own), ".2f"),
        ranged(evidence.increase(row) - evidence.increase(own), "+z.4f"),
    ]


def continual(evidence: Evidence) -> Lines:
    """One task after another: overall performance and backward transfer.

    Each is set against AdamW's with replay, or without, as its own.
    """
    measured = [(row, _sequence(evidence, row)) for row in evidence.runs(SEQUENCE)]
    own = {
        row["key"]["replay"]: values
        for row, values in measured
        if row["key"]["method"] == "adamw"
    }
    body = []
    for row, (overall, back, divergence) in measured:
        replay = row["key"]["replay"]
        ends = [evidence.mean(row["stages"][-1], name, "losses") for name in STAGES]
        name = title(row) + (" with replay" if replay else "")
        body.append([name, *(f"{end[0]:.4f}" for end in ends), ranged(overall, ".4f")])
        body[-1] += [ranged(back, "+z.4f"), ranged(divergence, ".4f")]
        if replay in own:
            theirs = own[replay]
            body[-1] += [ranged(overall - theirs[0], "+z.4f")]
            body[-1] += [ranged(back - theirs[1], "+z.4f")]
            body[-1] += [ranged(divergence / theirs[2], ".2f")]
        else:
            body[-1] += ["-"] * 3
    if not body:
        return missing("the continual sequence", f"--task {SEQUENCE}")
    heads = ["method", *(f"{name} loss" for name in STAGES), "overall: mean loss"]
    heads += ["backward transfer", "KL, general text", "overall less AdamW's"]
    return table([*heads, "transfer less AdamW's", "KL over AdamW's"], body)


def _sequence(evidence: Evidence, row: Row) -> tuple[Values, Values, Values]:
    """Overall performance, backward transfer and KL on general text."""
    last = row["stages"][-1]
    ends = [evidence.mean(last, name, "losses") for name in STAGES]
    own = [
        evidence.mean(stage, name, "losses")
        for stage, name in zip(row["stages"], STAGES, strict=True)
    ]
    back = np.mean([a - b for a, b in zip(own, ends, strict=True)][:-1], axis=0)
    return np.mean(ends, axis=0), back, evidence.divergence(last)
