"""EasyDeL on eight devices: fully sharded data and sharded tensors."""

import importlib
import math
import pathlib
from typing import Any

import jax
import pytest

# Axes: data, fully sharded data, experts, tensors, sequences.
AXES = (1, 4, 1, 2, 1)


@pytest.fixture(scope="module")
def easydel_runs() -> Any:
    """Imported here, so that tests are skipped without EasyDeL instead of failing."""
    return importlib.import_module("tests.trainers.easydel.easydel_runs")


def test_a_fraction_of_one_trains_like_adamw(easydel_runs: Any) -> None:
    easydel_runs.check_everything_is_adamw(axes=AXES)


def test_the_first_step_moves_what_numpy_selects(easydel_runs: Any) -> None:
    easydel_runs.check_first_step(axes=AXES)


def test_matrices_are_sharded_and_scale_the_first_step(
    easydel_runs: Any, tmp_path: pathlib.Path
) -> None:
    state = easydel_runs.check_scaled_step(str(tmp_path), AXES)
    matrices = jax.tree.leaves(state[0][1])
    assert len(matrices) == 9
    for matrix in matrices:
        assert math.prod(matrix.sharding.shard_shape(matrix.shape)) == matrix.size // 8
