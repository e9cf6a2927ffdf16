"""Information about the base model for optimizers, from texts that it generates.

No other data is needed. Apart from the tokens of the chat template between two turns,
the texts are distributed like the model's predictions, as the Fisher information
requires.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

import mofo_jax
from examples.finetune.data.batches import Batch, loss_targets
from examples.finetune.model.attention import causal_mask
from examples.finetune.model.sharding import Place
from examples.finetune.training.step import summed_loss

# Number of texts in one forward pass.
ROWS = 8


def fisher(graph: nnx.GraphDef, params: Any, texts: Batch, place: Place) -> Any:
    """Estimates the diagonal Fisher information of a model.

    Args:
      graph: the model's structure.
      params: its parameters.
      texts: the base model's own texts, from `own_text.batch`.
      place: a function that puts a batch on the devices.

    Returns:
      A tree like `params`, float32: the mean over texts of the squared gradient of the
      log-likelihood, per token that carries loss.
    """

    def log_likelihood(params: Any, sample: dict[str, jax.Array]) -> jax.Array:
        batch = {name: row[None] for name, row in sample.items()}
        loss = summed_loss(nnx.merge(graph, params), batch)
        tokens = jnp.maximum(jnp.sum(loss_targets(batch)[1]), 1)
        # Divided by the root, so that its square is the mean over tokens.
        return -loss / jnp.sqrt(tokens)

    estimate = jax.jit(mofo_jax.baselines.fisher_information, static_argnums=0)
    return estimate(log_likelihood, params, place(texts))


def covariances(
    graph: nnx.GraphDef,
    params: Any,
    batches: Iterable[Batch],
    place: Place,
    frozen: Any = None,
) -> Any:
    """Estimates the uncentered covariances of the inputs of a model's kernels.

    Args:
      graph: the model's structure.
      params: the parameters whose inputs are measured.
      batches: texts, as batches for one forward pass each. Padding does not count.
      place: a function that puts a batch on the devices.
      frozen: the model's other parameters, if `params` are not all.

    Returns:
      The result of `mofo_jax.input_covariances`.
    """

    def apply(params: Any, batch: Mapping[str, jax.Array]) -> jax.Array:
        model = nnx.merge(graph, params, frozen or {})
        mask = causal_mask(batch["segments"])
        return model(batch["tokens"], batch["positions"], mask)

    def real(batch: Mapping[str, jax.Array]) -> jax.Array:
        return (batch["segments"] != 0).astype(jnp.float32)

    return mofo_jax.input_covariances(apply, params, map(place, batches), weights=real)
