"""The rows of the first study, and comparisons between its methods."""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from examples.finetune.system.files import read_json_lines
from examples.study import evidence
from examples.study.evidence import Values

RESULTS = pathlib.Path(__file__).parent / "results"
TASK = "gsm8k"
SHORT, WARMUP = 24, 2  # steps of a short run, and those with an increasing rate
LEVELS = (0.9, 0.95, 0.98)  # shares of AdamW's reduction of the task loss
TITLES = {
    "adamw": "AdamW",
    "mofo": "MoFO 0.15",
    "mofo_0.05": "MoFO 0.05",
    "mofo_0.4": "MoFO 0.4",
    "mofo_update": "filter by update",
    "mofo_adam_ratio": "filter by Adam's ratio",
    "mofo_gradient": "filter by gradient",
    "mofo_random": "filter by chance",
    "mofo_gain": "filter by gain",
    "mofo_fisher": "filter by gain for Fisher",
    "half": "half fine-tuning",
    "l2_weak": "L2 pull 100",
    "l2": "L2 pull 300",
    "l2_strong": "L2 pull 1000",
    "wise": "WiSE-FT",
    "padam": "Padam 0.75",
    "padam_1": "Padam 1",
    "mofo_padam": "MoFO on Padam 0.75",
    "mofo_padam_1": "MoFO on Padam 1",
    "natural": "natural gradient",
    "lion": "Lion",
    "mofo_lion": "MoFO on Lion",
    "lora": "LoRA 16",
    "lora_mofo": "MoFO on LoRA 16",
}
# The rates at which these methods have three seeds.
FINALISTS = {"mofo": 1e-4, "l2_strong": 2e-4, "padam": 1e-4}

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure of drift.

    Attributes:
      title: its name in tables.
      name: the set of items; the task's own name stands for its prompts.
      rise: whether it is the increase of the loss rather than KL.
    """

    title: str
    name: str
    rise: bool = False

    @property
    def logarithmic(self) -> bool:
        """Whether methods are compared by their ratio rather than their difference."""
        return not self.rise


MEASURES = (
    Measure("KL, prose", "prose"),
    Measure("KL, code", "code"),
    Measure("KL, prompts", TASK),
    Measure("prose loss rose by", "prose", rise=True),
)


class Rows:
    """The first study's rows.

    Args:
      rows: the rows of the results file.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        self.all = [row for row in rows if not _diverged(row)]
        self.start = next(
            row
            for row in self.all
            if row["key"]["task"] == "base" and row["key"]["healed"]
        )

    def runs(self, method: str, *, task: str = TASK, **settings: Any) -> list[Row]:
        """Returns a method's rows by rate, by default short ones of seed 0."""
        wanted = {"task": task, "method": method, "seed": 0, "times": 1} | settings
        found = [
            row
            for row in self.all
            if all(
                value is None or row["key"][name] == value
                for name, value in wanted.items()
            )
        ]
        return sorted(found, key=lambda row: (row["key"]["rate"], row["key"]["share"]))

    def sweep(self, method: str, **settings: Any) -> list[Row]:
        """Returns `runs`; for WiSE-FT, they end with the run that it interpolates."""
        found = self.runs(method, **settings)
        if method == "wise" and found:
            found += self.runs("adamw", rate=found[0]["key"]["rate"], **settings)
        return found

    def mean(self, row: Row, name: str, kind: str) -> Values:
        """Returns the mean per token on one set, for sequences of one stage."""
        counts = self.start["counts"][name][kind]
        return evidence.mean(name, row["sets"][name][kind], counts)

    def loss(self, row: Row) -> Values:
        """Returns the task loss of a row."""
        return self.mean(row, row["key"]["task"], "losses")

    def value(self, row: Row, measure: Measure) -> Values:
        """Returns a measure of a row, as a logarithm if it is compared by ratio."""
        name = row["key"]["task"] if measure.name == TASK else measure.name
        if measure.rise:
            counts = self.start["counts"][name]["losses"]
            return evidence.mean(name, evidence.rises(row, self.start, name), counts)
        return np.log(self.mean(row, name, "divergences"))

    @functools.cached_property
    def levels(self) -> dict[float, Values]:
        """Returns the task losses at which methods are compared, by share."""
        losses = [self.loss(row) for row in self.runs("adamw")]
        start = self.mean(self.start, TASK, "losses")
        best = min(losses, key=lambda loss: loss[0])
        return {share: start - share * (start - best) for share in LEVELS}

    def at(self, rows: Sequence[Row], level: Values, measure: Measure) -> Values | None:
        """Returns a measure where a sweep reaches a level, or None if it does not."""
        losses = [self.loss(row) for row in rows]
        place = evidence.bracketing([loss[0] for loss in losses], level[0])
        if place is None:
            return None
        pair = slice(place, place + 2)
        first, second = (self.value(row, measure) for row in rows[pair])
        above, below = losses[pair]
        return evidence.between((above, below), (first, second), level)

    def over_adamw(self, row: Row, measure: Measure) -> Values | None:
        """Returns a row's measure minus AdamW's at the same task loss."""
        theirs = self.runs("adamw", times=row["key"]["times"])
        found = self.at(theirs, self.loss(row), measure)
        return None if found is None else self.value(row, measure) - found

    def by_seed(self, method: str, measure: Measure) -> list[Values]:
        """Returns a finalist's measure minus that of AdamW with the same seed.

        AdamW's measure is brought to the finalist's task loss along the line through
        its rows at 5e-5 and 1e-4 of seed 0.
        """
        weaker, stronger = (self.runs("adamw", rate=rate)[0] for rate in (5e-5, 1e-4))
        slope = (self.value(stronger, measure) - self.value(weaker, measure)) / (
            self.loss(stronger) - self.loss(weaker)
        )
        found = []
        for row in self.runs(method, rate=FINALISTS[method], seed=None):
            own = self.runs("adamw", rate=1e-4, seed=row["key"]["seed"])[0]
            apart = self.loss(row) - self.loss(own)
            mine, theirs = (self.value(one, measure) for one in (row, own))
            found.append(mine - theirs - slope * apart)
        return found

    def seeds(self, measure: Measure) -> evidence.Seeds:
        """Returns the variation of a measure from seed to seed, over all finalists."""
        found = [self.by_seed(name, measure) for name in FINALISTS]
        return evidence.pooled([[float(one[0]) for one in group] for group in found])


def read() -> Rows:
    """Returns the rows of the first study, which are part of the repository."""
    return Rows(read_json_lines(RESULTS / "rows.jsonl"))


def pull(row: Row) -> float:
    """Returns an L2 pull's strength times the sum of the run's learning rates.

    This product is comparable across lengths and rates: the share of an early step that
    is undone by the end is one minus the exponential of its negative.
    """
    key = row["key"]
    steps, warmup = SHORT * key["times"], WARMUP * key["times"]
    rising = np.linspace(1 / (warmup + 1), 1, warmup, endpoint=False)
    along = np.arange(steps - warmup) / (steps - warmup)
    total = rising.sum() + (0.5 * (1 + np.cos(math.pi * along))).sum()
    return float(key["options"]["strength"] * key["rate"] * total)


def _diverged(row: Row) -> bool:
    """Returns whether a loss is NaN, which excludes the row from comparisons."""
    parts = row.get("stages", [row])
    return any(None in found["losses"] for p in parts for found in p["sets"].values())
