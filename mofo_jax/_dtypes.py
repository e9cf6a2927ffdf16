"""Dtypes that arguments name, and numbers widened or rounded to those of a dtype."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def floating_dtype(name: str, value: Any) -> np.dtype:
    """Returns the dtype that an argument names, as JAX would have it.

    Raises:
      ValueError: If it names none, or none of real floating-point numbers.
    """
    try:
        # NumPy takes None for float64.
        dtype = jax.dtypes.canonicalize_dtype("bool" if value is None else value)
    except TypeError:
        dtype = np.dtype(bool)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(f"`{name}` must be a floating-point dtype, got {value!r}")
    return dtype


def is_floating(x: Any) -> bool:
    """Returns whether `x` is of a real floating-point dtype, abstract as it may be."""
    return jnp.issubdtype(dtype_of(x), jnp.floating)


def dtype_of(x: Any) -> Any:
    """Returns the dtype of an array, of what stands for one, or of a number."""
    return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)


def widen(x: jax.typing.ArrayLike) -> jax.Array:
    """Returns an array in float32, or in its own dtype where that is wider."""
    return jnp.asarray(x, jnp.promote_types(jnp.result_type(x), jnp.float32))


def round_to(x: jax.Array, dtype: Any) -> jax.Array:
    """Returns `x` in its own dtype, rounded to the nearest numbers of another.

    A compiler may leave out a conversion to a narrow dtype and back, and calculate with
    what was never rounded: compiled for CPU by jax 0.10.2, the rounding error of a sum
    in bfloat16 came out as 4e-8 where it was 8e-3. It must not leave out this.
    """
    narrow, own = jnp.finfo(dtype), jnp.finfo(x.dtype)
    if narrow.nexp >= own.nexp and narrow.nmant >= own.nmant:
        return x
    rounded = lax.reduce_precision(
        x, min(narrow.nexp, own.nexp), min(narrow.nmant, own.nmant)
    )
    if narrow.nexp >= own.nexp:
        return rounded
    # It makes zeros of subnormal numbers, and in float16 those begin at 6e-5.
    least = float(narrow.smallest_subnormal)
    subnormal = jnp.round(x / least) * least
    return jnp.where(jnp.abs(x) < float(narrow.smallest_normal), subnormal, rounded)
