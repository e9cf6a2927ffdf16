"""Every run of the study, in the order in which they are most useful."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any

from examples.study.budget import Budget
from examples.study.methods import METHODS, WISE_SHARES

BASE = "base"  # as a task: a start, which is taught nothing
TEXTS = ("prose", "code")  # what is to be retained, as general text
# The stages of the continual runs, which are one run each under this task's name.
SEQUENCE = "sequence"
STAGES = ("gsm8k", "medicine", "programs")
REPLAYED = 0.2  # share of a stage's rows that come from earlier tasks
FIRST = ("adamw", "mofo", "padam", "mofo_update", "mofo_gain")
# The seeds and a longer run are for these, each at one rate.
FINALISTS = {"adamw": 1e-4, "mofo": 1e-4, "l2_strong": 2e-4, "padam": 1e-4}
# Those whose first row raised a question that a sweep answers.
QUESTIONS = ("l2_strong", "l2", "mofo_random")
SEEDS = (1, 2)
LONGER = 10
# What the finalists' longer runs leave open: AdamW's front, and a pull that lets more
# be learned.
MORE_LONGER = (
    *(("adamw", 5e-5), ("l2", 2e-4), ("mofo", 5e-5)),
    *(("adamw", 2.5e-5), ("l2_weak", 1e-4)),
)
# The tasks beside the main one, those least like it first, and the methods that go
# first on them.
OTHERS = ("medicine", "problems", "metamath")
RIVALS = ("adamw", "mofo", "l2_strong")
# What of a method's options goes into a row's key.
DECISIVE = (
    *("update_fraction", "exponent", "strength", "damping", "lora", "rest", "b1", "b2"),
    *("eps", "weight_decay", "clip_norm", "schedule"),
)


@dataclasses.dataclass(frozen=True)
class Run:
    """One row's settings, beside the budget's.

    Attributes:
      task: what is learned.
      method: a key of `methods.METHODS`.
      rate: the peak learning rate.
      seed: decides the order of the examples and what a method draws.
      times: how many times longer than a short run.
      share: of the way from the start to the trained parameters.
      replay: the share of rows from earlier tasks.
      healed: whether training starts from the healed model.
    """

    task: str
    method: str
    rate: float
    seed: int = 0
    times: int = 1
    share: float = 1.0
    replay: float = 0.0
    healed: bool = True

    @property
    def trained(self) -> "Run":
        """The run whose training gives this one's parameters."""
        if self.method != "wise":
            return self
        return dataclasses.replace(self, method="adamw", share=1.0)

    def key(self, budget: Budget) -> dict[str, Any]:
        """All that decides the row, as JSON."""
        method = METHODS[self.method]
        config = method.config(self.seed)
        return {
            **dataclasses.asdict(self),
            "optimizer": method.optimizer,
            "options": {name: getattr(config, name) for name in DECISIVE},
            "budget": dataclasses.asdict(budget),
        }


def plan(tasks: Iterable[str], *, sequence: bool) -> list[Run]:
    """The runs that the given tasks allow.

    Args:
      tasks: those whose data is there, the main one first.
      sequence: whether the stages of the continual runs are there.

    Returns:
      Different runs: first the fronts of the main task, then a rate or more of every
      method, then everything else.
    """
    main, *rest = tasks
    others = [task for task in OTHERS if task in rest]
    parts = (
        _sweeps(main, FIRST),
        [Run(BASE, "adamw", 0.0, healed=False)],  # To tell what healing changed.
        _one_rate_each(main),
        _sweeps(main, ("mofo_0.05", "mofo_0.4", "padam_1")),
        _seeds(main),
        _sequences() if sequence else (),
        _wise(main, (0.25, 0.75)),
        _sweeps(main, QUESTIONS),
        _longer(main, FINALISTS.items()),
        _sweeps(main, METHODS),
        _longer(main, MORE_LONGER),
        *(_sweeps(task, RIVALS) for task in others),
        [Run(main, "adamw", rate, healed=False) for rate in METHODS["adamw"].rates],
        *(_sweeps(task, FIRST) for task in others),
        *(_sweeps(task, METHODS) for task in others),
        *(_wise(task, WISE_SHARES) for task in others),
        *(_seeds(task) for task in others),
    )
    return list(dict.fromkeys(run for part in parts for run in part))


def _sweeps(task: str, methods: Iterable[str]) -> Iterator[Run]:
    for method in methods:
        if method != "wise":
            yield from (Run(task, method, rate) for rate in METHODS[method].rates)


def _one_rate_each(task: str) -> Iterator[Run]:
    for name, method in METHODS.items():
        if name == "wise":
            yield from _wise(task, (0.5,))
        else:
            yield Run(task, name, method.rates[len(method.rates) // 2])


def _wise(task: str, shares: Iterable[float]) -> Iterator[Run]:
    (rate,) = METHODS["wise"].rates
    return (Run(task, "wise", rate, share=share) for share in shares)


def _seeds(task: str) -> Iterator[Run]:
    for seed in SEEDS:
        yield from (Run(task, name, rate, seed) for name, rate in FINALISTS.items())


def _longer(task: str, rates: Iterable[tuple[str, float]]) -> Iterator[Run]:
    for name, rate in rates:
        yield Run(task, name, rate, times=LONGER)


def _sequences() -> Iterator[Run]:
    for method, replay in (
        ("adamw", 0.0),
        ("mofo", 0.0),
        ("half", 0.0),
        ("adamw", REPLAYED),
        ("mofo", REPLAYED),
    ):
        yield Run(SEQUENCE, method, 1e-4, replay=replay)
