"""The pictures of a run."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.figure

from examples.finetune.system.files import replacing

BASE_COLOR = "0.35"
# Okabe and Ito's colours, told apart by colour-blind readers; arms take them in turn.
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
    moved.set(xlabel="step", ylabel="share of coordinates moved", ylim=(0, 1.02))
    for axes in (loss, moved):
        axes.grid(alpha=0.3)
    loss.legend()
    _save(figure, path)


def learned_and_forgotten(
    path: pathlib.Path, base: Mapping[str, Any], arms: Mapping[str, Mapping[str, Any]]
) -> None:
    """Draws what each arm forgot against what it learned, one point an arm.

    Args:
      path: the PNG file.
      base: the base model's measurements.
      arms: each arm's results.
    """
    figure = matplotlib.figure.Figure(figsize=(13, 4.2), layout="constrained")
    panels = {
        "general text: loss increase (nats per token)": _loss_increase,
        "general text: KL from base (nats per token)": _divergence,
        "knowledge questions: accuracy lost": _knowledge_lost,
    }
    for axes, (title, forgotten) in zip(
        figure.subplots(1, len(panels)), panels.items(), strict=True
    ):
        points = {"base": (base, BASE_COLOR)}
        points |= {
            name: (arm, color)
            for (name, arm), color in zip(arms.items(), _colors(len(arms)), strict=True)
        }
        for name, (model, color) in points.items():
            x, y = model["task_loss"], forgotten(base, model)
            if x is not None and y is not None:
                axes.plot(x, y, "o", markersize=9, color=color, label=name)
        axes.set(xlabel="task loss (left: learned more)", ylabel=title)
        axes.grid(alpha=0.3)
        axes.axhline(0, color=BASE_COLOR, linewidth=0.8)
        axes.margins(0.15)
    figure.axes[0].legend()
    _save(figure, path)


def _loss_increase(base: Mapping[str, Any], model: Mapping[str, Any]) -> float | None:
    after, before = model["retention"], base["retention"]
    return _mean(
        [_minus(after[name], before[name]) for name in before if name != "knowledge"]
    )


def _divergence(base: Mapping[str, Any], model: Mapping[str, Any]) -> float | None:
    if model is base:
        return 0.0
    names = [name for name in base["retention"] if name != "knowledge"]
    return _mean([model["kl_to_base"].get(name) for name in names])


def _knowledge_lost(base: Mapping[str, Any], model: Mapping[str, Any]) -> float | None:
    return _minus(base["retention"]["knowledge"], model["retention"]["knowledge"])


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def _colors(count: int) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(count)]


def _save(figure: matplotlib.figure.Figure, path: pathlib.Path) -> None:
    with replacing(path) as file:
        figure.savefig(file, format="png", dpi=120)
