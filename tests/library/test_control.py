"""The control of the fraction, on problems for which its limit is known."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from mofo_jax._control import control_fraction
from mofo_jax._pull_to_start import pull_to_start
from tests.helpers import assert_raises, assert_same_bits, few, run, types

PULL = 0.5


def drift(fraction: jax.Array) -> optax.GradientTransformation:
    """Gradient descent in proportion to the fraction, with a pull to the start.

    Under a gradient of -1, a coordinate settles at fraction / PULL.
    """
    return optax.chain(
        optax.stateless(
            lambda updates, _: jax.tree.map(lambda u: fraction * u, updates)
        ),
        pull_to_start(PULL),
        optax.scale_by_learning_rate(0.2),
    )


def descend(
    optimizer: optax.GradientTransformationExtraArgs,
    params: Any,
    gradient: Callable[[Any, jax.Array], Any],
    steps: int,
) -> tuple[Any, Any, Any]:
    """Returns the last parameters, and the fractions and distances of all steps."""
    start = params

    def step(carry: tuple, count: jax.Array) -> tuple:
        params, state = carry
        updates, state = optimizer.update(gradient(params, count), state, params)
        params = optax.apply_updates(params, updates)
        distance = optax.tree.norm(optax.tree.sub(params, start))
        return (params, state), (state.fraction, distance)

    @jax.jit
    def all_steps(params: Any) -> tuple:
        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, jnp.arange(steps))

    (params, _), (fractions, distances) = all_steps(params)
    return params, np.asarray(fractions), np.asarray(distances)


@pytest.mark.parametrize("initial", [0.01, 1.0])
@pytest.mark.parametrize("rest", [0.05, 0.6])
def test_it_converges_to_the_fraction_that_meets_the_budget(
    rest: float, initial: float
) -> None:
    params = {"w": jnp.full((3, 3), 5.0), "b": jnp.zeros(7)}  # 16 coordinates.
    optimizer = control_fraction(drift, budget=4 * rest / PULL, initial=initial)

    def gradient(params: Any, count: jax.Array) -> Any:
        return jax.tree.map(lambda p: -jnp.ones_like(p), params)

    _, fractions, distances = descend(optimizer, params, gradient, 400)
    np.testing.assert_allclose(fractions[-1], rest, rtol=1e-3)
    np.testing.assert_allclose(distances[-1], 4 * rest / PULL, rtol=1e-3)
    assert np.all((fractions >= 1e-4) & (fractions <= 1))


def noisy_quadratic(size: int) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Returns the noisy gradient of a quadratic whose minimum is between 1 and 3."""
    end = jnp.linspace(1, 3, size)

    def gradient(params: jax.Array, count: jax.Array) -> jax.Array:
        key = jax.random.fold_in(jax.random.key(0), count)
        return params - end + 0.5 * jax.random.normal(key, params.shape)

    return gradient


def pulled_mofo(fraction: jax.Array) -> optax.GradientTransformation:
    return optax.chain(
        mofo_jax.scale_by_mofo(update_fraction=fraction),
        pull_to_start(PULL),
        optax.scale_by_learning_rate(0.05),
    )


def test_mofo_settles_at_the_budget() -> None:
    size, rest = 50, 0.2
    gradient = noisy_quadratic(size)
    fixed = control_fraction(
        pulled_mofo, budget=1e-9, initial=rest, measure="divergence"
    )
    _, fractions, distances = descend(fixed, jnp.zeros(size), gradient, 1000)
    assert np.all(fractions == np.float32(rest))  # No divergence was passed.
    budget = float(np.mean(distances[-500:]))
    held = control_fraction(pulled_mofo, budget=budget, initial=1.0, gain=0.02)
    _, fractions, distances = descend(held, jnp.zeros(size), gradient, 1500)
    np.testing.assert_allclose(np.mean(distances[-500:]), budget, rtol=0.02)
    np.testing.assert_allclose(np.mean(fractions[-500:]), rest, rtol=0.1)


def test_a_growing_budget_is_followed() -> None:
    size, steps = 1000, 600
    schedule = optax.linear_schedule(0.05, 3.0, steps)
    end = jnp.linspace(1, 3, size)
    optimizer = control_fraction(slow_mofo, budget=schedule)
    _, _, distances = descend(
        optimizer, jnp.zeros(size), lambda params, _: params - end, steps
    )
    followed = (distances / np.asarray(schedule(np.arange(steps))))[200:]
    assert np.all(np.abs(followed - 1) < 0.15)
    np.testing.assert_allclose(np.mean(followed), 1, rtol=0.02)
    # The oscillation around the budget decreases.
    assert np.std(followed[200:]) < 0.8 * np.std(followed[:200])


def slow_mofo(fraction: jax.Array) -> optax.GradientTransformation:
    return mofo_jax.mofo(1e-3, update_fraction=fraction)


def mofo(fraction: Any) -> optax.GradientTransformationExtraArgs:
    return mofo_jax.mofo(1e-2, update_fraction=fraction)


REPORTS: dict[str, tuple[Any, float]] = {
    "on budget": (1.0, 1.0),
    "above": (1.2, 1.2**-0.5),
    "below": (0.9, 0.9**-0.5),
    "far above": (100.0, np.exp(-0.5)),
    "infinite": (np.inf, np.exp(-0.5)),
    "zero": (0.0, np.exp(0.5)),
    "below zero": (-1e-3, np.exp(0.5)),
    "not a number": (np.nan, 1.0),
    "nothing": (None, 1.0),
    "an array": (jnp.float32(1.2), 1.2**-0.5),
}


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("report", REPORTS)
def test_a_reported_divergence(report: str, jit: bool) -> None:
    divergence, factor = REPORTS[report]
    params, gradients = few(1)
    # The inner transformation multiplies the gradient by the fraction.
    optimizer = control_fraction(
        optax.scale, budget=1.0, measure="divergence", gain=0.5
    )
    state = optimizer.init(params)
    assert state.start is None
    update = jax.jit(optimizer.update) if jit else optimizer.update
    updates, after = update(gradients[0], state, params, divergence=divergence)
    np.testing.assert_allclose(after.fraction, 0.15 * factor, rtol=1e-5)
    expected = after.fraction * gradients[0]["heads"]
    np.testing.assert_allclose(updates["heads"], expected, rtol=1e-6)


def test_the_fraction_stays_within_its_limits() -> None:
    params, gradients = few(1)
    optimizer = control_fraction(
        optax.scale, budget=1.0, measure="divergence", gain=1.0, least=0.1
    )
    state = optimizer.init(params)
    seen = []
    for divergence in (9.0, 9.0, 0.1, 0.1, 0.1, 0.1):
        _, state = optimizer.update(gradients[0], state, params, divergence=divergence)
        seen.append(float(state.fraction))
    e = np.e
    np.testing.assert_allclose(seen, [0.1, 0.1, 0.1 * e, 0.1 * e**2, 1, 1], rtol=1e-5)


def test_the_distance_is_measured_before_the_step() -> None:
    params, gradients = few(2, "bfloat16")
    optimizer = control_fraction(optax.scale, budget=2.0, gain=0.5, initial=0.1)
    state = optimizer.init(params)
    now = jax.tree.map(lambda p, g: p + g, params, gradients[0])
    way = jax.tree.map(lambda a, b: np.float64(a) - np.float64(b), now, params)
    distance = np.sqrt(sum(np.sum(w**2) for w in jax.tree.leaves(way)))
    _, after = optimizer.update(gradients[1], state, now)
    factor = np.exp(0.5 * np.clip(np.log(2 / distance), -1, 1))
    np.testing.assert_allclose(after.fraction, 0.1 * factor, rtol=1e-4)
    assert_same_bits(after.start, params)


@pytest.mark.parametrize("measure", ["distance", "divergence"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_state_keeps_its_type(dtype: str, measure: str) -> None:
    params, gradients = few(2, dtype)
    optimizer = control_fraction(mofo, budget=1.0, measure=measure)
    state = optimizer.init(params)
    _, updates, after = run(optimizer, params, gradients)
    assert types(after) == types(state)
    assert types(updates[-1]) == types(params)
    assert int(after.count) == 2
    moved = optax.tree.map_params(optimizer, lambda leaf: leaf + 1, state)
    assert float(moved.fraction) == np.float32(0.15)
    assert int(moved.count) == 0
    if measure == "distance":
        np.testing.assert_array_equal(moved.start["heads"], params["heads"] + 1)


def test_one_compilation_and_extra_arguments() -> None:
    params, gradients = few(3)
    seen = []

    def factory(fraction: jax.Array) -> optax.GradientTransformation:
        def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
            seen.append(sorted(extra))
            return updates, state

        return optax.GradientTransformationExtraArgs(optax.identity().init, update)

    optimizer = control_fraction(factory, budget=1.0)
    state = optimizer.init(params)
    step = jax.jit(functools.partial(optimizer.update, divergence=1.0))
    for gradient in gradients:
        _, state = step(updates=gradient, state=state, params=params, loss=1.0)
    assert seen == [["loss"]]


def built(**options: Any) -> Callable[[], Any]:
    """Returns a function that calls `control_fraction` with options."""
    return lambda: control_fraction(mofo, **{"budget": 1.0, **options})


def updating(params: Any, budget: Any = 1.0, **extra: Any) -> Callable[[], Any]:
    """Returns a function that calls `update`."""
    gradient, optimizer = jnp.ones(2), control_fraction(mofo, budget=budget)
    return lambda: optimizer.update(gradient, optimizer.init(gradient), params, **extra)


ERRORS: dict[str, tuple[Any, ...]] = {
    "measure": (
        built(measure="kl"),
        "`measure` must be 'distance' or 'divergence', got 'kl'",
    ),
    "budget": (built(budget=0.0), "`budget` must be in (0, inf), got 0.0"),
    "gain": (built(gain=-1), "`gain` must be in (0, inf), got -1"),
    "initial": (built(initial=2.0), "`initial` must be in (0, 1], got 2.0"),
    "least": (built(least=0.0), "`least` must be in (0, 1], got 0.0"),
    "a low start": (
        built(initial=1e-5, least=0.1),
        "`initial` must be at least `least`, got 1e-05 < 0.1",
    ),
    "a low start in an array": (
        built(initial=jnp.float32(0.125), least=0.5),
        "`initial` must be at least `least`, got 0.125 < 0.5",
    ),
    "factory": (
        lambda: control_fraction(lambda fraction: fraction, budget=1.0).init(
            jnp.ones(2)
        ),
        "`factory` must return an optax.GradientTransformation, got",
        TypeError,
    ),
    "params": (
        updating(None),
        "`params` must be given to `update`: `control_fraction` compares",
    ),
    "divergence": (
        updating(jnp.ones(2), divergence=jnp.ones(1)),
        "`divergence` must be a number, got",
        TypeError,
    ),
    "a schedule of arrays": (
        updating(jnp.ones(2), budget=lambda count: jnp.ones(1)),
        "`budget` must be a number, got",
        TypeError,
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name: str) -> None:
    assert_raises(*ERRORS[name])
