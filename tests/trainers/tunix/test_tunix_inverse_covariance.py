"""The inverse input covariance in Tunix's trainer."""

import pathlib

import jax
import numpy as np

from tests.trainers.comparing import DAMPING, check_two_processes
from tests.trainers.tunix import tunix_runs
from tests.trainers.tunix.test_tunix_states import options


def test_the_first_step_is_adams_times_the_inverse() -> None:
    tunix_runs.check_scaled_step(1)


def test_a_run_continues_from_a_checkpoint(tmp_path: pathlib.Path) -> None:
    mesh = tunix_runs.tunix_trainer.make_mesh(jax.devices()[:1])
    _, optimizer = tunix_runs.inverse(mesh)
    tunix_runs.train(optimizer, **options(tmp_path, 2))
    # The matrices come from the checkpoint, so another damping changes nothing.
    _, other = tunix_runs.inverse(mesh, 10 * DAMPING)
    resumed = tunix_runs.train(other, **options(tmp_path, tunix_runs.STEPS))
    _, whole = tunix_runs.run_inverse(1)
    assert resumed.losses == whole.losses[2:]
    for path, param in whole.params[-1].items():
        np.testing.assert_allclose(
            resumed.params[-1][path], param, rtol=1e-5, atol=1e-7, err_msg=path
        )


def test_two_processes_take_the_same_step(tmp_path: pathlib.Path) -> None:
    check_two_processes("tunix", tmp_path)
