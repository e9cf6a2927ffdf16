"""Pulls to the start of training, against NumPy and gradients of the penalties."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import mofo_jax
from mofo_jax import _pull_to_start
from mofo_jax._pull_to_start import pull_to_start
from mofo_jax.baselines import elastic_weight_consolidation
from mofo_jax.baselines._projection_decay import selective_projection_decay
from tests.helpers import (
    assert_raises,
    assert_same_bits,
    few,
    run,
    types,
    x64,
    zoo_gradients,
    zoo_params,
)

RATE, STRENGTH = 0.1, 0.5


def in_numpy(
    steps: int, pull: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> list[np.ndarray]:
    """Returns each tensor of the zoo after gradient descent with a pull, in float64."""
    ends = []
    series = zip(*map(jax.tree.leaves, zoo_gradients(steps)), strict=True)
    for start, gradients in zip(jax.tree.leaves(zoo_params()), series, strict=True):
        theta = start
        for g in gradients:
            theta = theta - RATE * (g + STRENGTH * pull(theta - start, start))
        ends.append(theta)
    return ends


PULLS: dict[str, tuple[Callable[[Any], Any], Callable[..., np.ndarray]]] = {
    "l2": (lambda params: pull_to_start(STRENGTH), lambda way, start: way),
    "l1": (
        lambda params: pull_to_start(STRENGTH, "l1"),
        lambda way, start: np.sign(way),
    ),
    "ewc": (
        lambda params: elastic_weight_consolidation(
            STRENGTH, jax.tree.map(jnp.square, params)
        ),
        lambda way, start: start**2 * way,
    ),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", PULLS)
def test_pulls_agree_with_numpy(name: str, dtype: str) -> None:
    build, pull = PULLS[name]
    # In float32, rounding determines the sign of a displacement close to zero.
    steps = 1 if (name, dtype) == ("l1", "float32") else 5
    cast = functools.partial(jax.tree.map, lambda x: jnp.asarray(x, dtype))
    with x64(dtype == "float64"):
        params, gradients = cast(zoo_params()), cast(zoo_gradients(steps))
        optimizer = optax.chain(build(params), optax.scale_by_learning_rate(RATE))
        after, _, _ = run(optimizer, params, gradients)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    for actual, expected in zip(
        jax.tree.leaves(after[-1]), in_numpy(steps, pull), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PULLS)
def test_bfloat16_and_a_state_of_one_type(name: str) -> None:
    build, pull = PULLS[name]
    params, gradients = few(3, "bfloat16")
    optimizer = build(params)
    state = optimizer.init(params)
    after, updates, new_state = run(optimizer, params, gradients)
    assert_same_bits(new_state, state)
    assert_same_bits(new_state.start, params)
    assert types(updates[-1]) == types(params)
    for start, theta, g, actual in zip(
        *map(jax.tree.leaves, (params, after[-2], gradients[-1], updates[-1])),
        strict=True,
    ):
        start, theta, g, actual = (np.float64(x) for x in (start, theta, g, actual))
        expected = g + STRENGTH * pull(theta - start, start)
        np.testing.assert_allclose(actual, expected, rtol=0.02, atol=0.05)


def test_no_pull_at_the_start_and_on_coordinates_that_never_moved() -> None:
    params = jnp.arange(1.0, 11.0)
    for norm in _pull_to_start.NORMS:
        optimizer = optax.chain(
            mofo_jax.scale_by_mofo(update_fraction=0.1),
            pull_to_start(0.1, norm),
            optax.scale_by_learning_rate(0.1),
        )
        after, _, _ = run(optimizer, params, [jnp.arange(10.0)] * 3)
        assert np.flatnonzero(after[-1] != params).tolist() == [9]


def test_an_l1_pull_alone_ends_within_a_step_of_the_start() -> None:
    start = jnp.zeros(4)
    optimizer = optax.chain(
        pull_to_start(0.5, "l1"), optax.scale_by_learning_rate(0.125)
    )
    state = optimizer.init(start)
    params = jnp.array([-0.7, 0.1, 0.9, 0.0])
    for _ in range(30):
        updates, state = optimizer.update(jnp.zeros(4), state, params)
        params = optax.apply_updates(params, updates)
    assert np.all(np.abs(params) <= 0.5 * 0.125)
    assert params[3] == 0


def test_ewc_adds_the_gradient_of_its_penalty() -> None:
    params, gradients = few(1)
    fisher = jax.tree.map(jnp.abs, params)
    optimizer = elastic_weight_consolidation(0.7, fisher)
    state = optimizer.init(params)
    now = jax.tree.map(lambda p, g: p + g, params, gradients[0])

    def penalty(theta: Any) -> jax.Array:
        terms = jax.tree.map(
            lambda t, s, f: jnp.sum(f * (t - s) ** 2), theta, params, fisher
        )
        return 0.7 / 2 * optax.tree.sum(terms)

    updates, _ = optimizer.update(gradients[0], state, now)
    expected = optax.tree.add(gradients[0], jax.grad(penalty)(now))
    for actual, desired in zip(*map(jax.tree.leaves, (updates, expected)), strict=True):
        np.testing.assert_allclose(actual, desired, rtol=1e-5, atol=1e-6)
    assert_same_bits(optax.tree.get(state, "fisher"), fisher)


def test_masked_parameters_are_not_pulled() -> None:
    params = {"kernel": jnp.ones(3), "norm": jnp.ones(2)}
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved = jax.tree.map(lambda p: p + 2, params)
    masks = (
        {"kernel": True, "norm": False},
        lambda tree: {name: name != "norm" for name in tree},
    )
    for mask in masks:
        optimizer = pull_to_start(0.5, mask=mask)
        updates, _ = optimizer.update(zeros, optimizer.init(params), moved)
        assert_same_bits(updates, {"kernel": jnp.ones(3), "norm": jnp.zeros(2)})


def all_three(strength: Any, fisher: Any) -> optax.GradientTransformation:
    return optax.chain(
        elastic_weight_consolidation(strength, fisher),
        selective_projection_decay(
            optax.chain(
                optax.scale_by_adam(),
                pull_to_start(strength),
                optax.scale_by_learning_rate(RATE),
            ),
            strength,
        ),
    )


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_strengths_may_be_traced(jit: bool) -> None:
    params, gradients = few(3)
    fisher = jax.tree.map(jnp.ones_like, params)
    injected = optax.inject_hyperparams(all_three, hyperparam_dtype=jnp.float32)
    after, _, state = run(injected(0.5, fisher), params, gradients, jit)
    desired, _, plain = run(all_three(0.5, fisher), params, gradients, jit)
    assert types(state.inner_state) == types(plain)
    for actual, expected in zip(*map(jax.tree.leaves, (after, desired)), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def test_parameters_and_state_may_both_be_donated() -> None:
    params, gradients = few(2)
    optimizer = all_three(0.5, jax.tree.map(jnp.ones_like, params))
    desired, _, _ = run(optimizer, params, gradients)

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def step(params: Any, state: Any, gradient: Any) -> tuple[Any, Any]:
        updates, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, updates), state

    # Also in one program, where an output may share its buffer with an input.
    for init in (optimizer.init, jax.jit(optimizer.init)):
        params, _ = few(2)
        state = init(params)
        for gradient in gradients:
            params, state = step(params, state, gradient)
        for actual, expected in zip(
            *map(jax.tree.leaves, (params, desired[-1])), strict=True
        ):
            np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_init_on_leaves_that_are_not_arrays() -> None:
    optimizer = all_three(0.5, {"w": jnp.ones((2, 3))})
    abstract = {"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16)}
    state = optimizer.init(abstract)
    assert state[1].start == abstract
    params = {"w": jnp.ones((2, 3), jnp.bfloat16)}
    assert types(state) == types(optimizer.init(params))
    state = optimizer.init(params)
    moved = optax.tree.map_params(optimizer, lambda leaf: leaf + 1, state)
    np.testing.assert_array_equal(moved[1].start["w"], 2)
    assert int(optax.tree.get(moved, "count")) == 0


def test_an_nnx_optimizer_remembers_the_start() -> None:
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    optimizer = all_three(0.5, nnx.state(model, nnx.Param))
    trainer = nnx.Optimizer(model, optimizer, wrt=nnx.Param)
    values = jax.tree.map(jnp.copy, nnx.to_pure_dict(nnx.state(model, nnx.Param)))
    plain = all_three(0.5, values)
    desired = run(plain, values, [values, values])[0][-1]

    @nnx.jit
    def step(model: nnx.Linear, trainer: nnx.Optimizer, gradient: Any) -> None:
        trainer.update(model, gradient)

    gradient = jax.tree.map(jnp.copy, nnx.state(model, nnx.Param))
    for _ in range(2):
        step(model, trainer, gradient)
    np.testing.assert_allclose(model.kernel[...], desired["kernel"], rtol=1e-6)


ERRORS: dict[str, tuple[Any, ...]] = {
    "strength of a pull": (
        lambda: pull_to_start(-1.0),
        "`strength` must be in [0, inf), got -1.0",
    ),
    "norm": (lambda: pull_to_start(1.0, "l3"), "`norm` must be 'l2' or 'l1', got 'l3'"),
    "strength of EWC": (
        lambda: elastic_weight_consolidation(-1.0, jnp.ones(2)),
        "`strength` must be in [0, inf), got -1.0",
    ),
    "fisher": (
        lambda: run(
            elastic_weight_consolidation(1.0, jnp.ones(2)), jnp.ones(3), [jnp.ones(3)]
        ),
        "`fisher` for the tensor must have the parameter's shape (3,), got (2,)",
    ),
    "parameters of a pull": (
        lambda: without_params(pull_to_start(1.0)),
        "`params` must be given to `update`: `pull_to_start` compares",
    ),
    "parameters of EWC": (
        lambda: without_params(elastic_weight_consolidation(1.0, jnp.ones(3))),
        "`params` must be given to `update`: `elastic_weight_consolidation` compares",
    ),
}


def without_params(optimizer: optax.GradientTransformation) -> None:
    optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)))


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    assert_raises(*ERRORS[name])
