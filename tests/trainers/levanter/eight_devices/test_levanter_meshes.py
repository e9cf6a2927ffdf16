"""Levanter on eight devices, with its default mesh: fully sharded data parallelism."""

import importlib
import pathlib
from typing import Any

import jax
import pytest


@pytest.fixture(scope="module")
def levanter_runs() -> Any:
    """Imported here, so that the tests are found, and skipped, without Levanter."""
    return importlib.import_module("tests.trainers.levanter.levanter_runs")


def test_a_fraction_of_one_trains_as_adam_does(levanter_runs: Any) -> None:
    levanter_runs.check_everything_is_adam()


def test_the_first_step_moves_what_numpy_selects(levanter_runs: Any) -> None:
    levanter_runs.check_first_step()


def test_matrices_are_sharded_and_scale_the_first_step(
    levanter_runs: Any, tmp_path: pathlib.Path
) -> None:
    state = levanter_runs.check_scaled_step(str(tmp_path))
    matrices = jax.tree.leaves(state[1])
    assert len(matrices) == 5
    for matrix in matrices:
        rows = matrix.sharding.shard_shape(matrix.shape)[-2]
        assert rows == matrix.shape[-2] // 8
