"""Kauldron on eight devices, with parameters sharded by its FSDP."""

import importlib
import pathlib
from typing import Any

import jax
import pytest


@pytest.fixture(scope="module")
def kauldron_runs() -> Any:
    """Imported here, so that tests are skipped without Kauldron instead of failing."""
    return importlib.import_module("tests.trainers.kauldron.kauldron_runs")


def test_a_fraction_of_one_trains_like_adamw(kauldron_runs: Any) -> None:
    kauldron_runs.check_everything_is_adamw(sharded=True)


def test_the_first_step_moves_what_numpy_selects(kauldron_runs: Any) -> None:
    kauldron_runs.check_first_step(sharded=True)


def test_matrices_are_sharded_and_scale_the_first_step(
    kauldron_runs: Any, tmp_path: pathlib.Path
) -> None:
    state = kauldron_runs.check_scaled_step(tmp_path, sharded=True)
    matrices = jax.tree.leaves(state.opt_state[1])
    assert len(matrices) == 9
    for matrix in matrices:
        assert matrix.sharding.shard_shape(matrix.shape)[0] == len(matrix) // 8
