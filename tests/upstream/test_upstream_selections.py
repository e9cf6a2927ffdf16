"""The contribution's selections are the library's, and NumPy's."""

import functools
from fractions import Fraction
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from examples.upstream import mofo
from tests.helpers import (
    DTYPES,
    assert_same_bits,
    few,
    float32_zoo,
    patterns,
    random_generator,
    run,
    selected,
    x64,
)
from tests.library.awkward import numbers
from tests.library.selections import Variant, drawn_fraction, drawn_numbers

SHAPES: list[tuple[int, ...]] = [(), (1,), (97,), (0, 3), (7, 31), (3, 4, 25)]
DRAWS = 25


class Ranked(NamedTuple):
    """A state that holds the momenta."""

    mu: Any


def ones(updates: Any, state: Ranked, params: Any = None) -> tuple[Any, Ranked]:
    """Proposes a step of one for every coordinate, with the updates as momenta."""
    return jax.tree.map(jnp.ones_like, updates), Ranked(updates)


INNER = optax.GradientTransformation(Ranked, ones)


def moves(x: jax.Array, fraction: Any) -> jax.Array:
    """Returns the coordinates that the contribution's filter selects."""
    optimizer = mofo.momentum_filter(INNER, fraction)
    return optimizer.update(x, optimizer.init(x))[0] != 0


def the_librarys(x: jax.Array, fraction: Any) -> jax.Array:
    """Returns the coordinates that the library's filter selects."""
    optimizer = mofo_jax.momentum_filter(INNER, update_fraction=fraction)
    return optimizer.update(x, optimizer.init(x))[0] != 0


@pytest.mark.parametrize("traced", [True, False], ids=["traced", "static"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_random_selections(shape: tuple[int, ...], dtype: str, traced: bool) -> None:
    rng = random_generator(len(shape))
    kinds = numbers(DTYPES[dtype])
    variant = Variant(shape, (), dtype, "all", traced)
    constant = drawn_fraction(rng)
    if not traced and constant == 1:
        constant = 0.15  # A static 1 filters nothing.
    ours, theirs = (
        jax.jit(f if traced else lambda x, _, f=f: f(x, constant))
        for f in (moves, the_librarys)
    )
    with x64(dtype == "float64"):
        for _ in range(DRAWS):
            kind, x = drawn_numbers(rng, variant, kinds)
            fraction = np.float32(drawn_fraction(rng)) if traced else constant
            mask = np.asarray(ours(x, fraction))
            expected = selected(x, float(fraction)) & (patterns(x) > 0)
            np.testing.assert_array_equal(mask, expected, err_msg=kind)
            np.testing.assert_array_equal(mask, theirs(x, fraction), err_msg=kind)


def test_complex_numbers_compete_by_their_modulus() -> None:
    rng = random_generator()
    x = (rng.normal(size=50) + 1j * rng.normal(size=50)).astype(np.complex64)
    expected = selected(np.array(jnp.abs(x)), 0.2)
    np.testing.assert_array_equal(moves(jnp.asarray(x), 0.2), expected)


@pytest.mark.parametrize("size", [1, 97, 100, 12_345_678, 2**31 - 1])
def test_a_traced_fraction_is_multiplied_exactly(size: int) -> None:
    count = jax.jit(functools.partial(mofo._num_selected, size=size))
    fractions = [0.15, 0.29, 0.57, 0.5, 0.25, 1e-6, 1e-12, 1 - 2**-24, 1.0]
    fractions += random_generator().uniform(size=100).tolist()
    for fraction in map(np.float32, fractions):
        expected = max(1, int(Fraction(float(fraction)) * size))
        assert int(count(fraction)) == expected, fraction


OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "all": {"update_fraction": 1, "weight_decay": 0.1},
    "half, decay, Nesterov": {
        "update_fraction": 0.5,
        "weight_decay": optax.linear_schedule(0.1, 0.2, 9),
        "nesterov": True,
    },
    "other betas, schedule": {
        "learning_rate": optax.linear_schedule(1e-2, 1e-3, 9),
        "b1": 0.8,
        "b2": 0.95,
        "eps": 1e-6,
        "eps_root": 1e-7,
        "update_fraction": 0.03,
    },
}


@pytest.mark.parametrize("options", OPTIONS)
def test_trajectories_are_the_librarys_bit_for_bit(options: str) -> None:
    params, gradients = float32_zoo(6)
    given = {"learning_rate": 1e-2, **OPTIONS[options]}
    ours = run(mofo.mofo(**given), params, gradients, jit=False)
    theirs = run(mofo_jax.mofo(**given), params, gradients, jit=False)
    assert_same_bits(ours, theirs)


@pytest.mark.parametrize("dtype", DTYPES)
def test_compiled_trajectories_are_the_librarys(dtype: str) -> None:
    with x64(dtype == "float64"):
        params, gradients = few(6, dtype)
        ours, theirs = (
            run(optimizer(1e-2, weight_decay=0.1), params, gradients)
            for optimizer in (mofo.mofo, mofo_jax.mofo)
        )
        assert jax.tree.structure(ours) == jax.tree.structure(theirs)
        tolerance = 8 * float(jnp.finfo(dtype).eps)
        for our, their in zip(*map(jax.tree.leaves, (ours, theirs)), strict=True):
            assert our.dtype == their.dtype
            np.testing.assert_array_equal(our != 0, their != 0)
            our, their = (np.asarray(x, np.float64) for x in (our, their))
            np.testing.assert_allclose(our, their, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("fraction", [0.0, -0.5, 1.5])
def test_fractions_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"`update_fraction` must be in \(0, 1\], got"):
        mofo.mofo(1e-2, update_fraction=fraction)


def test_a_state_without_momentum_is_an_error() -> None:
    optimizer = mofo.momentum_filter(optax.sgd(0.1))
    with pytest.raises(ValueError, match="`inner` must keep a momentum"):
        optimizer.update(jnp.ones(3), optimizer.init(jnp.ones(3)))


def test_a_momentum_of_some_tensors_only_is_an_error() -> None:
    parts = {"a": optax.adam(0.1), "b": optax.sgd(0.1)}
    optimizer = mofo.momentum_filter(optax.partition(parts, {"x": "a", "y": "b"}))
    params = {"x": jnp.ones(3), "y": jnp.ones(3)}
    with pytest.raises(ValueError, match="must keep a momentum of all tensors"):
        optimizer.update(params, optimizer.init(params))


@pytest.mark.parametrize("name", ["mu", "trace"])
def test_a_parameter_may_have_the_name_of_a_momentum(name: str) -> None:
    params = {name: jnp.arange(1.0, 9.0), "other": jnp.ones(4)}
    ours, theirs = mofo.mofo(1e-2), mofo_jax.mofo(1e-2)
    actual, _ = ours.update(params, ours.init(params), params)
    desired, _ = theirs.update(params, theirs.init(params), params)
    assert_same_bits(actual, desired)


def test_too_large_tensors_are_an_error() -> None:
    large = jax.ShapeDtypeStruct((2**16, 2**15), jnp.float32)
    with pytest.raises(ValueError, match=r"2\*\*31 elements or more: \(65536, 32768\)"):
        jax.eval_shape(lambda x: moves(x, 0.15), large)
