"""Kauldron's trainer with a tiny Gemma: all parameters, and LoRA factors."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest

from tests.trainers.comparing import assert_the_largest_moved
from tests.trainers.kauldron import kauldron_runs

LORA = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


@LORA
def test_a_fraction_of_one_trains_like_adamw(lora: bool) -> None:
    kauldron_runs.check_everything_is_adamw(lora)


@LORA
def test_the_first_step_moves_what_numpy_selects(lora: bool) -> None:
    kauldron_runs.check_first_step(lora)


def test_only_factors_of_lora_have_a_state() -> None:
    momenta = kauldron_runs.momenta(kauldron_runs.run("mofo", True).states[0])
    assert momenta and all("lora" in path for path in momenta)


def test_mofo_resumes_a_run_of_adamw_and_back(tmp_path: pathlib.Path) -> None:
    kauldron_runs.run_in(tmp_path, "adamw", steps=2)
    kauldron_runs.run_in(tmp_path, "mofo", steps=4)
    resumed = kauldron_runs.run_in(tmp_path, "adamw", steps=6)
    # The last checkpoint of AdamW has the state before its third step, whose moments
    # must equal those of an unbroken run.
    whole = kauldron_runs.run("adamw")
    np.testing.assert_array_equal(resumed.losses[:3], whole.losses[:3])
    third, desired = (kauldron_runs.momenta(r.states[3]) for r in (resumed, whole))
    for path, momentum in third.items():
        np.testing.assert_array_equal(momentum, desired[path], path)
    for step in (2, 3):
        assert_the_largest_moved(
            resumed.params[step],
            resumed.params[step + 1],
            kauldron_runs.momenta(resumed.states[step + 1]),
        )
    before, after = resumed.params[4:6]
    assert np.mean([np.mean(after[path] != before[path]) for path in before]) > 0.9


def test_the_command_line_trains(tmp_path: pathlib.Path) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "kauldron.main"),
            "--cfg=examples/trainers/kauldron/sft.py",
            f"--cfg.workdir={tmp_path}",
            "--cfg.num_train_steps=20",
            "--cfg.optimizer.update_fraction=0.5",
        ],
        check=True,
        capture_output=True,
    )
    losses = kauldron_runs.read(tmp_path).losses
    assert len(losses) == 21
    assert losses[-1] < losses[0] - 1
