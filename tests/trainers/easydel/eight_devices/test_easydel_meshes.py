"""EasyDeL on eight devices: fully sharded data and sharded tensors."""

import importlib
from typing import Any

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
