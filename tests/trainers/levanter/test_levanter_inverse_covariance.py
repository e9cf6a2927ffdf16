"""The inverse input covariance in Levanter's trainer."""

import pathlib

import numpy as np

from tests.trainers.comparing import check_two_processes
from tests.trainers.levanter import levanter_runs


def test_the_first_step_is_adams_times_the_inverse(tmp_path: pathlib.Path) -> None:
    levanter_runs.check_scaled_step(str(tmp_path))


def test_a_run_continues_from_a_checkpoint(tmp_path: pathlib.Path) -> None:
    _, optimizer = levanter_runs.inverse()
    whole = levanter_runs.run_in(str(tmp_path / "whole"), optimizer, 4)
    levanter_runs.run_in(str(tmp_path / "parts"), optimizer, 2)
    parts = levanter_runs.run_in(str(tmp_path / "parts"), optimizer, 4)
    # The first two steps were not repeated.
    assert parts.losses == whole.losses[2:]
    for path, param in whole.params.items():
        np.testing.assert_array_equal(parts.params[path], param, path)


def test_two_processes_take_the_same_step(tmp_path: pathlib.Path) -> None:
    check_two_processes("levanter", tmp_path)
