"""The scores that have a name, and what the option `score` may be."""

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
    """Returns the function that a score stands for.

    Raises:
      ValueError: If it is neither a name nor a score.
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
    # The eps is far below weights, and lets those that are zero move first.
    return jnp.abs(widen(tensor.momentum)) / (jnp.abs(widen(tensor.param)) + 1e-8)


def _agreement(tensor: Tensor) -> jax.Array:
    product = jnp.real(widen(tensor.momentum) * jnp.conj(widen(tensor.gradient)))
    # A NaN stays one: it has to be seen.
    return jnp.where(product < 0, 0, product)


_NAMED: dict[str, Function] = {
    "momentum": _momentum,
    "gradient": _gradient,
    "adam_ratio": scores.adam_ratio().function,
    "random": scores.random().function,
    "update": _update,
    "relative_momentum": _relative_momentum,
    "agreement": _agreement,
}
