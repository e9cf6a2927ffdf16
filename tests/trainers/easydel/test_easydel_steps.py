"""EasyDeL's trainer with a tiny Llama: all parameters, and LoRA factors."""

import pathlib

import numpy as np
import pytest

from tests.trainers.comparing import assert_the_largest_moved
from tests.trainers.easydel import easydel_runs

LORA = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


@LORA
def test_a_fraction_of_one_trains_like_adamw(lora: bool) -> None:
    easydel_runs.check_everything_is_adamw(lora=lora)


@LORA
def test_the_first_step_moves_what_numpy_selects(lora: bool) -> None:
    easydel_runs.check_first_step(lora=lora)


def test_only_factors_of_lora_are_trained() -> None:
    momenta = easydel_runs.run("mofo", lora=True, steps=1).momenta
    assert momenta and all("lora" in path for path in momenta)


def test_mofo_resumes_a_run_of_adamw_and_back(tmp_path: pathlib.Path) -> None:
    options = {"save_steps": 1, "resume_if_possible": True}
    folder = str(tmp_path)
    begun = easydel_runs.run_in(folder, "adamw", steps=2, **options)
    ours = easydel_runs.run_in(folder, "mofo", steps=3, **options)
    back = easydel_runs.run_in(folder, "adamw", steps=4, **options)
    # The parameters were restored, and the moments equal those of an unbroken run.
    for path, array in begun.params.items():
        np.testing.assert_array_equal(ours.start[path], array, path)
    whole = easydel_runs.run("adamw", steps=3)
    for path, momentum in ours.momenta.items():
        np.testing.assert_array_equal(momentum, whole.momenta[path], path)
    assert_the_largest_moved(ours.start, ours.params, ours.momenta)
    for path, array in ours.params.items():
        np.testing.assert_array_equal(back.start[path], array, path)
    moved = [np.mean(back.params[path] != back.start[path]) for path in back.start]
    assert np.mean(moved) > 0.9
