"""Checks of dtype arguments, and casts that widen or round arrays."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def floating_dtype(name: str, value: Any) -> np.dtype:
    """Returns the dtype that an argument specifies, canonicalized by JAX.

    Raises:
      ValueError: If the argument does not specify a real floating-point dtype of at
        least 16 bits.
    """
    dtype = _canonical(value)
    if not jnp.issubdtype(dtype, jnp.floating) or jnp.finfo(dtype).bits < 16:
        raise ValueError(
            f"`{name}` must be a floating-point dtype of at least 16 bits, got "
            f"{value!r}"
        )
    return dtype


def momentum_dtype(value: Any) -> np.dtype | None:
    """Returns the dtype that a `mu_dtype` specifies, or None for the parameters'.

    Raises:
      ValueError: If it specifies neither a floating-point nor a complex dtype.
    """
    dtype = None if value is None else _canonical(value)
    if dtype is not None and not jnp.issubdtype(dtype, jnp.inexact):
        raise ValueError(
            f"`mu_dtype` must be a floating-point or complex dtype, got {value!r}"
        )
    return dtype


def second_moment_dtype(value: Any) -> np.dtype:
    """Returns the dtype that a `nu_dtype` specifies, canonicalized by JAX.

    Raises:
      ValueError: If it specifies no real floating-point dtype of at least 16 bits, or
        float16, in which second moments below 6e-8 are zero.
    """
    dtype = floating_dtype("nu_dtype", value)
    if dtype == jnp.float16:
        raise ValueError(
            "`nu_dtype` must have the range of float32, such as bfloat16, got "
            f"{value!r}, in which second moments below 6e-8 are zero"
        )
    return dtype


def _canonical(value: Any) -> np.dtype:
    """Returns the dtype that a value specifies; bool if it specifies none."""
    try:
        # NumPy interprets None as float64.
        return jax.dtypes.canonicalize_dtype("bool" if value is None else value)
    except TypeError:
        return np.dtype(bool)


def is_floating(x: Any) -> bool:
    """Returns whether `x`, an array or abstract, has a real floating-point dtype."""
    return jnp.issubdtype(dtype_of(x), jnp.floating)


def dtype_of(x: Any) -> Any:
    """Returns the dtype of an array, a `ShapeDtypeStruct` or a number."""
    return x.dtype if hasattr(x, "dtype") else jnp.result_type(x)


def widen(x: jax.typing.ArrayLike) -> jax.Array:
    """Casts an array to float32, or keeps its dtype if that is wider or complex."""
    dtype = jnp.result_type(x)
    # JAX does not promote every dtype, such as those of 8 bits.
    keeps = jnp.issubdtype(dtype, jnp.inexact) and jnp.finfo(dtype).bits >= 32
    return jnp.asarray(x, dtype if keeps else jnp.float32)


def round_to(x: jax.Array, dtype: Any) -> jax.Array:
    """Rounds `x` to numbers that `dtype` can represent, and keeps its own dtype.

    A compiler may omit a conversion to a narrow dtype and back, and continue with the
    unrounded value: compiled for CPU by jax 0.10.2, the rounding error of a sum in
    bfloat16 came out as 4e-8 instead of 8e-3. It must not omit `reduce_precision`.
    """
    narrow, own = jnp.finfo(dtype), jnp.finfo(x.dtype)
    if narrow.nexp >= own.nexp and narrow.nmant >= own.nmant:
        return x
    rounded = lax.reduce_precision(
        x, min(narrow.nexp, own.nexp), min(narrow.nmant, own.nmant)
    )
    if narrow.nexp >= own.nexp:
        return rounded
    # `reduce_precision` flushes subnormal numbers to zero; float16's are below 6e-5.
    least = float(narrow.smallest_subnormal)
    subnormal = jnp.round(x / least) * least
    return jnp.where(jnp.abs(x) < float(narrow.smallest_normal), subnormal, rounded)
