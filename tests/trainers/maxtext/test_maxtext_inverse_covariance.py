"""The inverse input covariance in MaxText's pre-training."""

import pathlib

import numpy as np

from tests.trainers.comparing import DAMPING, check_two_processes
from tests.trainers.maxtext import maxtext_runs


def test_the_first_step_is_adams_times_the_inverse(tmp_path: pathlib.Path) -> None:
    assert len(maxtext_runs.check_scaled_step(tmp_path, "scan_layers=true")) == 5


def test_a_run_continues_from_a_checkpoint(tmp_path: pathlib.Path) -> None:
    _, make = maxtext_runs.inverse(str(tmp_path), "scan_layers=true")
    given = "scan_layers=true", "opt_type=mofo"
    whole = maxtext_runs.run_program(tmp_path, "whole", *given, make=make)
    maxtext_runs.run_program(tmp_path, "parts", *given, steps=2, make=make)
    # The matrices come from the checkpoint, so another damping changes nothing.
    _, other = maxtext_runs.inverse(
        str(tmp_path), "scan_layers=true", damping=10 * DAMPING
    )
    parts = maxtext_runs.run_program(tmp_path, "parts", *given, make=other)
    assert parts.losses == whole.losses
    for path, param in whole.params[-1].items():
        np.testing.assert_array_equal(parts.params[-1][path], param, path)


def test_two_processes_take_the_same_step(tmp_path: pathlib.Path) -> None:
    check_two_processes("maxtext", tmp_path)
