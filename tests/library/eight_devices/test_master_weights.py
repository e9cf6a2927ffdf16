"""Master weights of sharded parameters: the same numbers, and no gathering."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mofo_jax
from tests.helpers import assert_same_bits, random_generator

MESH_TYPES = {"auto": AxisType.Auto, "explicit": AxisType.Explicit}
# Powers of two, so that a fused multiply-add gives the same results.
SGD = optax.sgd(2.0**-10, momentum=0.5)
FILTERED = mofo_jax.momentum_filter(SGD, update_fraction=0.25)
OPTIMIZERS = {
    "sgd": mofo_jax.master_weights(SGD),
    "filtered": mofo_jax.master_weights(FILTERED),
}


def train_step(optimizer: Any, params: Any, state: Any, grads: Any) -> tuple:
    """Returns parameters and state in argument order, as donation requires."""
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


CASES = [(P(None, "b"), "sgd"), (P("b", "a"), "filtered")]


@pytest.mark.parametrize("kind", MESH_TYPES)
@pytest.mark.parametrize(("spec", "name"), CASES, ids=str)
def test_sharded_as_on_one_device(spec: P, name: str, kind: str) -> None:
    optimizer = OPTIMIZERS[name]
    rng = random_generator()
    start, *grads = (
        {"kernel": jnp.asarray(rng.normal(size=(16, 8)), jnp.bfloat16)}
        for _ in range(4)
    )
    step = jax.jit(functools.partial(train_step, optimizer))
    alone = start, optimizer.init(start)
    for gradient in grads:
        alone = step(*alone, gradient)

    types = (MESH_TYPES[kind],) * 2
    mesh = jax.make_mesh((4, 2), ("a", "b"), axis_types=types)
    place = functools.partial(jax.device_put, device=NamedSharding(mesh, spec))
    with jax.set_mesh(mesh):
        params = place(start)
        state = optimizer.init(params)
        abstract = jax.tree.map(jax.typeof, (params, state))
        compiled = step.lower(params, state, place(grads[0])).compile()
        for gradient in grads:
            params, state = compiled(params, state, place(gradient))
    assert jax.tree.map(jax.typeof, (params, state)) == abstract
    assert_same_bits((params, state), alone)
    moments = state.remainder["kernel"], optax.tree.get(state, "trace")["kernel"]
    for array in (params["kernel"], *moments):
        assert array.sharding.is_equivalent_to(NamedSharding(mesh, spec), 2)
    assert np.any(state.remainder["kernel"])
    program = str(compiled.as_text())
    for instruction in ("all-gather", "all-to-all", "collective-permute"):
        assert instruction not in program


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
def test_the_remainder_of_abstract_parameters_has_their_sharding(jit: bool) -> None:
    mesh = jax.make_mesh((8,), ("x",), axis_types=(AxisType.Explicit,))
    sharding = NamedSharding(mesh, P(None, "x"))
    with jax.set_mesh(mesh):
        abstract = jax.ShapeDtypeStruct((2, 8), jnp.bfloat16, sharding=sharding)
        params = jax.device_put(jnp.ones((2, 8), jnp.bfloat16), sharding)
        optimizer = OPTIMIZERS["sgd"]
        state = (jax.jit(optimizer.init) if jit else optimizer.init)(params)
        if not jit:
            assert_same_bits(optimizer.init(abstract), state)
        for leaf in jax.tree.leaves(state):
            assert jax.typeof(leaf).sharding.spec == sharding.spec
        _, new_state = optimizer.update(params, state, params)
    assert jax.tree.map(jax.typeof, new_state) == jax.tree.map(jax.typeof, state)
