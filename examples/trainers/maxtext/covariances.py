"""The covariances of the inputs of a model in MaxText."""

from collections.abc import Iterable
from typing import Any

import jax
from flax import linen, nnx

import mofo_jax


def input_covariances(
    config: Any, model: Any, batches: Iterable[dict[str, jax.Array]]
) -> Any:
    """Returns the covariances for `mofo_jax.scale_by_inverse_covariance`.

    Args:
      config: MaxText's configuration. With `megablox`, the kernels of experts have no
        covariances.
      model: the base model, as from `maxtext.utils.model_creation_utils`.
      batches: batches of MaxText's data pipeline, of text that the model generated:
        `inputs`, `inputs_position` and `inputs_segmentation` of shape [rows, length].
        Padding is in segment 0.
    """
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def apply(params: Any, batch: Any) -> jax.Array:
        own: Any = nnx.merge(graph, params, rest, copy=True)
        return own(
            decoder_input_tokens=batch["inputs"],
            decoder_positions=batch["inputs_position"],
            decoder_segment_ids=batch["inputs_segmentation"],
            enable_dropout=False,
        )

    def weights(batch: Any) -> jax.Array:
        return batch["inputs_segmentation"] != 0

    rules = linen.logical_axis_rules(config.logical_axis_rules)
    with jax.set_mesh(model.mesh), rules:
        return mofo_jax.input_covariances(apply, params, batches, weights=weights)
