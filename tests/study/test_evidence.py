"""Means and intervals of rows made for the tests."""

import copy
import math
import pathlib

import matplotlib.image
import numpy as np
import pytest
import scipy.stats

from examples.finetune.command.errors import InputError
from examples.study import evidence, measuring, pictures, plan, tables, verdicts
from examples.study.comparing import (
    CODE,
    MARGINS,
    ON_PROMPTS,
    PROSE,
    PROSE_RISE,
    Compared,
    summary,
)
from examples.study.plan import Cell, Run
from examples.study.rows import check_start, comparable
from tests.study import made_rows
from tests.study.made_rows import STEPS, TASK


def test_means_count_every_token_once():
    row = made_rows.row("adamw", 1e-4, 1.5, 0.02, 0.25, spread=0.3)
    row["sets"]["code"] = {"losses": [8.0, 10.0], "divergences": [0.1, 0.4]}
    found = Compared([made_rows.start(), row])
    run = Run(TASK, "adamw", STEPS, 0, 1e-4)
    assert found.loss(run)[0] == pytest.approx(1.5)
    assert found.losses[run] == pytest.approx(1.5)
    assert math.exp(found.value(run, PROSE)[0]) == pytest.approx(0.02)
    assert math.exp(found.value(run, CODE)[0]) == pytest.approx(0.5 / 5)
    assert math.exp(found.value(run, ON_PROMPTS)[0]) == pytest.approx(0.01)
    assert found.value(run, PROSE_RISE)[0] == pytest.approx(0.25)
    assert found.value(run, MARGINS)[0] == pytest.approx((0.5 + 0.0) / 2)


def test_draws_are_of_items_and_are_paired():
    rows = [made_rows.row("adamw", r, 1.5 + r, 0.02, spread=0.3) for r in (0.1, 0.2)]
    found = Compared([made_rows.start(), *rows])
    first, second = (found.loss(Run(TASK, "adamw", STEPS, 0, r)) for r in (0.1, 0.2))
    assert first.shape == (1 + evidence.DRAWS,)
    # With two items, a draw has one of them twice, or both.
    wanted = {1.6 + 0.15, 1.6 - 0.1, 1.6}
    assert set(np.round(first, 9)) == {round(value, 9) for value in wanted}
    np.testing.assert_allclose(second - first, 0.1)


def test_intervals_over_items_agree_with_the_normal_theory():
    values = np.random.RandomState(3).exponential(size=200)
    made = evidence.estimate(evidence.mean("some", values, [1] * 200))
    half = 1.96 * values.std() / math.sqrt(200)
    assert made.value == pytest.approx(values.mean())
    assert made.low == pytest.approx(values.mean() - half, abs=0.2 * half)
    assert made.high == pytest.approx(values.mean() + half, abs=0.2 * half)


def test_intervals_over_seeds_are_students():
    numbers = [1.0, 1.3, 0.8, 1.1]
    nothing = np.full(1 + evidence.DRAWS, np.mean(numbers))
    made = evidence.estimate(nothing, evidence.pooled([numbers]), len(numbers))
    low, high = scipy.stats.t.interval(
        0.95, 3, loc=np.mean(numbers), scale=scipy.stats.sem(numbers)
    )
    assert (made.low, made.high) == pytest.approx((low, high))
    # Two methods of different means but equal spread: more degrees of freedom.
    pooled = evidence.pooled([numbers, [10 + number for number in numbers], [5.0]])
    assert pooled.freedom == 6
    assert pooled.variance == pytest.approx(np.var(numbers, ddof=1))
    alone = evidence.estimate(nothing, evidence.pooled([[1.0]]), 1)
    assert math.isnan(alone.low) and math.isnan(alone.high)


def test_students_quantile_applies_to_items_too():
    numbers = [1.0, 1.3, 0.8, 1.1]
    items = np.random.RandomState(3).normal(np.mean(numbers), 0.2, evidence.DRAWS)
    values = np.concatenate([[np.mean(numbers)], items])
    made = evidence.estimate(values, evidence.pooled([numbers]), len(numbers))
    variance = 0.2**2 + np.var(numbers, ddof=1) / len(numbers)
    half = scipy.stats.t.ppf(0.975, 3) * math.sqrt(variance)
    assert made.low == pytest.approx(made.value - half, rel=0.05)
    assert made.high == pytest.approx(made.value + half, rel=0.05)


def test_methods_are_compared_at_the_level():
    found = Compared(made_rows.rows())
    assert found.lengths == [(TASK, STEPS)]
    assert found.level(TASK, STEPS)[0] == pytest.approx(1.05)
    # The logarithm is half way between 0.01 and 0.04.
    own = found.at(Cell(TASK, "adamw", STEPS, 11), PROSE)
    assert own is not None and math.exp(own[0]) == pytest.approx(0.02)
    seeds = (11, 12, 13)
    ratio = found.mean(TASK, "mofo", STEPS, PROSE, "adamw", seeds)
    numbers = [math.log(0.5 * more) for more in (0.9, 1.0, 1.1)]
    low, high = scipy.stats.t.interval(
        0.95, 2, loc=np.mean(numbers), scale=scipy.stats.sem(numbers)
    )
    assert ratio is not None
    assert ratio.value == pytest.approx(math.exp(np.mean(numbers)))
    assert (ratio.low, ratio.high) == pytest.approx((math.exp(low), math.exp(high)))
    less = found.mean(TASK, "mofo", STEPS, PROSE_RISE, "adamw", seeds)
    assert less is not None and less.value == pytest.approx(0.1 - 0.2)
    rise = found.mean(TASK, "mofo", STEPS, PROSE_RISE, None, seeds)
    assert rise is not None and rise.value == pytest.approx(0.1)


def test_the_secondary_level():
    found = Compared(made_rows.rows(), plan.SECONDARY)
    # AdamW reduces the loss from 2 to 1, and has this loss at its lower rate.
    assert found.level(TASK, STEPS)[0] == pytest.approx(1.1)
    own = found.at(Cell(TASK, "adamw", STEPS, 11), PROSE)
    assert own is not None and math.exp(own[0]) == pytest.approx(0.01)
    text = "\n".join(tables.secondary(Compared(made_rows.rows())))
    assert "| AdamW | 3 | 0.0100 [" in text


def test_the_variance_over_seeds_is_that_of_all_methods():
    found = Compared(made_rows.rows())
    # Seed 0 has the level at three quarters of the way from 0.01 to 0.04.
    adamw = np.log([0.01 * 4**0.75, 0.02, 0.02, 0.02])
    mofo = np.log(np.array([0.9, 1.0, 1.1]) * 0.01)
    squares = sum(np.sum((one - one.mean()) ** 2) for one in (adamw, mofo))
    student = scipy.stats.t.ppf(0.975, 3 + 2)
    for method, numbers in (("adamw", adamw[1:]), ("mofo", mofo)):
        made = found.mean(TASK, method, STEPS, PROSE, None, (11, 12, 13))
        assert made is not None
        half = student * math.sqrt(squares / 5 / 3)
        expected = np.exp(numbers.mean() + np.array([0, -half, half]))
        np.testing.assert_allclose(made, expected)
    # A difference of two seeds has twice the variance of one.
    apart = found.apart(TASK, STEPS, PROSE, (11, 12))
    half = student * math.sqrt(2 * squares / 5)
    np.testing.assert_allclose(apart, np.exp([0, -half, half]))
    (line, *_) = (each for each in verdicts.apart(found) if "11 over 12" in each)
    assert line.startswith(f"| {TASK} {STEPS}, seed 11 over 12 | 1.00 [")


def test_variants_of_the_estimator():
    rows = [
        made_rows.start(),
        made_rows.row("adamw", 5e-5, 1.2, 0.01, spread=0.3),
        made_rows.row("adamw", 1e-4, 1.0, 0.04, spread=0.1),
        made_rows.row("adamw", 2e-4, 1.1, 0.16),
    ]
    cell = Cell(TASK, "adamw", STEPS, 0)
    usual, fixed = Compared(rows), Compared(rows, fixed=True)
    assert np.ptp(usual.level(TASK, STEPS)) > 0.01
    np.testing.assert_allclose(fixed.level(TASK, STEPS), 1.05)
    found = [one.at(cell, PROSE) for one in (usual, fixed)]
    assert found[0] is not None and found[1] is not None
    assert found[0][0] == found[1][0] and not np.allclose(*found)
    by_log = Compared(rows, scale=np.log).at(cell, PROSE)
    share = math.log(1.2 / 1.05) / math.log(1.2)
    assert by_log is not None
    assert by_log[0] == pytest.approx(math.log(0.01) + share * math.log(4))


def test_rows_with_other_data_are_not_compared():
    rows = made_rows.rows()
    other = copy.deepcopy(rows[1])
    other["key"]["data"] = "1"  # of another version of Python
    assert comparable(rows) == rows
    assert comparable([*rows, other]) == [other]
    assert comparable([other, *rows]) == rows
    # Each task has data of its own.
    other["key"]["run"] = other["key"]["run"].replace(TASK, "json")
    assert comparable([*rows, other]) == [*rows, other]


def test_the_time_of_a_step_is_compared_within_a_seed_and_undisturbed():
    rows, seeds = made_rows.rows(), (11, 12, 13)
    assert Compared(rows).cost(TASK, "mofo", STEPS, "adamw", seeds) == 2.0
    for row in rows:
        if "/11/5e-05" in row["key"]["run"] and "mofo" not in row["key"]["run"]:
            row["seconds_per_step"] *= 9  # by another program
        if "/13/" in row["key"]["run"]:
            row["seconds_per_step"] *= 3  # on a slower machine
    assert Compared(rows).cost(TASK, "mofo", STEPS, "adamw", seeds) == 2.0
    assert Compared(rows).cost(TASK, "inverse", STEPS, "adamw", seeds) is None
    # A run that was performed much later does not count.
    others = [made_rows.row("adamw_b2", 1e-6 * k, 1.2, 0.01) for k in range(1, 30)]
    late = made_rows.row("inverse", 1e-4, 1.0, 0.01, seed=11)
    assert Compared([*rows, late]).cost(TASK, "inverse", STEPS, "adamw", seeds) == 2.0
    rows += [*others, late]
    assert Compared(rows).cost(TASK, "inverse", STEPS, "adamw", seeds) is None


def test_single_runs_are_compared_at_their_own_task_loss():
    # AdamW's loss is 1.1 half way between two rates, where its KL is 0.02.
    run = Run(TASK, "inverse_blocks", STEPS, 0, 4e-4)
    rows = [*made_rows.rows(), made_rows.row(run.method, 4e-4, 1.1, 0.005, 0.3)]
    found = Compared(rows)
    ratio = found.at_own_loss(run, PROSE)
    assert ratio is not None and ratio.value == pytest.approx(0.25)
    rise = found.at_own_loss(run, PROSE_RISE)
    assert rise is not None and rise.value == pytest.approx(0.3)
    assert found.at_own_loss(Run(TASK, "adamw", STEPS, 0, 5e-5), PROSE) is not None
    (line,) = (line for line in tables.settings(found) if str(run) in line)
    assert "| 1.1000 | 0.25 [" in line
    # A loss that AdamW does not reach.
    rows.append(made_rows.row("inverse_rank", 4e-4, 0.9, 0.005))
    low = Run(TASK, "inverse_rank", STEPS, 0, 4e-4)
    assert Compared(rows).at_own_loss(low, PROSE) is None
    assert "inverse_rank" not in "\n".join(tables.settings(Compared(rows)))


def test_a_method_that_does_not_reach_the_level_has_no_line():
    rows = made_rows.rows()
    rows.append(made_rows.row("adamw_b2", 1e-4, 1.3, 0.01, seed=11))
    found = Compared(rows)
    assert found.at(Cell(TASK, "adamw_b2", STEPS, 11), PROSE) is None
    text = "\n".join(tables.first(found))
    assert "MoFO 0.15 | 3 |" in text and "b2" not in text
    # It is named once the search for it has ended.
    rows.append(made_rows.row("adamw_b2", 5e-5, 1.4, 0.01, seed=11))
    assert "b2" not in "\n".join(tables.first(Compared(rows)))
    rows.append(made_rows.row("adamw_b2", 2e-4, 1.4, 0.01, seed=11))
    text = "\n".join(tables.first(Compared(rows)))
    assert "The level is not reached by AdamW, b2 = 0.95 with seed 11." in text


def test_a_run_that_diverged_is_in_no_table():
    rows = made_rows.rows()
    text = tables.markdown(Compared(rows), [])
    for method in ("inverse", "replay", "mofo"):
        row = made_rows.row(method, 4e-4, 1.0, 0.01)
        for measured in row["sets"].values():
            measured.update({name: [None, None] for name in measured})
        rows.append(row | {"margins": [None, None]})
    assert tables.markdown(Compared(rows), []) == text
    shown = summary(rows[-1], rows[0])
    assert shown["task loss"] == math.inf and math.isnan(shown[PROSE.title])


def test_another_start_is_no_start_of_these_rows(tmp_path: pathlib.Path):
    kept = made_rows.start()
    check_start(tmp_path, kept, made_rows.start())
    other = made_rows.start()
    other["sets"][TASK]["losses"][0] += 0.01
    with pytest.raises(
        InputError, match=r"on docstrings is 2\.002000, and 2\.000000 in"
    ):
        check_start(tmp_path, kept, other)


def test_every_row_is_in_the_tables():
    text = tables.markdown(Compared(made_rows.rows()), [])
    for run in Compared(made_rows.rows()).rows:
        assert (f"`{run}`" in text) == (run.steps > 0)
    assert "| docstrings | 5 | 2 | 2 | 1 | 25.0% |" in text
    assert "5e-05: 1.2000, 0.0001: 1.0000, 0.0002: 1.1000" in text


def test_one_picture_per_task_and_length(tmp_path: pathlib.Path):
    assert pictures.draw(Compared(made_rows.rows()), tmp_path) == ["docstrings_24.png"]
    image = matplotlib.image.imread(tmp_path / "docstrings_24.png")
    assert image.shape[0] > 400 and image.shape[1] > 1000
    # The picture has more colours than black and white.
    assert len(np.unique(image[..., :3].reshape(-1, 3), axis=0)) > 50


def test_log_odds_are_of_the_right_choice():
    scores = np.array([[-1.0, -2.0, -3.0, -4.0], [-2.0, -2.0, -2.0, -2.0]])
    likely = np.exp(scores)
    share = likely[[0, 1], [1, 3]] / likely.sum(axis=1)
    wanted = np.log(share / (1 - share))
    np.testing.assert_allclose(measuring.log_odds(scores, [1, 3]), wanted)
