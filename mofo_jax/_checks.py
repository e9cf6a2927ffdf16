"""Argument checks, whose errors state the argument, its value and what is allowed.

A static number is one of Python or NumPy, whose value is known while JAX traces.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_static_number(value: Any) -> bool:
    """Returns whether `value` is a Python or NumPy number, not a JAX array."""
    if isinstance(value, np.ndarray):
        return value.ndim == 0 and value.dtype.kind in "iuf"
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, bool
    )


def is_scalar(value: Any) -> bool:
    """Returns whether `value` is a static number or a JAX array of shape ()."""
    is_array = isinstance(value, jax.Array) and value.ndim == 0
    return is_static_number(value) or is_array


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of the allowed strings."""
    if value not in allowed:
        words = " or ".join(repr(word) for word in allowed)
        raise ValueError(f"`{name}` must be {words}, got {value!r}")


def check_fraction(name: str, value: Any, path: str = "") -> None:
    """Raises ValueError if a static number is not in (0, 1]."""
    if is_static_number(value) and not 0 < value <= 1:
        place = f" for {path}" if path else ""
        raise ValueError(f"`{name}`{place} must be in (0, 1], got {value!r}")


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raises ValueError if a static number is not in [low, high)."""
    if is_static_number(value) and not low <= value < high:
        raise ValueError(f"`{name}` must be in [{low}, {high}), got {value!r}")


def check_transformation(what: str, value: Any) -> None:
    """Raises TypeError unless `value` is a gradient transformation.

    The message begins with `what`, such as "`inner` must be".
    """
    if not (hasattr(value, "init") and hasattr(value, "update")):
        raise TypeError(
            f"{what} an optax.GradientTransformation, got {type(value).__name__}"
        )


def as_inexact(x: jax.typing.ArrayLike) -> jax.Array:
    """Returns `x` as an array.

    Raises:
      TypeError: If its dtype is not floating-point or complex.
    """
    array = jnp.asarray(x)
    if not jnp.issubdtype(array.dtype, jnp.inexact):
        raise TypeError(
            f"`x` must be of a floating-point or complex dtype, got {array.dtype}"
        )
    return array
