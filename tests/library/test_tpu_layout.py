"""The order of axes in which a TPU keeps tensors, and the search in that order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mofo_jax._selection import limbs, search
from mofo_jax._selection.patterns import Contest, rank_magnitudes
from mofo_jax._selection.tpu_layout import in_memory_order, major_to_minor
from tests.helpers import random_generator

# The orders that libtpu 0.0.42.1 reports for v5e in
# `jax.stages.Compiled.input_formats`.
ORDERS = {
    (2048,): (0,),
    (): (),
    (130, 100): (0, 1),
    (100, 130): (1, 0),
    (7, 5): (0, 1),
    (2048, 8): (1, 0),
    (8, 2048): (0, 1),
    (1000, 1): (1, 0),
    (2048, 32, 64): (1, 2, 0),
    (64, 32, 64): (0, 1, 2),
    (32, 64, 2048): (0, 1, 2),
    (2048, 3, 64): (1, 2, 0),
    (128, 28672, 80): (0, 2, 1),
    (4, 100, 3): (2, 0, 1),
    (100, 4, 3): (2, 1, 0),
    (8, 64, 32): (0, 2, 1),
    (300, 64, 64): (1, 2, 0),
    (2, 256, 129): (2, 0, 1),
    (256, 2, 129): (2, 1, 0),
    (16, 2048, 32, 64): (0, 2, 3, 1),
    (5, 1000, 2, 64): (0, 2, 3, 1),
    (3, 3, 3, 64): (0, 1, 2, 3),
}


@pytest.mark.parametrize("shape", ORDERS)
def test_the_order_is_the_compilers(shape: tuple[int, ...]) -> None:
    assert major_to_minor(shape) == ORDERS[shape]


def test_a_tensor_in_that_order_has_the_same_patterns() -> None:
    x = jnp.asarray(random_generator().normal(size=(2, 300, 4, 8)), jnp.float32)
    tensor = rank_magnitudes(x, (0,))
    held = in_memory_order(tensor)
    (array,) = held.arrays
    assert array.shape == (2, 4, 8, 300)
    assert held.shape == x.shape
    np.testing.assert_array_equal(
        held.patterns(*held.arrays), tensor.patterns(*tensor.arrays)
    )


def test_the_loop_receives_tensors_in_that_order() -> None:
    def passes(x: jax.Array) -> jax.Array:
        tensor = rank_magnitudes(x, ())
        contest = Contest((tensor,), limbs.constant(99, 1))
        return search._search([contest], "lanes").passes

    x = jax.ShapeDtypeStruct((300, 8), jnp.float32)
    (loop,) = (
        equation
        for equation in jax.make_jaxpr(passes)(x).eqns
        if equation.primitive.name == "while"
    )
    assert [v.aval.shape for v in loop.invars if v.aval.size == 2400] == [(8, 300)]


def test_an_order_is_found_while_tracing() -> None:
    def shape(x: jax.Array) -> jax.Array:
        (array,) = in_memory_order(rank_magnitudes(x, ())).arrays
        return jnp.zeros(array.shape)

    found = jax.eval_shape(shape, jax.ShapeDtypeStruct((2048, 32, 64), jnp.bfloat16))
    assert found.shape == (32, 64, 2048)
