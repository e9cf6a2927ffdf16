"""The pictures of a study, from its rows alone."""

import pathlib
from collections.abc import Iterable, Sequence

import matplotlib.axes
import matplotlib.axis
import matplotlib.figure
import matplotlib.ticker
import numpy as np

from examples.finetune.files import replacing
from examples.finetune.plots import BASE_COLOR, COLORS
from examples.study import sweeps
from examples.study.evidence import Evidence, Values, against_each_other, interval
from examples.study.methods import METHODS
from examples.study.plan import FINALISTS, LONGER
from examples.study.rows import Row
from examples.study.tables import (
    ALPHAS,
    PREDICTORS,
    SUFFERED,
    by_fraction,
    predicting,
)

# In the picture for who reads no further: the finalists, and the best rank.
SUMMARY = (*FINALISTS, "mofo_update")
MARKERS = "osD^vPX*"
KL = "KL from the start on general text (nats per token)"
RISE = "rise of the loss on general text (nats per token)"
LOSS = "task loss (left: learned more)"
# Shares of what was learned, and rises in loss, that a picture shows well.
SHOWN, SMALL = 0.3, 0.05
RISES = (-0.2, -0.1, -0.05, -0.02, 0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)


def draw(evidence: Evidence, directory: pathlib.Path) -> list[str]:
    """Draws every picture that the rows allow.

    Returns:
      The files' names, in the directory.
    """
    drawn = []
    tasks = evidence.tasks()
    for task in tasks:
        name = f"front_{task}.png"
        front(directory / name, evidence, task, METHODS)
        drawn.append(name)
    if tasks:
        main = tasks[0]
        front(directory / "summary.png", evidence, main, SUMMARY)
        drawn.append("summary.png")
        if evidence.runs(main, times=LONGER):
            front(directory / "longer.png", evidence, main, METHODS, LONGER)
            drawn.append("longer.png")
        if len(evidence.runs(main)) > 3:
            predictors(directory / "predictors.png", evidence, tasks)
            drawn.append("predictors.png")
        if any(evidence.runs(main, method=name) for name in ALPHAS if name != "adamw"):
            fraction(directory / "fraction.png", evidence, main)
            drawn.append("fraction.png")
    return drawn


def front(
    path: pathlib.Path,
    evidence: Evidence,
    task: str,
    methods: Iterable[str],
    times: int = 1,
) -> None:
    """Draws what each method forgot against what it learned, a line a sweep.

    Args:
      path: the PNG file.
      evidence: the rows.
      task: whose rows.
      methods: which of them.
      times: how many times longer than a short run.
    """
    sweeps_ = {name: sweeps.sweep(evidence, task, name, times) for name in methods}
    sweeps_ = {name: rows for name, rows in sweeps_.items() if rows}
    rows = [row for found in sweeps_.values() for row in found]
    if not rows:
        return
    figure = matplotlib.figure.Figure(figsize=(13, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    losses = against_each_other(evidence.task_loss(row) for row in rows)
    divergences = [evidence.divergence(row) for row in rows]
    for axes, label, values in (
        (left, KL, against_each_other(divergences, log=True)),
        (right, RISE, against_each_other(evidence.increase(row) for row in rows)),
    ):
        _lines(axes, sweeps_, losses, values)
        axes.set(xlabel=LOSS, ylabel=label, xlim=_learned(evidence, rows))
        axes.grid(alpha=0.3)
    # Kept, since far ticks would widen them.
    low, high = right.get_ylim()
    left.set_yscale("log")
    _plain(left.yaxis)
    right.set_yscale("asinh", linear_width=SMALL)
    right.set_yticks(RISES, [f"{rise:g}" for rise in RISES])
    right.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    right.set_ylim(low, high)
    right.axhline(0, color=BASE_COLOR, linewidth=0.8)
    kept = sweeps.front(
        [(x[0], y[0]) for x, y in zip(losses, divergences, strict=True)]
    )
    left.step(
        [losses[place][0] for place in kept],
        [divergences[place][0] for place in kept],
        *("--",),
        where="post",
        color=BASE_COLOR,
        linewidth=1,
        label="front",
        zorder=0,
    )
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", fontsize="small")
    length = f", {times} times longer" if times > 1 else ""
    figure.suptitle(
        f"{task}{length}: learned against forgotten; bars are 95% intervals"
    )
    _save(figure, path)


def _learned(evidence: Evidence, rows: Sequence[Row]) -> tuple[float, float]:
    """The losses between which most was learned; what learned less is in the tables."""
    best = min(evidence.task_loss(row)[0] for row in rows)
    fall = evidence.base_loss(rows[0])[0] - best
    return best - SHOWN / 10 * fall, best + SHOWN * fall


def _lines(
    axes: matplotlib.axes.Axes,
    sweeps_: dict[str, list[Row]],
    losses: Sequence[Values],
    values: Sequence[Values],
) -> None:
    place = 0
    for name, rows in sweeps_.items():
        number = list(METHODS).index(name)
        here = slice(place, place + len(rows))
        x, y = losses[here], values[here]
        axes.errorbar(
            [one[0] for one in x],
            [one[0] for one in y],
            xerr=_bars(x),
            yerr=_bars(y),
            color=COLORS[number % len(COLORS)],
            marker=MARKERS[number // len(COLORS) % len(MARKERS)],
            markersize=5,
            linewidth=1.2,
            elinewidth=0.6,
            label=METHODS[name].title,
        )
        place += len(rows)


def _bars(values: Sequence[Values]) -> np.ndarray:
    """Lengths of the bars below and above, [2, points]."""
    ends = np.array([interval(one) for one in values])
    middle = np.array([one[0] for one in values])
    return np.clip(np.nan_to_num([middle - ends[:, 0], ends[:, 1] - middle]), 0, None)


def fraction(path: pathlib.Path, evidence: Evidence, task: str) -> None:
    """Draws task loss and KL by MoFO's fraction, a line a learning rate."""
    figure = matplotlib.figure.Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for number, (rate, found) in enumerate(by_fraction(evidence, task).items()):
        style = {"color": COLORS[number % len(COLORS)], "marker": "o"}
        losses = [evidence.task_loss(row)[0] for row in found.values()]
        kl = [evidence.divergence(row) for row in found.values()]
        left.plot(list(found), losses, label=f"rate {rate:g}", **style)
        right.errorbar(list(found), [one[0] for one in kl], yerr=_bars(kl), **style)
    left.set(ylabel="task loss")
    right.set(ylabel=KL, yscale="log")
    _plain(right.yaxis)
    for axes in (left, right):
        axes.set(xlabel="fraction of coordinates that move (1: AdamW)", xscale="log")
        axes.set_xticks(list(ALPHAS.values()), [f"{a:g}" for a in ALPHAS.values()])
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    left.legend()
    _save(figure, path)


def predictors(path: pathlib.Path, evidence: Evidence, tasks: Sequence[str]) -> None:
    """Draws forgetting against what may predict it, a point a row."""
    figure = matplotlib.figure.Figure(figsize=(13, 4.2), layout="constrained")
    names = PREDICTORS[:3]
    for axes, name in zip(figure.subplots(1, len(names)), names, strict=True):
        for number, task in enumerate(tasks):
            columns = predicting(evidence, evidence.runs(task, seed=None))
            x, y = columns[name], columns[SUFFERED[0]]
            correlation, _ = sweeps.rank_correlation(x, y)
            label = f"{task}, Spearman {correlation:.2f}"
            axes.plot(x, y, MARKERS[number], color=COLORS[number], label=label)
        axes.set(xlabel=name, ylabel=RISE, xscale="log")
        _plain(axes.xaxis)
        axes.grid(alpha=0.3)
        axes.axhline(0, color=BASE_COLOR, linewidth=0.8)
        axes.legend(fontsize="small")
    _save(figure, path)


def _plain(axis: matplotlib.axis.Axis) -> None:
    """Marks a logarithmic axis with few plain numbers."""
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    axis.set_minor_formatter(matplotlib.ticker.NullFormatter())


def _save(figure: matplotlib.figure.Figure, path: pathlib.Path) -> None:
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=110)
