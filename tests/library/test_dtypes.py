"""Rounding to a narrow dtype without conversion, against NumPy's conversions."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mofo_jax import _dtypes
from tests.helpers import DTYPES, random_generator
from tests.library.awkward import numbers


@pytest.mark.parametrize("jit", [True, False], ids=["jit", "eager"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_numbers_are_rounded_as_numpy_rounds_them(dtype: str, jit: bool) -> None:
    rng = random_generator()
    kinds = numbers(DTYPES["float32"])
    # Other kinds have subnormal float32 numbers, which a platform may flush to zero,
    # and NaN with different bits.
    exact = [kinds[name](rng, (999,)) for name in ("normal", "infinite", "one outlier")]
    spread = rng.normal(size=9999) * 2.0 ** rng.integers(-26, 17, 9999)
    halves = rng.integers(0, 2 ** (jnp.finfo(dtype).nmant + 1), 9999) + 0.5
    ties = halves * 2.0 ** rng.integers(-24, 5, 9999)
    x = np.concatenate([*exact, spread, -spread, ties]).astype(np.float32)
    rounded = functools.partial(_dtypes.round_to, dtype=dtype)
    actual = (jax.jit(rounded) if jit else rounded)(jnp.asarray(x))
    with np.errstate(over="ignore"):
        expected = x.astype(DTYPES[dtype]).astype(np.float32)
    np.testing.assert_array_equal(actual, expected)
