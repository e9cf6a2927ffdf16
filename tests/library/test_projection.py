"""Selective projection decay, against NumPy's float64 and its defining property."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from mofo_jax.baselines._projection_decay import selective_projection_decay
from tests.helpers import (
    ZOO_BLOCK_AXES,
    assert_raises,
    assert_same_bits,
    blocks,
    few,
    float32_zoo,
    is_shape,
    random_generator,
    run,
    types,
    zoo_gradients,
    zoo_params,
)

RATE = 0.1


def in_numpy(
    start: np.ndarray,
    gradients: Sequence[np.ndarray],
    strength: float,
    block_axes: tuple[int, ...],
) -> np.ndarray:
    """Returns a tensor after Adam with selective projection decay, in float64."""
    theta = start.copy()
    m, v = np.zeros_like(start), np.zeros_like(start)
    for t, g in enumerate(gradients, start=1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        proposed = np.asarray(theta - RATE * step)
        for index in blocks(start.shape, block_axes):
            if -np.sum(g[index] * (theta[index] - start[index])) < 0:
                after = np.linalg.norm(np.ravel(proposed[index] - start[index]))
                before = np.linalg.norm(np.ravel(theta[index] - start[index]))
                ratio = max(0.0, after - before) / after
                proposed[index] -= strength * ratio * (proposed[index] - start[index])
        theta = proposed
    return theta


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_trajectories_agree_with_numpy(strength: float) -> None:
    params, gradients = float32_zoo(8)
    optimizer = selective_projection_decay(
        optax.adam(RATE), strength, block_axes=ZOO_BLOCK_AXES
    )
    after, _, state = run(optimizer, params, gradients)
    plain, _, adam = run(optax.adam(RATE), params, gradients)
    assert_same_bits(state.start, params)
    assert_same_bits(state.inner, adam)
    series = zip(*map(jax.tree.leaves, zoo_gradients(8)), strict=True)
    axes = jax.tree.leaves(ZOO_BLOCK_AXES, is_leaf=is_shape)
    drawn_back = 0
    for i, (start, steps, block_axes) in enumerate(
        zip(jax.tree.leaves(zoo_params()), series, axes, strict=True)
    ):
        actual = jax.tree.leaves(after[-1])[i]
        expected = in_numpy(start, steps, strength, block_axes)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5)
        drawn_back += not np.allclose(actual, jax.tree.leaves(plain[-1])[i], atol=1e-3)
    assert drawn_back > 3


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_strength_of_zero_is_the_inner_transformation(dtype: str) -> None:
    params, gradients = few(4, dtype)
    optimizer = selective_projection_decay(optax.adam(RATE), 0.0)
    after, updates, state = run(optimizer, params, gradients)
    desired = run(optax.adam(RATE), params, gradients)
    assert_same_bits((after, updates, state.inner), desired)
    assert types(state) == types(optimizer.init(params))


def test_a_strength_of_one_bounds_the_distance_when_the_gradient_points_back() -> None:
    params: Any = jnp.zeros((5, 6))
    optimizer = selective_projection_decay(optax.sgd(RATE, momentum=0.9), 1.0)
    plain = optax.sgd(RATE, momentum=0.9)
    state = optimizer.init(params)
    rng = random_generator(3)
    turned = 0
    for step in range(30):
        # The gradients lead away from the start, and in every third step back to it,
        # against the momentum.
        gradient = jnp.asarray(rng.normal(size=(5, 6)) + (1 if step % 3 == 2 else -1))
        proposed, _ = plain.update(gradient, state.inner, params)
        updates, state = optimizer.update(gradient, state, params)
        turns_back = float(jnp.sum(gradient * params)) > 0
        before, params = params, optax.apply_updates(params, updates)
        if not turns_back:
            np.testing.assert_array_equal(updates, proposed)
            continue
        distance = jnp.linalg.norm(jnp.add(before, proposed))
        turned += int(distance > jnp.linalg.norm(before))
        expected = jnp.minimum(distance, jnp.linalg.norm(before))
        np.testing.assert_allclose(jnp.linalg.norm(params), expected, rtol=1e-5)
    assert turned > 5


def test_a_small_step_far_from_the_start_is_projected_exactly() -> None:
    # Norms of 1e3 that differ by 1e-4: their difference in float32 has one digit.
    way = jnp.full((100, 100), 10.0)
    optimizer = selective_projection_decay(optax.scale(1e-6), 1.0)
    state = optimizer.init(jnp.zeros((100, 100)))
    updates, _ = optimizer.update(way, state, way)
    # The step leads straight away from the start, so all of it is removed.
    np.testing.assert_allclose(updates, 0, atol=1e-8)


def test_each_layer_is_projected_separately() -> None:
    start = jnp.zeros((2, 3))
    rules = mofo_jax.PathRules({"w": (0,)}, default=())
    for block_axes in ((0,), rules, {"w": (0,)}):
        optimizer = selective_projection_decay(
            optax.sgd(-1.0), 1.0, block_axes=block_axes
        )
        state = optimizer.init({"w": start})
        way = {"w": jnp.array([[1.0, 2.0, 2.0], [4.0, 0.0, -3.0]])}
        # In the first layer the gradient points back and the step leads away; in the
        # second, the gradient leads away.
        gradient = {"w": jnp.array([[1.0, 2.0, 2.0], [-4.0, 0.0, 3.0]])}
        updates, _ = optimizer.update(gradient, state, way)
        np.testing.assert_allclose(updates["w"][0], 0, atol=1e-6)
        np.testing.assert_array_equal(updates["w"][1], gradient["w"][1])


def test_around_a_filter_unselected_coordinates_stay_at_the_start() -> None:
    params = jnp.arange(1.0, 11.0)
    inner = mofo_jax.mofo(0.5, b1=0.9, update_fraction=0.1)
    optimizer = selective_projection_decay(inner)
    gradients = [jnp.arange(10.0), jnp.arange(10.0), -0.5 * jnp.arange(10.0)]
    after, _, _ = run(optimizer, params, gradients)
    assert np.flatnonzero(after[-1] != params).tolist() == [9]
    filtered, _, _ = run(inner, params, gradients)
    assert after[-1][9] > filtered[-1][9]  # Projected back in the third step.


def test_extra_arguments_reach_the_inner_transformation() -> None:
    seen = []

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.append(extra)
        return updates, state

    inner = optax.GradientTransformationExtraArgs(optax.identity().init, update)
    optimizer = selective_projection_decay(inner)
    state = optimizer.init(jnp.ones(2))
    optimizer.update(updates=jnp.ones(2), state=state, params=jnp.ones(2), loss=1.0)
    assert seen == [{"loss": 1.0}]


ERRORS: dict[str, tuple[Any, ...]] = {
    "inner": (
        lambda: selective_projection_decay("adam"),
        "`inner` must be an optax.GradientTransformation, got str",
        TypeError,
    ),
    "strength": (
        lambda: selective_projection_decay(optax.adam(1.0), -0.5),
        "`strength` must be in [0, inf), got -0.5",
    ),
    "axes": (
        lambda: selective_projection_decay(optax.adam(1.0), block_axes=[0]),
        "`block_axes` must be a name, or a tuple of axis numbers and AxisParts with at "
        "most one name, got 0",
    ),
    "params": (
        lambda: selective_projection_decay(optax.sgd(1.0)).update(
            jnp.ones(2), selective_projection_decay(optax.sgd(1.0)).init(jnp.ones(2))
        ),
        "`params` must be given to `update`: `selective_projection_decay` compares",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    assert_raises(*ERRORS[name])
