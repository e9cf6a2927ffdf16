"""The study's pictures, made from its rows."""

import math
import pathlib
from collections.abc import Sequence

import matplotlib.axes
import matplotlib.figure
import matplotlib.ticker
import numpy as np

from examples.finetune.running.plots import BASE_COLOR, COLORS, save
from examples.study import plan
from examples.study.comparing import ON_PROMPTS, PROSE, PROSE_RISE, Compared, Measure
from examples.study.inputs import BORDERS
from examples.study.methods import METHODS
from examples.study.plan import Run
from examples.study.rows import Row
from examples.study.screening import drift_of_a_squared_step

PANELS = (PROSE, ON_PROMPTS, PROSE_RISE)
MARKERS = "os^Dv"
DPI = 110


def draw(found: Compared, directory: pathlib.Path) -> list[str]:
    """Draws drift against learning, one picture per task and length.

    The methods are those with deciding seeds, or all if there are none.

    Returns:
      The files' names, in the directory.
    """
    drawn = []
    for task, steps in found.lengths:
        name = f"{task}_{steps}.png"
        save(_fronts(found, task, steps), directory / name, DPI)
        drawn.append(name)
    return drawn


def _fronts(found: Compared, task: str, steps: int) -> matplotlib.figure.Figure:
    figure = matplotlib.figure.Figure(figsize=(13, 4.6), layout="constrained")
    panels = figure.subplots(1, len(PANELS))
    level = float(found.level(task, steps)[0])
    runs = [run for run in found.rows if (run.task, run.steps) == (task, steps)]
    # The tables have the methods that were run only in order to choose.
    deciding = {run.method for run in runs if run.seed in plan.SEEDS}
    drawn = deciding or {run.method for run in runs}
    methods = [name for name in METHODS if name in drawn]
    best = min(found.losses[run] for run in runs if run.method in drawn)
    for axes, measure in zip(panels, PANELS, strict=True):
        for number, method in enumerate(methods):
            again, color = divmod(number, len(COLORS))
            style = COLORS[color], MARKERS[again % len(MARKERS)]
            _lines(axes, found, (task, method, steps), measure, style)
        axes.axvline(level, color=BASE_COLOR, linewidth=0.8, linestyle="--")
        axes.set(xlabel="task loss (left: learned more)", ylabel=_label(measure))
        # The tables have the runs that are not near the level.
        axes.set_xlim(best - 0.2 * (level - best), level + 3 * (level - best))
        axes.grid(alpha=0.3)
        if measure.ratio:
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
            axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        else:
            axes.axhline(0, color=BASE_COLOR, linewidth=0.8)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle(
        f"{task}, {steps} steps: one line per seed, one point per learning rate; "
        "dashed: the level at which methods are compared"
    )
    return figure


def _lines(
    axes: matplotlib.axes.Axes,
    found: Compared,
    which: tuple[str, str, int],
    measure: Measure,
    style: tuple[str, str],
) -> None:
    """Draws a line for each seed of a method, up to the rate that learned most."""
    task, method, steps = which
    color, marker = style
    runs = [r for r in found.rows if (r.task, r.method, r.steps) == which]
    for number, seed in enumerate(sorted({run.seed for run in runs})):
        known = plan.rates(found.losses, plan.Cell(task, method, steps, seed))
        best = min(known, key=lambda rate: known[rate])
        points = [
            (loss, _plain(found, Run(task, method, steps, seed, rate), measure))
            for rate, loss in known.items()
            if rate <= best and math.isfinite(loss)
        ]
        axes.plot(
            *zip(*points, strict=True),
            color=color,
            marker=marker,
            markersize=4,
            linewidth=1.2,
            alpha=0.8,
            label=METHODS[method].title if number == 0 else None,
        )


def _plain(found: Compared, run: Run, measure: Measure) -> float:
    value = float(found.value(run, measure)[0])
    return math.exp(value) if measure.ratio else value


def _label(measure: Measure) -> str:
    unit = "nats per token"
    return f"{measure.title} ({unit})"


def why(rows: Sequence[Row], path: pathlib.Path) -> None:
    """Draws which weights filters select, and the drift of a squared step.

    Args:
      rows: the screen's rows.
      path: the PNG file.
    """
    figure = matplotlib.figure.Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    middles = [BORDERS[0] / 2, *(border * 2 for border in BORDERS)]
    for number, row in enumerate(row for row in rows if "inputs" in row):
        counts = {
            name: np.array(row["inputs"][name]) for name in ("weights", "selected")
        }
        there = counts["weights"] > 0
        share = counts["selected"][there] / counts["weights"][there]
        left.plot(
            np.array(middles)[there],
            share,
            color=COLORS[number % len(COLORS)],
            marker="o",
            label=row["key"]["direction"],
        )
    left.set(
        xlabel="second moment of a weight's input over its kernel's mean",
        ylabel="share of weights selected",
        xscale="log",
    )
    left.yaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1))
    left.legend(frameon=False)
    left.grid(alpha=0.3)
    left.set_title("what a filter selects")
    drifts = {row["key"]["direction"]: drift_of_a_squared_step(row) for row in rows}
    own = drifts["AdamW"]
    right.axvline(1, color=BASE_COLOR, linewidth=0.8)
    right.plot([drift / own for drift in drifts.values()], list(drifts), "o")
    right.invert_yaxis()
    right.set(xlabel="KL on prose over AdamW's, at equal length", xscale="log")
    right.xaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    right.xaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
    right.xaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
    right.grid(alpha=0.3)
    right.set_title("drift of one small step")
    save(figure, path, DPI)
