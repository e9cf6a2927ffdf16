"""The inverse input covariance in Kauldron's trainer."""

import pathlib

import numpy as np

from tests.trainers.comparing import check_two_processes
from tests.trainers.kauldron import kauldron_runs


def test_the_first_step_is_adams_times_the_inverse(tmp_path: pathlib.Path) -> None:
    kauldron_runs.check_scaled_step(tmp_path)


def test_a_run_continues_from_a_checkpoint(tmp_path: pathlib.Path) -> None:
    whole, _ = kauldron_runs.run_inverse(tmp_path / "whole", steps=4)
    kauldron_runs.run_inverse(tmp_path / "parts", steps=2)
    # Without the checkpoint, matrices of abstract covariances would be NaN.
    parts, _ = kauldron_runs.run_inverse(tmp_path / "parts", steps=4, abstract=True)
    np.testing.assert_array_equal(parts.losses, whole.losses)
    for path, param in whole.params[-1].items():
        np.testing.assert_array_equal(parts.params[-1][path], param, path)


def test_two_processes_take_the_same_step(tmp_path: pathlib.Path) -> None:
    check_two_processes("kauldron", tmp_path)
