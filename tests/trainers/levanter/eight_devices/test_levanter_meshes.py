"""Levanter on eight devices, with its default mesh: fully sharded data parallelism."""

import importlib
from typing import Any

import pytest


@pytest.fixture(scope="module")
def levanter_runs() -> Any:
    """Imported here, so that the tests are found, and skipped, without Levanter."""
    return importlib.import_module("tests.trainers.levanter.levanter_runs")


def test_a_fraction_of_one_trains_as_adam_does(levanter_runs: Any) -> None:
    levanter_runs.check_everything_is_adam()


def test_the_first_step_moves_what_numpy_selects(levanter_runs: Any) -> None:
    levanter_runs.check_first_step()
