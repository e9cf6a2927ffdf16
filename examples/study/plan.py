"""The protocol's comparisons, and the next run that each of them needs.

A *cell* is one method with one seed on one task and length. To be compared, it needs
two neighbouring rates between which the method reaches the level, the task loss at
which methods are compared. The next run depends on the results of earlier runs.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence

from examples.study.budget import Budget
from examples.study.methods import (
    CONTROLS,
    EQUAL_TIME,
    METHODS,
    REPLAY,
    RIVALS,
    SETTINGS,
)

START = "start"  # as a method: the start itself, without training
PILOT_RATES = (5e-5, 1e-4, 2e-4)
PILOT_SEED, CONTROL_SEEDS, SEEDS = 0, (0, 1), (11, 12, 13, 14, 15)
PRIMARY, SECONDARY = 0.95, 0.9  # shares of AdamW's reduction of the task loss
# Settings of the rule among which seed 0 chooses.
CANDIDATES = ("inverse", "inverse_strong", "inverse_weak", "inverse_weaker")
CANDIDATES += ("inverse_behind_mofo", "inverse_filtered", "inverse_weak_filtered")
# The chosen settings: the rule alone, and with MoFO.
RULE = ("inverse_weak",)
COMBINED = ("inverse_weak_filtered",)
MOST_RATES = 5  # most rates that a cell may try without learning enough
# The lowest rate of the grid whose name in the rows has all of its digits.
LOWEST_RATE = 1e-4 / 2**8
# The comparator that the controls chose on the first model, for other models.
COMPARATOR = "adamw_batch"


@dataclasses.dataclass(frozen=True, order=True)
class Run:
    """A training run.

    Attributes:
      task: the task.
      method: a key of `methods.METHODS`, or START.
      steps: optimizer steps.
      seed: seed of the order of examples and of the method's random numbers.
      rate: the peak learning rate.
    """

    task: str
    method: str
    steps: int = 0
    seed: int = 0
    rate: float = 0.0

    def __str__(self) -> str:
        if self.method == START:
            return f"{self.task}/{START}"
        return f"{self.task}/{self.method}/{self.steps}/{self.seed}/{self.rate:g}"


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method with one seed, at any rate.

    Attributes:
      task: the task.
      method: a key of `methods.METHODS`.
      steps: optimizer steps.
      seed: as for `Run`.
    """

    task: str
    method: str
    steps: int
    seed: int

    def at(self, rate: float) -> Run:
        """Returns the run with a rate."""
        return Run(self.task, self.method, self.steps, self.seed, rate)


# The task loss of each completed run.
Losses = Mapping[Run, float]


def rates(losses: Losses, cell: Cell) -> dict[float, float]:
    """Returns the task losses of a cell's runs by rate, ascending."""
    wanted = cell.task, cell.method, cell.steps, cell.seed
    found = (
        (run.rate, loss)
        for run, loss in losses.items()
        if (run.task, run.method, run.steps, run.seed) == wanted
    )
    return dict(sorted(found))


def pilot_rate(losses: Losses, task: str, steps: int) -> float | None:
    """Returns the next rate of AdamW's pilot, or None if its best rate is at no end."""
    known = rates(losses, Cell(task, "adamw", steps, PILOT_SEED))
    missing = [rate for rate in PILOT_RATES if rate not in known]
    if missing:
        return missing[0]
    return _beyond(known, min(known, key=lambda rate: known[rate]))


def _beyond(known: Mapping[float, float], best: float) -> float | None:
    if best == max(known):
        return 2 * best
    return best / 2 if best == min(known) else None


def level(
    losses: Losses, task: str, steps: int, share: float = PRIMARY
) -> float | None:
    """Returns the task loss of the comparison, or None before the pilot is complete."""
    start = losses.get(Run(task, START))
    if start is None or pilot_rate(losses, task, steps) is not None:
        return None
    known = rates(losses, Cell(task, "adamw", steps, PILOT_SEED))
    return start - share * (start - min(known.values()))


def bracket(known: Mapping[float, float], wanted: float) -> tuple[float, float] | None:
    """Returns the two neighbouring rates whose task losses enclose another.

    Only rates up to the best one are used, below which a higher rate learns more.

    Args:
      known: task losses by rate, ascending.
      wanted: the task loss.
    """
    best = min(known, key=lambda rate: known[rate], default=0.0)
    for low in known:
        if 2 * low <= best and known[low] >= wanted >= known.get(2 * low, math.inf):
            return low, 2 * low
    return None


def next_rate(
    known: Mapping[float, float], wanted: float, first: float
) -> float | None:
    """Returns the rate that a cell tries next; None if it is complete or failed."""
    if not known:
        return first
    if bracket(known, wanted):
        return None
    best = min(known, key=lambda rate: known[rate])
    if known[best] <= wanted:
        return min(known) / 2 if min(known) > LOWEST_RATE else None
    # No run has learned enough, so the search continues at the best end.
    return _beyond(known, best) if len(known) < MOST_RATES else None


def first_rate(losses: Losses, cell: Cell) -> float:
    """Returns the first rate of a cell: the lower one that another seed needed."""
    wanted = level(losses, cell.task, cell.steps)
    if wanted is not None:
        for seed in (PILOT_SEED, *SEEDS):
            known = rates(losses, dataclasses.replace(cell, seed=seed))
            if found := bracket(known, wanted):
                return found[0]
    return METHODS[cell.method].first


def next_run(losses: Losses, cell: Cell) -> Run | None:
    """Returns the run that a cell needs next, or None if it is complete."""
    wanted = level(losses, cell.task, cell.steps)
    if wanted is None:
        return None
    rate = next_rate(rates(losses, cell), wanted, first_rate(losses, cell))
    return None if rate is None else cell.at(rate)


@dataclasses.dataclass(frozen=True)
class Step:
    """One step of the protocol.

    Attributes:
      name: its name.
      cells: its comparisons, in order.
    """

    name: str
    cells: Sequence[Cell]


def steps(
    budget: Budget, tasks: Iterable[str], comparator: str = "adamw"
) -> list[Step]:
    """Returns the steps of the protocol that are runs of one model, in order.

    Args:
      budget: the length of runs.
      tasks: the tasks whose data are available, the main one first.
      comparator: the method that all others are compared with.
    """
    main, *others = tasks

    def cells(
        task: str, length: int, seeds: Iterable[int], names: Iterable[str]
    ) -> list[Cell]:
        return [Cell(task, name, length, seed) for seed in seeds for name in names]

    short, long = budget.short, budget.long
    # The pilots of AdamW define the levels, also for another comparator.
    own = tuple(dict.fromkeys(("adamw", comparator)))
    claimed = (*own, *RULE, *COMBINED)
    return [
        Step("pilots", [Cell(main, "adamw", short, PILOT_SEED)]),
        Step("choice", cells(main, short, (PILOT_SEED,), CANDIDATES)),
        Step("settings", cells(main, short, (PILOT_SEED,), SETTINGS)),
        Step("rivals", cells(main, short, (PILOT_SEED,), RIVALS)),
        Step("confirmation", cells(main, short, (0, *SEEDS), (*claimed, "mofo"))),
        Step("controls", cells(main, short, CONTROL_SEEDS, ("adamw", *CONTROLS))),
        *(
            Step(
                f"confirmation, {task}",
                cells(task, short, (0, *SEEDS), (*claimed, "mofo")),
            )
            for task in others
        ),
        Step("long runs, MoFO", cells(main, long, (0, *SEEDS), (*own, "mofo"))),
        *(
            Step(f"long runs, {task}", cells(task, long, (0, *SEEDS[:3]), claimed))
            for task in (main, *others)
        ),
        Step("replay", cells(main, short, (0, *SEEDS), (*own, *REPLAY))),
        Step("equal time", cells(main, short, (0, *SEEDS), (*own, *EQUAL_TIME))),
    ]


def missing(losses: Losses, plan: Sequence[Step]) -> Iterator[tuple[Step, Run]]:
    """Yields the next runs, for each cell of each step in order."""
    seen = set()
    for step in plan:
        for cell in step.cells:
            run = _needed(losses, cell)
            if run is not None and run not in seen:
                seen.add(run)
                yield step, run


def _needed(losses: Losses, cell: Cell) -> Run | None:
    if Run(cell.task, START) not in losses:
        return Run(cell.task, START)
    rate = pilot_rate(losses, cell.task, cell.steps)
    if rate is not None:
        return Cell(cell.task, "adamw", cell.steps, PILOT_SEED).at(rate)
    return next_run(losses, cell)


def runs_left(losses: Losses, plan: Sequence[Step]) -> dict[str, list[Run]]:
    """Returns the fewest runs that each step still needs, two per cell.

    Returns:
      Runs by the step's name; rates that are not known yet are 0.
    """
    left: dict[str, list[Run]] = {}
    seen: set[Cell] = set()
    for step in plan:
        found = left.setdefault(step.name, [])
        for cell in (cell for cell in step.cells if cell not in seen):
            seen.add(cell)
            wanted = level(losses, cell.task, cell.steps)
            known = rates(losses, cell)
            needed = next_run(losses, cell) is not None or wanted is None
            found += [cell.at(0.0)] * (max(1, 2 - len(known)) if needed else 0)
    return left
