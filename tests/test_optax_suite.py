"""What Optax demands of every contributed optimizer, in our words.

Its rules are those of its suite for contributed optimizers: extra arguments, one
compilation, convergence, injected hyperparameters, dtypes, accumulation, schedules,
and a state of one type for ever. Explicit sharding is in `eight_devices`.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from tests.helpers import x64

OPTIMIZERS: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "mofo": functools.partial(mofo_jax.mofo, 1e-2),
    "mofo, decay of all": functools.partial(
        mofo_jax.mofo, 1e-2, decay="all", weight_decay=1e-5
    ),
    "mofo, exact": functools.partial(
        mofo_jax.mofo, 1e-2, ties="exact", update_fraction=0.5
    ),
    "chain": lambda: optax.chain(
        mofo_jax.scale_by_mofo(), optax.scale_by_learning_rate(1e-2)
    ),
    "filtered sgd": lambda: mofo_jax.momentum_filter(optax.sgd(1e-3, momentum=0.9)),
    "filtered nadam": lambda: mofo_jax.momentum_filter(optax.nadam(1e-2)),
    "filtered lion": lambda: mofo_jax.momentum_filter(optax.lion(1e-3)),
    "filtered adan": lambda: mofo_jax.momentum_filter(optax.adan(1e-2)),
    "filtered padam": lambda: mofo_jax.momentum_filter(
        optax.chain(
            mofo_jax.baselines.scale_by_padam(exponent=0.75),
            optax.scale_by_learning_rate(1e-2),
        ),
        update_fraction=0.5,
    ),
    "by adam's ratio, the rest a tenth": functools.partial(
        mofo_jax.mofo, 1e-2, score="adam_ratio", rest=0.1
    ),
    "at random": functools.partial(
        mofo_jax.mofo, 1e-2, score="random", update_fraction=0.5
    ),
    "the whole model": functools.partial(
        mofo_jax.mofo, 1e-2, block_axes="model", update_fraction=0.5
    ),
}


def rosenbrock(params: jax.Array) -> jax.Array:
    """Has its minimum in a curved valley, at (1, 1)."""
    return (1 - params[0]) ** 2 + 100 * (params[1] - params[0] ** 2) ** 2


def distance_to(end: Any) -> Callable[[Any], jax.Array]:
    """Returns the squared distance of a tree from another."""

    def loss(params: Any) -> jax.Array:
        return optax.tree.norm(optax.tree.sub(params, end), squared=True)

    return loss


TARGETS: dict[str, tuple[Any, Any, Callable[[Any], jax.Array]]] = {}
for _name, _start, _end in (
    ("parabola", jnp.array([-1.0, 10.0, 1.0]), jnp.array([1.0, -1.0, 1.0])),
    ("matrix", jnp.zeros((2, 2)), jnp.array([[3.0, -2.0], [1.0, 4.0]])),
    (
        "tensors",
        (jnp.zeros(3), jnp.zeros((2, 2))),
        (jnp.array([1.0, -1.0, 2.0]), jnp.array([[1.0, 0.0], [-1.0, 1.0]])),
    ),
):
    TARGETS[_name] = _start, _end, distance_to(_end)
TARGETS["rosenbrock"] = jnp.zeros(2), jnp.ones(2), rosenbrock


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_unexpected_extra_arguments_and_one_compilation(name: str) -> None:
    optimizer = OPTIMIZERS[name]()
    params = jnp.zeros(2)

    chex.clear_trace_counter()  # It counts by the function's name.

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params: Any, state: Any) -> tuple:
        loss, grads = jax.value_and_grad(rosenbrock)(params)
        updates, state = optimizer.update(grads, state, params, loss=loss, grad_norm=1)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(3):
        params, state = step(params, state)
    updates, state = optimizer.update(updates=params, state=state, params=params)
    chex.assert_trees_all_equal_shapes(updates, params)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_convergence(name: str, target: str) -> None:
    start, end, loss = TARGETS[target]
    optimizer = OPTIMIZERS[name]()
    state = optax.tree.map_params(optimizer, lambda leaf: leaf, optimizer.init(start))

    def step(carry: tuple, _: None) -> tuple:
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=30_000)[0])
    params, _ = run((start, state))
    chex.assert_trees_all_close(params, end, rtol=3e-2, atol=3e-2)


NUMBERS = {
    name: parameter.default
    for name, parameter in inspect.signature(mofo_jax.mofo).parameters.items()
    if isinstance(parameter.default, float)
}


@pytest.mark.parametrize("ties", ["all", "exact"])
def test_every_number_may_be_injected(ties: str) -> None:
    assert set(NUMBERS) == {
        "b1",
        "b2",
        "eps",
        "eps_root",
        "weight_decay",
        "update_fraction",
        "rest",
    }
    numbers: dict[str, Any] = {"learning_rate": 1e-2, **NUMBERS, "weight_decay": 0.1}
    plain = mofo_jax.mofo(**numbers, ties=ties)
    inject = optax.inject_hyperparams(mofo_jax.mofo, hyperparam_dtype=jnp.float32)
    injected = inject(**numbers, ties=ties, block_axes=(), dense=None)
    params = [jnp.linspace(-1, 1, 6).reshape(2, 3), jnp.linspace(1, 2, 20)]
    plain_state, state = plain.init(params), jax.jit(injected.init)(params)
    assert set(state.hyperparams) == set(numbers)
    for _ in range(3):
        desired, plain_state = jax.jit(plain.update)(params, plain_state, params)
        updates, state = jax.jit(injected.update)(params, state, params)
        chex.assert_trees_all_close(updates, desired, rtol=1e-5)
        chex.assert_trees_all_close(
            state.inner_state, plain_state, rtol=1e-5, atol=1e-5
        )


def test_a_scheduled_fraction_may_be_injected() -> None:
    inject = optax.inject_hyperparams(mofo_jax.mofo, hyperparam_dtype=jnp.float32)
    optimizer = inject(1e-2, update_fraction=optax.linear_schedule(1.0, 0.1, 9))
    params = jnp.arange(1.0, 101.0)
    state, moved = optimizer.init(params), []
    for _ in range(10):
        updates, state = jax.jit(optimizer.update)(params, state, params)
        moved.append(int(np.count_nonzero(updates)))
        # Computed in float32, next to a round number; the compiled step may use a value
        # that differs from the one it returns in the last bit.
        returned = np.float32(state.hyperparams["update_fraction"])
        used = [returned, *np.nextafter(returned, np.float32([0, 2]))]
        assert moved[-1] in {int(100 * min(float(value), 1.0)) for value in used}
    assert moved[0] == 100
    assert moved[-1] in (9, 10)


DTYPES = ["float16", "bfloat16", "float32", "float64"]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["mofo", "mofo, exact", "filtered sgd"])
def test_dtypes_and_state_types_are_kept(name: str, dtype: str) -> None:
    with x64(dtype == "float64"):
        optimizer = OPTIMIZERS[name]()
        params = jnp.arange(1, 13, dtype=dtype).reshape(3, 4) / 8

        @jax.jit
        def step(go: jax.Array, params: Any, state: Any) -> tuple:
            def take(params: Any, state: Any) -> tuple:
                updates, state = optimizer.update(params, state, params)
                assert jnp.result_type(updates) == params.dtype
                return optax.apply_updates(params, updates), state

            # Both branches have to return the same types.
            return jax.lax.cond(go, take, lambda p, s: (p, s), params, state)

        state = optimizer.init(params)
        before = jax.tree.map(jax.typeof, (params, state))
        for go in (True, False, True):
            params, state = step(jnp.array(go), params, state)
            assert jax.tree.map(jax.typeof, (params, state)) == before
        assert np.isfinite(np.asarray(params, np.float64)).all()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_accumulated_gradients_move_nothing_before_their_time(dtype: str) -> None:
    optimizer = optax.MultiSteps(mofo_jax.mofo(1e-2), every_k_schedule=4)
    params = jnp.arange(1, 13, dtype=dtype)
    state = optimizer.init(params)
    for number in range(1, 5):
        updates, state = jax.jit(optimizer.update)(params, state, params)
        assert jnp.result_type(updates) == params.dtype
        assert np.count_nonzero(updates) == (1 if number == 4 else 0)


def test_a_constant_schedule_is_its_constant() -> None:
    annotation = inspect.signature(mofo_jax.mofo).parameters["learning_rate"].annotation
    assert annotation == optax.ScalarOrSchedule  # A string would hide it from Optax.
    params = jnp.linspace(-1, 1, 20)
    plain, scheduled = mofo_jax.mofo(1e-3), mofo_jax.mofo(optax.constant_schedule(1e-3))
    states = plain.init(params), scheduled.init(params)
    for _ in range(10):
        desired, first = jax.jit(plain.update)(params, states[0], params)
        updates, second = jax.jit(scheduled.update)(params, states[1], params)
        states = first, second
        np.testing.assert_allclose(updates, desired, rtol=1e-6)


def test_the_first_updates_of_large_gradients_are_finite() -> None:
    optimizer = mofo_jax.scale_by_mofo()
    params = jnp.array([[1.0, -500.0], [500.0, 0.0]])
    updates, _ = optimizer.update(params, optimizer.init(params))
    chex.assert_tree_all_finite(updates)
