"""The pictures of a run."""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib.figure

from examples.finetune.system.files import replacing

BASE_COLOR = "0.35"
# Okabe and Ito's colours, which colour-blind readers can distinguish, in turn by arm.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")


def training_curves(
    path: pathlib.Path, metrics: Mapping[str, Sequence[Mapping[str, Any]]]
) -> None:
    """Draws each arm's loss and share of moved coordinates by step.

    Args:
      path: the PNG file.
      metrics: each arm's logged steps.
    """
    figure = matplotlib.figure.Figure(figsize=(10, 4), layout="constrained")
    loss, moved = figure.subplots(1, 2)
    for (name, rows), color in zip(metrics.items(), _colors(len(metrics)), strict=True):
        steps = [row["step"] for row in rows]
        for axes, key in ((loss, "loss"), (moved, "moved_fraction")):
            axes.plot(steps, [row[key] for row in rows], color=color, label=name)
    loss.set(xlabel="step", ylabel="training loss (nats per token)")
    moved.set(xlabel="step", ylabel="fraction of coordinates moved", ylim=(0, 1.02))
    for axes in (loss, moved):
        axes.grid(alpha=0.3)
    loss.legend()
    save(figure, path)


def learned_and_forgotten(
    path: pathlib.Path, base: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]
) -> None:
    """Draws an arrow from the base model to each arm: what it learned and forgot.

    Args:
      path: the PNG file.
      base: the base model's measurements.
      arms: each arm's results.
    """
    figure = matplotlib.figure.Figure(figsize=(13, 5), layout="constrained")
    learned = _learned([base, *arms.values()])
    for axes, measure in zip(figure.subplots(1, 3), _FORGOTTEN, strict=True):
        start = learned.of(base), measure.of(base)
        for (name, arm), color in zip(arms.items(), _colors(len(arms)), strict=True):
            end = learned.of(arm), measure.of(arm)
            if None in (*start, *end):
                continue
            # Invisible points, so that the axes make room for the arrows.
            axes.plot(*zip(start, end, strict=True), alpha=0)
            arrow = {"arrowstyle": "-|>", "color": color, "linewidth": 1.8}
            axes.annotate("", end, start, arrowprops={**arrow, "shrinkA": 4})
            bars = {"xerr": learned.error(arm), "yerr": measure.error(arm)}
            axes.errorbar(*end, **bars, color=color, linewidth=1, alpha=0.5)
            axes.plot(*end, "o", markersize=7, color=color, label=name)
        if None not in start:
            axes.plot(*start, "s", markersize=8, color=BASE_COLOR, label="base model")
        axes.set_xlabel(f"{learned.label}\nmore learned \N{RIGHTWARDS ARROW}")
        axes.set_ylabel(f"{measure.label}\nmore forgotten \N{RIGHTWARDS ARROW}")
        axes.grid(alpha=0.3)
        axes.margins(0.12)
        if learned.falls:
            axes.invert_xaxis()
    figure.axes[0].legend()
    figure.supxlabel(_sentence(base, arms, learned), fontsize=9, wrap=True)
    save(figure, path)


class _Measure(NamedTuple):
    """A number of a model, on an axis that has more learned, or forgotten, at its end.

    Attributes:
      label: of the axis, with the unit.
      of: the number, or None if it was not measured.
      falls: whether less of it means more learned.
      counted: for a percentage, what `counts` calls the items that were judged.
    """

    label: str
    of: Callable[[Mapping[str, Any]], float | None]
    falls: bool = False
    counted: str | None = None

    def error(self, model: Mapping[str, Any]) -> float:
        """Returns half of a percentage's 95% interval over items; 0 for others."""
        count = model.get("counts", {}).get(self.counted)
        percent = self.of(model)
        if not count or percent is None:
            return 0.0
        return 1.96 * math.sqrt(percent * (100 - percent) / count)


def _text_loss(model: Mapping[str, Any]) -> float | None:
    texts = model["retention"]
    return _mean([texts[name] for name in texts if name != "knowledge"])


def _divergence(model: Mapping[str, Any]) -> float | None:
    if "kl_to_base" not in model:
        return 0.0  # The base model itself.
    names = [name for name in model["retention"] if name != "knowledge"]
    return _mean([model["kl_to_base"].get(name) for name in names])


def _wrong(model: Mapping[str, Any]) -> float | None:
    right = _percent(model["retention"]["knowledge"])
    return None if right is None else 100 - right


def _percent(share: float | None) -> float | None:
    return None if share is None else 100 * share


_FORGOTTEN = (
    _Measure("loss on general text (nats per token)", _text_loss),
    _Measure("KL from base, general text (nats per token)", _divergence),
    _Measure("knowledge questions answered wrongly (%)", _wrong, counted="knowledge"),
)


def _learned(models: Sequence[Mapping[str, Any]]) -> _Measure:
    if all(model["task_accuracy"] is not None for model in models):
        label = "exact match on held-out rows of the task (%)"
        return _Measure(
            label, lambda model: _percent(model["task_accuracy"]), counted="task"
        )
    label = "loss on held-out rows of the task (nats per token)"
    return _Measure(label, lambda model: model["task_loss"], falls=True)


def _sentence(
    base: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]], learned: _Measure
) -> str:
    """What the arrows mean, and between which numbers they lead."""

    def numbers(model: Mapping[str, Any]) -> str:
        task, text = learned.of(model), _text_loss(model)
        form = "a task loss of {:.2f}" if learned.falls else "{:.0f}%"
        of_task = "-" if task is None else form.format(task)
        of_text = "-" if text is None else f"{text:.3f}"
        return f"{of_task} and {of_text}"

    ends = ", ".join(f"{numbers(arm)} ({name})" for name, arm in arms.items())
    return (
        "To the right a model has learned, and upwards it has forgotten: from "
        f"{numbers(base)} nats per token on general text, the mean of its kinds, to "
        f"{ends}. Bars are 95% intervals over the rows and questions; there is one run "
        "of each optimizer."
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _colors(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def save(figure: matplotlib.figure.Figure, path: pathlib.Path, dpi: int = 120) -> None:
    """Writes a picture as a PNG file, atomically.

    Args:
      figure: the picture.
      path: the PNG file.
      dpi: pixels per inch of the figure's size.
    """
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=dpi)
