"""Means and intervals of made-up rows."""

import math

import numpy as np
import pytest

from examples.study.evidence import DRAWS, Evidence, against_each_other, interval
from tests.study import made_rows


def test_means_count_every_token_once():
    row = made_rows.row("adamw", 1e-4, 1.5, 0.02, 0.25, spread=0.3)
    row["sets"]["code"] = {"losses": [8.0, 10.0], "divergences": [0.1, 0.4]}
    evidence = Evidence([made_rows.base(), row])
    assert evidence.task_loss(row)[0] == pytest.approx(1.5)
    assert evidence.base_loss(row)[0] == pytest.approx(2.0)
    assert evidence.prompt_divergence(row)[0] == pytest.approx(0.01)
    # Prose 0.02 and code 0.5 over 5 tokens; prose 0.25 and code 18 / 5 less 3.
    assert evidence.divergence(row)[0] == pytest.approx((0.02 + 0.1) / 2)
    assert evidence.increase(row)[0] == pytest.approx((0.25 + 0.6) / 2)
    assert evidence.flips(row) == (1, 1)


def test_draws_are_of_items_and_are_paired():
    rows = [made_rows.row("adamw", r, 1.5 + r, 0.02, spread=0.3) for r in (0.1, 0.2)]
    evidence = Evidence([made_rows.base(), *rows])
    first, second = (evidence.task_loss(row) for row in rows)
    assert first.shape == (1 + DRAWS,)
    # Two items: a draw is one of them twice, or both.
    wanted = {1.6 + 0.15, 1.6 - 0.1, 1.6}
    assert set(np.round(first, 9)) == {round(value, 9) for value in wanted}
    low, high = interval(first)
    assert (low, high) == pytest.approx((1.5, 1.75))
    np.testing.assert_allclose(interval(second - first), (0.1, 0.1))
    np.testing.assert_allclose(
        [interval(one) for one in against_each_other([first, second])],
        [(1.6, 1.6), (1.7, 1.7)],
    )


def test_interval_agrees_with_the_normal_theory():
    random = np.random.RandomState(3)
    values = random.exponential(size=200)
    row = made_rows.row("adamw", 1e-4, 1.0, 0.1)
    row["sets"]["problems"]["losses"] = values.tolist()
    base = made_rows.base()
    base["counts"]["problems"]["losses"] = [1] * 200
    low, high = interval(Evidence([base, row]).task_loss(row))
    half = 1.96 * values.std() / math.sqrt(200)
    assert (low, high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.2 * half
    )


def test_no_interval_where_few_draws_reach():
    values = np.concatenate([[1.0], np.ones(900), np.full(100, np.nan)])
    assert all(map(math.isnan, interval(values)))
    values[901:980] = 1.0
    assert interval(values) == (1.0, 1.0)


def test_runs_of_other_seeds_and_lengths_stay_apart():
    rows = [
        made_rows.base(),
        made_rows.row("mofo", 2e-4, 1.0, 0.1),
        made_rows.row("adamw", 2e-4, 1.0, 0.1),
        made_rows.row("adamw", 1e-4, 1.0, 0.1),
        made_rows.row("adamw", 2e-4, 1.0, 0.1, seed=1),
        made_rows.row("adamw", 2e-4, 1.0, 0.1, times=10),
        made_rows.row("adamw", 2e-4, 1.0, 0.1, healed=False),
    ]
    evidence = Evidence(rows)
    assert evidence.runs("problems") == [rows[3], rows[2], rows[1]]
    assert evidence.runs("problems", seed=None, method="adamw", rate=2e-4) == [
        rows[2],
        rows[4],
    ]
    assert evidence.runs("problems", times=10) == [rows[5]]
    assert evidence.tasks() == ["problems"]
