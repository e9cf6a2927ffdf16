"""MoFO under `optax.inject_hyperparams`, which traces its hyperparameters."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from mofo_jax import control_fraction
from tests.helpers import few, gradients_like, run, selected, types

PARAMS = {"w": jnp.ones((6, 7)), "b": jnp.ones(9), "none": None}
gradients = functools.partial(gradients_like, PARAMS)


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_hyperparameters_may_be_injected(jit: bool) -> None:
    options = {
        "block_axes": mofo_jax.PathRules({"w": (0,)}, default=()),
        "dense": mofo_jax.PathRules({"^b$": True}, default=False),
        "ties": "exact",
        "nesterov": True,
        "decay": "all",
        # A string, since JAX's types are callable and treated as schedules.
        "mu_dtype": "bfloat16",
        "weight_decay": 0.1,
    }
    injected = optax.inject_hyperparams(mofo_jax.mofo, hyperparam_dtype=jnp.float32)
    ours = injected(1e-2, update_fraction=0.3, **options)
    plain = mofo_jax.mofo(1e-2, update_fraction=0.3, **options)
    after, updates, state = run(ours, PARAMS, gradients(3), jit)
    desired, plain_updates, plain_state = run(plain, PARAMS, gradients(3), jit)
    assert float(state.hyperparams["update_fraction"]) == np.float32(0.3)
    assert types(state.inner_state) == types(plain_state)
    for one, other in zip(updates, plain_updates, strict=True):
        np.testing.assert_array_equal(one["w"] != 0, other["w"] != 0)
    for actual, expected in zip(*map(jax.tree.leaves, (after, desired)), strict=True):
        # A traced decay rate multiplies the bfloat16 momentum in float32.
        np.testing.assert_allclose(actual, expected, rtol=1e-4)
    state.hyperparams["update_fraction"] = jnp.float32(1.0)
    updates, _ = ours.update(gradients(1)[0], state, PARAMS)
    assert np.all(updates["w"] != 0)


@pytest.mark.parametrize("axes", [(0,), (0, 1), ()])
def test_a_tuple_of_axes_may_be_injected_with(axes: tuple[int, ...]) -> None:
    injected = optax.inject_hyperparams(mofo_jax.mofo, hyperparam_dtype=jnp.float32)
    params = {"w": PARAMS["w"]}
    steps = [{"w": g["w"]} for g in gradients(1)]
    _, updates, _ = run(injected(1e-2, block_axes=axes), params, steps)
    expected = selected(np.asarray(steps[0]["w"]), 0.15, axes)
    np.testing.assert_array_equal(updates[0]["w"] != 0, expected)


def test_an_injected_schedule_moves_the_fraction() -> None:
    injected = optax.inject_hyperparams(mofo_jax.mofo, hyperparam_dtype=jnp.float32)
    ours = injected(1e-2, update_fraction=optax.linear_schedule(1.0, 0.5, 2))
    _, updates, _ = run(ours, PARAMS, gradients(3))
    assert [int(np.count_nonzero(u["w"])) for u in updates] == [42, 31, 21]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_traced_hyperparameters_widen_no_state_and_no_update(dtype: str) -> None:
    params, steps = jax.tree.map(lambda x: x.astype(dtype), (PARAMS, gradients(2)))
    injected = optax.inject_hyperparams(mofo_jax.mofo, hyperparam_dtype=jnp.float32)
    ours = injected(1e-2, weight_decay=0.1)
    _, updates, state = run(ours, params, steps)
    assert types(updates[-1]) == types(params)
    assert types(state) == types(ours.init(params))


def mofo(fraction: Any) -> optax.GradientTransformationExtraArgs:
    return mofo_jax.mofo(1e-2, update_fraction=fraction)


def test_injection_with_a_static_factory() -> None:
    params, gradients = few(3)
    injected = optax.inject_hyperparams(
        control_fraction, static_args=("factory",), hyperparam_dtype=jnp.float32
    )
    schedule = optax.linear_schedule(0.1, 1.0, 3)
    after, _, state = run(injected(mofo, budget=schedule), params, gradients)
    plain = run(control_fraction(mofo, budget=schedule), params, gradients)
    for actual, expected in zip(
        *map(jax.tree.leaves, ((after, state.inner_state), (plain[0], plain[2]))),
        strict=True,
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def test_injection_within_the_factory() -> None:
    params = jnp.arange(1.0, 21.0)

    def injected(*static: str) -> optax.GradientTransformationExtraArgs:
        make = optax.inject_hyperparams(mofo_jax.mofo, static_args=static)
        options = {"measure": "divergence", "gain": 1.0, "initial": 0.8}
        return control_fraction(
            lambda f: make(1e-2, update_fraction=f), budget=1.0, **options
        )

    optimizer = injected("update_fraction")
    updates, _ = optimizer.update(
        params, optimizer.init(params), params, divergence=100.0
    )
    assert np.count_nonzero(updates) == 5  # of 20, with a fraction of 0.8/e
    with pytest.raises(ValueError, match="whose initial state does not depend"):
        injected().init(params)


def test_the_state_of_an_injected_control_can_be_donated() -> None:
    control = optax.inject_hyperparams(
        mofo_jax.control_fraction, static_args=("factory",)
    )
    optimizer = control(
        lambda fraction: mofo_jax.mofo(0.1, update_fraction=fraction), budget=1.0
    )
    params = jnp.arange(1.0, 4.0)
    update = jax.jit(optimizer.update, donate_argnums=1)
    _, state = update(params, optimizer.init(params), params)
    assert int(state.inner_state.count) == 1


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("update_fraction", 15.0, "(0, 1]"),
        ("update_fraction", optax.linear_schedule(0.0, 0.15, 10), "(0, 1]"),
        ("update_fraction", float("nan"), "(0, 1]"),
        ("unselected_scale", 1.0, "[0, 1)"),
        ("b1", -0.5, "[0, 1)"),
        ("eps", -1e-8, "[0, inf)"),
    ],
)
def test_injected_numbers_are_checked_at_initialization(
    name: str, value: Any, allowed: str
) -> None:
    injected = optax.inject_hyperparams(mofo_jax.mofo, hyperparam_dtype=jnp.float32)
    with pytest.raises(ValueError, match=f"^`{name}` must be in {re.escape(allowed)}"):
        injected(1e-2, **{name: value}).init(PARAMS)


def test_a_decay_rate_that_bfloat16_rounds_to_1_is_an_error() -> None:
    # With AdamW, all updates are then NaN.
    params = jax.tree.map(lambda p: p.astype(jnp.bfloat16), PARAMS)
    injected = optax.inject_hyperparams(mofo_jax.mofo)
    with pytest.raises(ValueError, match=r"^`b2` must be in \[0, 1\), got 1.0$"):
        injected(1e-2).init(params)


def test_a_traced_number_is_clipped_instead() -> None:
    injected = optax.inject_hyperparams(mofo_jax.mofo, hyperparam_dtype=jnp.float32)
    optimizer = injected(1e-2, update_fraction=1.5)
    state = jax.jit(optimizer.init)(PARAMS)
    updates, _ = jax.jit(optimizer.update)(gradients(1)[0], state, PARAMS)
    assert np.all(updates["w"] != 0)
