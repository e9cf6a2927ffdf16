"""Arrays with difficult kinds of numbers, for any floating-point dtype."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.helpers import patterns


def numbers(dtype: np.dtype) -> dict[str, Any]:
    """Returns generators of arrays, by the name of the kind of number in them."""
    unsigned = np.dtype(f"uint{8 * dtype.itemsize}")
    bits = 8 * dtype.itemsize

    def cast(x: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.asarray(x).astype(dtype)

    def chosen(*values: float) -> Callable[[np.random.Generator, tuple], np.ndarray]:
        return lambda rng, shape: cast(rng.choice(np.array(values), size=shape))

    def any_bits(rng: np.random.Generator, shape: tuple) -> np.ndarray:
        raw = rng.integers(0, 2**bits - 1, shape, unsigned, endpoint=True)
        return np.asarray(raw, unsigned).view(dtype)

    def subnormal(rng: np.random.Generator, shape: tuple) -> np.ndarray:
        largest = int(patterns(np.asarray(np.finfo(np.float32).tiny).astype(dtype)))
        raw = rng.integers(0, max(largest, 4), shape, unsigned)
        return np.asarray(raw, unsigned).view(dtype)

    def outlier(rng: np.random.Generator, shape: tuple) -> np.ndarray:
        x = rng.normal(size=shape) * 1e-3
        return cast(np.where(rng.uniform(size=shape) < 0.02, 1e4, x))

    def neighbours(rng: np.random.Generator, shape: tuple) -> np.ndarray:
        one = int(patterns(cast(np.ones(()))))
        raw = one + rng.integers(0, 5, shape)
        return np.asarray(raw, unsigned).view(dtype)

    return {
        "normal": lambda rng, shape: cast(rng.normal(size=shape)),
        "heavy-tailed": lambda rng, shape: cast(rng.standard_cauchy(size=shape) ** 3),
        "small integers": lambda rng, shape: cast(rng.integers(-3, 4, size=shape)),
        "constant": chosen(-0.25),
        "two-valued": chosen(1.0, 2.0),
        "zeros": chosen(0.0, -0.0),
        "mostly zero": chosen(*([0.0, -0.0] * 5), 1.0, -2.0),
        "infinite": chosen(math.inf, -math.inf, 1.0, 0.0),
        "not a number": chosen(math.nan, math.inf, 1.0, -0.0),
        "any bits": any_bits,
        "subnormal": subnormal,
        "one outlier": outlier,
        "neighbours": neighbours,
        "every magnitude": lambda rng, shape: cast(
            2.0 ** rng.uniform(-150, 130, size=shape)
        ),
    }
