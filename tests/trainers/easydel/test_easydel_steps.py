"""EasyDeL's trainer with a tiny Llama: all parameters, and LoRA factors."""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from tests.helpers import assert_same_bits
from tests.trainers.comparing import assert_the_largest_moved
from tests.trainers.easydel import easydel_runs

# Imported after the check for EasyDeL.
from examples.trainers.easydel import registration  # isort: skip

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


def test_all_options_are_those_of_the_library() -> None:
    params = {"kernel": jnp.linspace(1, 2, 40).reshape(2, 20), "scale": jnp.ones(20)}
    grads = jax.tree.map(lambda x: jnp.sin(100 * x), params)
    mask = {"kernel": True, "scale": False}
    options: dict[str, Any] = {
        "update_fraction": 0.3,
        "block_axes": mofo_jax.PathRules({"kernel": (0,)}, default=()),
        "dense": mofo_jax.PathRules({"scale": True}, default=False),
        "score": "update",
        "ties": "exact",
        "unselected_scale": 0.1,
        "nu_dtype": "bfloat16",
    }
    adam = {"b1": 0.8, "b2": 0.9, "eps": 1e-3, "eps_root": 1e-4}
    config = registration.MoFOConfig(
        **adam, **options, selected_decay=0.2, selected_decay_mask=mask
    )
    schedule = optax.constant_schedule(1e-2)
    updates = []
    for optimizer in (
        registration.MoFOOptimizer(config).build(schedule),
        mofo_jax.mofo(schedule, **adam, **options, weight_decay=0.2, mask=mask),
    ):
        state = optimizer.init(params)
        updates.append(optimizer.update(grads, state, params))
    assert_same_bits(*updates)


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
