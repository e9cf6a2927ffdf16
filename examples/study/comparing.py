"""Comparisons of every method with the comparator at equal task loss."""

import dataclasses
import functools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from examples.study import evidence, plan
from examples.study.budget import BUDGETS, Budget
from examples.study.evidence import Estimate, Seeds, Values
from examples.study.methods import METHODS
from examples.study.plan import PRIMARY, START, Cell, Losses, Run
from examples.study.rows import Row, run_of, task_loss
from examples.study.texts import CHAT

PROMPTS = "prompts"  # as the name of a set: the task's own items
NEAR = 20  # rows between runs whose times are compared


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

    def shown(self, made: Estimate) -> Estimate:
        """Returns an estimate as tables show it: the exponential of a logarithm."""
        return made.exp() if self.ratio else made


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
      fixed: whether the level is the same number in every draw of the items, instead
        of that share of AdamW's reduction on the items drawn.
      scale: the function of the task loss in which is interpolated.
    """

    def __init__(
        self,
        rows: Iterable[Row],
        share: float = PRIMARY,
        *,
        fixed: bool = False,
        scale: Callable[[Values], Values] = np.positive,
    ) -> None:
        self.rows = {run_of(row): row for row in rows}
        self.share, self.fixed, self.scale = share, fixed, scale
        self._at: dict[tuple[Cell, Measure], Values | None] = {}
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
            after, before = (np.array(r["margins"], float) for r in (row, start))
            rises = after - before
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

    @property
    def model(self) -> str | None:
        """Returns the model's name; None without rows."""
        return next((row["key"]["model"] for row in self.rows.values()), None)

    def level(self, task: str, steps: int) -> Values:
        """Returns the task loss of the comparison, for each draw of the items."""
        pilot = Cell(task, "adamw", steps, plan.PILOT_SEED)
        known = plan.rates(self.losses, pilot)
        best = self.loss(pilot.at(min(known, key=lambda rate: known[rate])))
        start = self.loss(Run(task, START))
        made = start - self.share * (start - best)
        return np.full_like(made, made[0]) if self.fixed else made

    def at(self, cell: Cell, measure: Measure) -> Values | None:
        """Returns a measure where a cell reaches the level, or None if it does not."""
        if (cell, measure) not in self._at:
            level = self.level(cell.task, cell.steps)
            self._at[cell, measure] = self._where(cell, measure, level)
        return self._at[cell, measure]

    def _where(self, cell: Cell, measure: Measure, level: Values) -> Values | None:
        known = plan.rates(self.losses, cell)
        found = plan.bracket(known, float(level[0]))
        if found is None:
            return None
        pair = [cell.at(rate) for rate in found]
        above, below, wanted = (
            self.scale(loss) for loss in (*map(self.loss, pair), level)
        )
        first, second = (self.value(run, measure) for run in pair)
        return evidence.between((above, below), (first, second), wanted)

    def at_own_loss(self, run: Run, measure: Measure) -> Estimate | None:
        """Returns a run's ratio to (or difference from) AdamW at the run's task loss.

        The interval is over items. None if AdamW has no rates around that loss.
        """
        own = Cell(run.task, "adamw", run.steps, run.seed)
        other = self._where(own, measure, self.loss(run))
        if other is None:
            return None
        return measure.shown(evidence.estimate(self.value(run, measure) - other))

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
        task: str,
        method: str,
        steps: int,
        measure: Measure,
        own: str | None,
        seeds: Sequence[int] | None = None,
    ) -> list[Values]:
        """Returns a method's measure at the level, for each seed.

        Args:
          task: the task.
          method: the method.
          steps: the number of steps.
          measure: the measure.
          own: the method whose measure is subtracted; None for the measure itself.
          seeds: the seeds; None for all that reach the level.
        """
        cells = self.cells(task, method, steps)
        others = cells if own is None else self.cells(task, own, steps)
        found = []
        for seed, cell in cells.items():
            if seed in others and (seeds is None or seed in seeds):
                value, other = (self.at(c, measure) for c in (cell, others[seed]))
                assert value is not None and other is not None  # It has this cell.
                found.append(value if own is None else value - other)
        return found

    def seeds(self, task: str, steps: int, measure: Measure, own: str | None) -> Seeds:
        """Returns the variance over seeds of what `by_seed` returns, of all methods."""
        groups = [
            self.by_seed(task, method, steps, measure, own)
            for method in METHODS
            if method != own
        ]
        return evidence.pooled([[float(v[0]) for v in group] for group in groups])

    def mean(
        self,
        task: str,
        method: str,
        steps: int,
        measure: Measure,
        own: str | None,
        seeds: Sequence[int],
    ) -> Estimate | None:
        """Returns the mean over seeds of what `by_seed` returns; None without seeds."""
        found = self.by_seed(task, method, steps, measure, own, seeds)
        if not found:
            return None
        known = self.seeds(task, steps, measure, own)
        return measure.shown(
            evidence.estimate(np.mean(found, axis=0), known, len(found))
        )

    def apart(
        self, task: str, steps: int, measure: Measure, seeds: tuple[int, int]
    ) -> Estimate:
        """Returns AdamW's ratio (or difference) between two of its seeds."""
        one, other = self.by_seed(task, "adamw", steps, measure, None, seeds)
        known = self.seeds(task, steps, measure, None)
        both = known._replace(variance=2 * known.variance)
        return measure.shown(evidence.estimate(one - other, both))

    def cost(
        self, task: str, method: str, steps: int, own: str, seeds: Sequence[int]
    ) -> float | None:
        """Returns the time of a step relative to the comparator's.

        It is the median over seeds of the ratio of the shortest times, which are the
        least disturbed by other programs. Since a machine's speed changes, only seeds
        count for which both methods have runs within NEAR rows.
        """
        places = {run: place for place, run in enumerate(self.rows)}

        def runs(name: str, seed: int) -> list[Run]:
            given = task, name, steps, seed
            return [r for r in places if (r.task, r.method, r.steps, r.seed) == given]

        def shortest(found: list[Run]) -> float:
            return min(self.rows[run]["seconds_per_step"] for run in found)

        ratios = []
        for seed in seeds:
            mine, others = runs(method, seed), runs(own, seed)
            apart = (abs(places[a] - places[b]) for a in mine for b in others)
            if min(apart, default=NEAR + 1) <= NEAR:
                ratios.append(shortest(mine) / shortest(others))
        return statistics.median(ratios) if ratios else None


def summary(row: Row, start: Row) -> dict[str, float]:
    """Returns the measurements of one run, task loss and measures, by title."""
    run, found = run_of(row), Compared([start, row])
    values = {m: float(found.value(run, m)[0]) for m in MEASURES}
    return {
        "task loss": found.losses[run],
        **{m.title: math.exp(v) if m.ratio else v for m, v in values.items()},
    }
