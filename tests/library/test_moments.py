"""Where the momentum and the step count are found in a state."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from mofo_jax import _filter, _moments

PARAMS = {"a": jnp.arange(1.0, 5.0), "b": {"c": jnp.ones((2, 3)), "none": None}}
LABELS = {"a": "first", "b": "second"}


def state_after(inner: Any, params: Any = PARAMS) -> optax.OptState:
    """Returns an optimizer's state after one step."""
    tx = optax.with_extra_args_support(inner)
    return tx.update(params, tx.init(params), params)[1]


def momenta(state: optax.OptState, params: Any, ranked: Any) -> list[jax.Array]:
    """Returns the momenta of the leaves with the given indices."""
    kept = _moments.Moments(state, params)
    return [kept.find(_moments.MOMENTUM, i) for i in ranked]


def count(state: optax.OptState) -> jax.Array:
    """Returns the number of updates that a state has seen."""
    return _moments.step_count(state, "a test asks")


@pytest.mark.parametrize(
    "inner",
    [
        optax.scale_by_adam(),
        optax.adam(1e-2),
        optax.adamw(1e-2),
        optax.nadam(1e-2),
        optax.adabelief(1e-2),
        optax.amsgrad(1e-2),
        optax.chain(optax.clip_by_global_norm(1e9), optax.adamw(1e-2)),
        optax.chain(optax.chain(optax.adam(1e-2)), optax.scale(2.0)),
        optax.inject_hyperparams(optax.adam)(1e-2),
        optax.apply_if_finite(optax.adam(1e-2), 3),
        optax.MultiSteps(optax.adam(1e-2), 1),
        optax.masked(optax.adam(1e-2), True),
        optax.partition({"first": optax.adam(1e-2), "second": optax.adam(1.0)}, LABELS),
    ],
)
def test_adams_momentum_is_found(inner: Any) -> None:
    found = momenta(state_after(inner), PARAMS, (0, 1))
    for momentum, gradient in zip(found, jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_allclose(momentum, 0.1 * gradient, rtol=1e-6)


@pytest.mark.parametrize(
    ("inner", "scale"),
    [(optax.sgd(1.0, 0.9), 1.0), (optax.trace(0.9), 1.0), (optax.lion(1e-2), 0.01)],
)
def test_other_momenta_are_found(inner: Any, scale: float) -> None:
    found = momenta(state_after(inner), PARAMS, (0, 1))
    for momentum, gradient in zip(found, jax.tree.leaves(PARAMS), strict=True):
        np.testing.assert_allclose(momentum, scale * gradient, rtol=1e-4)


def test_momenta_of_a_partition_are_found_in_each_group() -> None:
    inner = optax.partition(
        {"first": optax.trace(0.9), "second": optax.adam(1.0)}, LABELS
    )
    found = momenta(state_after(inner), PARAMS, (0, 1))
    np.testing.assert_allclose(found[0], PARAMS["a"])
    np.testing.assert_allclose(found[1], 0.1 * PARAMS["b"]["c"], rtol=1e-6)


def test_only_ranked_tensors_need_a_momentum() -> None:
    groups = {"first": optax.adam(1e-2), "second": optax.set_to_zero()}
    state = state_after(optax.partition(groups, LABELS))
    (found,) = momenta(state, PARAMS, (0,))
    np.testing.assert_allclose(found, 0.1 * PARAMS["a"], rtol=1e-6)
    with pytest.raises(ValueError, match="no momentum for b/c"):
        momenta(state, PARAMS, (0, 1))


def test_two_momenta_for_a_tensor_are_an_error() -> None:
    state = state_after(optax.chain(optax.trace(0.9), optax.scale_by_adam()))
    with pytest.raises(ValueError, match="two momenta for a in the state"):
        momenta(state, PARAMS, (0, 1))


class Named(NamedTuple):
    """Parameters named like the fields of an optimizer's state."""

    mu: jax.Array
    trace: jax.Array
    count: jax.Array


@pytest.mark.parametrize(
    "params",
    [
        Named(jnp.arange(3.0), jnp.ones(2), jnp.ones(4)),
        {"mu": jnp.arange(3.0), "trace": jnp.ones(2), "count": jnp.ones(4)},
        {"nested": Named(jnp.ones(3), jnp.ones(2), jnp.ones(4)), "mu": jnp.ones(2)},
    ],
    ids=["named tuple", "dict", "both"],
)
def test_a_parameter_called_mu_is_no_momentum(params: Any) -> None:
    leaves = jax.tree.leaves(params)
    everything = tuple(range(len(leaves)))
    state = state_after(optax.adam(1e-2), params)
    found = momenta(state, params, everything)
    for momentum, gradient in zip(found, leaves, strict=True):
        np.testing.assert_allclose(momentum, 0.1 * gradient, rtol=1e-6)
    assert count(state) == 1
    without = state_after(optax.sgd(1e-2), params)
    with pytest.raises(ValueError, match="no momentum"):
        momenta(without, params, everything)
    # A trace keeps no count, but a parameter here has that name.
    with pytest.raises(ValueError, match="keeps no `count`"):
        count(state_after(optax.trace(0.9), params))


def test_the_count_is_that_of_the_updates_seen() -> None:
    tx = optax.chain(optax.clip(1.0), optax.adam(optax.constant_schedule(1e-2)))
    state = tx.init(PARAMS)
    for number in range(3):
        assert count(state) == number
        _, state = tx.update(PARAMS, state)


@pytest.mark.parametrize("option", ["schedule", "score"])
def test_the_count_is_found_once_for_all_tensors(
    monkeypatch: pytest.MonkeyPatch, option: str
) -> None:
    def step_count(*given: Any) -> jax.Array:
        found.append(given)
        return jnp.zeros((), jnp.int32)

    found: list[Any] = []
    options: dict[str, Any] = {
        "schedule": {"update_fraction": optax.constant_schedule(0.5)},
        "score": {"score": "random"},
    }
    for module in (_filter, _moments):
        monkeypatch.setattr(module, "step_count", step_count)
    optimizer = mofo_jax.mofo(0.1, **options[option])
    params = {name: jnp.ones(4) for name in "abc"}
    optimizer.update(params, optimizer.init(params))
    assert len(found) == 1


def test_a_field_of_other_shapes_is_no_momentum() -> None:
    class Projected(NamedTuple):
        mu: Any

    with pytest.raises(ValueError, match="finds no momentum for the tensor"):
        momenta(Projected(jnp.ones((2, 3))), jnp.ones((4, 3)), [0])
