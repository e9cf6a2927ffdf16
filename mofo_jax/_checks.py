"""Argument checks, whose errors state the argument, its value and what is allowed.

A static number is one of Python or NumPy, whose value is known while JAX traces.
"""

import math
from collections.abc import Callable
from typing import Any, TypeGuard

import jax
import jax.core
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
    """Returns whether `value` is a static number or a real JAX array of shape ()."""
    if isinstance(value, jax.Array):
        kinds = jnp.floating, jnp.integer
        return value.ndim == 0 and any(jnp.issubdtype(value.dtype, k) for k in kinds)
    return is_static_number(value)


def is_function(value: Any) -> TypeGuard[Callable[..., Any]]:
    """Returns whether `value` can be called and is no tree, such as a module."""
    return callable(value) and jax.tree_util.all_leaves([value])


def check_scalar(name: str, value: Any) -> None:
    """Raises TypeError unless `value` is a number or a JAX array of shape ()."""
    if not is_scalar(value):
        raise TypeError(f"`{name}` must be a number, got {value!r}")


def check_choice(name: str, value: Any, allowed: tuple[str, ...]) -> None:
    """Raises ValueError unless `value` is one of the allowed strings."""
    if value not in allowed:
        words = " or ".join(repr(word) for word in allowed)
        raise ValueError(f"`{name}` must be {words}, got {value!r}")


_INTERVALS: dict[str, Callable[[float], bool]] = {
    "(0, 1]": lambda x: 0 < x <= 1,
    "[0, 1)": lambda x: 0 <= x < 1,
    "[0, 1]": lambda x: 0 <= x <= 1,
    "(0, inf)": lambda x: 0 < x < math.inf,
    "[0, inf)": lambda x: 0 <= x < math.inf,
}


def check_number(name: str, value: Any, interval: str, path: str = "") -> None:
    """Raises an error unless `value` is a number in an interval, such as "(0, 1]".

    Raises:
      TypeError: If it is neither a number nor a JAX array of shape ().
      ValueError: If it is outside of the interval and not traced.
    """
    check_scalar(name, value)
    number = known(value)
    if is_static_number(number) and not _INTERVALS[interval](number):
        place = f" for {path}" if path else ""
        raise ValueError(f"`{name}`{place} must be in {interval}, got {number!r}")


def known(value: Any) -> Any:
    """Returns the number in a JAX array of this process unless it is traced."""
    concrete = isinstance(value, jax.Array) and not isinstance(value, jax.core.Tracer)
    if concrete and value.is_fully_addressable:
        return jax.device_get(value).item()
    return value


def check_schedule(name: str, value: Any, interval: str, path: str = "") -> None:
    """Raises an error as `check_number` does, unless `value` is a schedule."""
    if not callable(value):
        check_number(name, value, interval, path)


def check_adam(b1: Any, b2: Any, eps: Any, eps_root: Any) -> None:
    """Raises an error as `check_number` does, where Optax accepts any value."""
    for name, value in (("b1", b1), ("b2", b2)):
        check_number(name, value, "[0, 1)")
    for name, value in (("eps", eps), ("eps_root", eps_root)):
        check_number(name, value, "[0, inf)")


def is_integer(value: Any) -> bool:
    """Returns whether `value` is a Python or NumPy integer."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_integer(name: str, value: Any, bits: int) -> None:
    """Raises an error unless `value` is a signed integer of at most some bits."""
    if not is_integer(value):
        raise TypeError(f"`{name}` must be an integer, got {value!r}")
    if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
        raise ValueError(f"`{name}` must be an integer of {bits} bits, got {value}")


def is_exactly(value: Any, number: float) -> bool:
    """Returns whether `value` is static and equals a number."""
    return is_static_number(value) and value == number


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
