"""Levanter's trainer with stacked layers: all parameters, and LoRA factors."""

import pathlib

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.trainers.comparing import assert_the_largest_moved
from tests.trainers.levanter import levanter_runs

LORA = pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])


@LORA
def test_a_fraction_of_one_trains_as_adam_does(lora: bool) -> None:
    levanter_runs.check_everything_is_adam(lora)


@LORA
def test_the_first_step_moves_what_numpy_selects(lora: bool) -> None:
    levanter_runs.check_first_step(lora)


def test_only_factors_of_lora_are_trained() -> None:
    momenta = levanter_runs.run("mofo", 1, lora=True).momenta
    assert momenta and all("lora" in path for path in momenta)


@LORA
def test_a_run_begun_by_adam_resumes_as_mofo_and_back(
    lora: bool, tmp_path: pathlib.Path
) -> None:
    folder = str(tmp_path)
    optimizers = levanter_runs.OPTIMIZERS
    begun = levanter_runs.run_in(folder, optimizers["adam"], 2, lora)
    ours = levanter_runs.run_in(folder, optimizers["mofo"], 3, lora)
    back = levanter_runs.run_in(folder, optimizers["adam"], 4, lora)
    # MoFO takes over the parameters and the moments of Adam's run.
    for path, array in begun.params.items():
        np.testing.assert_array_equal(ours.start[path], array, path)
    whole = levanter_runs.run("adam", lora=lora)
    for path, momentum in ours.momenta.items():
        np.testing.assert_array_equal(momentum, whole.momenta[path], path)
    assert_the_largest_moved(
        ours.start, ours.params, ours.momenta, levanter_runs.layers
    )
    for path, array in ours.params.items():
        np.testing.assert_array_equal(back.start[path], array, path)
    assert int(optax.tree.get(back.state.inner_state, "count")) == 4
    moved = [np.mean(back.params[path] != back.start[path]) for path in back.start]
    assert np.mean(moved) > 0.9


def test_a_configuration_names_it() -> None:
    import draccus  # pyright: ignore[reportMissingImports]

    config = {"type": "mofo", "learning_rate": 1e-4, "update_fraction": 0.3}
    config |= {"score": "update", "ties": "exact"}
    decoded = draccus.decode(levanter_runs.registration.OptimizerConfig, config)
    assert isinstance(decoded, levanter_runs.registration.MoFOConfig)
    assert (decoded.learning_rate, decoded.update_fraction) == (1e-4, 0.3)
    # All of its coordinates are tied.
    params = {"stacked": {"kernel": jnp.ones((2, 20))}}
    optimizer = decoded.build(10)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    moved = np.asarray(updates["stacked"]["kernel"]) != 0
    np.testing.assert_array_equal(moved.sum(axis=1), [6, 6])
