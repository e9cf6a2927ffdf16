"""Comparisons of every method with the comparator at equal task loss."""

import dataclasses
import functools
import math
import statistics
from collections.abc import Iterable, Sequence

import numpy as np

from examples.study import evidence, plan
from examples.study.budget import BUDGETS, Budget
from examples.study.evidence import Estimate, Seeds, Values
from examples.study.methods import METHODS
from examples.study.plan import PRIMARY, START, Cell, Losses, Run
from examples.study.rows import Row, run_of, task_loss
from examples.study.texts import CHAT

PROMPTS = "prompts"  # as the name of a set: the task's own items


@dataclasses.dataclass(frozen=True)
class Measure:
    """A measure of drift.

    Attributes:
      title: its name in tables.
      name: the name of the set of items, or PROMPTS.
      kind: "divergences", "losses" or "margins".
    """

    title: str
    name: str
    kind: str

    @property
    def ratio(self) -> bool:
        """Whether methods are compared by ratio, so that values are logarithms."""
        return self.kind == "divergences"


PROSE, CODE, OWN, ON_PROMPTS = (
    Measure("KL, prose", "prose", "divergences"),
    Measure("KL, code", "code", "divergences"),
    Measure("KL, chat", CHAT, "divergences"),
    Measure("KL, prompts", PROMPTS, "divergences"),
)
PROSE_RISE = Measure("prose loss rose by", "prose", "losses")
MARGINS = Measure("log-odds of right answers", "questions", "margins")
MEASURES = (PROSE, CODE, OWN, ON_PROMPTS, PROSE_RISE, MARGINS)


class Compared:
    """The rows of one budget and protocol, and their level.

    Args:
      rows: rows from `rows.read`.
      share: the share of AdamW's reduction of the task loss at which methods are
        compared.
    """

    def __init__(self, rows: Iterable[Row], share: float = PRIMARY) -> None:
        self.rows = {run_of(row): row for row in rows}
        self.share = share
        self.starts = {r.task: row for r, row in self.rows.items() if r.method == START}

    @functools.cached_property
    def losses(self) -> Losses:
        """Returns the task loss of every run."""
        return {
            run: task_loss(row, self.starts[run.task]) for run, row in self.rows.items()
        }

    @functools.cached_property
    def lengths(self) -> list[tuple[str, int]]:
        """Returns the comparable tasks and numbers of steps, in the rows' order."""
        found = dict.fromkeys((run.task, run.steps) for run in self.rows if run.steps)
        return [one for one in found if plan.level(self.losses, *one) is not None]

    def loss(self, run: Run) -> Values:
        """Returns a run's task loss, for each draw of the items."""
        counts = self.starts[run.task]["counts"][run.task]["losses"]
        sums = self.rows[run]["sets"][run.task]["losses"]
        return evidence.mean(run.task, sums, counts)

    def value(self, run: Run, measure: Measure) -> Values:
        """Returns a measure of a run, for each draw of the items."""
        row, start = self.rows[run], self.starts[run.task]
        if measure.kind == "margins":
            rises = np.array(row["margins"]) - np.array(start["margins"])
            return evidence.mean(measure.name, rises, [1] * len(rises))
        name = run.task if measure.name == PROMPTS else measure.name
        counts = start["counts"][name][measure.kind]
        if measure.kind == "losses":
            return evidence.mean(name, evidence.rises(row, start, name), counts)
        return np.log(evidence.mean(name, row["sets"][name]["divergences"], counts))

    @property
    def budget(self) -> Budget:
        """Returns the sizes of the runs."""
        return BUDGETS[next(iter(self.rows.values()))["key"]["budget"]]

    def level(self, task: str, steps: int) -> Values:
        """Returns the task loss of the comparison, for each draw of the items."""
        pilot = Cell(task, "adamw", steps, plan.PILOT_SEED)
        known = plan.rates(self.losses, pilot)
        best = self.loss(pilot.at(min(known, key=lambda rate: known[rate])))
        start = self.loss(Run(task, START))
        return start - self.share * (start - best)

    def at(self, cell: Cell, measure: Measure) -> Values | None:
        """Returns a measure where a cell reaches the level, or None if it does not."""
        return self._where(cell, measure, self.level(cell.task, cell.steps))

    def _where(self, cell: Cell, measure: Measure, level: Values) -> Values | None:
        known = plan.rates(self.losses, cell)
        found = plan.bracket(known, float(level[0]))
        if found is None:
            return None
        pair = [cell.at(rate) for rate in found]
        above, below = (self.loss(run) for run in pair)
        first, second = (self.value(run, measure) for run in pair)
        return evidence.between((above, below), (first, second), level)

    def at_own_loss(self, run: Run, measure: Measure) -> Estimate | None:
        """Returns a run's ratio to (or difference from) AdamW at the run's task loss.

        The interval is over items. None if AdamW has no rates around that loss.
        """
        own = Cell(run.task, "adamw", run.steps, run.seed)
        other = self._where(own, measure, self.loss(run))
        if other is None:
            return None
        made = evidence.estimate(self.value(run, measure) - other)
        return made.exp() if measure.ratio else made

    def cells(self, task: str, method: str, steps: int) -> dict[int, Cell]:
        """Returns the cells of a method that reach the level, by seed."""
        found = sorted(
            {
                run.seed
                for run in self.rows
                if (run.task, run.method, run.steps) == (task, method, steps)
            }
        )
        cells = {seed: Cell(task, method, steps, seed) for seed in found}
        return {s: c for s, c in cells.items() if self.at(c, PROSE) is not None}

    def by_seed(
        self,
        cells: dict[int, Cell],
        others: dict[int, Cell],
        measure: Measure,
        seeds: Sequence[int],
    ) -> list[Values]:
        """Returns a method's measure minus another's, for each seed."""
        pairs = [
            (self.at(cells[s], measure), self.at(others[s], measure)) for s in seeds
        ]
        return [a - b for a, b in pairs if a is not None and b is not None]

    def seeds(self, task: str, steps: int, measure: Measure, own: str) -> Seeds:
        """Returns the variance over seeds of the difference from the comparator."""
        others = self.cells(task, own, steps)
        groups = []
        for method in METHODS:
            cells = self.cells(task, method, steps)
            shared = [seed for seed in cells if seed in others]
            if method != own and len(shared) > 1:
                found = self.by_seed(cells, others, measure, shared)
                groups.append([float(values[0]) for values in found])
        return evidence.pooled(groups)

    def against(
        self,
        task: str,
        method: str,
        steps: int,
        measure: Measure,
        own: str,
        seeds: Sequence[int],
    ) -> Estimate | None:
        """Returns a method's ratio to (or difference from) the comparator."""
        found = self.by_seed(
            self.cells(task, method, steps),
            self.cells(task, own, steps),
            measure,
            seeds,
        )
        if not found:
            return None
        known = self.seeds(task, steps, measure, own)
        made = evidence.estimate(np.mean(found, axis=0), known, len(found))
        return made.exp() if measure.ratio else made

    def alone(
        self, task: str, method: str, steps: int, measure: Measure, seeds: Sequence[int]
    ) -> Estimate | None:
        """Returns the mean over seeds of a method's own measure at the level."""
        cells = self.cells(task, method, steps)
        found = [self.at(cells[seed], measure) for seed in seeds]
        values = [one for one in found if one is not None]
        if not values:
            return None
        own = evidence.pooled([[float(one[0]) for one in values]])
        made = evidence.estimate(np.mean(values, axis=0), own, len(values))
        return made.exp() if measure.ratio else made

    def cost(self, task: str, method: str, steps: int, own: str) -> float | None:
        """Returns the time of a step relative to the comparator's.

        It is the median over seeds of the ratio of the shortest times. Runs with the
        same seed were performed soon after each other, and the shortest time is the
        least disturbed by other programs.
        """

        def shortest(name: str) -> dict[int, float]:
            found: dict[int, float] = {}
            for run, row in self.rows.items():
                if (run.task, run.method, run.steps) == (task, name, steps):
                    seconds = row["seconds_per_step"]
                    found[run.seed] = min(seconds, found.get(run.seed, seconds))
            return found

        mine, others = shortest(method), shortest(own)
        ratios = [mine[seed] / others[seed] for seed in mine if seed in others]
        return statistics.median(ratios) if ratios else None


def summary(row: Row, start: Row) -> dict[str, float]:
    """Returns the measurements of one run, task loss and measures, by title."""
    run, found = run_of(row), Compared([start, row])
    values = {m: float(found.value(run, m)[0]) for m in MEASURES}
    return {
        "task loss": found.losses[run],
        **{m.title: math.exp(v) if m.ratio else v for m, v in values.items()},
    }
