"""Trees of updates and options whose forms differ from those of dictionaries."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from mofo_jax import baselines
from tests.helpers import assert_same_bits

# As from Equinox's `filter_grad`: an array of integers has no gradient.
WEIGHTS = jnp.array([1.0, 2, 4, 8])
PARAMS = {"ids": jnp.array([5, 7, 2, 9]), "w": WEIGHTS}
UPDATES = {"ids": None, "w": jnp.array([1.0, -1, 1, 1])}
TRANSFORMATIONS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "mofo by relative momentum": lambda: mofo_jax.mofo(
        0.1, update_fraction=0.25, score="relative_momentum"
    ),
    "mofo with decay": lambda: mofo_jax.mofo(0.1, weight_decay=0.1, decay="all"),
    "pull_to_start": lambda: optax.chain(
        optax.scale(-0.1), mofo_jax.pull_to_start(0.1)
    ),
    "master_weights": lambda: mofo_jax.master_weights(optax.sgd(0.1)),
    "control_fraction": lambda: mofo_jax.control_fraction(
        lambda fraction: mofo_jax.mofo(0.1, update_fraction=fraction), budget=0.3
    ),
    "selective_projection_decay": lambda: mofo_jax.baselines.selective_projection_decay(
        optax.sgd(0.1)
    ),
}


@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_parameters_without_an_update_do_not_matter(name: str) -> None:
    optimizer = TRANSFORMATIONS[name]()
    alone, own = {"w": WEIGHTS}, {"w": UPDATES["w"]}
    state, desired_state = (
        optimizer.init({**PARAMS, "ids": None}),
        optimizer.init(alone),
    )
    params: Any = PARAMS
    desired: Any = alone
    for _ in range(2):
        updates, state = optimizer.update(UPDATES, state, {**params, "ids": None})
        wanted, desired_state = optimizer.update(own, desired_state, desired)
        assert updates["ids"] is None
        assert_same_bits(updates["w"], wanted["w"])
        params = {**params, "w": params["w"] + updates["w"]}
        desired = optax.apply_updates(desired, wanted)
    # The parameters may also be given whole.
    again, _ = optimizer.update(UPDATES, state, params)
    wanted, _ = optimizer.update(own, desired_state, desired)
    assert_same_bits(again["w"], wanted["w"])


def test_a_state_made_from_all_parameters() -> None:
    for optimizer in (
        mofo_jax.pull_to_start(0.5),
        mofo_jax.master_weights(optax.scale(-0.1)),
    ):
        state, own = optimizer.init(PARAMS), optimizer.init({"w": WEIGHTS})
        for _ in range(2):
            updates, state = optimizer.update(UPDATES, state, PARAMS)
            wanted, own = optimizer.update({"w": UPDATES["w"]}, own, {"w": WEIGHTS})
            assert updates["ids"] is None
            assert_same_bits(updates["w"], wanted["w"])


def test_a_state_made_from_the_arrays_of_a_model_updates_the_whole_model() -> None:
    # As with Equinox: other leaves are left out of `init` and are in the parameters.
    optimizer = mofo_jax.master_weights(optax.sgd(0.1))
    rest = {"scale": jnp.array([0.5], jnp.bfloat16), "activation": jax.nn.relu}
    nothing = dict.fromkeys(rest)
    state = optimizer.init({"w": WEIGHTS, **nothing})
    updates, _ = optimizer.update(
        {"w": UPDATES["w"], **nothing}, state, {"w": WEIGHTS, **rest}
    )
    alone = {"w": WEIGHTS}
    wanted, _ = optimizer.update({"w": UPDATES["w"]}, optimizer.init(alone), alone)
    assert_same_bits(updates["w"], wanted["w"])


def test_master_weights_of_no_parameter() -> None:
    params = {"w": jnp.ones(3)}
    optimizer = optax.partition(
        {"none": mofo_jax.master_weights(optax.adam(0.1)), "all": optax.adam(0.1)},
        {"w": "all"},
    )
    plain = optax.adam(0.1)
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    wanted, _ = plain.update(params, plain.init(params), params)
    assert_same_bits(updates, wanted)


@jax.tree_util.register_pytree_node_class
class Module:
    """A tree that can be called, as the modules of Equinox can."""

    def __init__(self, kernel: Any, bias: Any) -> None:
        self.kernel, self.bias = kernel, bias

    def __call__(self, x: Any) -> Any:
        return x @ self.kernel + self.bias

    def tree_flatten(self) -> tuple[Any, None]:
        return (self.kernel, self.bias), None

    @classmethod
    def tree_unflatten(cls, _: None, children: Any) -> "Module":
        return cls(*children)


def test_an_option_may_be_a_tree_that_can_be_called() -> None:
    params = Module(jnp.array([[3.0, 1], [2, 4]]), jnp.array([1.0, 2]))
    by_rule = mofo_jax.PathRules({"1$": True}, default=False)
    for dense in (by_rule, Module(False, True)):
        optimizer = mofo_jax.mofo(0.1, update_fraction=Module(0.5, 1.0), dense=dense)
        updates, _ = optimizer.update(params, optimizer.init(params), params)
        np.testing.assert_array_equal(
            updates.kernel != 0, [[True, False], [False, True]]
        )
        assert np.all(updates.bias != 0)


@pytest.mark.parametrize("resetting", ["plateau", "accumulation"])
def test_a_counter_that_is_reset_is_no_step_count(resetting: str) -> None:
    other = {
        "plateau": optax.contrib.reduce_on_plateau(),
        "accumulation": optax.apply_every(1),
    }[resetting]
    momentum = optax.trace(0.9)

    def half_later(count: jax.Array) -> jax.Array:
        return jnp.where(count < 2, 1.0, 0.5)

    shares = []
    for inner in (optax.adam(0.1), optax.chain(other, optax.adam(0.1))):
        optimizer = mofo_jax.momentum_filter(inner, update_fraction=half_later)
        state = optimizer.init(WEIGHTS)
        for _ in range(3):
            updates, state = optimizer.update(WEIGHTS, state, WEIGHTS, value=1.0)
            shares.append(int(np.count_nonzero(updates)))
    assert shares == [4, 4, 2] * 2
    optimizer = mofo_jax.momentum_filter(
        optax.chain(other, momentum), update_fraction=half_later
    )
    with pytest.raises(ValueError, match="the state of `inner` keeps no `count`"):
        optimizer.update(WEIGHTS, optimizer.init(WEIGHTS), WEIGHTS, value=1.0)


def test_a_parameter_is_no_step_count() -> None:
    optimizer = mofo_jax.momentum_filter(
        optax.sgd(0.1, 0.9), update_fraction=lambda count: 0.5
    )
    params = {"t": jnp.float32(1), "w": jnp.ones(4)}
    with pytest.raises(ValueError, match="the state of `inner` keeps no `count`"):
        optimizer.update(params, optimizer.init(params), params)


def test_parameters_without_an_update_may_have_fisher_information() -> None:
    params = {"n": jnp.arange(3), "w": jnp.ones(2)}
    gradients = {"n": None, "w": jnp.ones(2)}
    fisher = {"n": jnp.ones(3), "w": jnp.full(2, 3.0)}
    for optimizer, expected in (
        (baselines.keep_fisher(fisher), 1.0),
        (baselines.elastic_weight_consolidation(1.0, fisher), 1.0),
        (baselines.scale_by_natural_gradient(fisher, damping=1.0), 0.25),
    ):
        state = optimizer.init(params)
        for _ in range(2):
            updates, new = optimizer.update(gradients, state, params)
            assert jax.tree.structure(new) == jax.tree.structure(state)
            state = new
            assert updates["n"] is None
            np.testing.assert_allclose(updates["w"], expected, rtol=1e-6)
