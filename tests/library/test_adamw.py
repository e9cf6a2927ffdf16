"""Cases in which MoFO equals `optax.adamw` bit for bit, in updates and in state."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from tests.helpers import (
    DECAYED,
    assert_same_bits,
    few,
    float32_zoo,
    run,
    types,
)

# `optax.adamw` has weight decay by default; `mofo` has none, as in the paper.
COMMON_ARGUMENTS: dict[str, Any] = {"learning_rate": 1e-2, "weight_decay": 0.0}

ADAMW_ARGUMENTS: dict[str, dict[str, Any]] = {
    "default": {},
    "weight decay": {"weight_decay": 0.1},
    "masked weight decay": {"weight_decay": 0.1, "mask": DECAYED},
    "mask by callable": {
        "weight_decay": 0.1,
        "mask": lambda params: jax.tree.map(lambda p: jnp.ndim(p) > 1, params),
    },
    "nesterov": {"nesterov": True},
    "bfloat16 momentum": {"mu_dtype": jnp.bfloat16, "weight_decay": 0.1},
    "named momentum dtype": {"mu_dtype": "float16"},
    "other betas and epsilons": {"b1": 0.8, "b2": 0.95, "eps": 1e-6, "eps_root": 1e-5},
    "schedule": {"learning_rate": optax.linear_schedule(0.1, 0.0, 30)},
    "weight decay by schedule": {
        "weight_decay": optax.linear_schedule(0.1, 0.0, 30),
    },
}


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("decay", ["selected", "all"])
@pytest.mark.parametrize("arguments", ADAMW_ARGUMENTS)
def test_a_fraction_of_one_is_adamw_bit_for_bit(
    arguments: str, decay: str, jit: bool
) -> None:
    given = {**COMMON_ARGUMENTS, **ADAMW_ARGUMENTS[arguments]}
    params, gradients = float32_zoo(20)
    one = 1.0 if jit else 1
    ours = mofo_jax.mofo(**given, update_fraction=one, decay=decay)
    actual = run(ours, params, gradients, jit)
    assert_same_bits(actual, run(optax.adamw(**given), params, gradients, jit))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_fraction_of_one_is_adamw_in_half_precision(dtype: str) -> None:
    params, gradients = jax.tree.map(lambda x: x.astype(dtype), float32_zoo(20))
    ours = mofo_jax.mofo(1e-2, update_fraction=np.float64(1), weight_decay=0.1)
    actual = run(ours, params, gradients)
    desired = run(optax.adamw(1e-2, weight_decay=0.1), params, gradients)
    assert_same_bits(actual, desired)


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("decay", ["selected", "all"])
def test_dense_tensors_are_adamws_bit_for_bit(decay: str, jit: bool) -> None:
    params, gradients = few(10)
    dense = {**jax.tree.map(lambda p: False, params), "matrix": True, "scalar": True}
    arguments = {"weight_decay": 0.1, "nesterov": True}
    ours = mofo_jax.mofo(1e-2, dense=dense, decay=decay, **arguments)
    actual, _, _ = run(ours, params, gradients, jit)
    desired, _, _ = run(optax.adamw(1e-2, **arguments), params, gradients, jit)
    for ours_after, adamw_after in zip(actual, desired, strict=True):
        for name in ("matrix", "scalar"):
            assert_same_bits(ours_after[name], adamw_after[name])
        assert not np.array_equal(ours_after["heads"], adamw_after["heads"])


@pytest.mark.parametrize("decay", ["selected", "all"])
@pytest.mark.parametrize("arguments", ADAMW_ARGUMENTS)
def test_the_state_is_adamws(arguments: str, decay: str) -> None:
    given = {**COMMON_ARGUMENTS, **ADAMW_ARGUMENTS[arguments]}
    params = float32_zoo(0)[0]
    ours, adamw = mofo_jax.mofo(**given, decay=decay), optax.adamw(**given)
    states = [(ours.init(params), adamw.init(params))]
    states.append(tuple(jax.eval_shape(tx.init, params) for tx in (ours, adamw)))
    for state, desired in states:
        assert jax.tree.structure(state) == jax.tree.structure(desired)
        assert types(state) == types(desired)
    _, updated = jax.eval_shape(ours.update, params, ours.init(params), params)
    assert jax.tree.structure(updated) == jax.tree.structure(ours.init(params))
    assert types(updated) == types(ours.init(params))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_moments_of_unselected_coordinates_are_adamws(dtype: str) -> None:
    # The moments of coordinates that are not selected are updated too.
    params, gradients = few(5, dtype)
    _, _, state = run(mofo_jax.mofo(1e-2), params, gradients, jit=False)
    _, _, desired = run(optax.adamw(1e-2), params, gradients, jit=False)
    assert_same_bits(state, desired)


def test_a_run_may_switch_between_adamw_and_mofo() -> None:
    params, gradients = few(9)
    adamw, ours = optax.adamw(1e-2), mofo_jax.mofo(1e-2)
    state = adamw.init(params)
    for i, gradient in enumerate(gradients):
        optimizer = ours if i // 3 == 1 else adamw
        updates, state = jax.jit(optimizer.update)(gradient, state, params)
        params = optax.apply_updates(params, updates)
    _, _, desired = run(adamw, few(0)[0], gradients)
    assert_same_bits(state, desired)
