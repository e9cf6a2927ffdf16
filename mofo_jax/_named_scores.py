"""The scores that have names, and the type of the option `score`."""

from typing import Literal, get_args

import jax
import jax.numpy as jnp

from mofo_jax import scores
from mofo_jax._dtypes import widen
from mofo_jax._score_inputs import Function, Score, Tensor

Name = Literal[
    "momentum",
    "gradient",
    "adam_ratio",
    "random",
    "update",
    "relative_momentum",
    "agreement",
]
ScoreLike = Name | Score | Function


def resolve_score(score: ScoreLike) -> Function:
    """Returns the function for a value of the option `score`.

    Raises:
      ValueError: If the value is not a known name, a `Score` or a callable.
    """
    if isinstance(score, str) and score in _NAMED:
        return _NAMED[score]
    if isinstance(score, Score):
        return score.function
    if callable(score):
        return score
    names = ", ".join(map(repr, get_args(Name)))
    raise ValueError(f"`score` must be {names}, a Score or a callable, got {score!r}")


def _momentum(tensor: Tensor) -> jax.Array:
    return tensor.momentum


def _gradient(tensor: Tensor) -> jax.Array:
    return tensor.gradient


def _update(tensor: Tensor) -> jax.Array:
    return tensor.update


def _relative_momentum(tensor: Tensor) -> jax.Array:
    # The epsilon is far smaller than typical weights, and ranks weights of zero first.
    return jnp.abs(widen(tensor.momentum)) / (jnp.abs(widen(tensor.param)) + 1e-8)


def _agreement(tensor: Tensor) -> jax.Array:
    momentum, gradient = widen(tensor.momentum), widen(tensor.gradient)
    agreement = jnp.real(jnp.sign(momentum) * jnp.conj(jnp.sign(gradient)))
    # The root of the product has the same order, and neither under- nor overflows.
    root = jnp.sqrt(jnp.abs(momentum)) * jnp.sqrt(jnp.abs(gradient))
    # The comparison is false for NaN, which remains visible.
    return jnp.where(agreement < 0, 0, root * jnp.sqrt(jnp.abs(agreement)))


_NAMED: dict[str, Function] = {
    "momentum": _momentum,
    "gradient": _gradient,
    "adam_ratio": scores.adam_ratio().function,
    "random": scores.random().function,
    "update": _update,
    "relative_momentum": _relative_momentum,
    "agreement": _agreement,
}
