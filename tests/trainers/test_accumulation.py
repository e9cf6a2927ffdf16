"""Gradient accumulation in both ways: the same step, and the number of selections."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from examples.trainers import gradient_accumulation as recipe
from tests.helpers import selected

WIDTH = 16


def run_multi_steps(optimizer: Any, steps: int) -> Any:
    """Returns the parameters after steps with `optax.MultiSteps`."""
    many = optax.MultiSteps(optimizer, recipe.MICRO_BATCHES).gradient_transformation()
    params = recipe.init_params(WIDTH)
    state = many.init(params)
    for step in range(steps):
        for micro_batch in zip(*recipe.batches(step), strict=True):
            params, state, _ = recipe.micro_step(many, params, state, micro_batch)
    return params


def run_in_the_step(optimizer: Any, steps: int) -> Any:
    """Returns the parameters after steps of the example, which accumulate."""
    params = recipe.init_params(WIDTH)
    state = optimizer.init(params)
    for step in range(steps):
        data = recipe.batches(step)
        params, state, _ = recipe.train_step(optimizer, params, state, data)
    return params


def test_micro_batches_have_the_gradients_of_the_whole_batch() -> None:
    params, (x, target) = recipe.init_params(WIDTH), recipe.batches(0)
    loss, grads = jax.jit(recipe.mean_gradients)(params, (x, target))
    whole = x.reshape(-1, x.shape[-1]), target.ravel()
    desired_loss, desired = jax.value_and_grad(recipe.loss_of)(params, *whole)
    np.testing.assert_allclose(loss, desired_loss, rtol=1e-5)
    for name, gradient in desired.items():
        np.testing.assert_allclose(grads[name], gradient, rtol=1e-4, atol=1e-6)


CALLS: list[None] = []


def count_and_rank(tensor: mofo_jax.scores.Tensor) -> jax.Array:
    """Ranks by the momentum, and records each execution."""
    jax.debug.callback(lambda: CALLS.append(None))
    return tensor.momentum


@pytest.fixture
def calls() -> list[None]:
    """A list with an entry for each ranked tensor."""
    CALLS.clear()
    return CALLS


def test_multi_steps_selects_for_every_micro_batch(calls: list[None]) -> None:
    optimizer = mofo_jax.mofo(1e-2, score=count_and_rank)
    start = recipe.init_params(WIDTH)
    after = run_in_the_step(optimizer, 2)
    jax.effects_barrier()
    assert len(calls) == 2 * len(start)
    calls.clear()
    by_multi_steps = run_multi_steps(optimizer, 2)
    jax.effects_barrier()
    assert len(calls) == 2 * len(start) * recipe.MICRO_BATCHES
    # The parameters are the same.
    whole = [jnp.concatenate(list(array)) for array in recipe.batches(0)]
    grads = jax.grad(recipe.loss_of)(start, *whole)
    once = run_in_the_step(optimizer, 1)
    for name in start:
        np.testing.assert_allclose(after[name], by_multi_steps[name], atol=1e-5)
        moved = np.asarray(once[name]) != np.asarray(start[name])
        np.testing.assert_array_equal(moved, selected(grads[name], 0.15))
