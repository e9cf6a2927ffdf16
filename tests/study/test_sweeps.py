"""Fronts, levels and correlations of made-up rows, against what they must be."""

import itertools
import math

import numpy as np
import pytest

from examples.study import sweeps
from examples.study.evidence import Evidence
from tests.study import made_rows


def test_front_is_what_nothing_beats():
    points = [(1.0, 5.0), (2.0, 3.0), (2.0, 4.0), (3.0, 3.5), (4.0, 1.0), (0.5, 9.0)]
    assert sweeps.front(points) == [5, 0, 1, 4]
    random = np.random.RandomState(0).rand(30, 2)
    beaten = {
        place
        for place, other in itertools.permutations(range(30), 2)
        if (random[other] <= random[place]).all()
    }
    found = sweeps.front([tuple(point) for point in random.tolist()])
    assert set(found) == set(range(30)) - beaten
    assert sweeps.front([]) == []


def test_matched_lies_between_the_neighbours():
    losses = [np.array([2.0]), np.array([1.0]), np.array([0.5]), np.array([0.9])]
    others = [np.array([0.0]), np.array([4.0]), np.array([10.0]), np.array([99.0])]
    for level, wanted in ((2.0, 0.0), (1.25, 3.0), (1.0, 4.0), (0.6, 8.8), (0.5, 10)):
        found = sweeps.matched(losses, others, np.array([level]))
        np.testing.assert_allclose(found, [wanted])
    for level in (2.1, 0.49):  # Beyond the sweep, on either side.
        assert math.isnan(sweeps.matched(losses, others, np.array([level]))[0])


def test_matched_goes_draw_by_draw():
    losses = [np.array([2.0, 4.0, 2.0]), np.array([1.0, 2.0, 1.8])]
    others = [np.array([0.0, 0.0, 0.0]), np.array([1.0, 1.0, 1.0])]
    found = sweeps.matched(losses, others, np.array([1.5, 3.5, 1.5]))
    np.testing.assert_allclose(found, [0.5, 0.25, np.nan])


def test_one_row_or_none_reaches_nothing():
    level = np.array([1.0])
    assert math.isnan(sweeps.matched([], [], level)[0])
    assert math.isnan(sweeps.matched([level], [level], level)[0])


def test_levels_are_shares_of_what_adamw_learned():
    evidence = Evidence(made_rows.rows())
    # It learned 1 of the start's 2, at its middle rate.
    found = {
        share: level[0] for share, level in sweeps.levels(evidence, "problems").items()
    }
    assert found == pytest.approx({0.9: 1.1, 0.95: 1.05, 0.98: 1.02})
    assert sweeps.levels(Evidence([made_rows.base()]), "problems") == {}


def test_methods_at_equal_loss():
    evidence = Evidence(made_rows.rows())
    level = sweeps.levels(evidence, "problems")[0.9]
    found = sweeps.matches(evidence, "problems", "mofo", level)
    # 1.1 lies half way along AdamW's branch and two thirds along MoFO's.
    adamw, mofo = 0.01 * 4**0.5, 0.005 * 4 ** (2 / 3)
    assert found.divergence[0] == pytest.approx(mofo)
    assert found.ratio[0] == pytest.approx(mofo / adamw)
    assert found.increase[0] == pytest.approx(0.2)
    assert found.difference[0] == pytest.approx(0.0)
    missing = sweeps.matches(evidence, "problems", "half", level)
    assert math.isnan(missing.ratio[0])


def test_wise_ends_in_the_run_that_it_interpolates():
    wise = [made_rows.row("wise", 4e-4, 1.5, 0.001, share=s) for s in (0.5, 0.25)]
    found = sweeps.sweep(Evidence(made_rows.rows() + wise), "problems", "wise")
    shares = [(row["key"]["method"], row["key"]["share"]) for row in found]
    assert shares == [("wise", 0.25), ("wise", 0.5), ("adamw", 1.0)]
    assert found[-1]["key"]["rate"] == 4e-4


def test_rank_correlation_is_that_of_the_ranks():
    first = [0.1, 5.0, 2.0, 2.0, 9.0, 7.0]
    second = [3.0, 1.0, 4.0, 1.0, 5.0, 9.0]
    # Ties take the mean of their places.
    ranks = [1, 4, 2.5, 2.5, 6, 5], [3, 1.5, 4, 1.5, 5, 6]
    wanted = np.corrcoef(*ranks)[0, 1]
    value, (low, high) = sweeps.rank_correlation(first, second)
    assert value == pytest.approx(wanted)
    assert low < value < high
    value, (low, high) = sweeps.rank_correlation(range(9), [x**3 for x in range(9)])
    assert (value, low, high) == pytest.approx((1, 1, 1))
    assert math.isnan(sweeps.rank_correlation([1, 2, 3], [1, 2, 3])[0])


def test_sign_test_is_the_binomial_tail():
    # All of five changes one way: twice the chance of five heads.
    assert sweeps.sign_test(5, 0) == pytest.approx(2 / 2**5)
    tail = sum(math.comb(9, k) for k in (0, 1, 2)) / 2**9
    assert sweeps.sign_test(2, 7) == pytest.approx(2 * tail)
    assert sweeps.sign_test(0, 0) == 1


def test_interval_over_seeds_is_students():
    mean, (low, high) = sweeps.over_seeds([1.0, 2.0, 6.0])
    half = 4.302653 * np.std([1.0, 2.0, 6.0], ddof=1) / np.sqrt(3)
    assert (mean, low, high) == pytest.approx((3.0, 3.0 - half, 3.0 + half), rel=1e-6)
    assert sweeps.over_seeds([0.0, 0.0]) == (0.0, (0.0, 0.0))
    assert math.isnan(sweeps.over_seeds([1.0])[1][0])
