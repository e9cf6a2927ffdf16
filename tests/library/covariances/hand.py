"""Covariances computed in NumPy's float64, and the comparison with them."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import mofo_jax
from tests.helpers import random_generator


class Expected(NamedTuple):
    """The expected covariance of one parameter."""

    matrix: np.ndarray
    axes: tuple[int, ...] = (0,)
    batch_axes: tuple[int, ...] = ()


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Returns random numbers whose mean is not zero."""
    return random_generator(seed).normal(size=shape) + 0.3


def mean_outer(*inputs: Any, weights: Any = None) -> np.ndarray:
    """Returns the mean of ``x x^T`` over the rows of all inputs."""
    rows = np.concatenate(
        [np.asarray(x, np.float64).reshape(-1, x.shape[-1]) for x in inputs]
    )
    w = np.ones(len(rows)) if weights is None else np.ravel(weights)
    return (rows * w[:, None]).T @ rows / w.sum()


def weighted(move: Callable[[Any], Any], x: Any, weights: Any) -> tuple[Any, Any]:
    """Returns the covariance of a function of `x`, the input of `w`, and the report."""
    width = jax.eval_shape(move, jnp.float32(x)).shape[-1]
    return mofo_jax.input_covariances(
        lambda params, batch: move(batch[0]) @ params["w"],
        {"w": jnp.ones((width, 2))},
        [(jnp.float32(x), jnp.float32(weights))],
        weights=lambda batch: batch[1],
        return_report=True,
    )


def check(covariances: Any, expected: dict[str, Any], rtol: float = 1e-5) -> None:
    """Compares a dictionary of covariances with the expected ones."""
    assert covariances.keys() == expected.keys()
    for name, desired in expected.items():
        actual = covariances[name]
        if desired is None:
            assert actual is None, name
            continue
        assert isinstance(actual, mofo_jax.InputCovariance), name
        assert (actual.axes, actual.batch_axes) == desired[1:], name
        assert isinstance(actual.matrix, jax.Array)
        assert actual.matrix.shape == desired.matrix.shape, name
        scale = np.max(np.abs(desired.matrix))
        np.testing.assert_allclose(
            actual.matrix, desired.matrix, rtol=rtol, atol=rtol * scale, err_msg=name
        )
