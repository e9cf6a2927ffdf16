"""Padam, Adam with a general exponent, against NumPy's float64 and Optax's Adam."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from mofo_jax.baselines._padam import scale_by_padam
from tests.helpers import (
    ZOO_BLOCK_AXES,
    assert_raises,
    assert_same_bits,
    blocks,
    few,
    float32_zoo,
    gradients_like,
    is_shape,
    run,
    types,
    x64,
    zoo_gradients,
)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(x)))) if x.size else 0.0


def padam(
    gradients: Sequence[np.ndarray],
    block_axes: tuple[int, ...],
    exponent: float,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    eps_root: float = 0.0,
    nesterov: bool = False,
) -> list[np.ndarray]:
    """Returns the steps in float64, from the definition."""
    m, v = np.zeros_like(gradients[0]), np.zeros_like(gradients[0])
    steps = []
    for t, g in enumerate(gradients, start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        m_hat = m / (1 - b1**t)
        if nesterov:
            m_hat = b1 * m / (1 - b1 ** (t + 1)) + (1 - b1) * g / (1 - b1**t)
        v_hat = v / (1 - b2**t) + eps_root
        adam = np.asarray(m_hat / (np.sqrt(v_hat) + eps))
        step = np.asarray(m_hat / (v_hat**exponent + eps))
        for index in blocks(step.shape, block_axes):
            if np.any(step[index]):
                step[index] *= rms(adam[index]) / rms(step[index])
        steps.append(step)
    return steps


SETTINGS: dict[str, dict[str, Any]] = {
    "momentum": {"exponent": 0.0},
    "Padam": {"exponent": 0.25},
    "default": {"exponent": 0.75},
    "natural": {"exponent": 1},
    "damped": {"exponent": 0.75, "eps": 0.1, "eps_root": 0.01},
    "nesterov": {"exponent": 0.75, "nesterov": True, "b1": 0.5, "b2": 0.9},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_steps_agree_with_numpy(name: str) -> None:
    steps = 4
    params, gradients = float32_zoo(steps)
    optimizer = scale_by_padam(block_axes=ZOO_BLOCK_AXES, **SETTINGS[name])
    _, updates, _ = run(optimizer, params, gradients)
    structure = jax.tree.structure(params)
    series = zip(*map(structure.flatten_up_to, zoo_gradients(steps)), strict=True)
    axes = jax.tree.leaves(ZOO_BLOCK_AXES, is_leaf=is_shape)
    for i, (per_leaf, block_axes) in enumerate(zip(series, axes, strict=True)):
        per_leaf = [np.float64(np.float32(g)) for g in per_leaf]
        desired = padam(per_leaf, block_axes, **SETTINGS[name])
        for tree, expected in zip(updates, desired, strict=True):
            actual = jax.tree.leaves(tree)[i]
            np.testing.assert_allclose(actual, expected, rtol=2e-4, atol=1e-7)


@pytest.mark.parametrize("mu_dtype", [None, "bfloat16"])
@pytest.mark.parametrize("nesterov", [False, True])
def test_a_static_half_is_adam_bit_for_bit(nesterov: bool, mu_dtype: Any) -> None:
    params, gradients = few(3)
    options = {"b1": 0.8, "b2": 0.9, "nesterov": nesterov, "mu_dtype": mu_dtype}
    ours = run(scale_by_padam(exponent=0.5, **options), params, gradients)
    assert_same_bits(ours, run(optax.scale_by_adam(**options), params, gradients))


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_a_traced_half_is_adam_up_to_rounding(jit: bool) -> None:
    params, gradients = few(3)
    inject = functools.partial(optax.inject_hyperparams, hyperparam_dtype=jnp.float32)
    padam, adam = inject(scale_by_padam)(exponent=0.5), inject(optax.scale_by_adam)()
    _, ours, state = run(padam, params, gradients, jit)
    _, adams, desired = run(adam, params, gradients, jit)
    for actual, expected in zip(*map(jax.tree.leaves, (ours, adams)), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)
    for actual, expected in zip(
        *map(jax.tree.leaves, (state.inner_state, desired.inner_state)), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


def test_a_schedule_of_the_exponent_may_be_injected() -> None:
    params, gradients = few(2)
    schedule = optax.piecewise_constant_schedule(0.75, {1: 2 / 3})
    injected = optax.inject_hyperparams(scale_by_padam, hyperparam_dtype=jnp.float32)
    _, updates, state = run(injected(exponent=schedule), params, gradients)
    assert float(state.hyperparams["exponent"]) == 0.5
    desired = (run(scale_by_padam(), params, gradients)[1][0],)
    desired += (run(optax.scale_by_adam(), params, gradients)[1][1],)
    for actual, expected in zip(*map(jax.tree.leaves, (updates, desired)), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-5)


@pytest.mark.parametrize("mu_dtype", [None, "float32"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_low_precision(dtype: str, mu_dtype: Any) -> None:
    params, gradients = few(3, dtype)
    _, ours, state = run(scale_by_padam(mu_dtype=mu_dtype), params, gradients)
    adam = optax.scale_by_adam(mu_dtype=mu_dtype)
    _, adams, desired = run(adam, params, gradients)
    assert_same_bits(state, desired)
    assert types(ours[-1]) == types(params)
    # Computed in float64 from Adam's step and second moment in that precision.
    nu_hat = jax.tree.map(lambda v: np.float64(v) / (1 - 0.999**3), state.nu)
    for actual, step, v in zip(
        *map(jax.tree.leaves, (ours[-1], adams[-1], nu_hat)), strict=True
    ):
        step = np.float64(step)
        direction = step * (np.sqrt(v) + 1e-8) / (v**0.75 + 1e-8)
        expected = direction * (rms(step) / (rms(direction) or 1))
        np.testing.assert_allclose(np.float64(actual), expected, rtol=1e-2, atol=1e-6)


def test_float64_beside_float32() -> None:
    with x64():
        params = {"w": jnp.ones((3, 4), jnp.float64), "b": jnp.ones(4, jnp.float32)}
        gradients = gradients_like(params, 2)
        _, updates, state = run(scale_by_padam(), params, gradients)
        assert types(updates[-1]) == types(params)
        assert types(state.mu) == types(state.nu) == types(params)
        desired = padam([np.asarray(g["w"]) for g in gradients], (), 0.75)
        np.testing.assert_allclose(updates[-1]["w"], desired[-1], rtol=1e-6)


def first_step(
    optimizer: optax.GradientTransformation, gradient: jax.Array
) -> jax.Array:
    return optimizer.update(gradient, optimizer.init(gradient))[0]


EXTREMES: dict[str, tuple[float, dict[str, Any]]] = {
    "zero": (0.0, {}),
    "zero, exponent 0": (0.0, {"exponent": 0.0}),
    # The directions are 5e18; their squares overflow.
    "tiny, exponent 1": (2e-19, {"exponent": 1.0, "eps": 0.0, "b2": 0.0}),
    # The directions are 1e-25; their squares and the second moment underflow.
    "tinier, exponent 0": (1e-25, {"exponent": 0.0}),
    "huge": (1e18, {}),
    "huge, exponent 1": (1e18, {"exponent": 1.0}),
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extreme_gradients_give_a_step_of_adams_size(name: str) -> None:
    size, options = EXTREMES[name]
    gradient = size * jnp.linspace(1, 2, 100)
    updates = first_step(scale_by_padam(**options), gradient)
    adams = first_step(
        optax.scale_by_adam(**{k: v for k, v in options.items() if k != "exponent"}),
        gradient,
    )
    assert np.all(np.isfinite(updates))
    np.testing.assert_allclose(
        rms(np.float64(updates)), rms(np.float64(adams)), rtol=1e-5
    )


def test_a_nan_gradient_gives_a_nan_update() -> None:
    gradient = jnp.array([1.0, jnp.nan])
    assert np.all(np.isnan(first_step(scale_by_padam(), gradient)))


def test_stacked_layers_are_scaled_like_separate_ones() -> None:
    layers = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 5)), jnp.float32)
    layers *= jnp.array([1e-3, 1.0, 1e3])[:, None, None]
    stacked = scale_by_padam(block_axes=mofo_jax.PathRules({"w": (0,)}, default=()))
    together = run(stacked, {"w": layers}, [{"w": layers}] * 2)[1][-1]["w"]
    alone = [run(scale_by_padam(), x, [x] * 2)[1][-1] for x in layers]
    np.testing.assert_allclose(together, alone, rtol=1e-6)
    whole = run(scale_by_padam(), {"w": layers}, [{"w": layers}] * 2)[1][-1]["w"]
    assert not np.allclose(together, whole, rtol=0.1)


def test_heads_in_one_axis_are_scaled_separately() -> None:
    heads = np.stack([TENSOR := jnp.arange(1.0, 7.0).reshape(3, 2), 100 * TENSOR**2])
    merged = heads.reshape(6, 2)
    cut = scale_by_padam(block_axes=(mofo_jax.AxisParts(axis=0, parts=2),))
    together = run(cut, merged, [merged] * 2)[1][-1]
    alone = [run(scale_by_padam(), x, [x] * 2)[1][-1] for x in heads]
    np.testing.assert_allclose(together.reshape(2, 3, 2), alone, rtol=1e-6)


def test_blocks_that_tensors_share_are_refused() -> None:
    optimizer = scale_by_padam(block_axes="model")
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    with pytest.raises(ValueError, match=r"for a must not share the block 'model'.*sc"):
        optimizer.update(params, optimizer.init(params))


def test_the_state_is_adams_and_keeps_its_type() -> None:
    params, gradients = few(2, "bfloat16")
    optimizer = optax.inject_hyperparams(scale_by_padam, hyperparam_dtype=jnp.float32)()
    state = optimizer.init(params)
    _, updates, after = run(optimizer, params, gradients)
    assert types(after) == types(state)
    assert types(updates[-1]) == types(params)
    abstract = scale_by_padam().init(jax.ShapeDtypeStruct((2, 3), jnp.float32))
    assert isinstance(abstract, optax.ScaleByAdamState)
    moved = optax.tree.map_params(
        scale_by_padam(), lambda leaf: leaf + 1, scale_by_padam().init(params)
    )
    assert int(moved.count) == 0


ERRORS: dict[str, tuple[Any, ...]] = {
    "exponent above one": (
        lambda: scale_by_padam(exponent=1.5),
        "`exponent` must be in [0, 1], got 1.5",
    ),
    "negative exponent": (
        lambda: scale_by_padam(exponent=-0.1),
        "`exponent` must be in [0, 1], got -0.1",
    ),
    "b1": (lambda: scale_by_padam(b1=1.0), "`b1` must be in [0, 1), got 1.0"),
    "b2": (lambda: scale_by_padam(b2=-1.0), "`b2` must be in [0, 1), got -1.0"),
    "eps": (lambda: scale_by_padam(eps=-1.0), "`eps` must be in [0, inf), got -1.0"),
    "eps_root": (lambda: scale_by_padam(eps_root=-1.0), "`eps_root` must be in"),
    "axes": (
        lambda: scale_by_padam(block_axes=0),
        "`block_axes` must be a name, or a tuple of axis numbers and AxisParts with at "
        "most one name, got 0",
    ),
    "axes of the tree": (
        lambda: first_step(scale_by_padam(block_axes=(2,)), {"w": jnp.ones((2, 2))}),
        "`block_axes` for w must be axes of a tensor with 2 dimensions",
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    assert_raises(*ERRORS[name])


def test_it_converges() -> None:
    end = jnp.array([3.0, -2.0, 0.5])
    optimizer = optax.chain(scale_by_padam(), optax.scale_by_learning_rate(1e-2))

    @functools.partial(jax.jit, static_argnums=1)
    def descend(params: jax.Array, steps: int) -> jax.Array:
        def step(carry: tuple, _: None) -> tuple:
            params, state = carry
            updates, state = optimizer.update(params - end, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, length=steps)[0][0]

    np.testing.assert_allclose(descend(jnp.zeros(3), 3000), end, atol=3e-2)


def test_an_integer_decay_rate_is_its_float() -> None:
    gradient = jnp.array([1.0, -2.0, 3.0])
    made = []
    for b2 in (0, 0.0):
        optimizer = scale_by_padam(b2=b2, exponent=0.25)
        made.append(optimizer.update(gradient, optimizer.init(gradient))[0])
    assert_same_bits(*made)
