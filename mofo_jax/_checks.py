"""Errors that name the argument, its value and what is allowed."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def is_static_number(value: Any) -> bool:
    """Returns whether `value` is a number that Python knows, not an array of JAX."""
    if isinstance(value, np.ndarray):
        return value.ndim == 0 and value.dtype.kind in "iuf"
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(
        value, bool
    )


def is_scalar(value: Any) -> bool:
    """Returns whether `value` is a number, known to Python or held by JAX."""
    is_array = isinstance(value, jax.Array) and value.ndim == 0
    return is_static_number(value) or is_array


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of the allowed words."""
    if value not in allowed:
        words = " or ".join(repr(word) for word in allowed)
        raise ValueError(f"`{name}` must be {words}, got {value!r}")


def check_fraction(name: str, value: Any, path: str = "") -> None:
    """Raises ValueError if a number known to Python is not in (0, 1]."""
    if is_static_number(value) and not 0 < value <= 1:
        place = f" for {path}" if path else ""
        raise ValueError(f"`{name}`{place} must be in (0, 1], got {value!r}")


def check_number(name: str, value: Any, low: float, high: float = math.inf) -> None:
    """Raises ValueError if a number known to Python is not in [low, high)."""
    if is_static_number(value) and not low <= value < high:
        raise ValueError(f"`{name}` must be in [{low}, {high}), got {value!r}")


def check_transformation(what: str, value: Any) -> None:
    """Raises TypeError, which begins with `what`, for what is no transformation."""
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
