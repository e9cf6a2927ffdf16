"""`nu_dtype`, the dtype of the second moment, against NumPy."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import mofo_jax
from tests.helpers import (
    DTYPES,
    assert_same_bits,
    float32_zoo,
    gradients_like,
    random_generator,
    run,
    selected,
    types,
)

MAKERS: dict[str, Callable[..., optax.GradientTransformationExtraArgs]] = {
    "selected": functools.partial(mofo_jax.mofo, 1e-2, weight_decay=0.1),
    "all": functools.partial(mofo_jax.mofo, 1e-2, weight_decay=0.1, decay="all"),
    "scale": mofo_jax.scale_by_mofo,
}


@pytest.mark.parametrize("mu_dtype", [None, "float32"])
@pytest.mark.parametrize("name", MAKERS)
def test_the_state_keeps_its_dtypes(name: str, mu_dtype: Any) -> None:
    params, gradients = jax.tree.map(lambda x: x.astype("bfloat16"), float32_zoo(2))
    # Dense tensors keep the dtype too, even if all of them are dense.
    for option in ({"dense": mofo_jax.NORMS_AND_BIASES}, {"update_fraction": 1}):
        optimizer = MAKERS[name](nu_dtype="float32", mu_dtype=mu_dtype, **option)
        state = optimizer.init(params)
        assert types(optax.tree.get(state, "mu")) == types(
            optax.tree.cast(params, mu_dtype)
        )
        wide = types(optax.tree.cast(params, "float32"))
        assert types(optax.tree.get(state, "nu")) == wide
        updates, new_state = jax.eval_shape(
            optimizer.update, gradients[0], state, params
        )
        assert types(updates) == types(params)
        assert types(new_state) == types(state)


@pytest.mark.parametrize("name", MAKERS)
def test_the_default_dtype_given_explicitly_changes_nothing(name: str) -> None:
    params = jnp.ones((5, 8))
    gradients = gradients_like(params, 4)
    actual = run(MAKERS[name](nu_dtype="float32"), params, gradients)
    assert_same_bits(actual, run(MAKERS[name](), params, gradients))


def moments(gradients: Any, kept: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """Returns Adam's moments after the last step, the second one before it is rounded.

    All computations are in float32; only the moments between steps are rounded.
    """
    m, v, last = np.float32(0), np.float32(0), np.zeros(())
    for gradient in gradients:
        g = np.asarray(gradient, np.float32)
        m = np.float32(0.9) * m + np.float32(0.1) * g
        last = np.float32(0.999) * np.float32(v) + np.float32(0.001) * g**2
        v = last.astype(kept)
    return m, last


@pytest.mark.parametrize(
    ("dtype", "kept"), [("bfloat16", "float32"), ("float32", "bfloat16")]
)
def test_updates_use_the_moment_before_it_is_rounded(dtype: str, kept: str) -> None:
    param = jnp.ones((5, 8), dtype)
    gradients = gradients_like(param, 20)
    optimizer = mofo_jax.scale_by_mofo(
        mu_dtype="float32", nu_dtype=kept, update_fraction=0.5
    )
    _, updates, state = run(optimizer, param, gradients)
    m, v = moments(gradients, DTYPES[kept])
    np.testing.assert_allclose(
        np.float32(state.nu), v.astype(DTYPES[kept]).astype(np.float32), rtol=2e-6
    )
    direction = m / (1 - 0.9**20) / np.sqrt(v / (1 - 0.999**20))
    expected = np.where(selected(m, 0.5), direction, 0)
    # Half a unit in the last place of the update; rounding the moment errs by more.
    tolerance = 2.0**-8 if dtype == "bfloat16" else 1e-5
    np.testing.assert_allclose(np.float32(updates[-1]), expected, rtol=tolerance)


def test_a_second_moment_in_bfloat16_stalls_and_in_float32_does_not() -> None:
    ones, zeros = jnp.ones((1500, 2), "bfloat16"), jnp.zeros((500, 2), "bfloat16")

    @functools.partial(jax.jit, static_argnums=0)
    def second_moment(optimizer: Any, state: Any, gradients: Any) -> Any:
        def step(state: Any, gradient: Any) -> Any:
            return optimizer.update(gradient, state)[1], None

        return jax.lax.scan(step, state, gradients)[0]

    for dtype, risen, fallen in (
        ("float32", 1 - 0.999**1500, (1 - 0.999**1500) * 0.999**500),
        ("bfloat16", 0.5, 0.5),
    ):
        optimizer = mofo_jax.scale_by_mofo(nu_dtype=dtype, update_fraction=1)
        state = second_moment(optimizer, optimizer.init(ones[0]), ones)
        np.testing.assert_allclose(np.float32(state.nu), risen, rtol=1e-4)
        state = second_moment(optimizer, state, zeros)
        np.testing.assert_allclose(np.float32(state.nu), fallen, rtol=1e-4)


NARROW: dict[str, Callable[..., Any]] = {
    "mofo": functools.partial(mofo_jax.scale_by_mofo, nu_dtype="float32"),
    "natural gradient": functools.partial(
        mofo_jax.baselines.scale_by_natural_gradient, jnp.ones(50), damping=1.0
    ),
}


@pytest.mark.parametrize("b1", [0.9, 0.99])
@pytest.mark.parametrize("name", NARROW)
def test_a_momentum_in_bfloat16_is_only_rounded_for_the_state(
    name: str, b1: float
) -> None:
    gradients = 1 + random_generator(0).normal(size=(300, 50))
    gradients = jnp.asarray(gradients, "bfloat16")
    optimizer = NARROW[name](b1=b1)

    def step(state: Any, gradient: Any) -> Any:
        return optimizer.update(gradient, state)[1], None

    state, _ = jax.lax.scan(step, optimizer.init(gradients[0]), gradients)
    m = np.zeros(50, DTYPES["bfloat16"])
    for gradient in np.asarray(gradients, np.float32):
        m = np.float32(b1) * np.float32(m) + np.float32(1 - b1) * gradient
        m = m.astype(DTYPES["bfloat16"])
    np.testing.assert_allclose(np.float32(state.mu), np.float32(m), rtol=2.0**-7)


def test_it_can_be_injected() -> None:
    params = jnp.ones((5, 8), "bfloat16")
    gradients = gradients_like(params, 3)
    wide = {"mu_dtype": "float32", "nu_dtype": "float32"}
    injected = optax.inject_hyperparams(mofo_jax.mofo, hyperparam_dtype=jnp.float32)
    _, updates, state = run(injected(1e-2, **wide), params, gradients)
    _, desired, plain = run(mofo_jax.mofo(1e-2, **wide), params, gradients)
    assert types(state.inner_state) == types(plain)
    for actual, expected in zip(updates, desired, strict=True):
        # A difference of one unit in the last place.
        np.testing.assert_allclose(
            np.float32(actual), np.float32(expected), rtol=2.0**-7
        )


def test_init_only_maps() -> None:
    optimizer = mofo_jax.mofo(1e-2, nu_dtype="float32")
    abstract = {"w": jax.ShapeDtypeStruct((2, 3), jnp.bfloat16), "none": None}
    params = {"w": jnp.ones((2, 3), jnp.bfloat16), "none": None}
    state = optimizer.init(params)
    assert types(optimizer.init(abstract)) == types(state)
    moved = optax.tree.map_params(optimizer, lambda leaf: leaf + 1, state)
    for moment in ("mu", "nu"):
        np.testing.assert_array_equal(optax.tree.get(moved, moment)["w"], 1)


def test_the_second_moment_of_complex_gradients_is_real() -> None:
    params = jnp.array([3 + 4j, 1j])
    optimizer = mofo_jax.scale_by_mofo(nu_dtype="float32", update_fraction=1)
    _, updates, state = run(optimizer, params, [params])
    np.testing.assert_allclose(state.nu, [0.025, 0.001], rtol=1e-4)
    assert (state.nu.dtype, updates[0].dtype) == ("float32", "complex64")


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("dtype", ["int8", "complex64", "float99", "float8_e5m2"])
def test_it_must_be_a_floating_point_dtype(name: str, dtype: str) -> None:
    allowed = "a floating-point dtype of at least 16 bits"
    message = f"`nu_dtype` must be {allowed}, got {dtype!r}"
    with pytest.raises(ValueError, match=message):
        MAKERS[name](nu_dtype=dtype)
