"""The order of runs."""

import dataclasses
import math
import pathlib
from typing import Any

import pytest

from examples.finetune.command.errors import InputError
from examples.finetune.training.optimizers import OPTIMIZERS
from examples.study import __main__ as command
from examples.study import deciding, options, plan, rows, study
from examples.study.budget import BUDGETS
from examples.study.methods import METHODS, REPLAY
from examples.study.plan import Cell, Run

START = Run("gsm8k", plan.START)
PILOT = Cell("gsm8k", "adamw", 24, 0)
CELL = Cell("gsm8k", "mofo", 24, 11)
RATES = [2e-4, 4e-4]


def learned(rate: float, best: float = 1e-4, depth: float = 1.0) -> float:
    """A task loss that is lowest at the best rate."""
    return 2 - depth + 0.1 * math.log2(rate / best) ** 2


def done(cell: Cell, rates: list[float], best: float = 1e-4) -> dict[Run, float]:
    return {cell.at(rate): learned(rate, best) for rate in rates}


def test_the_pilot_continues_until_its_best_rate_is_at_no_end():
    assert plan.pilot_rate({}, "gsm8k", 24) == 5e-5
    for best, more in ((1e-4, []), (2e-4, [4e-4]), (2.5e-5, [2.5e-5, 1.25e-5])):
        losses = {START: 2.0}
        tried = []
        while (rate := plan.pilot_rate(losses, "gsm8k", 24)) is not None:
            assert plan.level(losses, "gsm8k", 24) is None
            tried.append(rate)
            losses |= done(PILOT, [rate], best)
        assert tried == [*plan.PILOT_RATES, *more]
        # 95% of the reduction by the best rate.
        assert plan.level(losses, "gsm8k", 24) == pytest.approx(2 - 0.95)
        assert plan.level(losses, "gsm8k", 24, 0.9) == pytest.approx(2 - 0.9)


@pytest.mark.parametrize("best", [2.5e-5, 1e-4, 4e-4, 1.6e-3])
def test_a_cell_searches_until_the_level_is_between_two_rates(best: float):
    known: dict[float, float] = {}
    wanted = learned(best, best) + 0.05
    while (rate := plan.next_rate(known, wanted, 1e-4)) is not None:
        known = dict(sorted({**known, rate: learned(rate, best)}.items()))
    low, high = plan.bracket(known, wanted) or (0.0, 0.0)
    assert high == 2 * low == best
    assert len(known) <= plan.MOST_RATES


def test_a_cell_that_cannot_learn_enough_gives_up():
    known: dict[float, float] = {}
    while (rate := plan.next_rate(known, 0.9, 1e-4)) is not None:
        known = dict(sorted({**known, rate: learned(rate)}.items()))
    assert plan.bracket(known, 0.9) is None
    # Neither a higher nor a lower rate helped.
    assert list(known) == [5e-5, 1e-4, 2e-4]


def test_a_cell_that_learns_enough_at_every_rate_goes_on():
    # Such as a pilot whose best rate is high.
    known = {1e-4 * 2.0**k: 0.1 - 0.01 * k for k in range(-3, 5)}
    assert plan.next_rate(known, 0.5, 1e-4) == 1e-4 / 16
    while (rate := plan.next_rate(known, 0.5, 1e-4)) is not None:
        known = {rate: 0.1, **known}
        run = CELL.at(rate)
        assert rows.parse(str(run)) == run
    assert rows.parse(str(CELL.at(min(known) / 2))) != CELL.at(min(known) / 2)


def test_a_bracket_is_where_a_higher_rate_learns_more():
    # Beyond the best rate the level is crossed again.
    known = {5e-5: 1.2, 1e-4: 1.0, 2e-4: 1.3}
    assert plan.bracket(known, 1.1) == (5e-5, 1e-4)
    assert plan.bracket({1e-4: 1.0, 2e-4: 1.3}, 1.1) is None
    # Nor does it count where the loss falls again beyond it.
    assert plan.bracket({1e-4: 0.8, 2e-4: 1.0, 4e-4: 0.85}, 0.9) is None


def test_seeds_begin_where_others_ended():
    losses = {START: 2.0} | done(PILOT, [5e-5, 1e-4, 2e-4])
    own = Cell("gsm8k", "mofo", 24, 0)
    assert plan.next_run(losses, CELL) == CELL.at(METHODS["mofo"].first)
    losses |= done(own, [2e-4, 4e-4], best=4e-4)
    assert plan.next_run(losses, CELL) == CELL.at(2e-4)
    losses |= done(CELL, [2e-4, 4e-4], best=4e-4)
    assert plan.next_run(losses, CELL) is None
    # Without seed 0 too.
    losses = {run: loss for run, loss in losses.items() if run not in done(own, RATES)}
    after = dataclasses.replace(CELL, seed=12)
    assert plan.next_run(losses, after) == after.at(2e-4)


def test_the_plan_runs_to_its_end_round_by_round():
    steps = plan.steps(BUDGETS["cpu"], ("gsm8k", "json", "docstrings"))
    losses: dict[Run, float] = {}
    order, rounds = [], {step.name: [] for step in steps}
    while (found := next(plan.missing(losses, steps), None)) is not None:
        step, run = found
        assert run not in losses
        order.append(run)
        rounds[step.name].append(run.seed)
        losses[run] = 2.0 if run.method == plan.START else learned(run.rate)
    assert order[0] == START
    assert [run.rate for run in order[1:4]] == list(plan.PILOT_RATES)
    assert not any(plan.runs_left(losses, steps).values())
    cells = {cell for step in steps for cell in step.cells}
    assert len(order) >= 2 * len(cells)
    assert all(seeds == sorted(seeds) for seeds in rounds.values())
    for name in ("confirmation", "long runs, MoFO", "replay", "equal time"):
        assert set(plan.SEEDS) <= set(rounds[name]) <= {0, *plan.SEEDS}


def test_what_is_claimed_is_run_in_every_task_and_length():
    budget = BUDGETS["cpu"]
    every = plan.steps(budget, deciding.TASKS, comparator="adamw_b2")
    cells = {cell for step in every for cell in step.cells}
    compared = ("adamw", "adamw_b2", *(claim.method for claim in deciding.CLAIMS))
    for task in deciding.TASKS:
        for steps, seeds in ((budget.short, plan.SEEDS), (budget.long, (11, 12, 13))):
            for seed in seeds:
                assert {Cell(task, name, steps, seed) for name in compared} <= cells


def test_the_plan_lists_the_remaining_runs():
    steps = plan.steps(BUDGETS["cpu"], ("gsm8k",))
    cells = {cell for step in steps for cell in step.cells}
    left = plan.runs_left({}, steps)
    assert sum(map(len, left.values())) == 2 * len(cells)
    losses = {START: 2.0} | done(PILOT, [5e-5, 1e-4, 2e-4])
    left = plan.runs_left(losses, steps)
    # The pilot's cell has its two rates; the long runs have no level yet.
    assert sum(map(len, left.values())) == 2 * len(cells) - 2


def test_methods_use_existing_optimizers():
    for method in METHODS.values():
        assert method.optimizer in OPTIMIZERS
        assert 0 < method.warmup < 1
    keys = [str(method.key()) for method in METHODS.values()]
    assert len(set(keys)) == len(keys)
    # The keys of methods without replay do not mention it.
    replaying = [name for name in METHODS if "replay_every" in METHODS[name].key()]
    assert replaying == [*REPLAY]


def test_the_stored_rows_have_the_keys_of_the_methods():
    # A row is found again only by exactly the settings of its method.
    stored = [
        row for file in options.RESULTS.rglob(rows.NAME) for row in rows.read(file)
    ]
    for row in stored:
        run = rows.run_of(row)
        if run.method != plan.START:
            assert row["key"]["method"] == METHODS[run.method].key(), run
        assert row["key"]["protocol"] == study.protocol()
    assert len(stored) > 5


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--hours", "-1"], r"--hours must be >= 0, got -1"),
        (["--data", "/nowhere"], r"--data must be a directory, got /nowhere"),
        (["--method", "sgd"], r"--method must be of adamw, .*, got 'sgd'"),
    ],
)
def test_wrong_options(given: list[str], message: str):
    with pytest.raises(InputError, match=message):
        options.parse(given)


def test_the_plan_has_hours(
    tmp_path: pathlib.Path,
    tiny_model: pathlib.Path,
    capsys: pytest.CaptureFixture[str],
):
    given = ["--model", str(tiny_model), "--budget", "smallest", "--plan"]
    assert command.main([*given, "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "choice: at least 14 runs, 0.0 hours" in told
    assert "0 rows are stored" in told
    choice = [*given, "--step", "choice", "--method", "inverse"]
    assert command.main([*choice, "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "choice: at least 2 runs" in told and "controls" not in told
    assert command.main([*given, "--step", "cooking"]) == 2
    assert "--step must be of pilots, choice, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "name"), [("task", ("cooking",)), ("screen", "cooking")]
)
def test_an_unknown_task_is_refused(
    tmp_path: pathlib.Path, tiny_model: pathlib.Path, option: str, name: Any
):
    given = study.Options(model=str(tiny_model), output=tmp_path, **{option: name})
    with pytest.raises(
        InputError, match=rf"--{option} must be of json, docstrings, got 'cooking'"
    ):
        study.Study(given, study.budget_of(given))
