"""The inverse input covariance in Levanter's trainer."""

import pathlib

import jax
import numpy as np
import optax
import pytest

from tests.helpers import assert_same_bits
from tests.trainers.comparing import DAMPING, check_two_processes
from tests.trainers.levanter import levanter_runs


def test_the_first_step_is_adams_times_the_inverse(tmp_path: pathlib.Path) -> None:
    levanter_runs.check_scaled_step(str(tmp_path))


def test_a_run_continues_from_a_checkpoint(tmp_path: pathlib.Path) -> None:
    covariances, optimizer = levanter_runs.inverse()
    whole = levanter_runs.run_in(str(tmp_path / "whole"), optimizer, 4)
    levanter_runs.run_in(str(tmp_path / "parts"), optimizer, 2)
    # The matrices come from the checkpoint, so another damping changes nothing.
    again, other = levanter_runs.inverse_in(str(tmp_path / "parts"), 10 * DAMPING)
    parts = levanter_runs.run_in(str(tmp_path / "parts"), other, 4)
    # The first two steps were not repeated.
    assert parts.losses == whole.losses[2:]
    for path, param in whole.params.items():
        np.testing.assert_array_equal(parts.params[path], param, path)
    # They are those of the base model, although the run has begun.
    assert_same_bits(jax.tree.leaves(again), jax.tree.leaves(covariances))


def test_two_sharded_axes_are_refused() -> None:
    mesh = jax.make_mesh(
        (1, 1), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2
    )
    places = jax.NamedSharding(mesh, jax.P("a", "b"))
    with pytest.raises(ValueError, match=r"at most one axis .* for shape \(2, 3\)"):
        levanter_runs.train.with_names(
            optax.identity(), jax.device_put(np.ones((2, 3)), places)
        )


def test_two_processes_take_the_same_step(tmp_path: pathlib.Path) -> None:
    check_two_processes("levanter", tmp_path)
