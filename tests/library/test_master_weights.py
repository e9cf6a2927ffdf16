"""Master weights, against exact arithmetic and NumPy's float64."""

import functools
from fractions import Fraction
from typing import Any

import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from mofo_jax import master_weights
from tests.helpers import (
    DTYPES,
    Settings,
    assert_same_bits,
    few,
    float32_zoo,
    gradients_like,
    random_generator,
    run,
    trajectory,
    types,
    x64,
)


def masters(params: Any, state: Any) -> Any:
    """Returns the master weights in float64."""
    return jax.tree.map(
        lambda p, r: np.float64(p) + np.float64(r), params, state.remainder
    )


def given_step(updates: Any, state: Any, params: Any = None, *, step: Any) -> Any:
    """The update function of a transformation whose step is an extra argument."""
    return step, state


TOLD = optax.GradientTransformationExtraArgs(optax.init_empty_state, given_step)


def moderate(dtype: str) -> st.SearchStrategy[float]:
    """Draws numbers whose sums and differences stay within float32's range."""
    least, most = (2.0**-14, 2.0**12) if dtype == "float16" else (2.0**-40, 2.0**40)
    sizes = st.floats(least, most, width=32)
    return st.one_of(st.just(0.0), sizes, sizes.map(lambda x: -x))


@functools.lru_cache
def settle(gradient_dtype: str, remainder_dtype: str) -> Any:
    """Returns a compiled step, in which parameters may be fused with the remainder."""
    optimizer = master_weights(TOLD, remainder_dtype=remainder_dtype)

    def step(param: Any, remainder: Any, u: Any) -> Any:
        state = optimizer.init(param)._replace(remainder=remainder)
        gradient = jnp.zeros_like(param, gradient_dtype)
        updates, state = optimizer.update(gradient, state, param, step=u)
        return optax.apply_updates(param, updates), state.remainder, updates

    return jax.jit(step)


SIZE = 8
# The dtypes of parameters, gradients and remainders.
TRIPLES = [(name, name, "float32") for name in ("bfloat16", "float16", "float32")]
TRIPLES += [("bfloat16", "float32", "float32"), ("float32", "bfloat16", "float32")]
TRIPLES += [("bfloat16", "bfloat16", "bfloat16")]


@pytest.mark.parametrize("triple", TRIPLES, ids=" ".join)
@hypothesis.given(data=st.data())
@hypothesis.settings(max_examples=40)
def test_nothing_is_lost(triple: tuple[str, str, str], data: st.DataObject) -> None:
    dtype, gradient_dtype, remainder_dtype = triple
    floating, kept = DTYPES[dtype], DTYPES[remainder_dtype]
    drawn = data.draw(hnp.arrays(np.float32, SIZE, elements=moderate(dtype)))
    param = drawn.astype(floating)
    # Remainders are at most half a unit in the last place.
    unit = np.abs(np.float32(param)) * np.float32(jnp.finfo(dtype).eps) / 2
    shares = data.draw(
        hnp.arrays(np.float32, SIZE, elements=st.floats(-1, 1, width=32))
    )
    r = (unit * shares).astype(kept)
    relative = st.sampled_from([0.0, 1e-7, 1e-5, 3e-3, 0.1, -1e-5, -0.02, -1.0])
    scales = data.draw(hnp.arrays(np.float32, SIZE, elements=relative))
    steps = data.draw(hnp.arrays(np.float32, SIZE, elements=moderate(dtype)))
    u = np.where(scales == 0, steps, np.float32(param) * scales).astype(np.float32)

    after, left, updates = map(np.asarray, settle(*triple[1:])(param, r, u))
    assert (after.dtype, left.dtype) == (floating, kept)
    assert updates.dtype == DTYPES[gradient_dtype]
    for i in range(SIZE):
        if u[i] == 0:
            assert (after[i], left[i], updates[i]) == (param[i], r[i], 0)
            continue
        # Exact, except that both terms are rounded to float32.
        owed = Fraction(float(np.float32(r[i]) + u[i]))
        whole = Fraction(float(param[i])) + owed
        expected = whole - Fraction(float(after[i]))
        assert np.float32(float(expected)).astype(kept) == left[i]
        # The update may have too few digits to reach the nearest number; the remainder
        # then holds the difference.
        nearest = float(np.float32(float(whole)).astype(floating))
        way = abs(nearest - float(param[i]))
        missed = abs(nearest - float(after[i]))
        assert missed <= way * float(jnp.finfo(gradient_dtype).eps)


STEPS, RATE = 300, 1e-5
KINDS = {
    "adamw": (optax.adamw(RATE, weight_decay=0.1), 1.0),
    "mofo": (mofo_jax.mofo(RATE, update_fraction=0.75, weight_decay=0.1), 0.75),
}


def scanned(optimizer: Any, params: Any, gradients: Any) -> Any:
    """Returns parameters and state after all gradients, as one program."""

    def step(carry: Any, gradient: Any) -> Any:
        updates, state = optimizer.update(gradient, carry[1], carry[0])
        return (optax.apply_updates(carry[0], updates), state), None

    start = params, optimizer.init(params)
    return jax.jit(lambda: jax.lax.scan(step, start, gradients)[0])()


@pytest.mark.parametrize("name", KINDS)
def test_small_steps_accumulate_that_plain_bfloat16_loses(name: str) -> None:
    inner, fraction = KINDS[name]
    rng = random_generator()
    params = jnp.asarray(rng.uniform(0.75, 0.99, size=24), "bfloat16")
    gradients = jnp.asarray(rng.normal(size=(STEPS, 24)) / 2 + 1, "bfloat16")
    settings = Settings(RATE, update_fraction=fraction, weight_decay=0.1)
    expected = trajectory(np.asarray(params), np.asarray(gradients), settings)[-1]
    moved = np.abs(expected - np.float64(params))
    assert moved.max() > 2e-3

    plain, _ = scanned(inner, params, gradients)
    assert_same_bits(plain, params)

    after, state = scanned(master_weights(inner), params, gradients)
    assert np.any(after != params)
    np.testing.assert_allclose(masters(after, state), expected, rtol=0, atol=2e-8)
    # The trained parameters are the rounded master weights.
    np.testing.assert_array_equal(
        after, masters(after, state).astype(np.float32).astype(after.dtype)
    )

    half = master_weights(inner, remainder_dtype="bfloat16")
    after, state = scanned(half, params, gradients)
    assert state.remainder.dtype == jnp.bfloat16
    # Each step errs by half a unit of the remainder, which is at most 2**-9.
    error = np.abs(masters(after, state) - expected)
    assert error.max() < STEPS * 2.0**-18


def test_unselected_coordinates_keep_their_remainder() -> None:
    rng = random_generator()
    params = jnp.asarray(rng.uniform(1, 1.9, size=40), "bfloat16")
    optimizer = master_weights(mofo_jax.mofo(1e-3, update_fraction=0.25))
    # Half a unit in the last place: adding anything to it may round.
    state = optimizer.init(params)._replace(remainder=jnp.full(40, 2.0**-8))
    update = jax.jit(optimizer.update)
    ever = np.zeros(40, bool)
    for gradient in gradients_like(params, 5):
        updates, new_state = update(gradient, state, params)
        mu = np.asarray(optax.tree.get(new_state, "mu"))
        selected = np.abs(mu) >= np.sort(np.abs(mu))[-10]
        assert selected.sum() == 10
        after = optax.apply_updates(params, updates)
        for new, old in ((after, params), (new_state.remainder, state.remainder)):
            assert_same_bits(new[~selected], old[~selected])
        change = masters(after, new_state) - masters(params, state)
        assert np.all(np.abs(change[selected]) > 1e-4)
        params, state, ever = after, new_state, ever | selected
    assert 10 < ever.sum() < 40


# A power of two, so that a fused multiply-add gives the same result.
EXACT = master_weights(optax.sgd(2.0**-10))


def test_every_kind_of_leaf_and_a_state_of_one_type() -> None:
    params, gradients = jax.tree.map(lambda x: x.astype("bfloat16"), float32_zoo(2))
    state = EXACT.init(params)
    assert types(state.remainder) == jax.tree.map(
        lambda p: (p.shape, jnp.dtype("float32")), params
    )
    after, updates, new_state = run(EXACT, params, gradients)
    assert types((after[-1], updates[-1])) == types((params, params))
    for now, before in zip(*map(jax.tree.leaves, (new_state, state)), strict=True):
        assert jax.typeof(now) == jax.typeof(before)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_the_same_compiled_or_not(dtype: str) -> None:
    params, gradients = few(3, dtype)
    eager = run(EXACT, params, gradients, jit=False)
    assert_same_bits(run(EXACT, params, gradients), eager)


def test_the_inner_transformation_sees_float32_and_the_master_weights() -> None:
    seen = []

    def update(updates: Any, state: Any, params: Any = None, **extra: Any) -> Any:
        seen.append((updates, params, extra))
        return jax.tree.map(lambda g: g * -1e-3, updates), state

    inner = optax.GradientTransformationExtraArgs(optax.init_empty_state, update)
    optimizer = master_weights(inner)
    params, gradients = few(3, "bfloat16")
    state = optimizer.init(params)
    for gradient in gradients:
        expected = masters(params, state)
        updates, state = optimizer.update(
            updates=gradient, state=state, params=params, loss=1.0
        )
        params = optax.apply_updates(params, updates)
        assert_same_bits(seen[-1][0], optax.tree.cast(gradient, jnp.float32))
        assert types(seen[-1][1]) == types(seen[-1][0])
        for actual, desired in zip(
            *map(jax.tree.leaves, (seen[-1][1], expected)), strict=True
        ):
            np.testing.assert_array_equal(actual, desired.astype(np.float32))
        assert seen[-1][2] == {"loss": 1.0}
    assert any(np.any(r) for r in jax.tree.leaves(state.remainder))


def test_second_moments_decay_where_those_in_bfloat16_do_not() -> None:
    params = jnp.ones(3, "bfloat16")
    gradients = jnp.concatenate([jnp.ones((1, 3)), jnp.zeros((200, 3))])
    gradients = gradients.astype("bfloat16")
    plain, ours = (
        optax.tree.get(scanned(optimizer, params, gradients)[1], "nu")
        for optimizer in (optax.adamw(1e-5), master_weights(optax.adamw(1e-5)))
    )
    np.testing.assert_array_equal(plain, jnp.asarray(1 - 0.999, "bfloat16"))
    np.testing.assert_allclose(ours, 0.001 * 0.999**200, rtol=1e-4)


def test_float64_parameters() -> None:
    with x64():
        params, u = jnp.array([1.0, -3.0]), jnp.full(2, 2.0**-60)
        optimizer = master_weights(TOLD)
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(params, state, params, step=u)
            params = optax.apply_updates(params, updates)
            assert (updates.dtype, state.remainder.dtype) == ("float64", "float32")
        np.testing.assert_array_equal(params, [1.0, -3.0])
        np.testing.assert_array_equal(state.remainder, 3 * 2.0**-60)


def test_complex_and_integer_parameters_are_left_to_the_inner_transformation() -> None:
    params = {"complex": jnp.array([1 + 2j]), "integer": jnp.array([3])}
    steps = {"complex": jnp.array([1e-9 - 1j]), "integer": jnp.array([2])}
    optimizer = master_weights(TOLD)
    state = optimizer.init(params)
    updates, new_state = optimizer.update(params, state, params, step=steps)
    assert_same_bits(updates, steps)
    assert_same_bits(new_state, state)


def test_a_nan_is_seen() -> None:
    params = jnp.ones(3, "bfloat16")
    gradient = jnp.array([jnp.nan, 0.0, 1.0], "bfloat16")
    after, _, state = run(EXACT, params, [gradient])
    np.testing.assert_array_equal(np.isnan(after[0]), [True, False, False])
    np.testing.assert_array_equal(np.isnan(state.remainder), [True, False, False])


@pytest.mark.parametrize(
    "dtype", ["int32", "complex64", "float99", "float8_e5m2", None], ids=str
)
def test_a_remainder_must_be_of_a_floating_point_dtype(dtype: Any) -> None:
    allowed = "a floating-point dtype of at least 16 bits"
    message = f"`remainder_dtype` must be {allowed}, got {dtype!r}"
    with pytest.raises(ValueError, match=message):
        master_weights(optax.sgd(1.0), remainder_dtype=dtype)


def test_what_is_wrapped_must_be_a_transformation_and_have_parameters() -> None:
    with pytest.raises(TypeError, match="`inner` must be an optax"):
        master_weights(3)
    with pytest.raises(ValueError, match="`params` must be given to `update`: `master"):
        EXACT.update(jnp.ones(2), EXACT.init(jnp.ones(2)))
