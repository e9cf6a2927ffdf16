"""RMSNorm, with a scale of the parameter, or of 1 plus the parameter."""

from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import nnx


class MakeNorm(Protocol):
    """Makes a norm over the last axis."""

    def __call__(self, num_features: int) -> nnx.RMSNorm:
        """Returns a norm of vectors with the given number of features."""
        ...


class NormFromOne(nnx.RMSNorm):
    """RMSNorm that multiplies by 1 plus its parameter, as in Gemma.

    The parameter is stored as in the files, because subtracting 1 from the sum would
    not recover it exactly.
    """

    def __init__(self, num_features: int, **kinds: Any) -> None:
        super().__init__(
            num_features, scale_init=nnx.initializers.zeros_init(), **kinds
        )

    def __call__(self, x: jax.Array, mask: Any = None, **_: Any) -> jax.Array:
        """Returns `x` normalized, in the norm's dtype; computed in float32."""
        wide = x.astype(jnp.float32)
        square = jnp.mean(jnp.square(wide), axis=-1, keepdims=True)
        parameter: Any = self.scale
        scale = 1 + jnp.asarray(parameter[...], jnp.float32)
        scale = scale.reshape((1,) * (x.ndim - 1) + scale.shape)
        return (wide * jax.lax.rsqrt(square + self.epsilon) * scale).astype(self.dtype)


def norm_maker(*, from_one: bool, epsilon: float, **kinds: Any) -> MakeNorm:
    """Returns a function that makes a model's norms.

    Args:
      from_one: whether they multiply by 1 plus their parameter.
      epsilon: added to the mean square.
      kinds: other arguments of `nnx.RMSNorm`.
    """
    kind = NormFromOne if from_one else nnx.RMSNorm
    return lambda num_features: kind(num_features, epsilon=epsilon, **kinds)
