"""The covariances of the inputs of a model in Kauldron."""

from collections.abc import Iterable
from typing import Any

import jax

import mofo_jax

PADDING = 0  # Gemma's padding token.


def input_covariances(model: Any, params: Any, batches: Iterable[jax.Array]) -> Any:
    """Returns the covariances for `mofo_jax.scale_by_inverse_covariance`.

    Args:
      model: the trainer's model, without LoRA factors.
      params: the parameters of the trainer's first state.
      batches: tokens `[rows, length]` of text that the model generated.
    """

    def apply(params: Any, tokens: jax.Array) -> jax.Array:
        return model.apply({"params": params}, tokens).logits

    def weights(tokens: jax.Array) -> jax.Array:
        return tokens != PADDING

    return mofo_jax.input_covariances(apply, params, batches, weights=weights)
