"""A bar chart of the stored ratios."""

import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import matplotlib.figure
import matplotlib.patches

from examples.benchmarks.results import Parts
from examples.finetune.running.plots import save

BASELINE = "adamw"
# Okabe and Ito's colours, which colour-blind readers can distinguish. Sorts are warm.
_COLORS = {
    "mofo": "#0072B2",
    'mofo, ties="exact"': "#56B4E9",
    "lax.top_k": "#E69F00",
    "jnp.sort": "#D55E00",
    "torch.optim.AdamW": "#999999",
    "torch.optim.AdamW, fused": "#BBBBBB",
    "MoFO by torch.topk": "#CC79A7",
}
_OTHER_COLOR = "#009E73"
_TITLES = {"steps": "", "pytorch": "beside PyTorch, ", "passes": "training step, "}
_ROW = 0.24  # Inches.


class Bar(NamedTuple):
    """The least, median and greatest ratio of one optimizer."""

    arm: str
    least: float
    median: float
    most: float


def bars(parts: Parts) -> dict[str, list[Bar]]:
    """Returns the measured ratios to AdamW's step, by case."""
    found = {}
    for part, title in _TITLES.items():
        for case, entry in parts.get(part, {}).items():
            rows = entry.get("arms", {})
            measured = [
                Bar(arm, *row["ratio"])
                for arm, row in rows.items()
                if arm != BASELINE and "ratio" in row
            ]
            if measured:
                found[title + case] = measured
    return found


def draw(path: pathlib.Path, parts: Parts, device: str) -> bool:
    """Draws every measured ratio, on a logarithmic scale.

    Args:
      path: the PNG file.
      parts: entries by part and case, as `Results.read` returns them.
      device: the device they were measured on.

    Returns:
      Whether there was anything to draw.
    """
    groups = bars(parts)
    if not groups:
        return False
    count = sum(len(group) + 1 for group in groups.values())
    figure = matplotlib.figure.Figure(
        figsize=(9, 1.6 + _ROW * count), layout="constrained"
    )
    axes = figure.subplots()
    height = 0.0
    ticks = {}
    for case, group in groups.items():
        ticks[height + (len(group) - 1) / 2] = case
        for bar in group:
            _bar(axes, height, bar)
            height += 1
        height += 1
    axes.set_yticks([*ticks], [*ticks.values()])
    axes.set(xscale="log", xlabel="time of a step / optax.adamw's in the same round")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvline(1, color="0.35", linewidth=0.8)
    axes.set_ylim(height - 0.5, -1)
    least = min(bar.least for group in groups.values() for bar in group)
    most = max(bar.most for group in groups.values() for bar in group)
    axes.set_xlim(min(0.8, 0.8 * least), 2.2 * most)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)
    axes.set_title(f"{device}: median of the rounds, least to most")
    _legend(figure, groups)
    save(figure, path)
    return True


def _bar(axes: Any, height: float, bar: Bar) -> None:
    color = _COLORS.get(bar.arm, _OTHER_COLOR)
    axes.barh(height, bar.median - 1, left=1, height=0.85, color=color)
    axes.plot([bar.least, bar.most], [height, height], color="0.1", linewidth=1)
    axes.annotate(
        f"{bar.median:.3g}",
        (max(bar.most, bar.median, 1), height),
        xytext=(4, 0),
        textcoords="offset points",
        va="center",
        fontsize=8,
    )


def _legend(figure: Any, groups: Mapping[str, list[Bar]]) -> None:
    present = dict.fromkeys(bar.arm for group in groups.values() for bar in group)
    patches = [
        matplotlib.patches.Patch(color=_COLORS.get(arm, _OTHER_COLOR), label=arm)
        for arm in present
    ]
    figure.legend(handles=patches, loc="outside lower center", ncols=4, fontsize=8)
